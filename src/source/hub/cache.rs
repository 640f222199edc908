//! The cache of huggingface_hub: `blobs/<etag>` for content, `snapshots/<commit>/<path>` as links to it,
//! `refs/<revision>` for the commit behind a name, `<etag>.incomplete` for what is still coming.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::listing::{RemoteFile, is_safe};
use super::{HubId, RepoKind, is_commit};
use crate::error::{Error, Result};
use crate::progress::Progress;

/// One repository's part of the cache.
pub(super) struct Cache {
    root: PathBuf,
    locks: PathBuf,
}

impl Cache {
    pub(super) fn new(cache: &Path, id: &HubId, kind: RepoKind) -> Cache {
        let folder = format!("{}s--{}", kind.folder(), id.repo.replace('/', "--"));
        Cache { locks: cache.join(".locks").join(&folder), root: cache.join(folder) }
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// Whether `file` is in the snapshot with its full size. Blobs get their name only when they are whole.
    pub(super) fn has(&self, commit: &str, file: &RemoteFile) -> bool {
        fs::metadata(self.snapshot(commit).join(&file.path))
            .is_ok_and(|m| m.is_file() && m.len() == file.size)
    }

    /// Where the content named `etag` belongs; also makes its directory.
    pub(super) fn blob(&self, etag: &str) -> Result<PathBuf> {
        let blobs = self.root.join("blobs");
        make_dir(&blobs)?;
        Ok(blobs.join(etag))
    }

    /// Puts the content named `etag` into the snapshot under its own name.
    pub(super) fn link(&self, commit: &str, path: &str, etag: &str) -> Result<()> {
        let link = self.snapshot(commit).join(path);
        let what = || format!("cannot link {}", link.display());
        make_dir(link.parent().unwrap_or(&self.root))?;
        // By way of another name, so that nobody sees the file missing.
        let fresh = link.with_file_name(format!(".{etag}.link"));
        remove(&fresh)?;
        #[cfg(unix)]
        {
            let up = "../".repeat(path.matches('/').count() + 2);
            std::os::unix::fs::symlink(format!("{up}blobs/{etag}"), &fresh)
                .map_err(|e| Error::output(what(), e))?;
        }
        #[cfg(not(unix))]
        {
            let blob = self.root.join("blobs").join(etag);
            fs::hard_link(&blob, &fresh)
                .or_else(|_| fs::copy(&blob, &fresh).map(drop))
                .map_err(|e| Error::output(what(), e))?;
        }
        fs::rename(&fresh, &link).map_err(|e| Error::output(what(), e))
    }

    /// Notes which commit `revision` is.
    pub(super) fn write_ref(&self, revision: &str, commit: &str) -> Result<()> {
        if self.read_ref(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.root.join("refs").join(revision);
        make_dir(path.parent().unwrap_or(&self.root))?;
        fs::write(&path, commit).map_err(|e| Error::output(format!("cannot write {}", path.display()), e))
    }

    /// The commit that `revision` was when it was last asked for.
    pub(super) fn read_ref(&self, revision: &str) -> Option<String> {
        let commit = fs::read_to_string(self.root.join("refs").join(revision)).ok()?;
        Some(commit.trim().to_string()).filter(|commit| is_commit(commit))
    }

    /// The snapshot of `commit`, if a whole model is in it. Other programs leave snapshots with single files.
    pub(super) fn complete_snapshot(&self, commit: &str) -> Option<PathBuf> {
        let dir = self.snapshot(commit);
        let has = |name: &str| is_safe(name) && dir.join(name).is_file();
        if !has("config.json") {
            return None;
        }
        let index = dir.join("model.safetensors.index.json");
        let whole = if index.is_file() {
            let index: serde_json::Value = serde_json::from_slice(&fs::read(index).ok()?).ok()?;
            let shards = index.get("weight_map")?.as_object()?;
            !shards.is_empty() && shards.values().all(|shard| shard.as_str().is_some_and(has))
        } else {
            let names = fs::read_dir(&dir).ok()?.flatten().filter_map(|e| e.file_name().into_string().ok());
            let mut weights = names.filter(|name| name.ends_with(".safetensors")).peekable();
            weights.peek().is_some() && weights.all(|name| has(&name) && !name.contains("-of-"))
        };
        whole.then_some(dir)
    }

    /// Keeps other processes, also huggingface_hub's, from fetching the same content until it is dropped.
    pub(super) fn lock(&self, etag: &str, progress: &dyn Progress) -> Result<Option<File>> {
        make_dir(&self.locks)?;
        let path = self.locks.join(format!("{etag}.lock"));
        let what = || format!("cannot lock {}", path.display());
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|e| Error::output(what(), e))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(fs::TryLockError::WouldBlock) => {
                progress.info("waiting for another process that downloads the same file");
                file.lock().map_err(|e| Error::output(what(), e))?;
                Ok(Some(file))
            }
            // Some network file systems have no locks; a second download at the same time is the user's to avoid.
            Err(fs::TryLockError::Error(e)) => {
                progress.detail(&format!("{}: {e}", what()));
                Ok(None)
            }
        }
    }

    /// Free bytes for a user where the blobs go, if the system tells.
    pub(super) fn free_bytes(&self) -> Result<Option<u64>> {
        make_dir(&self.root)?;
        Ok(free_bytes(&self.root))
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }
}

fn make_dir(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(|e| Error::output(format!("cannot create {}", dir.display()), e))
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(Error::output(format!("cannot remove {}", path.display()), e))
        }
        _ => Ok(()),
    }
}

#[cfg(unix)]
fn free_bytes(dir: &Path) -> Option<u64> {
    use std::os::unix::ffi::OsStrExt;
    let dir = std::ffi::CString::new(dir.as_os_str().as_bytes()).ok()?;
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: `dir` is a string that ends in NUL and `stat` has room for what the call writes.
    if unsafe { libc::statvfs(dir.as_ptr(), stat.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: all of it was zeroed, which is a value of this type, and the call filled it.
    let stat = unsafe { stat.assume_init() };
    #[allow(clippy::unnecessary_cast, reason = "the fields' types differ between systems")]
    (stat.f_bavail as u64).checked_mul(stat.f_frsize as u64)
}

#[cfg(not(unix))]
fn free_bytes(_: &Path) -> Option<u64> {
    None
}
