//! Runs that are killed or interrupted leave a checkpoint, and the next run goes on from it to the very same bytes.

use crate::importance::arguments;
use crate::stop::Job;
use crate::support::{entries, model, run};

const CHECKPOINT: &str = "out.gguf.checkpoint";

static JOB: Job = Job::new("out.gguf", |dir| {
    arguments(&model("tiny-llama"), &dir.join("out.gguf"), &["--chunks", "16", "--process-output"])
});

#[test]
fn killed_runs_go_on_to_the_same_bytes() {
    JOB.assert_survives_kills(3);
}

#[test]
fn an_interrupted_run_says_how_to_go_on_and_does() {
    let (dir, outcome) = JOB.stopped(libc::SIGINT, &[]);
    outcome.failure(130, &["interrupted", "of 4 layers", CHECKPOINT, "same command"]);
    assert_eq!(entries(dir.path()), [CHECKPOINT]);
    let before = JOB.done(dir.path());
    assert!((1..4).contains(&before));

    // Other options are another job.
    let other =
        arguments(&model("tiny-llama"), &dir.path().join(JOB.output), &["--chunks", "15", "--ctx", "256"]);
    run(&other).failure(7, &["ctx is 256, was 512", "tokens is", CHECKPOINT]);
    assert_eq!(JOB.done(dir.path()), before, "the checkpoint is as it was");

    // What is not ours stays.
    let letter = JOB.checkpoint(dir.path()).join("letter.txt");
    std::fs::write(&letter, "Dear").unwrap();
    let outcome = JOB.run_with(dir.path(), "1", "2", &["--resume"]).success();
    assert!(outcome.stderr.contains(&format!("{before} of 4 layers are done")), "{}", outcome.stderr);
    assert_eq!(entries(dir.path()), [JOB.output, CHECKPOINT]);
    assert_eq!(entries(&JOB.checkpoint(dir.path())), ["letter.txt"]);
    JOB.assert_same(dir.path());
}

#[test]
fn a_damaged_checkpoint_is_refused() {
    let (dir, _) = JOB.stopped(libc::SIGKILL, &[]);
    let place = JOB.checkpoint(dir.path());
    let parts = entries(&place);
    let hidden = parts.iter().find(|name| name.starts_with("hidden")).expect("states are stored");
    let mut bytes = std::fs::read(place.join(hidden)).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(place.join(hidden), bytes).unwrap();
    JOB.run(dir.path(), &[]).failure(7, &[hidden, "not what was written", "Remove"]);
    // Without checkpoints it is of no interest.
    JOB.run(dir.path(), &["--no-checkpoints"]).success();
    JOB.assert_same(dir.path());
}
