//! The file that a report goes to.

use std::io::Write;
use std::path::PathBuf;

use serde::Serialize;

use crate::atomic::{AtomicFile, refuse_existing};
use crate::error::{Error, Kind, Result};
use crate::pipeline::checkpoint::{Checkpoint, Settings};
use crate::progress::Progress;

/// A file that holds a report as JSON when the work is done.
#[derive(Clone, Debug)]
pub struct ReportFile {
    /// Where it is.
    pub path: PathBuf,
    /// Whether it may be overwritten.
    pub force: bool,
}

impl ReportFile {
    /// Checked before the work.
    ///
    /// # Errors
    /// `Usage` if the file exists and may not be overwritten.
    pub(in crate::pipeline) fn check(&self, checkpoint: &Settings) -> Result<()> {
        checkpoint.check_output(|| refuse_existing(&self.path, self.force)).map_err(elsewhere)
    }

    /// Writes it; `checkpoint` knows of it before it has its name.
    ///
    /// # Errors
    /// `Resources` if the disk is full.
    fn write(&self, report: &impl Serialize, checkpoint: Option<&mut Checkpoint>) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(report).expect("reports are plain data");
        text.push(b'\n');
        let mut file = AtomicFile::create(&self.path, text.len() as u64, self.force).map_err(elsewhere)?;
        file.file()
            .write_all(&text)
            .map_err(|e| Error::output(format!("cannot write {}", self.path.display()), e))?;
        file.sync()?;
        if let Some(checkpoint) = checkpoint {
            let note = serde_json::to_value(report).expect("reports are plain data");
            checkpoint.seal(file.path(), note)?;
        }
        file.commit()
    }
}

/// Gives a result its file, if there is to be one; then the checkpoint goes.
pub(in crate::pipeline) fn publish(
    report: &impl Serialize,
    file: Option<&ReportFile>,
    mut checkpoint: Option<Checkpoint>,
    progress: &dyn Progress,
) -> Result<()> {
    let written = file.map_or(Ok(()), |file| file.write(report, checkpoint.as_mut()));
    match (written, checkpoint) {
        (Ok(()), Some(checkpoint)) => {
            checkpoint.remove(progress);
            Ok(())
        }
        (Err(e), Some(checkpoint)) => Err(checkpoint.end_early(e, progress)),
        (written, None) => written,
    }
}

fn elsewhere(e: Error) -> Error {
    match e.kind() {
        Kind::Usage => e.hint("Pass --force to overwrite a file, or choose another name."),
        Kind::Resources => e.hint("Free some space, or choose another place with --output."),
        _ => e,
    }
}
