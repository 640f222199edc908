//! A file that a command writes its result to when the work is done.

use std::io::Write;
use std::path::{Path, PathBuf};

use crate::atomic::{AtomicFile, refuse_existing};
use crate::error::{Error, Result};

/// A place that has been checked before the work.
#[derive(Debug)]
pub(super) struct ResultFile {
    path: PathBuf,
    force: bool,
}

impl ResultFile {
    /// # Errors
    /// `Usage` if the file exists and may not be overwritten.
    pub(super) fn new(path: &Path, force: bool) -> Result<ResultFile> {
        refuse_existing(path, force)
            .map_err(|e| e.hint("Pass --force to overwrite a file, or choose another name."))?;
        Ok(ResultFile { path: path.to_owned(), force })
    }

    /// Writes a text.
    pub(super) fn write(self, text: &str) -> Result<()> {
        let mut file = AtomicFile::create(&self.path, text.len() as u64, self.force)?;
        let written = file.file().write_all(text.as_bytes());
        written.map_err(|e| Error::output(format!("cannot write {}", self.path.display()), e))?;
        file.sync()?;
        file.commit()
    }
}
