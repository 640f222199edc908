//! What is on the disk when a name appears: the system calls of whole runs, in order.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::importance;
use crate::support::{data, entries, model, program, text};

#[derive(Debug, PartialEq)]
enum Call {
    Write(PathBuf),
    Sync(PathBuf),
    Rename(PathBuf, PathBuf),
}

/// A line of `strace -f -y`; none for one that says nothing of files, or that failed.
fn call(line: &str) -> Option<Call> {
    let (_, line) = line.split_once(' ')?;
    let (name, rest) = line.trim_start().split_once('(')?;
    if rest.contains(") = -1 ") || rest.trim_end().ends_with("= ?") {
        return None;
    }
    let of_descriptor = || {
        let (_, path) = rest.split_once('<')?;
        Some(PathBuf::from(path.split_once('>')?.0))
    };
    match name {
        "write" | "pwrite64" => of_descriptor().map(Call::Write),
        "fsync" | "fdatasync" => of_descriptor().map(Call::Sync),
        "rename" | "renameat" | "renameat2" | "link" | "linkat" => {
            let quoted: Vec<&str> = rest.split('"').collect();
            Some(Call::Rename(quoted.get(1)?.into(), quoted.get(3)?.into()))
        }
        _ => None,
    }
}

/// The calls of a command that succeeds; none if strace is not there.
#[allow(clippy::print_stderr, reason = "a test that does nothing must say so")]
fn calls(args: &[String]) -> Option<Vec<Call>> {
    if Command::new("strace").arg("-V").output().is_err() {
        eprintln!("strace is not installed: the order of system calls is not tested");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let ours = program();
    let mut strace = Command::new("strace");
    let traced = "trace=write,pwrite64,fsync,fdatasync,rename,renameat,renameat2,link,linkat";
    strace.args(["-f", "-y", "-s", "0", "-e", traced, "-o"]).arg(&log).arg(ours.get_program()).args(args);
    for (name, _) in ours.get_envs() {
        strace.env_remove(name);
    }
    let output = strace.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let log = std::fs::read_to_string(log).unwrap();
    Some(whole(&log).iter().filter_map(|line| call(line)).collect())
}

/// The lines of a log; a call that another thread's has come into the middle of stands where it has ended.
fn whole(log: &str) -> Vec<String> {
    let mut begun = BTreeMap::new();
    let mut lines = Vec::new();
    for line in log.lines() {
        let thread = line.split(' ').next().unwrap_or_default();
        if let Some(first) = line.strip_suffix(" <unfinished ...>") {
            begun.insert(thread, first);
        } else if let Some((_, rest)) = line.split_once(" resumed>") {
            lines.push(format!("{}{rest}", begun.remove(thread).unwrap_or_default()));
        } else {
            lines.push(line.to_owned());
        }
    }
    lines
}

/// Before a file or directory gets its name all that was written of it is flushed, and before anything else gets a name
/// that name is. Returns the names.
#[track_caller]
fn assert_flushed(calls: &[Call]) -> Vec<PathBuf> {
    // When each path was last written and flushed.
    let (mut written, mut synced) = (BTreeMap::<PathBuf, usize>::new(), BTreeMap::<PathBuf, usize>::new());
    let mut unflushed_name: Option<&Path> = None;
    let mut names = Vec::new();
    for (now, call) in calls.iter().enumerate() {
        match call {
            Call::Write(path) => drop(written.insert(path.clone(), now)),
            Call::Sync(path) => {
                synced.insert(path.clone(), now);
                if unflushed_name.is_some_and(|name| name.parent() == Some(path)) {
                    unflushed_name = None;
                }
            }
            Call::Rename(from, to) => {
                assert_eq!(unflushed_name, None, "a name that was not flushed before {to:?}");
                let mut last = None;
                for (path, when) in written.iter().filter(|(path, _)| path.starts_with(from)) {
                    let flushed = synced.get(path).copied();
                    assert!(flushed > Some(*when), "{path:?} was not flushed before it became {to:?}");
                    last = last.max(flushed);
                }
                assert!(last.is_some(), "nothing was written of {to:?}");
                let itself = synced.get(from).copied();
                assert!(itself >= last, "the directory {from:?} was not flushed after its files");
                unflushed_name = Some(to);
                names.push(to.clone());
                let moved = |paths: BTreeMap<PathBuf, usize>| -> BTreeMap<PathBuf, usize> {
                    let rename = |path: PathBuf| match path.strip_prefix(from) {
                        Ok(rest) if rest.as_os_str().is_empty() => to.clone(),
                        Ok(rest) => to.join(rest),
                        Err(_) => path,
                    };
                    paths.into_iter().map(|(path, when)| (rename(path), when)).collect()
                };
                (written, synced) = (moved(written), moved(synced));
            }
        }
    }
    assert_eq!(unflushed_name, None, "the last name was not flushed");
    names
}

/// The same, and the checkpoint is there before the output is.
#[track_caller]
fn assert_order(calls: &[Call], output: &Path) {
    let names = assert_flushed(calls);
    assert_eq!(names.last().map(PathBuf::as_path), Some(output), "the output comes last");
    let is_state = |name: &PathBuf| name.ends_with("checkpoint.json");
    assert!(names.iter().filter(|name| is_state(name)).count() >= 3, "{names:?}");
    assert!(is_state(&names[names.len() - 2]), "the checkpoint knows of the output before it appears");
}

fn arguments(command: &[&str], dir: &Path) -> Vec<String> {
    let (dir, data) = (text(dir), text(&data("text/evaluation.txt")));
    let mut args: Vec<String> = command.iter().map(|arg| (*arg).to_owned()).collect();
    args.extend(["-o", &dir, "-n", "q", "--threads", "1"].map(String::from));
    if command.iter().any(|arg| ["gptq", "awq"].contains(arg)) {
        let rows = ["--calibration-data", &data, "--calibration-samples", "4", "--seq-len", "32"];
        args.extend(rows.map(String::from));
        args.extend(["--group-size", "32"].map(String::from));
    }
    args
}

#[test]
fn nothing_gets_a_name_before_it_is_on_the_disk() {
    let model = text(&model("llama"));
    for (command, output) in [
        (&["quantize", &model, "gptq", "-q", "4bit"][..], "q"),
        (&["convert", &model, "awq"], "q"),
        (&["convert", &model, "gguf", "-q", "Q8_0"], "q.gguf"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let Some(calls) = calls(&arguments(command, dir.path())) else { return };
        assert_eq!(entries(dir.path()), [output]);
        assert_order(&calls, &dir.path().join(output));
    }
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out.gguf");
    let args =
        importance::arguments(&crate::support::model("llama"), &output, &["--ctx", "128", "--chunks", "2"]);
    let Some(found) = calls(&args) else { return };
    assert_order(&found, &output);
    let dir = tempfile::tempdir().unwrap();
    let (output, data) = (dir.path().join("q.json"), text(&data("text/evaluation.txt")));
    let out = text(&output);
    let args = ["evaluate", &model, "--data", &data, "--ctx", "32", "--chunks", "2", "-o", &out];
    let Some(found) = calls(&args.map(String::from)) else { return };
    assert_order(&found, &output);
}

#[test]
fn an_order_that_is_wrong_is_found() {
    let log = "1 write(5</a/.x.tmp>, \"\"..., 3) = 3\n1 fsync(5</a/.x.tmp>) = 0\n\
               1 rename(\"/a/.x.tmp\", \"/a/x\") = 0\n1 fsync(5</a>) = 0\n";
    let calls: Vec<Call> = log.lines().filter_map(call).collect();
    assert_eq!(calls.len(), 4);
    assert_eq!(calls[2], Call::Rename("/a/.x.tmp".into(), "/a/x".into()));
    assert_eq!(call("1 fsync(5</a>) = -1 EIO (Input/output error)"), None);
    assert_eq!(assert_flushed(&calls), [Path::new("/a/x")]);
    let mixed = "1 fsync(5</a> <unfinished ...>\n2 fsync(6</b>) = 0\n1 <... fsync resumed>) = 0";
    assert_eq!(whole(mixed), ["2 fsync(6</b>) = 0", "1 fsync(5</a>) = 0"]);
    for missing in [1, 3] {
        let lines = log.lines().enumerate().filter(|(i, _)| *i != missing);
        let calls: Vec<Call> = lines.filter_map(|(_, line)| call(line)).collect();
        let found = std::panic::catch_unwind(|| assert_flushed(&calls));
        assert!(found.is_err(), "without line {missing}");
    }
}
