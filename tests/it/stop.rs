//! Commands that are stopped in the middle, and what they leave.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tempfile::TempDir;

use crate::support::{Outcome, entries, program, run, sha256};

/// A command that writes `output` into a directory and keeps its checkpoint beside it.
pub(crate) struct Job {
    pub(crate) output: &'static str,
    command: fn(&Path) -> Vec<String>,
    undisturbed: OnceLock<(BTreeMap<String, String>, Duration)>,
}

impl Job {
    pub(crate) const fn new(output: &'static str, command: fn(&Path) -> Vec<String>) -> Job {
        Job { output, command, undisturbed: OnceLock::new() }
    }

    pub(crate) fn args(&self, dir: &Path, extra: &[&str]) -> Vec<String> {
        (self.command)(dir).into_iter().chain(extra.iter().map(|arg| (*arg).to_owned())).collect()
    }

    pub(crate) fn run(&self, dir: &Path, extra: &[&str]) -> Outcome {
        run(&self.args(dir, extra))
    }

    pub(crate) fn start(&self, dir: &Path, extra: &[&str]) -> Child {
        let mut command = program();
        command.args(self.args(dir, extra)).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("the program starts")
    }

    pub(crate) fn checkpoint(&self, dir: &Path) -> PathBuf {
        dir.join(format!("{}.checkpoint", self.output))
    }

    pub(crate) fn state(&self, dir: &Path) -> PathBuf {
        self.checkpoint(dir).join("checkpoint.json")
    }

    /// How many layers the checkpoint has.
    pub(crate) fn done(&self, dir: &Path) -> u64 {
        let Ok(bytes) = std::fs::read(self.state(dir)) else { return 0 };
        let state: serde_json::Value = serde_json::from_slice(&bytes).expect("a state is never half there");
        state["done"].as_u64().unwrap()
    }

    /// Waits until a layer is in the checkpoint.
    pub(crate) fn wait(&self, dir: &Path, child: &mut Child) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.state(dir).exists() {
            assert!(
                Instant::now() < deadline && child.try_wait().unwrap().is_none(),
                "there never was a checkpoint"
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// A run in a directory of its own that was stopped by `signal` when a layer was done.
    pub(crate) fn stopped(&self, signal: libc::c_int, extra: &[&str]) -> (TempDir, Outcome) {
        let dir = tempfile::tempdir().unwrap();
        let mut child = self.start(dir.path(), extra);
        self.wait(dir.path(), &mut child);
        send(&child, signal);
        let outcome = ended(child);
        (dir, outcome)
    }

    /// A quick run that was killed when some of its steps were done, and how many.
    pub(crate) fn caught(&self) -> (TempDir, u64) {
        for _ in 0..100 {
            let dir = tempfile::tempdir().unwrap();
            let mut child = self.start(dir.path(), &[]);
            while !self.state(dir.path()).exists() && child.try_wait().unwrap().is_none() {
                std::thread::sleep(Duration::from_micros(200));
            }
            child.kill().unwrap();
            child.wait().unwrap();
            let done = self.done(dir.path());
            if done > 0 && !dir.path().join(self.output).exists() {
                return (dir, done);
            }
        }
        panic!("no run could be caught in the middle");
    }

    /// The bytes of the output, of a directory those of each file.
    pub(crate) fn bytes(&self, dir: &Path) -> BTreeMap<String, String> {
        let output = dir.join(self.output);
        let hash = |path: PathBuf| sha256(&without_clock(&path, std::fs::read(&path).unwrap()));
        match output.is_dir() {
            true => {
                entries(&output).into_iter().map(|name| (name.clone(), hash(output.join(name)))).collect()
            }
            false => BTreeMap::from([(self.output.to_owned(), hash(output))]),
        }
    }

    /// What an undisturbed run makes, and how long it takes.
    pub(crate) fn undisturbed(&self) -> &(BTreeMap<String, String>, Duration) {
        self.undisturbed.get_or_init(|| {
            let dir = tempfile::tempdir().unwrap();
            let started = Instant::now();
            self.run(dir.path(), &[]).success();
            let took = started.elapsed();
            assert_eq!(entries(dir.path()), [self.output]);
            (self.bytes(dir.path()), took)
        })
    }

    /// Asserts that the output has the bytes of an undisturbed run.
    #[track_caller]
    pub(crate) fn assert_same(&self, dir: &Path) {
        assert!(self.bytes(dir) == self.undisturbed().0, "other bytes");
    }

    /// Runs the command with one argument changed.
    pub(crate) fn run_with(&self, dir: &Path, old: &str, new: &str, extra: &[&str]) -> Outcome {
        let args = self.args(dir, extra).into_iter();
        run(&args.map(|arg| if arg == old { new.to_owned() } else { arg }).collect::<Vec<_>>())
    }

    /// Whether a run has come to its end: the output is there, and no checkpoint says that it is not the user's yet.
    fn has_ended(&self, dir: &Path) -> bool {
        dir.join(self.output).exists() && !self.state(dir).exists()
    }

    /// Kills runs at random moments, up to five in a row, and lets the last one go on to its end: nothing but the bytes of
    /// an undisturbed run is left, and no layer that was done is lost.
    pub(crate) fn assert_survives_kills(&self, rounds: usize) {
        let (expected, took) = self.undisturbed();
        let mut random = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64 | 1;
        let mut next = |limit: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % limit.max(1)
        };
        for round in 0..rounds {
            let dir = tempfile::tempdir().unwrap();
            let (mut kills, mut layers) = (Vec::new(), 0);
            for _ in 0..=next(5) {
                let mut child = self.start(dir.path(), &[]);
                let delay = next(took.as_millis() as u64 + 50);
                std::thread::sleep(Duration::from_millis(delay));
                child.kill().unwrap();
                child.wait().unwrap();
                let ended = self.has_ended(dir.path());
                let done = self.done(dir.path());
                kills.push((delay, done));
                assert!(ended || done >= layers, "round {round}: layers were lost: {kills:?}");
                layers = done;
                if ended {
                    break;
                }
            }
            if !self.has_ended(dir.path()) {
                self.run(dir.path(), &[]).success();
            } else if self.checkpoint(dir.path()).exists() {
                // Killed between the last two steps of removing the checkpoint: the next run takes the second.
                self.run(dir.path(), &[]).failure(2, &["exists"]);
            }
            assert_eq!(entries(dir.path()), [self.output], "round {round}: {kills:?}");
            assert!(self.bytes(dir.path()) == *expected, "round {round}: {kills:?}");
        }
    }
}

/// A report without what differs from run to run.
fn without_clock(path: &Path, bytes: Vec<u8>) -> Vec<u8> {
    if path.extension().is_none_or(|e| e != "json") {
        return bytes;
    }
    let Ok(serde_json::Value::Object(mut report)) = serde_json::from_slice(&bytes) else { return bytes };
    for key in ["duration_seconds", "peak_memory_bytes"] {
        report.shift_remove(key);
    }
    serde_json::to_vec_pretty(&report).unwrap()
}

pub(crate) fn send(child: &Child, signal: libc::c_int) {
    let pid = libc::pid_t::try_from(child.id()).unwrap();
    // SAFETY: the process is our child and has not been waited for, so its id is still its own.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

/// What a program said, and how it ended; -1 for one that was killed.
pub(crate) fn ended(child: Child) -> Outcome {
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let code = output.status.code().unwrap_or(-1);
    Outcome { code, stdout: text(output.stdout), stderr: text(output.stderr) }
}
