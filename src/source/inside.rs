//! The files of a model's directory.
//!
//! A directory that was cloned or unpacked may hold links. What they lead to outside of it is not the model's but the user's,
//! and parts of it would be in a result that he publishes: a licence that is a link to his keys is copied as a licence. So a
//! link must stay in the directory, or lead to content in the Hub's cache.

use std::fs;
use std::io::{ErrorKind, Read};
use std::path::Path;

use crate::error::{Error, Kind, Result};

/// The longest file that is read whole. The largest tokenizers that are published have 35 MB.
const MAX_BYTES: u64 = 100 << 20;

/// Whether `path` is a regular file that may be read as a part of the model whose directory it is in.
///
/// # Errors
/// `Invalid` if it is a link that leads out of the directory.
pub(crate) fn is_file(path: &Path) -> Result<bool> {
    is_file_of(directory(path), path)
}

/// The same of a file anywhere below the model's directory `dir`.
pub(crate) fn is_file_of(dir: &Path, path: &Path) -> Result<bool> {
    let unreadable = |e| Error::io(format!("cannot read {}", path.display()), e);
    match fs::symlink_metadata(path) {
        Ok(found) if !found.is_symlink() && directory(path) == dir => return Ok(found.is_file()),
        Ok(_) => {}
        Err(e) if is_absent(&e) => return Ok(false),
        Err(e) => return Err(unreadable(e)),
    }
    let target = match path.canonicalize() {
        Ok(target) => target,
        Err(e) if is_absent(&e) => return Ok(false),
        Err(e) => return Err(unreadable(e)),
    };
    let dir = dir.canonicalize().map_err(unreadable)?;
    if target.starts_with(&dir) || is_blob(&target, &dir) {
        return Ok(target.is_file());
    }
    Err(Error::new(
        Kind::Invalid,
        format!("{} is a link out of the model's directory, to {}", path.display(), target.display()),
    )
    .hint("If this is meant, put the file itself in the place of the link, or a hard link (ln without -s)."))
}

/// The bytes of a file in a model's directory, or nothing if there is no such file.
///
/// # Errors
/// `Invalid` if it is a link that leads out of the directory, or larger than any such file is; whatever reading fails with.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    read_of(directory(path), path)
}

/// The same of a file anywhere below the model's directory `dir`.
pub(crate) fn read_of(dir: &Path, path: &Path) -> Result<Option<Vec<u8>>> {
    if !is_file_of(dir, path)? {
        return Ok(None);
    }
    let unreadable = |e| Error::io(format!("cannot read {}", path.display()), e);
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(unreadable)?;
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    match bytes.len() as u64 > MAX_BYTES {
        true => Err(Error::new(
            Kind::Invalid,
            format!("{} has more than {} MB, which no such file has", path.display(), MAX_BYTES >> 20),
        )),
        false => Ok(Some(bytes)),
    }
}

/// The directory that a file is in.
fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

fn is_absent(e: &std::io::Error) -> bool {
    matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// Whether a file is content in the Hub's cache, `models--org--name/blobs/NAME`. The cache's snapshots consist of links to
/// those of their own repository. Older clients have filled other directories with such links too; that is allowed where the
/// name is a hash, since nobody can make a link to one that he does not know.
fn is_blob(target: &Path, dir: &Path) -> bool {
    let name =
        |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let Some(blobs) = target.parent() else { return false };
    let Some(repository) = blobs.parent() else { return false };
    let is_hash = |name: String| name.len() >= 40 && name.bytes().all(|b| b.is_ascii_hexdigit());
    name(blobs) == "blobs"
        && ["models--", "datasets--"].iter().any(|kind| name(repository).starts_with(kind))
        && (dir.starts_with(repository) || is_hash(name(target)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_link_stays_in_the_directory() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("model");
        fs::create_dir(&dir).unwrap();
        fs::write(root.path().join("secret"), "mine").unwrap();
        fs::write(dir.join("real"), "theirs").unwrap();
        symlink("real", dir.join("inside")).unwrap();
        symlink("nowhere", dir.join("dangling")).unwrap();
        symlink("../secret", dir.join("relative")).unwrap();
        symlink(root.path().join("secret"), dir.join("absolute")).unwrap();
        symlink("relative", dir.join("chain")).unwrap();
        symlink("..", dir.join("parent")).unwrap();
        symlink("loop", dir.join("loop")).unwrap();
        fs::create_dir(root.path().join("others")).unwrap();
        fs::write(root.path().join("others/a.jinja"), "mine").unwrap();
        symlink("../others", dir.join("templates")).unwrap();
        assert!(read_of(&dir, &dir.join("templates/a.jinja")).is_err());
        for (name, found) in
            [("real", Some("theirs")), ("inside", Some("theirs")), ("dangling", None), ("x", None)]
        {
            assert_eq!(read(&dir.join(name)).unwrap().as_deref(), found.map(str::as_bytes), "{name}");
        }
        for name in ["relative", "absolute", "chain", "parent"] {
            let e = read(&dir.join(name)).unwrap_err();
            assert_eq!(e.kind(), Kind::Invalid, "{name}");
            assert!(
                e.to_string().contains(name) && e.to_string().contains("out of the model's directory"),
                "{e}"
            );
        }
        assert!(read(&dir.join("loop")).is_err());
        assert!(!is_file(&dir).unwrap());
    }

    #[test]
    fn links_to_content_in_the_cache_of_the_hub_are_followed() {
        let root = tempfile::tempdir().unwrap();
        let repository = root.path().join("models--org--name");
        let snapshot = repository.join("snapshots/0123");
        let hash = "0123456789abcdef0123456789abcdef01234567";
        fs::create_dir_all(snapshot.join("more")).unwrap();
        fs::create_dir(repository.join("blobs")).unwrap();
        fs::write(repository.join("blobs").join(hash), "{}").unwrap();
        fs::write(repository.join("blobs/notes"), "{}").unwrap();
        fs::write(repository.join("refs"), "{}").unwrap();
        let link = |to: &str, at: &str| symlink(to, snapshot.join(at)).unwrap();
        link(&format!("../../blobs/{hash}"), "config.json");
        link(&format!("../../../blobs/{hash}"), "more/a.jinja");
        link("../../refs", "other.json");
        assert_eq!(read(&snapshot.join("config.json")).unwrap().unwrap(), b"{}");
        assert_eq!(read_of(&snapshot, &snapshot.join("more/a.jinja")).unwrap().unwrap(), b"{}");
        assert!(read(&snapshot.join("other.json")).is_err());
        // A directory that an older client has downloaded to.
        let local = root.path().join("local");
        fs::create_dir(&local).unwrap();
        symlink(repository.join("blobs").join(hash), local.join("config.json")).unwrap();
        assert_eq!(read(&local.join("config.json")).unwrap().unwrap(), b"{}");
        symlink(repository.join("blobs/notes"), local.join("notes.json")).unwrap();
        assert!(read(&local.join("notes.json")).is_err());
    }

    #[test]
    fn pipes_and_huge_files_are_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("config.json");
        let name = std::ffi::CString::new(pipe.to_str().unwrap()).unwrap();
        // SAFETY: the name is a C string.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        assert!(read(&pipe).unwrap().is_none());
        let huge = dir.path().join("tokenizer.json");
        fs::File::create(&huge).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(read(&huge).unwrap_err().kind(), Kind::Invalid);
    }
}
