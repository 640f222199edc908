//! Runs that are killed or interrupted leave a checkpoint, and the next run goes on from it to the very same bytes.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tempfile::TempDir;

use crate::importance::arguments;
use crate::support::{Outcome, entries, model, program, run};

const WORK: &[&str] = &["--chunks", "16", "--process-output"];
const OUTPUT: &str = "out.gguf";
const CHECKPOINT: &str = "out.gguf.checkpoint";

fn command(dir: &Path, extra: &[&str]) -> Vec<String> {
    arguments(&model("tiny-llama"), &dir.join(OUTPUT), &[WORK, extra].concat())
}

fn start(dir: &Path) -> Child {
    let mut command_line = program();
    command_line.args(command(dir, &[])).stdout(Stdio::piped()).stderr(Stdio::piped());
    command_line.spawn().expect("the program starts")
}

fn state(dir: &Path) -> PathBuf {
    dir.join(CHECKPOINT).join("checkpoint.json")
}

/// How many layers the checkpoint has.
fn done(dir: &Path) -> u64 {
    let Ok(bytes) = std::fs::read(state(dir)) else { return 0 };
    let state: serde_json::Value = serde_json::from_slice(&bytes).expect("a state is never half there");
    state["done"].as_u64().unwrap()
}

/// A run in a directory of its own that was stopped by `signal` when a layer was done.
fn stopped(signal: libc::c_int) -> (TempDir, Outcome) {
    let dir = tempfile::tempdir().unwrap();
    let mut child = start(dir.path());
    let deadline = Instant::now() + Duration::from_secs(60);
    while !state(dir.path()).exists() {
        assert!(
            Instant::now() < deadline && child.try_wait().unwrap().is_none(),
            "there never was a checkpoint"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
    let pid = libc::pid_t::try_from(child.id()).unwrap();
    // SAFETY: the process is our child and has not been waited for, so its id is still its own.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let code = output.status.code().unwrap_or(-1);
    (dir, Outcome { code, stdout: text(output.stdout), stderr: text(output.stderr) })
}

/// What an undisturbed run makes, and how long it takes.
fn undisturbed() -> (Vec<u8>, Duration) {
    let dir = tempfile::tempdir().unwrap();
    let started = Instant::now();
    run(&command(dir.path(), &[])).success();
    let took = started.elapsed();
    assert_eq!(entries(dir.path()), [OUTPUT]);
    (std::fs::read(dir.path().join(OUTPUT)).unwrap(), took)
}

#[test]
fn killed_runs_go_on_to_the_same_bytes() {
    let (expected, took) = undisturbed();
    let mut random = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64 | 1;
    let mut next = |limit: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % limit.max(1)
    };
    for round in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        let (mut kills, mut layers) = (Vec::new(), 0);
        for _ in 0..=next(5) {
            let mut child = start(dir.path());
            let delay = next(took.as_millis() as u64 + 50);
            std::thread::sleep(Duration::from_millis(delay));
            child.kill().unwrap();
            child.wait().unwrap();
            let ended = dir.path().join(OUTPUT).exists() && !state(dir.path()).exists();
            kills.push((delay, done(dir.path())));
            assert!(ended || done(dir.path()) >= layers, "round {round}: layers were lost: {kills:?}");
            layers = done(dir.path());
            if ended {
                break;
            }
        }
        if !dir.path().join(OUTPUT).exists() || state(dir.path()).exists() {
            run(&command(dir.path(), &[])).success();
        }
        assert_eq!(entries(dir.path()), [OUTPUT], "round {round}: {kills:?}");
        assert!(std::fs::read(dir.path().join(OUTPUT)).unwrap() == expected, "round {round}: {kills:?}");
    }
}

#[test]
fn an_interrupted_run_says_how_to_go_on_and_does() {
    let (dir, outcome) = stopped(libc::SIGINT);
    outcome.failure(130, &["interrupted", "of 4 layers", CHECKPOINT, "same command"]);
    assert_eq!(entries(dir.path()), [CHECKPOINT]);
    let before = done(dir.path());
    assert!((1..4).contains(&before));

    // Other options are another job.
    let other =
        arguments(&model("tiny-llama"), &dir.path().join(OUTPUT), &["--chunks", "15", "--ctx", "256"]);
    run(&other).failure(7, &["ctx is 256, was 512", "tokens is", CHECKPOINT]);
    assert_eq!(done(dir.path()), before, "the checkpoint is as it was");

    // What is not ours stays.
    let letter = dir.path().join(CHECKPOINT).join("letter.txt");
    std::fs::write(&letter, "Dear").unwrap();
    let outcome = run(&command(dir.path(), &["--resume", "--threads", "2"])).success();
    assert!(outcome.stderr.contains(&format!("{before} of 4 layers are done")), "{}", outcome.stderr);
    assert_eq!(entries(dir.path()), [OUTPUT, CHECKPOINT]);
    assert_eq!(entries(&dir.path().join(CHECKPOINT)), ["letter.txt"]);
    assert!(std::fs::read(dir.path().join(OUTPUT)).unwrap() == undisturbed().0);
}

#[test]
fn a_damaged_checkpoint_is_refused() {
    let (dir, _) = stopped(libc::SIGKILL);
    let place = dir.path().join(CHECKPOINT);
    let parts = entries(&place);
    let hidden = parts.iter().find(|name| name.starts_with("hidden")).expect("states are stored");
    let mut bytes = std::fs::read(place.join(hidden)).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(place.join(hidden), bytes).unwrap();
    run(&command(dir.path(), &[])).failure(7, &[hidden, "not what was written", "Remove"]);
    // Without checkpoints it is of no interest.
    run(&command(dir.path(), &["--no-checkpoints"])).success();
    assert!(std::fs::read(dir.path().join(OUTPUT)).unwrap() == undisturbed().0);
}
