//! How much memory the process has used, and how much it may use.

mod limit;
mod need;

pub use limit::{Budget, asked, parse_size, set};
pub use need::{computing, inner, layer, program, scoring, states};

/// Peak resident memory in bytes, mapped files included, or `None` where the system does not say.
pub fn peak_resident() -> Option<u64> {
    status_kilobytes("VmHWM:")
}

/// Anonymous memory in use now, in bytes: what the process allocated, without mapped files.
pub fn anonymous() -> Option<u64> {
    status_kilobytes("RssAnon:")
}

fn status_kilobytes(field: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kb| kb * 1024)
}

/// Tells the allocator to keep what is freed for the next request instead of giving it back to the system. Layer after
/// layer asks for buffers of the same sizes, and a buffer that comes from the system is filled with zeros a page at a time
/// first: with glibc's settings that takes a third of a forward pass in bfloat16. Other allocators are left as they are.
pub fn keep_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the calls change two settings of the allocator; at worst they change nothing. 32 MB is the most it takes.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
}
