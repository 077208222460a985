//! What a checkpoint survives.

use std::{fs, path::Path};

use super::*;
use crate::{
    collective::{CollectiveConfig, ProcessGroup, TcpGroup, testing::meet},
    sharding::RowSlice,
};

fn shard(rank: usize) -> ShardSpec {
    ShardSpec {
        table: 0,
        owner: Some(rank),
        rows: RowSlice {
            first: rank,
            stride: 2,
        },
        columns: 0..2,
    }
}

fn snapshot(step: u64, rank: usize) -> Snapshot {
    Snapshot {
        step,
        shards: vec![shard(rank)],
        tables: vec![Piece::vector("0.weights", &[step as f32, rank as f32])],
        ids: Vec::new(),
        dense: vec![Piece::vector("weights", &[step as f32])],
        state: serde_json::json!({"step": step}),
    }
}

fn checkpoints<G: ProcessGroup + 'static>(dir: &Path, group: G, digest: &str) -> Checkpoints<G> {
    let config = CheckpointConfig::default();
    Checkpoints::new(Folder::local(dir).unwrap(), config, digest.into(), group)
}

fn alone(dir: &Path) -> Checkpoints<TcpGroup> {
    checkpoints(dir, TcpGroup::alone(), "run")
}

fn latest(checkpoints: &Checkpoints<TcpGroup>) -> Result<Option<u64>, CheckpointError> {
    let found = checkpoints.latest(&mut TcpGroup::alone(), |_| true)?;
    Ok(found.map(|restored| {
        let step = restored.manifest.step;
        let dense = restored.dense.tensors();
        let weights = dense.tensor("weights").unwrap();
        assert_eq!(
            weights.data(),
            (step as f32).to_le_bytes(),
            "the step's own weights"
        );
        assert_eq!(restored.manifest.state["step"], step);
        step
    }))
}

/// Names of what lies in a folder.
fn folders(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort_unstable();
    names
}

#[test]
fn the_newest_is_found_and_old_ones_go_but_for_the_best() {
    let dir = tempfile::tempdir().unwrap();
    let mut checkpoints = alone(dir.path());
    assert_eq!(latest(&checkpoints).unwrap(), None);
    for step in [1, 2, 3, 40] {
        checkpoints.save(snapshot(step, 0), Some(1)).unwrap();
    }
    checkpoints.wait().unwrap();
    assert_eq!(latest(&checkpoints).unwrap(), Some(40));
    assert_eq!(folders(dir.path()), [1, 3, 40].map(name_of));
}

#[test]
fn a_file_that_was_cut_or_changed_is_passed_over() {
    for damage in [
        |path: &Path| fs::write(path, &fs::read(path).unwrap()[..20]).unwrap(),
        |path: &Path| {
            let mut bytes = fs::read(path).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            fs::write(path, bytes).unwrap();
        },
        |path: &Path| fs::remove_file(path).unwrap(),
    ] {
        for file in ["rank-0.safetensors", "dense.safetensors", "manifest.json"] {
            let dir = tempfile::tempdir().unwrap();
            let mut checkpoints = alone(dir.path());
            (1..=2).for_each(|step| checkpoints.save(snapshot(step, 0), None).unwrap());
            checkpoints.wait().unwrap();
            damage(&dir.path().join(name_of(2)).join(file));
            assert_eq!(latest(&checkpoints).unwrap(), Some(1), "{file}");
        }
    }
}

#[test]
fn when_all_are_damaged_that_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let mut checkpoints = alone(dir.path());
    checkpoints.save(snapshot(1, 0), None).unwrap();
    checkpoints.wait().unwrap();
    fs::write(dir.path().join(name_of(1)).join(DENSE_FILE), "x").unwrap();
    let error = latest(&checkpoints).unwrap_err();
    assert!(
        matches!(&error, CheckpointError::Damaged { key, .. } if key.ends_with("dense.safetensors")),
        "{error}"
    );
}

#[test]
fn what_a_crash_left_without_a_manifest_does_not_count() {
    let dir = tempfile::tempdir().unwrap();
    let mut checkpoints = alone(dir.path());
    checkpoints.save(snapshot(1, 0), None).unwrap();
    checkpoints.wait().unwrap();
    let torn = dir.path().join(name_of(2));
    fs::create_dir(&torn).unwrap();
    fs::write(torn.join("rank-0.safetensors"), "half").unwrap();
    fs::create_dir(dir.path().join(name_of(3))).unwrap();
    assert_eq!(latest(&checkpoints).unwrap(), Some(1));
    // The same step is written anew.
    checkpoints.save(snapshot(2, 0), None).unwrap();
    checkpoints.wait().unwrap();
    assert_eq!(latest(&checkpoints).unwrap(), Some(2));
    // What else was left is gone.
    assert_eq!(folders(dir.path()), [1, 2].map(name_of));
}

#[test]
fn what_no_checkpoint_of_any_step_will_finish_goes_with_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    // A file of an upload that was cut off, which the store does not list.
    let torn = dir.path().join(name_of(7));
    fs::create_dir(&torn).unwrap();
    fs::write(torn.join("rank-0.safetensors#1"), "half").unwrap();
    fs::write(dir.path().join("notes.txt"), "not ours").unwrap();
    let mut checkpoints = alone(dir.path());
    checkpoints.save(snapshot(4, 0), None).unwrap();
    checkpoints.wait().unwrap();
    assert_eq!(folders(dir.path()), ["notes.txt".to_owned(), name_of(4)]);
    checkpoints.folder().clear().unwrap();
    assert_eq!(folders(dir.path()), ["notes.txt"]);
}

#[test]
fn another_runs_checkpoint_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = alone(dir.path());
    first.save(snapshot(1, 0), None).unwrap();
    first.wait().unwrap();
    let other = checkpoints(dir.path(), TcpGroup::alone(), "other");
    assert!(matches!(
        latest(&other),
        Err(CheckpointError::OtherRun { .. })
    ));
}

#[test]
fn a_disk_that_refuses_is_told_and_the_checkpoint_before_stays() {
    let dir = tempfile::tempdir().unwrap();
    let mut checkpoints = alone(dir.path());
    checkpoints.save(snapshot(1, 0), None).unwrap();
    checkpoints.wait().unwrap();
    // A file stands where the folder should be: nobody, not even root, can write below it.
    fs::write(dir.path().join(name_of(2)), "in the way").unwrap();
    checkpoints.save(snapshot(2, 0), None).unwrap();
    let error = checkpoints.wait().unwrap_err();
    assert!(matches!(error, CheckpointError::Store { .. }), "{error}");
    assert_eq!(latest(&checkpoints).unwrap(), Some(1));
    checkpoints.save(snapshot(3, 0), None).unwrap();
    checkpoints.wait().unwrap();
    assert_eq!(latest(&checkpoints).unwrap(), Some(3));
}

#[test]
fn one_rank_that_cannot_write_keeps_all_from_committing() {
    let root = tempfile::tempdir().unwrap();
    let found = meet(2, &CollectiveConfig::default(), |met| {
        let group = TcpGroup::connect(&met, "checkpoints").unwrap();
        let mut other = TcpGroup::connect(&met, "dense").unwrap();
        let rank = group.rank();
        // What rank 1 wants to write at step 2 is in the way of itself.
        let dir = root.path().join("shared");
        let mut checkpoints = checkpoints(&dir, group, "run");
        checkpoints.save(snapshot(1, rank), None).unwrap();
        checkpoints.wait().unwrap();
        if rank == 1 {
            let way = dir.join(name_of(2)).join("rank-1.safetensors");
            fs::create_dir_all(way.join("in the way")).unwrap();
        }
        other.barrier().unwrap();
        checkpoints.save(snapshot(2, rank), None).unwrap();
        let error = checkpoints.wait().unwrap_err();
        let restored = checkpoints.latest(&mut other, |_| true).unwrap().unwrap();
        assert_eq!(restored.tables.len(), 2, "a file of each rank");
        (error.to_string(), restored.manifest.step)
    });
    assert!(found[0].0.contains("rank 1 failed"), "{}", found[0].0);
    assert!(found.iter().all(|(_, step)| *step == 1));
}

#[test]
fn only_files_that_are_needed_are_read() {
    let dir = tempfile::tempdir().unwrap();
    meet(2, &CollectiveConfig::default(), |met| {
        let group = TcpGroup::connect(&met, "checkpoints").unwrap();
        let rank = group.rank();
        let mut checkpoints = checkpoints(dir.path(), group, "run");
        checkpoints.save(snapshot(1, rank), None).unwrap();
        checkpoints.wait().unwrap();
    });
    let restored = alone(dir.path());
    let restored = restored.latest(&mut TcpGroup::alone(), |part| part.rows.first == 1);
    let restored = restored.unwrap().unwrap();
    assert_eq!(restored.tables.len(), 1);
    let tensors = restored.tables[0].tensors();
    let weights: Vec<f32> =
        bytemuck::pod_collect_to_vec(tensors.tensor("0.weights").unwrap().data());
    assert_eq!(weights, [1.0, 1.0]);
}
