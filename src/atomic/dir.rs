//! Directories that appear whole or not at all.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::{check_space, claim, exists, in_place, parent, reserve, sync_parent, umask};
use crate::error::{Error, Kind, Result};

/// A directory that is being filled under a temporary name beside its target. Dropped without [`AtomicDir::commit`], it
/// leaves nothing behind.
#[derive(Debug)]
pub struct AtomicDir {
    temp: TempDir,
    target: PathBuf,
    force: bool,
    /// Held until the directory is there or given up.
    _lock: Option<File>,
}

impl AtomicDir {
    /// Starts what will be `target`, `size` bytes in all. An empty directory may be there already; with `force` also one
    /// that holds a model, which stays as it is until [`AtomicDir::commit`].
    ///
    /// # Errors
    /// `Usage` if `target` exists and may not be replaced, or another process is writing it, `Resources` if the disk has no room for `size` bytes.
    pub fn create(target: &Path, size: u64, force: bool) -> Result<AtomicDir> {
        if target.file_name().is_none() {
            return Err(Error::new(Kind::Usage, format!("output '{}' has no name", target.display())));
        }
        let parent = parent(target);
        let unwritable = |e| {
            Error::output(format!("cannot write to {}", parent.display()), e)
                .hint("Choose another place with --output-dir.")
        };
        refuse_existing_dir(target, force)?;
        fs::create_dir_all(parent).map_err(unwritable)?;
        let (temp, lock) = claim(target, |builder, dir| builder.tempdir_in(dir))?;
        check_space(parent, size)?;
        // tempfile makes its directories private; see AtomicFile.
        let mode = fs::Permissions::from_mode(0o777 & !umask());
        fs::set_permissions(temp.path(), mode).map_err(unwritable)?;
        Ok(AtomicDir { temp, target: target.to_owned(), force, _lock: lock })
    }

    /// Where the files are until the directory is committed.
    pub fn path(&self) -> &Path {
        self.temp.path()
    }

    /// Where they will be.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Makes a file of `size` bytes, to be written at any place.
    pub fn create_file(&self, name: &str, size: u64) -> Result<File> {
        let failed = |e| Error::output(format!("cannot write {}", self.target.join(name).display()), e);
        let file = File::create_new(self.path().join(name)).map_err(failed)?;
        file.set_len(size).map_err(failed)?;
        reserve(&file, size)?;
        Ok(file)
    }

    /// Writes a whole file.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let file = self.create_file(name, bytes.len() as u64)?;
        file.write_all_at(bytes, 0)
            .map_err(|e| Error::output(format!("cannot write {}", self.target.join(name).display()), e))
            .map_err(|e| e.missing(bytes.len() as u64))
    }

    /// Flushes all files to the disk, and their names.
    pub fn sync(&self) -> Result<()> {
        let unflushed = |e| Error::output(format!("cannot flush {}", self.target.display()), e);
        for entry in fs::read_dir(self.path()).map_err(unflushed)? {
            let entry = entry.map_err(unflushed)?;
            File::open(entry.path()).and_then(|file| file.sync_all()).map_err(unflushed)?;
        }
        File::open(self.path()).and_then(|dir| dir.sync_all()).map_err(unflushed)
    }

    /// Gives the directory, which must have been synced, its name. One that it replaces is deleted after that.
    pub fn commit(self) -> Result<()> {
        let AtomicDir { temp, target, force, _lock } = self;
        rename(temp.path(), &target, force)
    }
}

/// Gives a directory that is on the disk its name. What it replaces is left in its place, to be deleted.
pub(super) fn rename(dir: &Path, target: &Path, force: bool) -> Result<()> {
    refuse_existing_dir(target, force)?;
    let unnamed = |e: io::Error| Error::output(format!("cannot rename to {}", target.display()), e);
    match fs::rename(dir, target) {
        Ok(()) => {}
        Err(e) if is_full(&e) && force => exchange(dir, target).map_err(unnamed)?,
        Err(e) if is_full(&e) => return Err(exists(target)),
        Err(e) => return Err(unnamed(e)),
    }
    sync_parent(target).map_err(|e| in_place(e, target))
}

/// Refuses an output directory that exists, unless it is empty or, with `force`, holds a model and nothing else.
pub fn refuse_existing_dir(target: &Path, force: bool) -> Result<()> {
    let Ok(meta) = fs::symlink_metadata(target) else { return Ok(()) };
    let refuse = |what: String| {
        Err(Error::new(Kind::Usage, format!("output {} {what}", target.display()))
            .hint("Choose another name with --output-name."))
    };
    if !meta.is_dir() {
        return refuse("is not a directory".into());
    }
    let listed = fs::read_dir(target).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let entries = listed.map_err(|e| Error::io(format!("cannot read {}", target.display()), e))?;
    if entries.is_empty() {
        return Ok(());
    }
    if !force {
        return Err(exists(target));
    }
    // What goes with the directory must be no more than what a run of this program makes.
    if !entries.iter().any(|entry| entry.file_name() == "config.json") {
        return refuse("holds something other than a model; it is not overwritten".into());
    }
    let folder = entries.iter().find(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folder.map_or(Ok(()), |entry| {
        refuse(format!("holds the directory {}; it is not overwritten", entry.file_name().to_string_lossy()))
    })
}

/// Whether a rename failed because the target is a directory with something in it.
fn is_full(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENOTEMPTY | libc::EEXIST))
}

/// Lets two directories change places, in one step where the filesystem can.
fn exchange(new: &Path, old: &Path) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use std::ffi::CString;
        let path = |p: &Path| CString::new(p.as_os_str().as_encoded_bytes()).map_err(io::Error::other);
        let (from, to) = (path(new)?, path(old)?);
        // SAFETY: both are valid C strings.
        let failed = unsafe {
            libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), libc::RENAME_EXCHANGE)
        } != 0;
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            _ if !failed => return Ok(()),
            Some(libc::ENOSYS | libc::EINVAL) => {}
            _ => return Err(error),
        }
    }
    // The old directory goes into the place that tempfile will clear.
    let aside = new.with_extension("old");
    fs::rename(old, &aside)?;
    fs::rename(new, old).inspect_err(|_| drop(fs::rename(&aside, old)))?;
    fs::rename(&aside, new)
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

    fn make(target: &Path, text: &str, force: bool) -> Result<()> {
        let dir = AtomicDir::create(target, 10, force)?;
        dir.write("config.json", text.as_bytes())?;
        dir.sync()?;
        dir.commit()
    }

    #[test]
    fn nothing_is_left_of_a_directory_that_is_not_committed() {
        let place = tempfile::tempdir().unwrap();
        let dir = AtomicDir::create(&place.path().join("x"), 10, false).unwrap();
        dir.write("config.json", b"half").unwrap();
        assert_eq!(names(place.path()).len(), 1);
        drop(dir);
        assert_eq!(names(place.path()), [""; 0]);
    }

    #[test]
    fn a_model_is_replaced_only_by_force() {
        let place = tempfile::tempdir().unwrap();
        let target = place.path().join("sub/x");
        make(&target, "one", false).unwrap();
        assert_eq!(make(&target, "two", false).unwrap_err().kind(), Kind::Usage);
        assert_eq!(fs::read(target.join("config.json")).unwrap(), b"one");
        fs::write(target.join("old"), "").unwrap();
        make(&target, "three", true).unwrap();
        assert_eq!(fs::read(target.join("config.json")).unwrap(), b"three");
        assert_eq!(names(&target), ["config.json"], "nothing of the old one is left");
        assert_eq!(names(target.parent().unwrap()), ["x"]);
    }

    #[test]
    fn what_is_no_model_is_never_replaced() {
        let place = tempfile::tempdir().unwrap();
        let target = place.path().join("x");
        fs::write(&target, "file").unwrap();
        assert_eq!(make(&target, "two", true).unwrap_err().kind(), Kind::Usage);
        fs::remove_file(&target).unwrap();
        fs::create_dir(&target).unwrap();
        fs::write(target.join("letter"), "").unwrap();
        assert_eq!(make(&target, "two", true).unwrap_err().kind(), Kind::Usage);
        fs::write(target.join("config.json"), "{}").unwrap();
        fs::create_dir(target.join("photos")).unwrap();
        let e = make(&target, "two", true).unwrap_err();
        assert!(e.to_string().contains("photos"), "{e}");
        assert_eq!(names(&target), ["config.json", "letter", "photos"]);
    }

    #[test]
    fn an_empty_directory_may_be_there() {
        let place = tempfile::tempdir().unwrap();
        make(place.path(), "one", false).unwrap();
        assert_eq!(names(place.path()), ["config.json"]);
        fs::create_dir_all(place.path()).unwrap();
    }

    #[test]
    fn others_may_read_what_they_may_read_elsewhere() {
        let place = tempfile::tempdir().unwrap();
        let target = place.path().join("x");
        make(&target, "one", false).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&target), 0o777 & !umask());
        assert_eq!(mode(&target.join("config.json")), 0o666 & !umask());
    }
}
