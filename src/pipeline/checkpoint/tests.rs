//! What checkpoints promise.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;
use tempfile::TempDir;

use super::{Checkpoint, Identity, STATE, Settings};
use crate::error::{Error, Kind, Result};
use crate::progress::Silent;

const STEPS: usize = 3;

fn settings(dir: &TempDir) -> Settings {
    let dir = dir.path();
    Settings { output: dir.join("out"), dir: Some(dir.join("out.checkpoint")), ..Settings::default() }
}

fn place(dir: &TempDir) -> PathBuf {
    settings(dir).dir.unwrap()
}

fn job() -> Identity {
    Identity::new("test").with("ctx", 512)
}

fn open(dir: &TempDir) -> Result<Checkpoint> {
    Ok(Checkpoint::open(&settings(dir), job(), STEPS, &Silent)?.unwrap())
}

fn put(checkpoint: &mut Checkpoint, name: &str, bytes: &[u8]) {
    checkpoint.put(name, bytes.len() as u64, |out| out.write_all(bytes)).unwrap();
}

fn get(checkpoint: &Checkpoint, name: &str) -> Result<Vec<u8>> {
    checkpoint.get(name, |input| {
        let mut bytes = Vec::new();
        input.read_to_end(&mut bytes).unwrap();
        Ok(bytes)
    })
}

/// A checkpoint of one step, whose process has ended.
fn one_step(dir: &TempDir) {
    let mut checkpoint = open(dir).unwrap();
    put(&mut checkpoint, &Checkpoint::name("sums", 0), b"one");
    checkpoint.commit(1, json!({"n": 7})).unwrap();
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[track_caller]
fn assert_unusable(found: Result<Checkpoint>, words: &[&str]) {
    let e = found.unwrap_err();
    assert_eq!(e.kind(), Kind::Checkpoint, "{e}");
    assert!(words.iter().all(|word| e.to_string().contains(word)), "{e}");
    assert!(e.suggestion().is_some());
}

#[test]
fn what_was_committed_is_there_again() {
    let dir = tempfile::tempdir().unwrap();
    one_step(&dir);
    let mut checkpoint = open(&dir).unwrap();
    assert_eq!((checkpoint.done(), checkpoint.note()), (1, &json!({"n": 7})));
    let (first, second) = (Checkpoint::name("sums", 0), Checkpoint::name("sums", 1));
    assert_eq!(get(&checkpoint, &first).unwrap(), b"one");
    put(&mut checkpoint, &second, b"two");
    checkpoint.forget(&first);
    checkpoint.commit(2, json!(null)).unwrap();
    drop(checkpoint);
    assert_eq!(names(&place(&dir)), [STATE, &second]);
    assert_eq!(open(&dir).unwrap().done(), 2);
}

#[test]
fn what_was_not_committed_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    one_step(&dir);
    let mut checkpoint = open(&dir).unwrap();
    put(&mut checkpoint, &Checkpoint::name("sums", 1), b"two");
    checkpoint.forget(&Checkpoint::name("sums", 0));
    drop(checkpoint);
    fs::write(place(&dir).join(".sums-00002.ckpt-part.abc123.tmp"), "").unwrap();
    let checkpoint = open(&dir).unwrap();
    assert_eq!(checkpoint.done(), 1);
    assert_eq!(names(&place(&dir)), [STATE, "sums-00000.ckpt-part"]);
}

#[test]
fn a_job_that_did_nothing_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut checkpoint = open(&dir).unwrap();
    put(&mut checkpoint, &Checkpoint::name("sums", 0), b"one");
    drop(checkpoint);
    assert_eq!(names(dir.path()), [""; 0]);
}

#[test]
fn no_checkpoint_is_kept_if_none_is_wanted() {
    let off = Settings::default();
    assert!(Checkpoint::open(&off, job(), STEPS, &Silent).unwrap().is_none());
}

#[test]
fn another_jobs_checkpoint_is_refused_with_what_differs() {
    let dir = tempfile::tempdir().unwrap();
    one_step(&dir);
    let other = Identity::new("test").with("ctx", 256).with("seed", 1);
    let found = Checkpoint::open(&settings(&dir), other, STEPS, &Silent).map(Option::unwrap);
    assert_unusable(found, &["ctx is 256, was 512", "seed is 1, was not set"]);
    assert_eq!(open(&dir).unwrap().done(), 1, "it is as it was");
}

#[test]
fn resuming_needs_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let must = Settings { resume: true, ..settings(&dir) };
    let found = Checkpoint::open(&must, job(), STEPS, &Silent).map(Option::unwrap);
    assert_unusable(found, &["no checkpoint"]);
    assert_eq!(names(dir.path()), [""; 0]);
    one_step(&dir);
    assert_eq!(Checkpoint::open(&must, job(), STEPS, &Silent).unwrap().unwrap().done(), 1);
}

#[test]
fn damage_is_found() {
    let part = "sums-00000.ckpt-part";
    type Damage<'a> = (&'a str, &'a dyn Fn(&Path), &'a str);
    let damages: [Damage<'_>; 7] = [
        ("no state", &|dir| fs::write(dir.join(STATE), "").unwrap(), STATE),
        ("no JSON", &|dir| fs::write(dir.join(STATE), "{").unwrap(), STATE),
        ("a missing file", &|dir| fs::remove_file(dir.join(part)).unwrap(), part),
        ("a short file", &|dir| fs::write(dir.join(part), "on").unwrap(), part),
        ("a name outside", &|dir| edit(dir, |text| text.replace(part, "../sums-00000.ckpt-part")), "../sums"),
        (
            "another version",
            &|dir| edit(dir, |text| text.replace("\"version\": 1", "\"version\": 2")),
            "version",
        ),
        ("too many steps", &|dir| edit(dir, |text| text.replace("\"done\": 1", "\"done\": 9")), "9 of 3"),
    ];
    for (what, damage, word) in damages {
        let dir = tempfile::tempdir().unwrap();
        one_step(&dir);
        damage(&place(&dir));
        let before = names(&place(&dir));
        assert_unusable(open(&dir), &[word]);
        assert_eq!(names(&place(&dir)), before, "{what}: nothing is removed");
    }
    let dir = tempfile::tempdir().unwrap();
    one_step(&dir);
    fs::write(place(&dir).join(part), "0ne").unwrap();
    let e = get(&open(&dir).unwrap(), part).unwrap_err();
    assert!(e.kind() == Kind::Checkpoint && e.to_string().contains(part), "{e}");
}

fn edit(dir: &Path, change: impl FnOnce(String) -> String) {
    let text = change(fs::read_to_string(dir.join(STATE)).unwrap());
    fs::write(dir.join(STATE), text).unwrap();
}

#[test]
fn two_runs_exclude_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(&dir).unwrap();
    let e = open(&dir).unwrap_err();
    assert!(e.kind() == Kind::Usage && e.to_string().contains("another run"), "{e}");
    drop(first);
    open(&dir).unwrap();
}

#[test]
fn removal_leaves_what_is_not_ours() {
    let dir = tempfile::tempdir().unwrap();
    one_step(&dir);
    let foreign = ["model-00001.bin", "sums-1.ckpt-part", "sums.ckpt-part", "x-00000.ckpt-part.bak"];
    foreign.iter().for_each(|name| fs::write(place(&dir).join(name), "").unwrap());
    open(&dir).unwrap().remove(&Silent);
    assert_eq!(names(&place(&dir)), foreign);
    foreign.iter().for_each(|name| fs::remove_file(place(&dir).join(name)).unwrap());
    one_step(&dir);
    open(&dir).unwrap().remove(&Silent);
    assert_eq!(names(dir.path()), [""; 0]);
}

#[test]
fn a_run_knows_the_output_of_one_that_was_killed_right_after() {
    let dir = tempfile::tempdir().unwrap();
    let (temporary, output) = (dir.path().join("temporary"), dir.path().join("out"));
    one_step(&dir);
    let mut checkpoint = open(&dir).unwrap();
    fs::write(&temporary, "result").unwrap();
    fs::write(&output, "result").unwrap();
    checkpoint.seal(&temporary, json!("report")).unwrap();
    drop(checkpoint);
    assert!(!settings(&dir).finished(), "another file");
    fs::rename(&temporary, &output).unwrap();
    assert!(settings(&dir).finished());
    // Killed while it removed the checkpoint.
    fs::remove_file(place(&dir).join("sums-00000.ckpt-part")).unwrap();
    let checkpoint = open(&dir).unwrap();
    assert!(checkpoint.has_made());
    assert_eq!(checkpoint.take_report::<String>(&Silent).unwrap(), "report");
    assert_eq!(names(dir.path()), ["out"]);
}

#[test]
fn an_empty_directory_that_a_finished_run_could_not_remove_goes() {
    let dir = tempfile::tempdir().unwrap();
    let refused = || Err(Error::new(Kind::Usage, "it exists"));
    let left = || {
        settings(&dir).check_output(refused).unwrap_err();
        place(&dir).exists()
    };
    fs::create_dir(place(&dir)).unwrap();
    settings(&dir).check_output(|| Ok(())).unwrap();
    assert!(place(&dir).exists(), "the run that may begin will use it");
    assert!(!left());
    let running = open(&dir).unwrap();
    assert!(left(), "another run has just begun");
    drop(running);
    one_step(&dir);
    assert!(left(), "a checkpoint");
    assert_eq!(open(&dir).unwrap().done(), 1);
}

#[test]
fn a_job_that_ends_early_says_how_to_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let ended = |kind: Kind| {
        let e = Error::new(kind, "something happened").hint("Do something.");
        open(&dir).unwrap().end_early(e, &Silent)
    };
    assert!(!ended(Kind::Interrupted).to_string().contains("layers"));
    one_step(&dir);
    let e = ended(Kind::Interrupted);
    assert_eq!(e.kind(), Kind::Interrupted);
    assert!(
        e.to_string().contains("1 of 3 layers") && e.suggestion().unwrap().contains("same command"),
        "{e}"
    );
    let e = ended(Kind::Resources);
    assert_eq!(e.to_string(), "something happened");
    let hint = e.suggestion().unwrap();
    assert!(hint.starts_with("Do something. 1 of 3 layers") && hint.contains("same command"), "{hint}");
    assert!(place(&dir).exists());
    assert_eq!(ended(Kind::Invalid).suggestion(), Some("Do something."));
    assert!(!place(&dir).exists(), "it would fail again");
}
