//! What a run has made, before it has its name.

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::atomic::AtomicFile;
use crate::error::Result;
use crate::format::packed::Flushed;
use crate::pipeline::checkpoint::Checkpoint;
use crate::progress::Progress;
use crate::source::folded::Moved;

/// What came of a run.
#[derive(Debug)]
#[must_use = "the output has no name until it is committed"]
pub enum Outcome<R> {
    /// A result that is on the disk and has no name yet.
    Made(Box<Made<R>>),
    /// The output is there: an earlier run has made it that was killed before its checkpoint was gone.
    Finished(Box<Checkpoint>),
}

/// A result that is on the disk and has no name yet.
#[derive(Debug)]
pub struct Made<R> {
    /// What is said of it.
    pub report: R,
    /// The factors that were moved between the source's tensors: weights can be compared with those of the source only if
    /// the same is done to them.
    pub moved: Moved,
    /// The result.
    pub output: Unnamed,
    /// The checkpoint, which is of use until the output has its name.
    pub checkpoint: Option<Checkpoint>,
}

impl<R: Serialize + DeserializeOwned> Outcome<R> {
    /// Gives the result its name and removes the checkpoint.
    ///
    /// # Errors
    /// `Usage` if something has appeared there that may not be replaced, `Resources` if the disk is full.
    pub fn commit(self, progress: &dyn Progress) -> Result<R> {
        let Made { report, output, mut checkpoint, .. } = match self {
            Outcome::Made(made) => *made,
            Outcome::Finished(checkpoint) => return checkpoint.take_report(progress),
        };
        if let Some(checkpoint) = &mut checkpoint {
            let note = serde_json::to_value(&report).expect("a report is plain data");
            checkpoint.seal(output.path(), note)?;
        }
        output.commit()?;
        if let Some(checkpoint) = checkpoint {
            checkpoint.remove(progress);
        }
        Ok(report)
    }
}

/// A file or directory that is on the disk under a temporary name.
#[derive(Debug)]
pub enum Unnamed {
    /// A file, flushed.
    File(AtomicFile),
    /// A directory.
    Directory(Flushed),
}

impl Unnamed {
    /// Where it is.
    pub fn path(&self) -> &Path {
        match self {
            Unnamed::File(file) => file.path(),
            Unnamed::Directory(directory) => directory.path(),
        }
    }

    /// Gives it its name.
    ///
    /// # Errors
    /// `Usage` if something has appeared there that may not be replaced.
    pub fn commit(self) -> Result<()> {
        match self {
            Unnamed::File(file) => file.commit(),
            Unnamed::Directory(directory) => directory.commit(),
        }
    }
}
