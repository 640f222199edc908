//! Checkpoints of long jobs: a directory with files that are written once, and a small JSON file that says which of them
//! count. Replacing that file is the only commit point, so a job that is killed at any moment leaves the checkpoint of its
//! last finished step.
//!
//! A step is a decoder layer. What a job keeps of one are its results and the hidden states after it. Hidden states are
//! stored after every layer, not computed again: writing the states of a token takes `4 * hidden` bytes, computing a layer
//! for it more than `20 * hidden * hidden` operations; that is more time for any width above some hundred, on any machine
//! whose disk writes a byte in the time of a few hundred operations.
//!
//! Nothing in a checkpoint is executed, and every file's hash is checked before it is used.

mod identity;
mod lock;
mod part;
mod state;
pub mod stream;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::atomic::{AtomicFile, check_space, is_temporary, remove_abandoned, sync_parent};
use crate::error::{Error, Kind, Result};
use crate::progress::Progress;
pub use identity::{Identity, hash};
use lock::{lock, remove_idle};
use part::Hashed;
pub use part::PartFile;
use state::{Output, Record, STATE, State};

/// How names of our files end.
const PART: &str = ".ckpt-part";

/// Whether and where a job keeps a checkpoint.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// What the job is: commands never take up each other's checkpoints.
    pub command: String,
    /// The file or directory that the job makes.
    pub output: PathBuf,
    /// The directory; none if there is to be no checkpoint.
    pub dir: Option<PathBuf>,
    /// Whether there must be one to go on from.
    pub resume: bool,
}

impl Settings {
    /// The usual place: beside the output, `OUTPUT.checkpoint`.
    pub fn beside(output: &Path) -> PathBuf {
        let mut name = output.as_os_str().to_owned();
        name.push(".checkpoint");
        name.into()
    }

    /// Checks by `refuse` whether the output may be written. What a run that was killed at the very end has left is not in the
    /// way: not an output that its checkpoint knows, and an empty directory goes, if that is all that it could not remove.
    ///
    /// # Errors
    /// What `refuse` returns.
    pub fn check_output(&self, refuse: impl FnOnce() -> Result<()>) -> Result<()> {
        if self.finished() {
            return Ok(());
        }
        refuse().inspect_err(|_| {
            if let Some(dir) = &self.dir {
                remove_idle(dir);
            }
        })
    }

    /// Whether the checkpoint says that the output is this job's own and complete. It is if the job was killed after its
    /// output had appeared and before the checkpoint was gone.
    fn finished(&self) -> bool {
        let state = self.dir.as_deref().and_then(|dir| State::load(dir).ok().flatten());
        state.is_some_and(|state| state.is_of(&self.output))
    }
}

impl State {
    fn is_of(&self, output: &Path) -> bool {
        let found = fs::symlink_metadata(output).ok().map(|metadata| Output::of(&metadata));
        found.is_some() && self.output == found
    }
}

/// The checkpoint of a running job, which nobody else can use meanwhile.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    output: PathBuf,
    state: State,
    /// Written and not committed.
    pending: BTreeMap<String, Record>,
    /// To be removed with the next commit.
    forgotten: Vec<String>,
    steps: usize,
    /// Whether it was removed: a directory of its name may be another run's by now.
    removed: bool,
    /// The directory's lock; it goes with the process.
    _lock: File,
}

impl Checkpoint {
    /// Opens the checkpoint of a job of so many `steps`, or begins one. None if there is to be none.
    ///
    /// # Errors
    /// `Checkpoint` if there is one of another job, or a damaged one, or none where one is needed. `Usage` if another run
    /// uses it. `Resources` if the directory cannot be made.
    pub fn open(
        settings: &Settings,
        identity: Identity,
        steps: usize,
        progress: &dyn Progress,
    ) -> Result<Option<Checkpoint>> {
        let Some(dir) = &settings.dir else { return Ok(None) };
        let lock = lock(dir)?;
        // A directory that was made in vain goes again; one with anything in it cannot be removed like this.
        Self::take_up(dir, lock, settings, identity, steps, progress)
            .map(Some)
            .inspect_err(|_| drop(fs::remove_dir(dir)))
    }

    fn take_up(
        dir: &Path,
        lock: File,
        settings: &Settings,
        identity: Identity,
        steps: usize,
        progress: &dyn Progress,
    ) -> Result<Checkpoint> {
        let found = State::load(dir)?;
        let unusable = |why: String| Error::new(Kind::Checkpoint, why);
        if found.is_none() && settings.resume {
            return Err(unusable(format!("there is no checkpoint to go on from in {}", dir.display()))
                .hint("Leave out --resume to start from the beginning."));
        }
        let found_one = found.is_some();
        if !found_one {
            // The first commit is worth nothing in a directory that a power cut takes away.
            sync_parent(dir)?;
        }
        let state = found.unwrap_or_else(|| State::new(identity.clone()));
        let differences = identity.differences(&state.identity);
        if !differences.is_empty() {
            return Err(unusable(format!(
                "the checkpoint in {} is that of another job: {}",
                dir.display(),
                differences.join("; ")
            ))
            .hint("Give the options that it was made with, remove it, or choose another --checkpoint-dir."));
        }
        if state.done > steps {
            return Err(damaged(dir, &format!("{} of {steps} layers are done", state.done)));
        }
        for (name, record) in &state.files {
            match fs::metadata(dir.join(name)) {
                Ok(found) if found.len() == record.bytes => {}
                Ok(found) => return Err(damaged(dir, &format!("{name} has {} bytes", found.len()))),
                // The job was killed while it removed the checkpoint.
                Err(_) if state.output.is_some() => {}
                Err(e) => return Err(damaged(dir, &format!("{name}: {e}"))),
            }
        }
        if found_one {
            progress.info(&format!(
                "Going on from the checkpoint {}: {} of {steps} layers are done",
                dir.display(),
                state.done
            ));
        }
        let checkpoint = Checkpoint {
            dir: dir.to_owned(),
            output: settings.output.clone(),
            state,
            pending: BTreeMap::new(),
            forgotten: Vec::new(),
            steps,
            removed: false,
            _lock: lock,
        };
        checkpoint.sweep(&checkpoint.state.files);
        Ok(checkpoint)
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Steps that are done.
    pub fn done(&self) -> usize {
        self.state.done
    }

    /// What the job wanted to remember with the last commit; null before the first.
    pub fn note(&self) -> &Value {
        &self.state.note
    }

    /// The name of a file of one kind (lower-case letters) and step.
    pub fn name(kind: &str, step: usize) -> String {
        format!("{kind}-{step:05}{PART}")
    }

    /// Writes a file of `bytes` bytes, flushed to the disk. It counts from the next commit on.
    ///
    /// # Errors
    /// `Resources` if the disk is full.
    pub fn put(
        &mut self,
        name: &str,
        bytes: u64,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<()> {
        let mut part = self.begin(name, bytes)?;
        let mut out = BufWriter::with_capacity(1 << 20, &mut part);
        write(&mut out).and_then(|()| out.flush()).map_err(|e| elsewhere(unwritten(name, bytes, e)))?;
        drop(out);
        self.end(part)
    }

    /// Begins a file of `bytes` bytes, of which nothing is left unless it is ended.
    ///
    /// # Errors
    /// As [`Checkpoint::put`].
    pub fn begin(&self, name: &str, bytes: u64) -> Result<PartFile> {
        assert!(is_part(name), "{name} is no name of a checkpoint's file");
        let file = AtomicFile::create(&self.dir.join(name), bytes, true).map_err(elsewhere)?;
        Ok(PartFile { name: name.into(), out: Hashed::new(file) })
    }

    /// Flushes a file to the disk. It counts from the next commit on.
    ///
    /// # Errors
    /// As [`Checkpoint::put`].
    pub fn end(&mut self, part: PartFile) -> Result<()> {
        let PartFile { name, out } = part;
        let (record, file) = out.finish();
        file.sync()?;
        file.commit()?;
        self.pending.insert(name, record);
        Ok(())
    }

    /// Removes a file with the next commit.
    pub fn forget(&mut self, name: &str) {
        self.forgotten.push(name.into());
    }

    /// Makes `done` steps, all files that were put, and `note` last.
    pub fn commit(&mut self, done: usize, note: Value) -> Result<()> {
        let mut next = self.state.clone();
        next.files.append(&mut self.pending);
        let forgotten: Vec<String> =
            self.forgotten.drain(..).filter(|name| next.files.remove(name).is_some()).collect();
        (next.done, next.note) = (done, note);
        self.replace(next)?;
        for name in forgotten {
            // If it stays, the next run sweeps it.
            let _ = fs::remove_file(self.dir.join(name));
        }
        Ok(())
    }

    /// Reads a file, with its hash checked.
    ///
    /// # Errors
    /// `Checkpoint` if it is missing or damaged; else what `read` returns.
    pub fn get<T>(&self, name: &str, read: impl FnOnce(&mut dyn Read) -> Result<T>) -> Result<T> {
        let damaged = |why: String| damaged(&self.dir, &format!("{name} {why}"));
        let record = self.state.files.get(name).ok_or_else(|| damaged("is missing".into()))?;
        let file = File::open(self.dir.join(name)).map_err(|e| damaged(format!("cannot be read: {e}")))?;
        let mut input = Hashed::new(BufReader::with_capacity(1 << 20, file));
        let made = read(&mut input);
        let rest = io::copy(&mut input, &mut io::sink());
        if let Some(e) = input.failed.take().or(rest.err()) {
            return Err(damaged(format!("cannot be read: {e}")));
        }
        if input.finish().0 != *record {
            return Err(damaged("is not what was written".into()));
        }
        made
    }

    /// The whole of a file, with its hash checked.
    ///
    /// # Errors
    /// As [`Checkpoint::get`].
    pub fn read(&self, name: &str) -> Result<Vec<u8>> {
        self.get(name, |input| {
            let mut bytes = Vec::new();
            input
                .read_to_end(&mut bytes)
                .map_err(|e| damaged(&self.dir, &format!("{name} cannot be read: {e}")))?;
            Ok(bytes)
        })
    }

    /// The path of a file, after its hash was checked.
    ///
    /// # Errors
    /// As [`Checkpoint::get`].
    pub fn path(&self, name: &str) -> Result<PathBuf> {
        self.get(name, |_| Ok(()))?;
        Ok(self.dir.join(name))
    }

    /// The error for a file that is what was written and still cannot be used: it is damaged, unless memory is short.
    pub fn unusable(&self, name: &str, e: &Error) -> Error {
        match e.kind() {
            Kind::Resources => Error::new(Kind::Resources, format!("{name} of the checkpoint: {e}")),
            _ => damaged(&self.dir, &format!("{name}: {e}")),
        }
    }

    /// Notes that the file or directory at `temporary` is the job's result and about to be renamed to its place: should
    /// the job be killed right after, the next run knows it for its own, and has `note`.
    pub fn seal(&mut self, temporary: &Path, note: Value) -> Result<()> {
        let metadata = fs::symlink_metadata(temporary)
            .map_err(|e| Error::output(format!("cannot look at {}", temporary.display()), e))?;
        let mut next = self.state.clone();
        (next.output, next.note) = (Some(Output::of(&metadata)), note);
        self.replace(next)
    }

    /// Puts `next` in the place of the state. When that fails, the state is whatever is on the disk: the file may have its name
    /// although its directory could not be flushed, and what it speaks of must not be taken for left over.
    fn replace(&mut self, next: State) -> Result<()> {
        let done = next.commit(&self.dir);
        match (&done, State::load(&self.dir)) {
            (Ok(()), _) | (Err(_), Err(_)) => self.state = next,
            (Err(_), Ok(Some(found))) => self.state = found,
            (Err(_), Ok(None)) => {}
        }
        done
    }

    /// Whether the output that is there is this job's result.
    pub fn has_made(&self) -> bool {
        self.state.is_of(&self.output)
    }

    /// What the run that has made the output had to say of it. What is left of that run goes.
    ///
    /// # Errors
    /// `Checkpoint` if it is something else.
    pub fn take_report<R: DeserializeOwned>(self, progress: &dyn Progress) -> Result<R> {
        let report = serde_json::from_value(self.state.note.clone())
            .map_err(|e| damaged(&self.dir, &format!("its report cannot be read: {e}")))?;
        progress.info("The output is complete; the run that made it was killed right after");
        remove_abandoned(&self.output);
        self.remove(progress);
        Ok(report)
    }

    /// Removes the checkpoint; the job's result is in its place. Files that are not ours stay.
    pub fn remove(mut self, progress: &dyn Progress) {
        // Whoever is killed now leaves files that nothing names. Beside an output it is better known to the end whose it is.
        if self.state.output.is_none() {
            let _ = fs::remove_file(self.dir.join(STATE));
        }
        self.sweep(&BTreeMap::new());
        // Those that are known, should the directory not have been readable.
        for name in self.state.files.keys().map(String::as_str).chain([STATE]) {
            let _ = fs::remove_file(self.dir.join(name));
        }
        self.removed = true;
        match fs::remove_dir(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => progress.info(&format!(
                "{} holds files that are not the checkpoint's; they stay",
                self.dir.display()
            )),
            Err(e) => progress.warn(&format!("cannot remove {}: {e}", self.dir.display())),
            Ok(()) => {}
        }
    }

    /// Refuses to go on if the disk has no room for `bytes` more.
    ///
    /// # Errors
    /// `Resources`, saying how much is missing.
    pub fn check_space(&self, bytes: u64) -> Result<()> {
        check_space(&self.dir, bytes).map_err(elsewhere)
    }

    /// The job ends early: says how it is taken up again. The checkpoint goes if the job can never succeed, because its
    /// input is damaged or its result is not what was asked for.
    pub fn end_early(self, e: Error, progress: &dyn Progress) -> Error {
        let done = self.state.done;
        match e.kind() {
            Kind::Checkpoint => return e,
            Kind::Invalid | Kind::Quality => {
                self.remove(progress);
                return e;
            }
            _ if done == 0 => return e,
            _ => {}
        }
        let kept = format!("{done} of {} layers are in {}", self.steps, self.dir.display());
        let again = "the same command goes on from there";
        if e.kind() == Kind::Interrupted {
            return Error::new(Kind::Interrupted, format!("interrupted; {kept}"))
                .hint("Run the same command again to go on from there.");
        }
        let first = e.suggestion().map(|hint| format!("{hint} ")).unwrap_or_default();
        e.hint(format!("{first}{kept}; {again}."))
    }

    /// Removes our files that are not among `kept`: a run that was killed between two commits left them.
    fn sweep(&self, kept: &BTreeMap<String, Record>) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            let ours = is_part(name) && !kept.contains_key(name)
                || is_temporary(name).is_some_and(|target| is_part(target) || target == STATE);
            if ours && entry.file_type().is_ok_and(|kind| kind.is_file()) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// A job that ends before its first commit leaves nothing.
impl Drop for Checkpoint {
    fn drop(&mut self) {
        if !self.removed && self.state.done == 0 && self.state.files.is_empty() {
            self.sweep(&BTreeMap::new());
            let _ = fs::remove_dir(&self.dir);
        }
    }
}

/// A file of the checkpoint, of so many bytes, that cannot be written.
fn unwritten(name: &str, bytes: u64, e: io::Error) -> Error {
    Error::output(format!("cannot write {name} of the checkpoint"), e).missing(bytes)
}

/// Where else a checkpoint can go.
fn elsewhere(e: Error) -> Error {
    e.hint("Free some space, choose another disk with --checkpoint-dir, or do without: --no-checkpoints.")
}

fn damaged(dir: &Path, why: &str) -> Error {
    Error::new(Kind::Checkpoint, format!("the checkpoint in {} is damaged: {why}", dir.display()))
        .hint(format!("Remove {} to start from the beginning.", dir.display()))
}

/// Whether a file of this name is one of ours.
fn is_part(name: &str) -> bool {
    let Some((kind, step)) = name.strip_suffix(PART).and_then(|stem| stem.split_once('-')) else {
        return false;
    };
    !kind.is_empty()
        && kind.bytes().all(|b| b.is_ascii_lowercase())
        && step.len() >= 5
        && step.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests;
