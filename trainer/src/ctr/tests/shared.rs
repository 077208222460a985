//! Features that read one table.

use features::Schema;

use super::*;
use crate::{
    ctr::{TablesConfig, TablesError},
    sharding::{NoTable, PlanError},
};

/// Both sparse features read one table.
fn shared(mut config: CtrConfig) -> CtrConfig {
    config.tables.shared_by = [("both".into(), vec!["several".into(), "id".into()])].into();
    config
}

#[test]
fn a_shared_table_has_the_same_loss_curve_on_any_number_of_ranks_with_every_sharding() {
    let mut config = shared(config());
    config.tables.embedding_dim = 16;
    let (model, told) = fit(&config, 1);
    assert!(measured(&model, &rows(2000, 3)).auc.unwrap() > 0.97);
    let wanted = losses(&told);
    for kind in [
        ShardingKind::Replicated,
        ShardingKind::TableWise,
        ShardingKind::RowWise,
        ShardingKind::ColumnWise,
    ] {
        config.tables.planner.sharding_of = [("both".into(), kind)].into();
        for world_size in [2, 4] {
            assert_close(&losses(&fit(&config, world_size).1), &wanted, 2e-4);
        }
    }
    config.training.micro_batches = 3;
    assert_close(&losses(&fit(&config, 2).1), &wanted, 2e-4);
}

#[cfg(feature = "wgpu")]
#[test]
fn a_gpu_has_the_same_loss_curve_from_a_shared_table() {
    type B = Autodiff<crate::backend::Gpu<burn::backend::wgpu::WgpuRuntime>>;
    let mut config = shared(config());
    config.training.epochs = 1;
    let wanted = losses(&fit(&config, 1).1);
    let found = |config: &CtrConfig, world_size| losses(&fit_on::<B>(config, world_size).1);
    for gpu_cache_rows in [0, 20] {
        config.tables.gpu_cache_rows = gpu_cache_rows;
        assert_close(&found(&config, 1), &wanted, 2e-4);
    }
    for kind in [
        ShardingKind::Replicated,
        ShardingKind::TableWise,
        ShardingKind::RowWise,
    ] {
        config.tables.planner.sharding_of = [("both".into(), kind)].into();
        assert_close(&found(&config, 2), &wanted, 2e-4);
    }
}

#[test]
fn a_run_with_a_shared_table_goes_on_where_it_was_stopped() {
    for (reinitialise_each_epoch, base) in [
        (false, config()),
        (true, config()),
        (false, dynamic_of_both()),
    ] {
        let mut config = shared(base);
        config.checkpoint.every_steps = 7;
        config.tables.reinitialise_each_epoch = reinitialise_each_epoch;
        for world_size in [1, 2] {
            check_goes_on(&config, world_size);
        }
    }
}

/// [`dynamic`] for the one table.
fn dynamic_of_both() -> CtrConfig {
    let mut config = dynamic();
    config.tables.rows_of = [("both".into(), 2048)].into();
    let of_several = config.tables.dynamic.remove("several").unwrap();
    config.tables.dynamic = [("both".into(), of_several)].into();
    config
}

#[test]
fn a_shared_dynamic_table_has_one_vocabulary_on_any_number_of_ranks() {
    let config = shared(dynamic_of_both());
    let (model, told) = fit(&config, 1);
    let wanted = losses(&told);
    check_published(&model, &wanted);
    let usage = |told: &[Progress]| match told.last() {
        Some(Progress::Epoch { tables, .. }) => tables.clone(),
        _ => panic!("{told:?}"),
    };
    let tables = usage(&told);
    assert_eq!((tables.len(), &*tables[0].table), (1, "both"));
    // The ids of `id` are few and come often; those of `several` come once an epoch.
    assert!(tables[0].used >= 100, "{tables:?}");
    let apart: u64 = usage(&fit(&dynamic(), 1).1)
        .iter()
        .map(|table| table.counts.seen)
        .sum();
    assert_eq!(tables[0].counts.seen, apart);
    for world_size in 2..=3 {
        let (_, told) = fit(&config, world_size);
        assert_close(&losses(&told), &wanted, 2e-4);
        assert_eq!(usage(&told), tables);
    }
}

#[test]
fn a_published_model_reads_the_rows_that_were_shared() {
    for architecture in ["logistic_regression", "fm", "deep_fm", "two_tower"] {
        let mut config = shared(config());
        let value = serde_json::json!({"architecture": architecture});
        config.model = serde_json::from_value(value).unwrap();
        config.training.learning_rate = 0.01;
        config.tables.optimizer.learning_rate = 0.2;
        config.tables.dim_of = [("both".into(), 6)].into();
        let (model, told) = fit(&config, 1);
        let epochs = losses(&told).into_iter();
        let epochs = epochs.filter(|(step, _)| *step > 1_000_000);
        let best = epochs.map(|(_, loss)| loss).fold(f64::INFINITY, f64::min);
        let evaluation = measured(&model, &rows(500, 2));
        assert!(
            (evaluation.log_loss - best).abs() < 1e-5 && evaluation.auc.unwrap() > 0.9,
            "{architecture}: {evaluation:?} {best}"
        );
        let dir = tempfile::tempdir().unwrap();
        model.save(dir.path()).unwrap();
        let loaded = CtrModel::load(dir.path()).unwrap();
        assert_eq!(scores(&loaded), scores(&model), "{architecture}");
    }
}

/// Four features; the ids of the first two are known to be so many.
fn schema() -> Schema {
    serde_json::from_value(serde_json::json!({
        "digest": "d",
        "dense": [],
        "sparse": [
            {"name": "item", "multi": false, "cardinality": 50},
            {"name": "user", "multi": false},
            {"name": "last_item", "multi": false, "cardinality": 60},
            {"name": "items", "multi": true},
        ],
    }))
    .unwrap()
}

fn shared_by(tables: &[(&str, &[&str])]) -> TablesConfig {
    let tables = tables.iter().map(|(table, features)| {
        let features = features.iter().map(|it| (*it).to_owned());
        ((*table).to_owned(), features.collect())
    });
    TablesConfig {
        shared_by: tables.collect(),
        ..TablesConfig::default()
    }
}

#[test]
fn a_shared_table_is_as_large_as_its_largest_feature_wants() {
    let made = |config: &TablesConfig| {
        let tables = config.tables(&schema(), &network(0.0)).unwrap();
        let told = tables.into_iter().map(|table| {
            let features = table.features.join("+");
            (table.name, features, table.rows, table.dim)
        });
        told.collect::<Vec<_>>()
    };
    let table = |name: &str, features: &str, rows, dim| (name.into(), features.into(), rows, dim);
    let mut config = shared_by(&[("item", &["last_item", "item"])]);
    let wanted = [
        table("item", "item+last_item", 60, 16),
        table("user", "user", 65_536, 16),
        table("items", "items", 65_536, 16),
    ];
    assert_eq!(made(&config), wanted);
    config = shared_by(&[("all_items", &["last_item", "item", "items"])]);
    config.dim_of = [("all_items".into(), 4)].into();
    let wanted = |rows| {
        [
            table("all_items", "item+last_item+items", rows, 4),
            table("user", "user", 65_536, 16),
        ]
    };
    assert_eq!(made(&config), wanted(65_536));
    config.rows_of = [("all_items".into(), 1000)].into();
    assert_eq!(made(&config), wanted(1000));
}

#[test]
fn tables_that_cannot_be_shared_so_are_refused_by_key_and_name() {
    let error = |config: &TablesConfig| config.tables(&schema(), &network(0.0)).unwrap_err();
    let refused = |tables: &[(&str, &[&str])]| error(&shared_by(tables));
    let check = |found: &dyn std::fmt::Display, parts: &[&str]| {
        let found = found.to_string();
        assert!(parts.iter().all(|part| found.contains(part)), "{found}");
    };
    let unknown = refused(&[("t", &["item", "itm"])]);
    assert!(matches!(unknown, TablesError::UnknownFeature { .. }));
    check(&unknown, &["tables.shared_by.t", "`itm`", "item, user"]);
    let alone = refused(&[("t", &["item"])]);
    assert!(matches!(alone, TablesError::NotShared { count: 1, .. }));
    check(&alone, &["tables.shared_by.t", "at least two"]);
    for twice in [
        refused(&[("s", &["item", "user"]), ("t", &["items", "item"])]),
        refused(&[("t", &["item", "item"])]),
    ] {
        assert!(matches!(twice, TablesError::Twice { .. }));
        check(&twice, &["`item`", "for `t`", "name it once"]);
    }
    let taken = refused(&[("user", &["item", "last_item"])]);
    assert!(matches!(taken, TablesError::NameTaken { .. }));
    check(&taken, &["tables.shared_by.user", "choose another"]);

    let shared = shared_by(&[("t", &["item", "last_item"])]);
    let of = || [("item".to_owned(), 5)].into();
    let (mut rows_of, mut dim_of, mut dynamic) = (shared.clone(), shared.clone(), shared.clone());
    rows_of.rows_of = of();
    dim_of.dim_of = of();
    dynamic.dynamic = [("item".into(), DynamicConfig::default())].into();
    for (key, config) in [
        ("rows_of", rows_of),
        ("dim_of", dim_of),
        ("dynamic", dynamic),
    ] {
        let error = error(&config);
        let is_shared = matches!(error, TablesError::NoTable(NoTable::Shared { .. }));
        assert!(is_shared, "{error}");
        check(
            &error,
            &[&format!("tables.{key} names `item`"), "say it of `t`"],
        );
    }
    let mut small = shared;
    small.dynamic = [("t".into(), DynamicConfig::default())].into();
    check(&error(&small), &["dynamic table `t` has 60 rows"]);
}

#[test]
fn a_sharding_of_a_feature_that_shares_its_table_is_refused() {
    let mut config = shared(config());
    config.tables.planner.sharding_of = [("id".into(), ShardingKind::RowWise)].into();
    let ended = end_of::<Autodiff<Cpu>>(&config, 1);
    let refused = matches!(
        ended,
        Err(TrainError::Plan(PlanError::NoTable(NoTable::Shared { .. })))
    );
    assert!(refused, "{ended:?}");
}
