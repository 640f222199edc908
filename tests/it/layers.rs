//! GPTQ and AWQ that are killed, interrupted or short of memory: the finished layers are kept, and the bytes are the same.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::stop::{Job, ended, send};
use crate::support::{Outcome, data, entries, model, run, sha256, text};

fn arguments(command: &[&str], dir: &Path) -> Vec<String> {
    let (model, dir, data) = (text(&model("tiny-llama")), text(dir), text(&data("text/evaluation.txt")));
    let (name, rest) = command.split_first().unwrap();
    let mut args = vec![*name, &model];
    args.extend(rest);
    args.extend(["-o", &dir, "-n", "q", "--group-size", "32", "--threads", "1"]);
    args.extend(["--calibration-data", &data, "--calibration-samples", "12", "--seq-len", "64"]);
    args.into_iter().map(String::from).collect()
}

static GPTQ: Job = Job::new("q", |dir| arguments(&["quantize", "gptq", "-q", "4bit", "--desc-act"], dir));
static AWQ: Job = Job::new("q", |dir| arguments(&["quantize", "awq", "-q", "4bit"], dir));
static CONVERT: Job = Job::new("q", |dir| arguments(&["convert", "awq", "--solver", "gptq"], dir));
/// A conversion that writes tensor after tensor.
fn streamed(source: &Path, to: &[&str], dir: &Path) -> Vec<String> {
    let (source, dir) = (text(source), text(dir));
    let args = [&["convert", &source], to, &["-o", &dir, "-n", "q", "--threads", "1"]].concat();
    args.into_iter().map(String::from).collect()
}

/// Sources of conversions, made once for all tests in the build's own directory.
pub(crate) fn source(name: &str) -> PathBuf {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("layers");
        let (model, out, data) = (text(&model("tiny-llama")), text(&dir), text(&data("text/evaluation.txt")));
        for rest in [
            &["gguf", "-q", "Q8_0", "-n", "tiny-llama.gguf"][..],
            &["gptq", "-q", "4bit", "-n", "tiny-llama-gptq", "--asym", "--group-size", "32"],
        ] {
            let rows = ["--calibration-data", &data, "--calibration-samples", "2", "--seq-len", "32"];
            let rows = if rest[0] == "gguf" { &[][..] } else { &rows };
            run(&[&["quantize", &model], rest, &["-o", &out, "--force"], rows].concat()).success();
        }
        dir
    });
    made.join(name)
}

static TO_GGUF: Job =
    Job::new("q.gguf", |dir| streamed(&model("tiny-llama"), &["gguf", "-q", "Q4_K_M"], dir));
static TO_HF: Job = Job::new("q", |dir| streamed(&source("tiny-llama.gguf"), &["hf"], dir));
static CARRIED: Job = Job::new("q", |dir| streamed(&source("tiny-llama-gptq"), &["awq"], dir));

#[test]
fn killed_conversions_that_stream_go_on_to_the_same_bytes() {
    for job in [&TO_GGUF, &TO_HF, &CARRIED] {
        job.assert_survives_kills(4);
    }
}

#[test]
fn a_conversion_that_streams_takes_up_its_tensors() {
    for job in [&TO_GGUF, &TO_HF, &CARRIED] {
        let (dir, done) = job.caught();
        let outcome = job.run(dir.path(), &["--resume"]).success();
        assert!(outcome.stderr.contains(&format!("checkpoint: {done} of ")), "{}", outcome.stderr);
        assert_eq!(entries(dir.path()), [job.output]);
        job.assert_same(dir.path());
    }
}

#[test]
fn quantization_to_gguf_keeps_a_checkpoint_if_it_is_asked_to() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out, place) = (text(&model("tiny-llama")), text(dir.path()), text(&dir.path().join("kept")));
    let args = ["quantize", &model, "gguf", "-q", "Q2_K", "-o", &out, "-n", "q"];
    run(&[&args[..], &["--resume"]].concat()).failure(7, &["no checkpoint"]);
    run(&[&args[..], &["--checkpoint-dir", &place]].concat()).success();
    assert_eq!(entries(dir.path()), ["q.gguf"]);
    let kept = sha256(&std::fs::read(dir.path().join("q.gguf")).unwrap());
    run(&[&args[..], &["--force"]].concat()).success();
    assert_eq!(sha256(&std::fs::read(dir.path().join("q.gguf")).unwrap()), kept);
}

#[test]
fn killed_gptq_goes_on_to_the_same_bytes() {
    GPTQ.assert_survives_kills(2);
}

#[test]
fn killed_awq_goes_on_to_the_same_bytes() {
    AWQ.assert_survives_kills(2);
}

#[test]
fn a_killed_conversion_goes_on_to_the_same_bytes() {
    CONVERT.assert_survives_kills(1);
}

/// What a run says of the checkpoint that it has found.
fn goes_on(outcome: &Outcome, done: u64) -> bool {
    outcome.stderr.contains(&format!("{done} of 4 layers are done"))
}

#[test]
fn an_interrupted_run_says_how_to_go_on_and_does() {
    for job in [&GPTQ, &AWQ, &CONVERT] {
        let (dir, outcome) = job.stopped(libc::SIGTERM, &[]);
        let dir = dir.path();
        outcome.failure(130, &["interrupted", "of 4 layers", "q.checkpoint", "same command"]);
        assert_eq!(entries(dir), ["q.checkpoint"], "no more is left");
        let done = job.done(dir);
        assert!((1..4).contains(&done));
        // The number of threads is not part of the job.
        assert!(goes_on(&job.run_with(dir, "1", "2", &["--resume"]).success(), done));
        assert_eq!(entries(dir), ["q"]);
        job.assert_same(dir);
    }
}

#[test]
fn another_job_is_refused_with_what_differs() {
    let (dir, _) = GPTQ.stopped(libc::SIGKILL, &[]);
    let dir = dir.path();
    let left = entries(dir);
    assert!(left.len() == 2 && left[0].starts_with(".q.") && left[0].ends_with(".tmp"), "{left:?}");
    let before = std::fs::read(GPTQ.state(dir)).unwrap();
    let with = |old: &str, new: &str| GPTQ.run_with(dir, old, new, &[]);
    with("4bit", "3bit").failure(7, &["bits is 3, was 4", "q.checkpoint"]);
    with("32", "64").failure(7, &["group-size is 64, was 32"]);
    with("12", "8").failure(7, &["tokens is", "was"]);
    with(&text(&model("tiny-llama")), &text(&model("llama"))).failure(7, &["weights is", "config.json is"]);
    GPTQ.run(dir, &["--skip", "nothing"]).failure(7, &["skip is [\"nothing\"], was []"]);
    AWQ.run(dir, &[]).failure(7, &["command is \"quantize awq\", was \"quantize gptq\""]);
    assert!(std::fs::read(GPTQ.state(dir)).unwrap() == before, "the checkpoint is as it was");
    // What is not ours stays.
    std::fs::write(GPTQ.checkpoint(dir).join("letter.txt"), "Dear").unwrap();
    GPTQ.run(dir, &[]).success();
    assert_eq!(entries(dir), ["q", "q.checkpoint"]);
    assert_eq!(entries(&GPTQ.checkpoint(dir)), ["letter.txt"]);
    GPTQ.assert_same(dir);
}

#[test]
fn damaged_layers_are_refused() {
    let (dir, _) = AWQ.stopped(libc::SIGKILL, &[]);
    let place = AWQ.checkpoint(dir.path());
    for kind in ["hidden", "layer"] {
        let names = entries(&place);
        let name = names.iter().find(|name| name.starts_with(kind)).expect("there is such a file");
        let original = std::fs::read(place.join(name)).unwrap();
        let mut bytes = original.clone();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(place.join(name), bytes).unwrap();
        AWQ.run(dir.path(), &[]).failure(7, &[name, "not what was written", "Remove"]);
        std::fs::write(place.join(name), original).unwrap();
    }
    AWQ.run(dir.path(), &["--no-checkpoints"]).success();
}

#[test]
fn a_checkpoint_elsewhere_and_none_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let (out, elsewhere) = (dir.path().join("out"), text(&dir.path().join("elsewhere")));
    GPTQ.run(&out, &["--checkpoint-dir", &elsewhere, "--resume"]).failure(7, &["no checkpoint"]);
    let mut child = GPTQ.start(&out, &["--checkpoint-dir", &elsewhere]);
    while !Path::new(&elsewhere).join("checkpoint.json").exists() {
        assert!(child.try_wait().unwrap().is_none(), "there never was a checkpoint");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    send(&child, libc::SIGINT);
    ended(child).failure(130, &["elsewhere"]);
    assert!(entries(&out).is_empty());
    GPTQ.run(&out, &["--checkpoint-dir", &elsewhere, "--resume"]).success();
    assert_eq!((entries(&out), entries(dir.path())), (vec!["q".into()], vec!["out".into()]));
    let refused = GPTQ.run(&out, &["--no-checkpoints", "--resume"]);
    refused.failure(2, &["--resume", "cannot be used"]);
}

#[test]
fn two_runs_exclude_each_other() {
    for extra in [&[][..], &["--no-checkpoints"]] {
        let dir = tempfile::tempdir().unwrap();
        let mut child = GPTQ.start(dir.path(), extra);
        while !entries(dir.path()).iter().any(|name| name.starts_with(".q.")) {
            assert!(child.try_wait().unwrap().is_none(), "it never began to write");
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        GPTQ.run(dir.path(), extra).failure(2, &["another run is", "Wait until it has ended"]);
        ended(child).success();
        assert_eq!(entries(dir.path()), ["q"]);
        GPTQ.assert_same(dir.path());
    }
}

#[test]
fn hidden_states_on_the_disk_are_the_same() {
    for job in [&GPTQ, &AWQ] {
        for extra in [&["--offload"][..], &["--offload", "--no-checkpoints"]] {
            let dir = tempfile::tempdir().unwrap();
            job.run(dir.path(), extra).success();
            assert_eq!(entries(dir.path()), ["q"], "{extra:?}");
            job.assert_same(dir.path());
        }
        // Begun in memory, ended on the disk.
        let (dir, _) = job.stopped(libc::SIGKILL, &[]);
        job.run(dir.path(), &["--offload", "--resume"]).success();
        job.assert_same(dir.path());
    }
}
