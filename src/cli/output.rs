//! Results on standard output, failures on standard error (human) or standard output (JSON).

#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::io::Write;

use serde::Serialize;
use serde_json::json;

use super::{Format, Verbosity};
use crate::error::Error;

/// Where results and failures go.
pub(super) struct Output {
    format: Format,
    verbosity: Verbosity,
}

impl Output {
    pub(super) fn new(format: Format, verbosity: Verbosity) -> Self {
        Output { format, verbosity }
    }

    pub(super) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Whether details are wanted.
    pub(super) fn is_verbose(&self) -> bool {
        self.verbosity >= Verbosity::Verbose
    }

    /// Prints a result: `human` as it is, or `value` as JSON.
    pub(super) fn result(&self, value: &impl Serialize, human: &str) {
        let text = match self.format {
            Format::Json => serde_json::to_string_pretty(value).expect("reports are plain data"),
            Format::Human => human.trim_end().to_owned(),
        };
        print(&text);
    }

    /// Prints to standard error, unless quiet or JSON.
    pub(super) fn note(&self, human: &str) {
        if self.format == Format::Human && self.verbosity > Verbosity::Quiet {
            eprintln!("{}", human.trim_end());
        }
    }

    pub(super) fn failure(&self, e: &Error) {
        match self.format {
            Format::Human => {
                eprintln!("Error: {e}");
                if let Some(hint) = e.suggestion() {
                    eprintln!("  {hint}");
                }
            }
            Format::Json => {
                let mut value = json!({"status": "error", "error_code": e.exit_code(),
                    "error_type": e.kind().name(), "message": e.to_string()});
                if let Some(hint) = e.suggestion() {
                    value["suggestion"] = json!(hint);
                }
                for (key, found) in e.found().and_then(|found| found.as_object()).into_iter().flatten() {
                    if key != "status" {
                        value[key] = found.clone();
                    }
                }
                print(&format!("{value:#}"));
            }
        }
    }
}

/// A reader that closes the pipe early is no error.
fn print(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// Lines of names and values.
pub(super) fn fields(rows: &[(&str, String)]) -> String {
    rows.iter().map(|(name, value)| format!("{name:<16} {value}\n")).collect()
}

/// Bytes as people read them: 512 B, 1.5 KB, 3.2 GB; 1024 of each make one of the next.
pub(super) fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KB", "MB", "GB", "TB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} PB")
}

/// Seconds as people read them: 45.5s, 2m 5s, 1h 2m.
pub(super) fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1}s"),
        60..3600 => format!("{}m {}s", whole / 60, whole % 60),
        _ => format!("{}h {}m", whole / 3600, whole % 3600 / 60),
    }
}

/// Thousands separated by commas.
pub(super) fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_people_read_them() {
        assert_eq!([size(512), size(1536), size(5 << 30)], ["512 B", "1.5 KB", "5.0 GB"]);
        assert_eq!([duration(45.54), duration(125.0), duration(3720.0)], ["45.5s", "2m 5s", "1h 2m"]);
        assert_eq!([thousands(7), thousands(1234), thousands(1_234_567)], ["7", "1,234", "1,234,567"]);
    }
}
