//! Evaluations that are killed or interrupted go on to the same report.

use std::path::Path;

use crate::layers::source;
use crate::stop::{Job, ended, send};
use crate::support::{data, entries, model, run, text};

fn arguments(command: &[&str], dir: &Path) -> Vec<String> {
    let (gguf, reference, data) =
        (text(&source("tiny-llama.gguf")), text(&model("tiny-llama")), text(&data("text/evaluation.txt")));
    let out = text(&dir.join("q.json"));
    let mut args = command.to_vec();
    args.extend([&gguf, "--reference", &reference, "--data", &data, "-o", &out]);
    args.extend(["--ctx", "128", "--chunks", "24", "--threads", "1"]);
    args.into_iter().map(String::from).collect()
}

static EVALUATE: Job = Job::new("q.json", |dir| arguments(&["evaluate"], dir));
static QUALITY: Job = Job::new("q.json", |dir| arguments(&["analyze", "quality"], dir));

#[test]
fn killed_evaluations_go_on_to_the_same_report() {
    EVALUATE.assert_survives_kills(2);
    QUALITY.assert_survives_kills(1);
}

#[test]
fn an_interrupted_evaluation_says_how_to_go_on_and_does() {
    for (job, layers) in [(&EVALUATE, 8), (&QUALITY, 4)] {
        let (dir, outcome) = job.stopped(libc::SIGTERM, &[]);
        let dir = dir.path();
        outcome.failure(
            130,
            &["interrupted", &format!("of {layers} layers"), "q.json.checkpoint", "same command"],
        );
        assert_eq!(entries(dir), ["q.json.checkpoint"], "no more is left");
        let done = job.done(dir);
        assert!((1..layers).contains(&done));
        let outcome = job.run_with(dir, "1", "2", &["--resume"]).success();
        assert!(
            outcome.stderr.contains(&format!("{done} of {layers} layers are done")),
            "{}",
            outcome.stderr
        );
        assert_eq!(entries(dir), ["q.json"]);
        job.assert_same(dir);
    }
}

#[test]
fn another_evaluation_is_refused_with_what_differs() {
    let (dir, _) = EVALUATE.stopped(libc::SIGKILL, &[]);
    let dir = dir.path();
    let before = std::fs::read(EVALUATE.state(dir)).unwrap();
    let with = |old: &str, new: &str| EVALUATE.run_with(dir, old, new, &[]);
    with("128", "64").failure(7, &["ctx is 64, was 128", "q.json.checkpoint"]);
    with("24", "8").failure(7, &["tokens is", "was"]);
    let (evaluation, calibration) = (data("text/evaluation.txt"), data("text/calibration.txt"));
    with(&text(&evaluation), &text(&calibration)).failure(7, &["tokens is", "was"]);
    let (gguf, original) = (text(&source("tiny-llama.gguf")), text(&model("tiny-llama")));
    with(&original, &gguf)
        .failure(7, &["reference's weights is", "reference's format is \"gguf\", was \"hf\""]);
    with(&gguf, &original).failure(7, &["weights is", "format is \"hf\", was \"gguf\""]);
    EVALUATE.run(dir, &["--protocol", "llama.cpp"]).failure(7, &["protocol is \"llama.cpp\", was \"full\""]);
    EVALUATE.run(dir, &["--compute", "bf16"]).failure(7, &["compute is \"bf16\", was \"f32\""]);
    QUALITY.run(dir, &[]).failure(7, &["command is \"analyze quality\", was \"evaluate\""]);
    assert!(std::fs::read(EVALUATE.state(dir)).unwrap() == before, "the checkpoint is as it was");
    EVALUATE.run(dir, &["--no-checkpoints"]).success();
    EVALUATE.assert_same(dir);
}

#[test]
fn without_an_output_there_is_a_checkpoint_only_if_its_place_is_given() {
    let dir = tempfile::tempdir().unwrap();
    let (model, data) = (text(&model("tiny-llama")), text(&data("text/evaluation.txt")));
    let args = ["evaluate", &model, "--data", &data, "--ctx", "128", "--chunks", "24", "--threads", "1"];
    run(&[&args[..], &["--resume"]].concat()).failure(2, &["--resume", "--output"]);
    let place = dir.path().join("kept");
    let kept_in = text(&place);
    let kept = [&args[..], &["--checkpoint-dir", &kept_in, "--format", "json"]].concat();
    let mut command = crate::support::program();
    command.args(&kept).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    while !place.join("checkpoint.json").exists() {
        assert!(child.try_wait().unwrap().is_none(), "there never was a checkpoint");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    send(&child, libc::SIGINT);
    ended(child);
    let found = run(&[&kept[..], &["--resume"]].concat()).success();
    assert!(found.stderr.contains("of 4 layers are done"), "{}", found.stderr);
    assert_eq!(entries(dir.path()), [""; 0]);
    let whole = run(&[&args[..], &["--format", "json"]].concat()).success();
    assert_eq!(found.json()["perplexity"], whole.json()["perplexity"]);
}
