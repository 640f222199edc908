//! How much memory a job may take: what was asked for, or what the control group of the process allows.
//!
//! Counted is what the program allocates. Model files are mapped, and the system drops their pages when it needs room.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Kind, Result};

/// What was asked for, in bytes; 0 if nothing was.
static ASKED: AtomicU64 = AtomicU64::new(0);

/// A limit on memory, if there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget(Option<Limit>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limit {
    bytes: u64,
    source: &'static str,
}

/// Has all jobs of this process keep to `bytes` bytes. With `enforce` the system refuses it more memory of its own than that,
/// mapped files not counted; what asks for it then ends the program.
///
/// # Errors
/// `Resources` if the system does not accept the limit.
pub fn set(bytes: u64, enforce: bool) -> Result<()> {
    ASKED.store(bytes, Ordering::Relaxed);
    #[cfg(target_os = "linux")]
    if enforce {
        let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
        // SAFETY: the structure is filled in, and the call only reads it.
        if unsafe { libc::setrlimit(libc::RLIMIT_DATA, &raw const limit) } != 0 {
            let e = std::io::Error::last_os_error();
            let what = format!("memory cannot be limited to {bytes} bytes");
            return Err(Error::new(Kind::Resources, what).because(e));
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = enforce;
    Ok(())
}

/// What was asked for. May be called in a signal handler.
pub fn asked() -> Option<u64> {
    Some(ASKED.load(Ordering::Relaxed)).filter(|bytes| *bytes > 0)
}

impl Budget {
    /// That of this process: what was asked for, or what its control group allows if that is less.
    pub fn of_process() -> Budget {
        let asked = asked().map(|bytes| Limit { bytes, source: "--memory-limit" });
        let group = cgroup_limit(Path::new("/")).map(|bytes| Limit { bytes, source: "the control group" });
        Budget([asked, group].into_iter().flatten().min_by_key(|limit| limit.bytes))
    }

    /// Its size in bytes.
    pub fn bytes(self) -> Option<u64> {
        self.0.map(|limit| limit.bytes)
    }

    /// Whether so many bytes are within it.
    pub fn allows(self, bytes: u64) -> bool {
        self.0.is_none_or(|limit| bytes <= limit.bytes)
    }

    /// Refuses a job that needs `needed` bytes at least.
    ///
    /// # Errors
    /// `Resources`, saying how much is missing.
    pub fn require(self, needed: u64, hint: &str) -> Result<()> {
        match self.0 {
            Some(Limit { bytes, source }) if bytes < needed => Err(Error::new(
                Kind::Resources,
                format!(
                    "not enough memory: about {needed} bytes are needed, {bytes} are allowed by {source} ({} missing)",
                    needed - bytes
                ),
            )
            .hint(hint)),
            _ => Ok(()),
        }
    }
}

/// The least that any control group of this process allows, of either version. `root` is the root of the file system.
fn cgroup_limit(root: &Path) -> Option<u64> {
    let groups = std::fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let mount = root.join("sys/fs/cgroup");
    let limits = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?.trim_start_matches('/'));
        let (top, file) = match controllers {
            "" => (mount.clone(), "memory.max"),
            all if all.split(',').any(|name| name == "memory") => {
                (mount.join("memory"), "memory.limit_in_bytes")
            }
            _ => return None,
        };
        // A group is bound by those above it. In a container its path may be that of the host: then the top is its own.
        let place = top.join(path);
        let above = place.ancestors().take_while(|dir| dir.starts_with(&top));
        above.filter_map(|dir| read_limit(&dir.join(file))).min()
    });
    limits.min()
}

/// A limit in bytes. `max`, or a number that no machine has, is none.
fn read_limit(file: &Path) -> Option<u64> {
    let bytes: u64 = std::fs::read_to_string(file).ok()?.trim().parse().ok()?;
    (bytes < 1 << 60).then_some(bytes)
}

/// A number of bytes: `512MB`, `1.5G`, `2GiB` or `1073741824`. As everywhere here, 1024 of each unit make one of the next.
///
/// # Errors
/// In words, for anything else.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("'{text}' is not a size such as 512MB, 1.5GB or 1073741824");
    let unit = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit);
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let power = match unit.trim_start().to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        "T" | "TB" | "TIB" => 40,
        _ => return Err(wrong()),
    };
    let bytes = number * (1u64 << power) as f64;
    if (1.0..1e18).contains(&bytes) { Ok(bytes as u64) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(groups: &str, files: &[(&str, &str)]) -> Option<u64> {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("proc/self/cgroup", groups);
        files.iter().for_each(|(path, text)| write(&format!("sys/fs/cgroup/{path}"), text));
        cgroup_limit(root.path())
    }

    #[test]
    fn the_least_of_all_groups_above_counts() {
        let two = [("memory.max", "max\n"), ("a/memory.max", "4096\n"), ("a/b/memory.max", "8192\n")];
        assert_eq!(limit("0::/a/b\n", &two), Some(4096));
        assert_eq!(limit("0::/c\n", &two), None);
        let one = [
            ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory/a/memory.limit_in_bytes", "1000"),
        ];
        assert_eq!(limit("9:name=systemd:/\n4:cpu,memory:/a\n0::/\n", &one), Some(1000));
        assert_eq!(limit("4:memory:/\n", &one), None);
        // Named as on the host; what the container sees at the top is its own.
        assert_eq!(limit("0::/kubepods/pod1\n", &[("memory.max", "5")]), Some(5));
        assert_eq!(limit("", &[]), None);
    }

    #[test]
    fn sizes_are_read_as_they_are_written() {
        for (text, bytes) in [
            ("1073741824", 1 << 30),
            ("1GB", 1 << 30),
            ("1g", 1 << 30),
            ("1.5 GiB", 3 << 29),
            ("512MB", 512 << 20),
            ("7B", 7),
            ("2K", 2048),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "GB", "1X", "-1", "0", "1e9", "1.2.3", "99999999TB"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_missing_is_said() {
        let budget = Budget(Some(Limit { bytes: 100, source: "--memory-limit" }));
        assert!(budget.allows(100) && !budget.allows(101) && Budget(None).allows(u64::MAX));
        assert!(budget.require(100, "").is_ok() && Budget(None).require(u64::MAX, "").is_ok());
        let e = budget.require(130, "Do something.").unwrap_err();
        assert_eq!(e.kind(), Kind::Resources);
        let text = e.to_string();
        assert!(
            text.contains("130 bytes") && text.contains("30 missing") && text.contains("--memory-limit"),
            "{text}"
        );
    }
}
