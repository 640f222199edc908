//! One writer for each output, and nothing left of those that were killed.
//!
//! Whoever writes an output holds the lock of its temporary file or directory. The system releases it with the process, so a
//! temporary name whose lock is free was left by a writer that is dead.

use std::fs::{self, File, TryLockError};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use tempfile::Builder;

use super::{RANDOM, TEMPORARY, is_temporary, parent};
use crate::error::{Error, Kind, Result};

/// How often it is looked whether the others are gone: two that begin at the same moment both step back, for times that
/// differ.
const ATTEMPTS: u32 = 8;

/// Milliseconds that one steps back at most.
const STEP_BACK: u64 = 40;

/// Makes a temporary name for `target` by `make` and locks it, after what dead writers have left of `target` is removed.
/// The lock is held until the file that is returned with it is closed; there is none on file systems without locks, where
/// nothing is ever taken for left over and no other writer is noticed.
///
/// # Errors
/// `Usage` if another process is writing `target`, `Resources` if nothing can be made in its directory.
pub(super) fn claim<T: AsRef<Path>>(
    target: &Path,
    make: impl Fn(&Builder<'_, '_>, &Path) -> io::Result<T>,
) -> Result<(T, Option<File>)> {
    let (dir, name) = (parent(target), target.file_name().unwrap_or_default().to_string_lossy());
    let unwritable = |e| {
        Error::output(format!("cannot write to {}", dir.display()), e)
            .hint("Choose another place with --output-dir.")
    };
    let prefix = format!(".{name}.");
    let mut builder = Builder::new();
    builder.prefix(&prefix).suffix(TEMPORARY).rand_bytes(RANDOM);
    for _ in 0..ATTEMPTS {
        let made = make(&builder, dir).map_err(unwritable)?;
        let lock = File::open(made.as_ref()).map_err(unwritable)?;
        match lock.try_lock() {
            Err(TryLockError::Error(_)) => return Ok((made, None)),
            // Somebody has taken it for left over in the moment before it was locked.
            Err(TryLockError::WouldBlock) => {}
            Ok(()) if is_at(&lock, made.as_ref()) && !others(dir, &name, made.as_ref()) => {
                return Ok((made, Some(lock)));
            }
            Ok(()) => {}
        }
        drop((made, lock));
        std::thread::sleep(Duration::from_millis(RandomState::new().hash_one(0) % STEP_BACK));
    }
    Err(Error::new(Kind::Usage, format!("another run is writing {}", target.display()))
        .hint("Wait until it has ended, or choose another output."))
}

/// Removes what dead writers have left of `target`.
pub fn remove_abandoned(target: &Path) {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    others(parent(target), &name, Path::new(""));
}

/// Whether this is still the file at `path`.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(own), Ok(found)) => (own.dev(), own.ino()) == (found.dev(), found.ino()),
        _ => false,
    }
}

/// Whether somebody other than the owner of `own` is writing `target`; what dead writers have left is removed.
fn others(dir: &Path, target: &str, own: &Path) -> bool {
    let Ok(entries) = fs::read_dir(dir) else { return false };
    let mut alive = false;
    for entry in entries.flatten() {
        let path = entry.path();
        let Ok(kind) = entry.file_type() else { continue };
        let named = entry.file_name().to_str().and_then(is_temporary) == Some(target);
        if !named || path.file_name() == own.file_name() || !(kind.is_file() || kind.is_dir()) {
            continue;
        }
        let Ok(file) = File::open(&path) else { continue };
        match file.try_lock() {
            // The lock is held while it is removed, so that nobody else takes it up.
            Ok(()) if kind.is_dir() => drop(fs::remove_dir_all(&path)),
            Ok(()) => drop(fs::remove_file(&path)),
            Err(TryLockError::WouldBlock) => alive = true,
            Err(TryLockError::Error(_)) => {}
        }
    }
    alive
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim_in(dir: &Path) -> Result<(tempfile::TempDir, Option<File>)> {
        claim(&dir.join("x"), |builder, dir| builder.tempdir_in(dir))
    }

    #[test]
    fn one_writes_at_a_time() {
        let place = tempfile::tempdir().unwrap();
        let first = claim_in(place.path()).unwrap();
        let e = claim_in(place.path()).unwrap_err();
        assert_eq!(e.kind(), Kind::Usage);
        assert!(e.to_string().contains("another run is writing"), "{e}");
        assert!(claim(&place.path().join("y"), |b, dir| b.tempfile_in(dir)).is_ok(), "another output");
        drop(first);
        claim_in(place.path()).unwrap();
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
    }

    #[test]
    fn of_many_that_begin_at_once_one_gets_it() {
        let place = tempfile::tempdir().unwrap();
        let barrier = std::sync::Barrier::new(4);
        let claims: Vec<_> = std::thread::scope(|scope| {
            let begin = || {
                barrier.wait();
                claim_in(place.path())
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(begin)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(claims.iter().filter(|claim| claim.is_ok()).count() <= 1, "never two");
        drop(claims);
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_killed_writers_left_is_removed_and_nothing_else() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path();
        let foreign = [".x.tmp", ".x.short.tmp", ".x.a-b+cd.tmp", ".y.abcdef.tmp", "x.abcdef.tmp"];
        for name in foreign.iter().chain(&[".x.abc123.tmp"]) {
            fs::write(dir.join(name), "").unwrap();
        }
        fs::create_dir(dir.join(".x.DEF456.tmp")).unwrap();
        fs::write(dir.join(".x.DEF456.tmp/shard"), "half").unwrap();
        std::os::unix::fs::symlink(dir.join(".x.tmp"), dir.join(".x.link12.tmp")).unwrap();
        let claimed = claim_in(dir).unwrap();
        assert!(!dir.join(".x.abc123.tmp").exists() && !dir.join(".x.DEF456.tmp").exists());
        assert!(foreign.iter().chain(&[".x.link12.tmp"]).all(|name| dir.join(name).exists()));
        drop(claimed);
    }
}
