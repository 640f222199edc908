//! One run at a time.

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::error::{Error, Kind, Result};

/// Makes the directory and locks it.
pub(super) fn lock(dir: &Path) -> Result<File> {
    let unwritable = |e| {
        Error::output(format!("cannot keep a checkpoint in {}", dir.display()), e)
            .hint("Choose another place with --checkpoint-dir, or do without: --no-checkpoints.")
    };
    loop {
        fs::create_dir_all(dir).map_err(unwritable)?;
        let file = File::open(dir).map_err(unwritable)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::new(Kind::Usage, format!("another run is using {}", dir.display()))
                    .hint("Wait until it has ended, or choose another output."));
            }
            // A file system without locks.
            Err(TryLockError::Error(_)) => return Ok(file),
        }
        // A run that has just ended may have removed the directory.
        let same = |found: fs::Metadata| file.metadata().is_ok_and(|own| own.ino() == found.ino());
        if fs::metadata(dir).is_ok_and(same) {
            return Ok(file);
        }
    }
}

/// Removes a directory that has nothing in it, unless a run holds it or nobody can know that.
pub(super) fn remove_idle(dir: &Path) {
    let Ok(file) = File::open(dir) else { return };
    if file.try_lock().is_ok() {
        let _ = fs::remove_dir(dir);
    }
}
