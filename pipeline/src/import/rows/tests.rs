use std::{cell::Cell, fs};

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Float32Type, Int64Type};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

const SCHEMA: &str = r#"
    train = ["train"]
    valid = ["valid"]
    test = ["test"]
    min_count = 2
    weight = "w"
    user = "u"
    dense = [
        { column = "n", transform = "log", missing = -1.0 },
        { column = "m", transform = "min_max" },
    ]
    sparse = [
        { column = "u", min_count = 1 },
        { column = "n", feature = "n_bucket", bucketize = { boundaries = [1.0, 10.0] }, min_count = 1 },
        { column = "tags", separator = "|" },
    ]
"#;

const TRAIN: &str = "label,u,n,m,tags,w\n\
    1,a,,2,x|y,1\n\
    0,b,1,4,x,1.5\n\
    0,a,-3,3,,1\n\
    1,\"c,d\",12,6,y|z|x,2\n";
const VALID: &str = "label,u,n,m,tags,w\n1,e,10,8,q|x,1\n";
const TEST: &str = "label,u,n,m,tags,w\n0,b,,1,,1\n0,a,2,3,z,1\n";

/// A folder with files, and a configuration that names them there.
fn folder(schema: &str, files: [&str; 3]) -> (TempDir, RowsConfig) {
    let dir = tempfile::tempdir().unwrap();
    let mut config: RowsConfig = toml::from_str(schema).unwrap();
    for (name, text) in ["train", "valid", "test"].iter().zip(files) {
        fs::write(dir.path().join(name), text).unwrap();
    }
    config.beside(&dir.path().join("schema.toml"));
    (dir, config)
}

/// One day's rows of an imported table.
struct Day(arrow::array::RecordBatch);

impl Day {
    fn of(table: &Path, day: i32, schema: &Schema) -> Self {
        let table = TrainingTable::of_schema(table, schema).unwrap();
        let rows = table.rows(day).unwrap();
        Self(arrow::compute::concat_batches(table.file_schema(), &rows).unwrap())
    }

    fn floats(&self, column: &str) -> Vec<f32> {
        let column = self.0.column_by_name(column).unwrap();
        column.as_primitive::<Float32Type>().values().to_vec()
    }

    fn ids(&self, column: &str) -> Vec<i64> {
        let column = self.0.column_by_name(column).unwrap();
        column.as_primitive::<Int64Type>().values().to_vec()
    }

    fn lists(&self, column: &str) -> Vec<Vec<i64>> {
        let column = self.0.column_by_name(column).unwrap();
        let lists = column.as_list::<i32>().iter().map(|list| {
            let list = list.unwrap();
            list.as_primitive::<Int64Type>().values().to_vec()
        });
        lists.collect()
    }
}

fn imported(config: &RowsConfig, format: Format, table: &Path) -> (ImportedRows, Schema) {
    let told = Cell::new(0);
    let done = import(config, format, table, &|rows| told.set(told.get() + rows)).unwrap();
    let [train, valid, test] = done.rows;
    assert_eq!(told.get(), 2 * train + valid + test);
    let columns = source::columns(config, format).unwrap();
    let mut fitted = Fitted::new(config, &columns).unwrap();
    let files = Files {
        config,
        format,
        columns: &columns,
    };
    for path in &config.train {
        files
            .each_row(path, |at, cells| fitted.take_in(at, cells))
            .unwrap();
    }
    fitted.finish();
    (done, schema(config, &fitted))
}

#[test]
fn rows_become_the_columns_that_their_schema_says() {
    let (dir, config) = folder(SCHEMA, [TRAIN, VALID, TEST]);
    let table = dir.path().join("table");
    let (done, schema) = imported(&config, Format::Csv, &table);
    assert_eq!((done.rows, done.clicks), ([4, 1, 2], 3));
    let ids = [("u", 4), ("n_bucket", 5), ("tags", 3)];
    assert_eq!(done.ids, ids.map(|(name, ids)| (name.to_owned(), ids)));
    assert_eq!(schema.sparse[2].cardinality, Some(3));

    let train = Day::of(&table, 0, &schema);
    assert_eq!(train.floats("click"), [1.0, 0.0, 0.0, 1.0]);
    assert_eq!(train.floats("weight"), [1.0, 1.5, 1.0, 2.0]);
    let log = [-1.0, 2f32.ln(), -4f32.ln(), 13f32.ln()];
    assert_eq!(train.floats("d_n"), log);
    assert_eq!(train.floats("d_m"), [0.0, 0.5, 0.25, 1.0]);
    assert_eq!(train.ids("s_u"), [1, 2, 1, 3]);
    // Nothing, [1, 10), below 1, and from 10 on.
    assert_eq!(train.ids("s_n_bucket"), [1, 2, 3, 4]);
    // `z` came once only.
    assert_eq!(
        train.lists("s_tags"),
        [vec![1, 2], vec![1], vec![], vec![2, 0, 1]]
    );
    assert_eq!(train.ids("event_time_us"), [0, 1, 2, 3]);
    let users = train.0.column_by_name("user_id").unwrap();
    assert_eq!(users.as_string::<i32>().value(3), "c,d");
    for auction in ["bid_micros", "price_micros", "served_pctr"] {
        assert_eq!(train.0[auction].null_count(), 4, "{auction}");
    }

    let valid = Day::of(&table, 1, &schema);
    assert_eq!(valid.ids("s_u"), [0]);
    assert_eq!(valid.ids("s_n_bucket"), [4]);
    assert_eq!(valid.floats("d_m"), [1.0], "drawn to the nearer end");
    let test = Day::of(&table, 2, &schema);
    assert_eq!(
        test.ids("event_time_us"),
        [2 * 86_400_000_000, 2 * 86_400_000_000 + 1]
    );
    assert_eq!(test.lists("s_tags"), [vec![], vec![0]]);

    let again = import(&config, Format::Csv, &table, &|_| ());
    assert!(matches!(again, Err(RowsError::Exists { .. })));
}

#[test]
fn libfm_and_libffm_give_the_same_rows_and_shared_vocabularies_the_same_ids() {
    let schema = r#"
        train = ["train"]
        columns = ["user", "item", "last", "price"]
        dense = [{ column = "price" }]
        sparse = [
            { column = "user" },
            { column = "item", vocabulary = "items" },
            { column = "last", vocabulary = "items" },
        ]
    "#;
    let libfm = "1 10:1 20:1 21:1 30:0.5\n-1 11:1 21:1 20:1 30:2\n\n";
    let libffm = "1 0:10:1 1:20:1 2:21:1 3:30:0.5\n0 3:30:2 1:21:1 0:11:1 2:20:1\n";
    for text in [libfm, libffm] {
        let (dir, config) = folder(schema, [text, "", ""]);
        let table = dir.path().join("table");
        let (done, schema) = imported(&config, Format::Libfm, &table);
        assert_eq!((done.rows, done.clicks), ([2, 0, 0], 1));
        let train = Day::of(&table, 0, &schema);
        assert_eq!(train.floats("d_price"), [0.5, 2.0]);
        assert_eq!(train.ids("s_user"), [1, 2]);
        assert_eq!(train.ids("s_item"), [1, 2]);
        assert_eq!(train.ids("s_last"), [2, 1]);
    }
    // What libffm leaves out is a value of its own for ids, and the missing number for numbers.
    let (dir, config) = folder(schema, ["1 0:10:1\n0 1:20:1 3:30:4\n", "", ""]);
    let table = dir.path().join("table");
    let (_, schema) = imported(&config, Format::Libfm, &table);
    let train = Day::of(&table, 0, &schema);
    assert_eq!(train.floats("d_price"), [0.0, 4.0]);
    assert_eq!(train.ids("s_user"), [1, 2]);
}

#[test]
fn entries_of_libfm_are_told_by_their_index_where_the_schema_says_ranges() {
    let schema = r#"
        train = ["train"]
        columns = ["user", "tags", "price"]
        first_index = [10, 20, 30]
        dense = [{ column = "price", missing = -1.0 }]
        sparse = [{ column = "user" }, { column = "tags", separator = " " }]
    "#;
    let text = "1 30:0.5 22:1 10:1 29:1\n0 11:1\n1 20:1 22:1 10:1\n";
    let (dir, config) = folder(schema, [text, "", ""]);
    let table = dir.path().join("table");
    let (_, schema) = imported(&config, Format::Libfm, &table);
    let train = Day::of(&table, 0, &schema);
    assert_eq!(train.ids("s_user"), [1, 2, 1]);
    assert_eq!(train.lists("s_tags"), [vec![1, 2], vec![], vec![3, 1]]);
    assert_eq!(train.floats("d_price"), [0.5, -1.0, -1.0]);
}

#[test]
fn what_is_wrong_is_named_with_file_line_and_column() {
    let refused = |schema: &str, train: &str, format: Format, what: &str| {
        let (dir, config) = folder(schema, [train, "", ""]);
        let table = dir.path().join("table");
        let error = import(&config, format, &table, &|_| ()).unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
        assert!(!table.join("part").exists());
    };
    let schema = r#"
        train = ["train"]
        dense = [{ column = "n" }]
        sparse = [{ column = "u" }]
    "#;
    let csv = |train: &str, what: &str| refused(schema, train, Format::Csv, what);
    csv("label,u,n\n1,a,2\n2,a,3\n", "train, line 3: `label` is `2`");
    csv("label,u,n\n1,a,many\n", "line 2: `n` is `many`");
    csv("label,u,n\n1,a,NaN\n", "line 2: `n` is `NaN`");
    csv("label,u,n\n1,a\n", "line 2: 2 columns, wanted 3");
    csv("label,u\n1,a\n", "no column `n`, but label, u");
    let libfm = |train: &str, what: &str| {
        let schema = format!("columns = [\"u\", \"n\"]\n{schema}");
        refused(&schema, train, Format::Libfm, what);
    };
    libfm("1 3:1 4:1 5:1\n", "line 1: 3 columns, wanted 2");
    libfm("1\n", "line 1: 0 columns, wanted 2");
    libfm("1 3:1 4\n", "line 1: `entry` is `4`");
    libfm("1 0:3:1 9:4:1\n", "line 1: `entry` is `9:4:1`");
    libfm("1 0:3:1 0:4:1\n", "one entry a column");
    let ranges = |train: &str, what: &str| {
        let schema = format!("columns = [\"u\", \"n\"]\nfirst_index = [3, 9]\n{schema}");
        refused(&schema, train, Format::Libfm, what);
    };
    ranges(
        "1 9:1 4:1 2:1\n",
        "line 1: `entry` is `2:1`, wanted an index from",
    );
    ranges(
        "1 9:1 4:1 3:1\n",
        "`entry` is `3:1`, wanted one entry a column",
    );
    ranges(
        "1 x:1\n",
        "`entry` is `x:1`, wanted an index that is a number",
    );
    // What goes wrong after rows were written leaves no table behind, and what was there stays.
    let (dir, config) = folder(SCHEMA, [TRAIN, VALID, "label,u,n,m,tags,w\n2,b,1,1,,1\n"]);
    for table in [dir.path().join("fresh"), dir.path().join("own")] {
        let own = table.join("note");
        if table.ends_with("own") {
            fs::create_dir(&table).unwrap();
            fs::write(&own, "mine").unwrap();
        }
        let error = import(&config, Format::Csv, &table, &|_| ()).unwrap_err();
        assert!(error.to_string().contains("test, line 2"), "{error}");
        assert_eq!(table.exists(), own.exists());
    }
    let config = |schema: &str, what: &str| refused(schema, "label\n", Format::Csv, what);
    config("sparse = [{ column = \"u\" }]", "`train`: no file");
    config("train = [\"train\"]", "`sparse`: no column");
    config(
        "train = [\"train\"]\ntest = [\"test\"]\nsparse = [{ column = \"u\" }]",
        "`test`: files",
    );
    let ranges = "train = [\"train\"]\nsparse = [{ column = \"u\" }]\ncolumns = [\"u\", \"n\"]\n";
    for (first, what) in [("[1]", "not as many"), ("[2, 2]", "do not rise")] {
        config(&format!("{ranges}first_index = {first}"), what);
    }
    let twice = "train = [\"train\"]\nsparse = [{ column = \"u\" }, { column = \"u\" }]";
    config(twice, "two features are `u`");
}

proptest! {
    #[test]
    fn any_text_is_rows_or_an_error(text in ".{0,200}", header in any::<bool>(), libfm in any::<bool>(), ranges in any::<bool>()) {
        let schema = "columns = [\"label\", \"u\", \"n\"]\ntrain = [\"train\"]\nsparse = [{ column = \"u\" }]\ndense = [{ column = \"n\" }]";
        let (_dir, mut config) = folder(schema, [&text, "", ""]);
        config.header = header;
        config.first_index = if ranges { vec![1, 5, 9] } else { Vec::new() };
        let format = if libfm { Format::Libfm } else { Format::Csv };
        if let Ok(columns) = source::columns(&config, format) {
            let files = Files { config: &config, format, columns: &columns };
            if let Ok(mut fitted) = Fitted::new(&config, &columns) {
                let _ = files.each_row(&config.train[0], |at, cells| fitted.take_in(at, cells));
            }
        }
    }
}
