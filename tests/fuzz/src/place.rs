//! The directory in which an input becomes files.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// A directory that holds the files of one input.
pub(crate) struct Place(TempDir);

impl Place {
    /// A directory with these files.
    pub(crate) fn with(files: &[(&str, &[u8])]) -> Place {
        let place = Place(TempDir::new().expect("there is room"));
        files.iter().for_each(|(name, bytes)| drop(place.write(name, bytes)));
        place
    }

    /// One more file.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path().join(name);
        fs::write(&path, bytes).expect("there is room");
        path
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn text(&self) -> String {
        self.path().to_str().expect("a temporary directory has a plain name").to_owned()
    }
}

/// Two files in one input: what comes before the first NUL, which no text has, and what comes after it.
pub(crate) fn split(input: &[u8]) -> (&[u8], &[u8]) {
    match input.iter().position(|byte| *byte == 0) {
        Some(at) => (&input[..at], &input[at + 1..]),
        None => (input, &[]),
    }
}
