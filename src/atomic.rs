//! Files and directories that appear whole or not at all: written under a temporary name in the target's directory, flushed
//! to the disk, then renamed.

mod claim;
mod dir;
mod staged;

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, TempPath};

use crate::error::{Error, Kind, Result};
use claim::claim;
pub use claim::remove_abandoned;
use dir::rename as rename_dir;
pub use dir::{AtomicDir, refuse_existing_dir};
pub use staged::{Staged, refuse_existing_output};

/// How names of files that are being written end.
const TEMPORARY: &str = ".tmp";

/// Random letters and digits in such a name.
const RANDOM: usize = 6;

/// A file that is being written. Dropped without [`AtomicFile::commit`], it leaves nothing behind.
#[derive(Debug)]
pub struct AtomicFile {
    temp: NamedTempFile,
    target: PathBuf,
    force: bool,
    /// Held until the file is closed.
    _lock: Option<File>,
}

impl AtomicFile {
    /// Starts writing what will be `target`, `size` bytes in all. Its directory is made if it is not there. What writers
    /// that were killed have left of it is removed.
    ///
    /// # Errors
    /// `Usage` if `target` exists and `force` is off, or another process is writing it, `Resources` if the disk has no room for `size` bytes.
    pub fn create(target: &Path, size: u64, force: bool) -> Result<AtomicFile> {
        if target.file_name().is_none() {
            return Err(Error::new(Kind::Usage, format!("output '{}' names no file", target.display())));
        }
        let dir = parent(target);
        let unwritable = |e| {
            Error::output(format!("cannot write to {}", dir.display()), e)
                .hint("Choose another place with --output-dir.")
        };
        fs::create_dir_all(dir).map_err(unwritable)?;
        refuse_existing(target, force)?;
        let (temp, lock) = claim(target, |builder, dir| builder.tempfile_in(dir))?;
        check_space(dir, size)?;
        // tempfile makes its files private; a model is to be read by whoever may read the user's other files.
        let mode = fs::Permissions::from_mode(0o666 & !umask());
        temp.as_file().set_permissions(mode).map_err(unwritable)?;
        reserve(temp.as_file(), size)?;
        Ok(AtomicFile { temp, target: target.to_owned(), force, _lock: lock })
    }

    /// The file to write to.
    pub fn file(&mut self) -> &mut File {
        self.temp.as_file_mut()
    }

    /// Where the file is until it is committed.
    pub fn path(&self) -> &Path {
        self.temp.path()
    }

    /// Flushes the file to the disk.
    pub fn sync(&self) -> Result<()> {
        self.temp
            .as_file()
            .sync_all()
            .map_err(|e| Error::output(format!("cannot flush {}", self.target.display()), e))
    }

    /// Gives the file, which must have been synced, its name, and makes that last too.
    pub fn commit(self) -> Result<()> {
        let AtomicFile { temp, target, force, _lock } = self;
        persist(temp.into_temp_path(), &target, force)
    }
}

/// Gives a file that is on the disk its name.
///
/// # Errors
/// `Usage` if there is something that may not be replaced; `Resources` if the disk fails, which, when only the directory cannot
/// be flushed, leaves the whole file in its place.
fn persist(temp: TempPath, target: &Path, force: bool) -> Result<()> {
    if force {
        temp.persist(target)
            .map_err(|e| Error::output(format!("cannot rename to {}", target.display()), e.error))?;
    } else {
        temp.persist_noclobber(target).map_err(|e| match e.error.kind() {
            io::ErrorKind::AlreadyExists => exists(target),
            _ => Error::output(format!("cannot rename to {}", target.display()), e.error),
        })?;
    }
    sync_parent(target).map_err(|e| in_place(e, target))
}

/// Says what there is of a result whose directory could not be flushed.
fn in_place(e: Error, target: &Path) -> Error {
    e.hint(format!(
        "{} is complete and in its place, but a power cut may take its name away.",
        target.display()
    ))
}

/// Makes the name of a file or directory last.
pub fn sync_parent(target: &Path) -> Result<()> {
    let dir = parent(target);
    let synced = File::open(dir).and_then(|d| d.sync_all());
    synced.map_err(|e| Error::output(format!("cannot flush the directory {}", dir.display()), e))
}

/// Refuses an output that exists unless it may be overwritten. A directory is never overwritten by a file.
pub fn refuse_existing(target: &Path, force: bool) -> Result<()> {
    match fs::symlink_metadata(target) {
        Ok(meta) if meta.is_dir() => {
            Err(Error::new(Kind::Usage, format!("output {} is a directory", target.display()))
                .hint("Choose another name with --output-name."))
        }
        Ok(_) if !force => Err(exists(target)),
        _ => Ok(()),
    }
}

/// Refuses to start when the disk of `dir` has less than `size` bytes left. `dir` itself need not exist yet.
pub fn check_space(dir: &Path, size: u64) -> Result<()> {
    let existing = dir.ancestors().find(|d| d.as_os_str().is_empty() || d.exists()).unwrap_or(dir);
    let existing = if existing.as_os_str().is_empty() { Path::new(".") } else { existing };
    match free_space(existing) {
        Some(free) if free < size => Err(Error::new(
            Kind::Resources,
            format!(
                "not enough disk space in {}: {size} bytes are needed, {free} are free ({} missing)",
                dir.display(),
                size - free
            ),
        )
        .hint("Free some space or choose another disk with --output-dir.")),
        _ => Ok(()),
    }
}

/// The name of the file that is being written under this temporary name, if it is one.
pub fn is_temporary(name: &str) -> Option<&str> {
    let (target, random) = name.strip_prefix('.')?.strip_suffix(TEMPORARY)?.rsplit_once('.')?;
    let ours = random.len() == RANDOM && random.bytes().all(|b| b.is_ascii_alphanumeric());
    (ours && !target.is_empty()).then_some(target)
}

fn exists(target: &Path) -> Error {
    Error::new(Kind::Usage, format!("output {} exists already", target.display()))
        .hint("Pass --force to overwrite it, or choose another name with --output-name.")
}

/// The directory of a path; that of a bare file name is the current one.
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

fn umask() -> u32 {
    // Linux states it; setting and restoring it, the only other way, would race with other threads.
    fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| {
            let line = status.lines().find_map(|l| l.strip_prefix("Umask:"))?;
            u32::from_str_radix(line.trim(), 8).ok()
        })
        .unwrap_or(0o022)
}

fn free_space(dir: &Path) -> Option<u64> {
    let path = std::ffi::CString::new(dir.as_os_str().as_encoded_bytes()).ok()?;
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: `path` is a valid C string and `stat` has room for what the call writes.
    let failed = unsafe { libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) } != 0;
    if failed {
        return None;
    }
    // SAFETY: the call succeeded, so the structure is filled.
    let stat = unsafe { stat.assume_init() };
    #[allow(clippy::unnecessary_cast)] // The field types differ between platforms.
    Some((stat.f_bavail as u64).saturating_mul(stat.f_frsize as u64))
}

/// Reserves the file's blocks, so that a full disk is met now. Filesystems that cannot do it are let be.
pub fn reserve(file: &File, size: u64) -> Result<()> {
    #[cfg(target_os = "linux")]
    if let (1.., Ok(len)) = (size, libc::off_t::try_from(size)) {
        // SAFETY: the descriptor is open for as long as `file` lives.
        let failed = unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, len) } != 0;
        let error = io::Error::last_os_error();
        if failed && matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG)) {
            return Err(Error::output(format!("cannot reserve {size} bytes on the disk"), error)
                .missing(size)
                .hint("Free some space or choose another disk with --output-dir."));
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (file.as_raw_fd(), size);
    Ok(())
}

/// Starts writing `range` back to the disk without waiting, so that a later flush is short. A hint.
pub fn start_writeback(file: &File, start: u64, len: u64) {
    #[cfg(target_os = "linux")]
    // SAFETY: the descriptor is open for as long as `file` lives; the call touches no memory of ours.
    unsafe {
        libc::sync_file_range(
            file.as_raw_fd(),
            start as libc::off64_t,
            len as libc::off64_t,
            libc::SYNC_FILE_RANGE_WRITE,
        );
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (file.as_raw_fd(), start, len);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn nothing_is_left_of_a_file_that_is_not_committed() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = AtomicFile::create(&dir.path().join("x"), 10, false).unwrap();
        file.file().write_all(b"half").unwrap();
        drop(file);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_existing_file_survives_unless_forced() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("sub/x");
        for (force, text) in [(false, "one"), (true, "two")] {
            let mut file = AtomicFile::create(&target, 3, force).unwrap();
            file.file().write_all(text.as_bytes()).unwrap();
            file.sync().unwrap();
            file.commit().unwrap();
            assert_eq!(fs::read_to_string(&target).unwrap(), text);
        }
        assert_eq!(AtomicFile::create(&target, 3, false).unwrap_err().kind(), Kind::Usage);
        assert_eq!(fs::read_to_string(&target).unwrap(), "two");
        assert_eq!(fs::read_dir(target.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_appears_meanwhile_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("x");
        let file = AtomicFile::create(&target, 0, false).unwrap();
        fs::write(&target, "theirs").unwrap();
        assert_eq!(file.commit().unwrap_err().kind(), Kind::Usage);
        assert_eq!(fs::read_to_string(&target).unwrap(), "theirs");
    }

    #[test]
    fn too_little_space_is_found_first() {
        let dir = tempfile::tempdir().unwrap();
        let e = AtomicFile::create(&dir.path().join("x"), 1 << 60, false).unwrap_err();
        assert_eq!(e.kind(), Kind::Resources);
        assert!(e.to_string().contains("missing"), "{e}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
