//! The directory in which an input becomes files.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, MutexGuard};

use tempfile::TempDir;

static PLACE: LazyLock<Mutex<TempDir>> = LazyLock::new(|| Mutex::new(TempDir::new().unwrap()));

/// A directory that holds the files of one input.
pub(crate) struct Place {
    dir: MutexGuard<'static, TempDir>,
    files: Vec<PathBuf>,
}

impl Place {
    /// The directory with these files and no others.
    pub(crate) fn with(files: &[(&str, &[u8])]) -> Place {
        let dir = PLACE.lock().unwrap_or_else(|e| e.into_inner());
        let mut place = Place { dir, files: Vec::new() };
        files.iter().for_each(|(name, bytes)| drop(place.write(name, bytes)));
        place
    }

    /// One more file.
    pub(crate) fn write(&mut self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        self.files.push(path.clone());
        path
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn text(&self) -> String {
        self.path().to_str().unwrap().to_owned()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for file in &self.files {
            let _ = fs::remove_file(file);
        }
    }
}

/// Two files in one input: what comes before the first NUL, which no text has, and what comes after it.
pub(crate) fn split(input: &[u8]) -> (&[u8], &[u8]) {
    match input.iter().position(|byte| *byte == 0) {
        Some(at) => (&input[..at], &input[at + 1..]),
        None => (input, &[]),
    }
}
