//! Results that are looked at before they get their names.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use tempfile::{TempDir, TempPath};

use super::{claim, parent, persist, refuse_existing, refuse_existing_dir, rename_dir};
use crate::error::{Error, Kind, Result};

/// A result, file or directory, that is made in a directory of its own beside its target. Dropped without
/// [`Staged::commit`], it leaves nothing behind, and what was there before is as it was.
#[derive(Debug)]
pub struct Staged {
    dir: TempDir,
    name: PathBuf,
    target: PathBuf,
    force: bool,
    /// Held until the result is there or given up.
    _lock: Option<File>,
}

impl Staged {
    /// Prepares a place for what will be `target`.
    ///
    /// # Errors
    /// `Usage` if `target` has no name or another process is writing it, `Resources` if nothing can be written beside it.
    pub fn create(target: &Path, force: bool) -> Result<Staged> {
        let name = target
            .file_name()
            .ok_or_else(|| Error::new(Kind::Usage, format!("output '{}' has no name", target.display())))?;
        let parent = parent(target);
        let unwritable = |e| {
            Error::output(format!("cannot write to {}", parent.display()), e)
                .hint("Choose another place with --output-dir.")
        };
        fs::create_dir_all(parent).map_err(unwritable)?;
        let (dir, lock) = claim(target, |builder, dir| builder.tempdir_in(dir))?;
        Ok(Staged { dir, name: name.into(), target: target.to_owned(), force, _lock: lock })
    }

    /// Where the result is to be made.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join(&self.name)
    }

    /// Gives the result, which must be on the disk, its name.
    ///
    /// # Errors
    /// `Usage` if something is there that may not be replaced.
    pub fn commit(self) -> Result<()> {
        let made = self.path();
        if made.is_dir() {
            return rename_dir(&made, &self.target, self.force);
        }
        refuse_existing(&self.target, self.force)?;
        let file = TempPath::try_from_path(&made)
            .map_err(|e| Error::output(format!("cannot rename to {}", self.target.display()), e))?;
        persist(file, &self.target, self.force)
    }
}

/// Refuses an output, file or directory, that exists and may not be replaced.
///
/// # Errors
/// `Usage`, saying what is there.
pub fn refuse_existing_output(target: &Path, is_dir: bool, force: bool) -> Result<()> {
    if is_dir { refuse_existing_dir(target, force) } else { refuse_existing(target, force) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_or_directory_appears_when_it_is_committed() {
        let place = tempfile::tempdir().unwrap();
        let target = place.path().join("sub/x");
        let staged = Staged::create(&target, false).unwrap();
        fs::write(staged.path(), "one").unwrap();
        assert!(!target.exists());
        staged.commit().unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"one");
        assert_eq!(names(&place.path().join("sub")), ["x"]);

        let target = place.path().join("y");
        let staged = Staged::create(&target, false).unwrap();
        fs::create_dir(staged.path()).unwrap();
        fs::write(staged.path().join("config.json"), "{}").unwrap();
        staged.commit().unwrap();
        assert_eq!(names(&target), ["config.json"]);
    }

    #[test]
    fn what_was_there_stays_unless_it_is_replaced() {
        let place = tempfile::tempdir().unwrap();
        let target = place.path().join("x");
        fs::write(&target, "old").unwrap();
        let stage = |force: bool| {
            let staged = Staged::create(&target, force).unwrap();
            fs::write(staged.path(), "new").unwrap();
            staged
        };
        drop(stage(true));
        assert_eq!(stage(false).commit().unwrap_err().kind(), Kind::Usage);
        assert_eq!(fs::read(&target).unwrap(), b"old");
        stage(true).commit().unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"new");
        assert_eq!(names(place.path()), ["x"]);
    }
}
