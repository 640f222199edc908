//! How much memory the process has used.

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
