//! System calls that fail, once each: a sample of what `scripts/fault-test.py` does with all of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::stop::Job;
use crate::support::{data, entries, model, outcome, program, text};

/// The library that makes calls fail; none where it cannot be made.
#[allow(clippy::print_stderr, reason = "a test that does nothing must say so")]
fn shim() -> Option<&'static Path> {
    static MADE: OnceLock<Option<PathBuf>> = OnceLock::new();
    let make = || {
        if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            return None;
        }
        let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fault-shim.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fault/shim.c");
        let status =
            Command::new("cc").args(["-O1", "-shared", "-fPIC", "-o"]).arg(&library).arg(source).status();
        status.is_ok_and(|status| status.success()).then_some(library)
    };
    let made = MADE.get_or_init(make).as_deref();
    if made.is_none() {
        eprintln!("the fault shim cannot be made here: failing system calls are not tested");
    }
    made
}

/// A call that a run has made, or that has failed.
#[derive(Clone, Debug)]
struct Call {
    number: usize,
    name: String,
    path: String,
    failed: bool,
}

/// How a run ended in which call `at` failed with `error`, and its calls. None fails if `at` is 0.
fn run(job: &Job, dir: &Path, shim: &Path, at: usize, error: i32) -> (crate::support::Outcome, Vec<Call>) {
    let logs = tempfile::tempdir().unwrap();
    let log = logs.path().join("log");
    let mut command = program();
    command.args(job.args(dir, &[])).env("LD_PRELOAD", shim).env("FAULT_LOG", &log);
    command.env("FAULT_UNDER", format!("{}:{}", text(dir), text(&data(""))));
    command.env("FAULT_AT", at.to_string()).env("FAULT_ERRNO", error.to_string());
    let outcome = outcome(command);
    let log = std::fs::read_to_string(log).unwrap();
    let call = |line: &str| {
        let mut fields = line.trim_start_matches('!').splitn(3, ' ');
        Call {
            number: fields.next().unwrap().parse().unwrap(),
            name: fields.next().unwrap().into(),
            path: fields.next().unwrap().into(),
            failed: line.starts_with('!'),
        }
    };
    (outcome, log.lines().map(call).collect())
}

/// What a call fails with in practice.
fn error_of(name: &str) -> i32 {
    match name {
        "create" | "mkdir" => libc::EROFS,
        "mmap" => libc::ENOMEM,
        "write" | "pwrite" | "fallocate" | "ftruncate" => libc::ENOSPC,
        _ => libc::EIO,
    }
}

/// Some of the calls: of each name the first, the middle and the last, and all renames.
fn sample(calls: &[Call]) -> Vec<Call> {
    let mut by_name: BTreeMap<&str, Vec<&Call>> = BTreeMap::new();
    calls.iter().for_each(|call| by_name.entry(&call.name).or_default().push(call));
    let mut chosen = Vec::new();
    for (name, calls) in by_name {
        let places = match name {
            "rename" => (0..calls.len()).collect(),
            _ => vec![0, calls.len() / 2, calls.len() - 1],
        };
        chosen.extend(places.into_iter().map(|place| calls[place].number));
    }
    chosen.sort_unstable();
    chosen.dedup();
    chosen.into_iter().map(|number| calls[number - 1].clone()).collect()
}

/// Lets some calls of a job fail. However it ends, there is no wrong output, and the next run makes the right one.
#[track_caller]
fn assert_harmless(job: &Job) {
    let Some(shim) = shim() else { return };
    let place = tempfile::tempdir().unwrap();
    let (counted, calls) = run(job, place.path(), shim, 0, 0);
    counted.success();
    for wanted in sample(&calls) {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path();
        let (ended, calls) = run(job, dir, shim, wanted.number, error_of(&wanted.name));
        let Some(failed) = calls.iter().find(|call| call.failed) else { continue };
        let why = format!("{failed:?}: {}{}", ended.stdout, ended.stderr);
        assert!(!ended.stderr.contains("panicked"), "{why}");
        let reads = ["open", "read", "pread", "getdents"].contains(&failed.name.as_str());
        let codes: &[i32] = match reads {
            true if failed.path.contains(".checkpoint") => &[0, 5, 7],
            true if Path::new(&failed.path).starts_with(dir) => &[0, 1, 5],
            true => &[0, 1, 3],
            false => &[0, 5],
        };
        assert!(codes.contains(&ended.code), "exit code {}: {why}", ended.code);
        let is_there = dir.join(job.output).exists();
        assert!(is_there || ended.code != 0, "{why}");
        if is_there {
            job.assert_same(dir);
        }
        let done = job.done(dir);
        let next = job.run(dir, &[]);
        match next.code {
            // It had its name when the flush of its directory failed.
            2 => assert!(is_there && next.stderr.contains("exists"), "{why}\n{}", next.stderr),
            code => assert_eq!(code, 0, "{why}\n{}", next.stderr),
        }
        if done > 0 && !is_there {
            assert!(next.stderr.contains(&format!("{done} of ")), "layers are lost: {why}\n{}", next.stderr);
        }
        job.assert_same(dir);
        let visible = entries(dir).into_iter().filter(|name| !name.starts_with('.'));
        assert_eq!(visible.collect::<Vec<_>>(), [job.output], "{why}");
    }
}

fn arguments(command: &[&str], dir: &Path) -> Vec<String> {
    let (model, dir, data) = (text(&model("llama")), text(dir), text(&data("text/evaluation.txt")));
    let (name, rest) = command.split_first().unwrap();
    let mut args = vec![*name, &model];
    args.extend(rest);
    args.extend(["-o", &dir, "-n", "q", "--threads", "1"]);
    if rest[0] != "gguf" {
        args.extend(["--group-size", "32", "--calibration-data", &data]);
        args.extend(["--calibration-samples", "2", "--seq-len", "32"]);
    }
    args.into_iter().map(String::from).collect()
}

static GGUF: Job = Job::new("q.gguf", |dir| arguments(&["quantize", "gguf", "-q", "Q4_K_M"], dir));
static GPTQ: Job = Job::new("q", |dir| arguments(&["quantize", "gptq", "-q", "4bit"], dir));
static EVALUATION: Job = Job::new("q.json", |dir| {
    let (model, data, out) =
        (text(&model("llama")), text(&data("text/evaluation.txt")), text(&dir.join("q.json")));
    let args = ["evaluate", &model, "--reference", &model, "--data", &data, "-o", &out];
    let args = args.into_iter().chain(["--ctx", "32", "--chunks", "2", "--threads", "1"]);
    args.map(String::from).collect()
});

#[test]
fn a_failing_call_never_harms_a_gguf_file() {
    assert_harmless(&GGUF);
}

#[test]
fn a_failing_call_never_harms_gptq_or_its_checkpoint() {
    assert_harmless(&GPTQ);
}

#[test]
fn a_failing_call_never_harms_an_evaluation() {
    assert_harmless(&EVALUATION);
}

/// The file has its name already when its directory cannot be flushed: what it speaks of must stay.
#[test]
fn a_commit_whose_directory_cannot_be_flushed_loses_nothing() {
    let Some(shim) = shim() else { return };
    let place = tempfile::tempdir().unwrap();
    let (counted, calls) = run(&GPTQ, place.path(), shim, 0, 0);
    counted.success();
    let is_commit = |call: &&Call| call.name == "rename" && call.path.ends_with("/checkpoint.json");
    let commit = calls.iter().find(is_commit).unwrap().number;
    let flush = calls[commit..].iter().find(|call| call.name == "fsync").unwrap().number;
    let place = tempfile::tempdir().unwrap();
    let (ended, _) = run(&GPTQ, place.path(), shim, flush, libc::EIO);
    ended.failure(5, &["cannot flush the directory", "1 of 2 layers are in"]);
    let next = GPTQ.run(place.path(), &["--resume"]).success();
    assert!(next.stderr.contains("1 of 2 layers are done"), "{}", next.stderr);
    GPTQ.assert_same(place.path());
}

/// Disks that fill up say how much they lack.
#[test]
fn a_full_disk_is_told_with_what_is_missing() {
    let Some(shim) = shim() else { return };
    let place = tempfile::tempdir().unwrap();
    let (counted, calls) = run(&GGUF, place.path(), shim, 0, 0);
    counted.success();
    let writes = calls.iter().filter(|call| call.name == "write" && call.path.ends_with(".tmp"));
    let middle = writes.map(|call| call.number).nth(3).unwrap();
    let place = tempfile::tempdir().unwrap();
    let (ended, _) = run(&GGUF, place.path(), shim, middle, libc::ENOSPC);
    ended.failure(5, &["No space left on device", "bytes are still to be written"]);
    assert_eq!(entries(place.path()), [""; 0]);
}
