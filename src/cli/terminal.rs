//! Progress for people: a bar with ETA on a terminal, plain lines elsewhere. Everything goes to standard error.

#![allow(clippy::print_stderr)]

use std::io::IsTerminal;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use super::Verbosity;
use super::output::duration;
use crate::progress::{Progress, Unit};

/// Lines are printed this often where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Draws what the library reports.
pub(super) struct Terminal {
    verbosity: Verbosity,
    interactive: bool,
    stage: Mutex<Option<Stage>>,
    done: AtomicU64,
}

struct Stage {
    name: String,
    unit: Unit,
    total: u64,
    started: Instant,
    last_line: Instant,
    bar: Option<ProgressBar>,
}

impl Terminal {
    pub(super) fn new(verbosity: Verbosity) -> Self {
        let interactive = std::io::stderr().is_terminal();
        Terminal { verbosity, interactive, stage: Mutex::new(None), done: AtomicU64::new(0) }
    }

    fn line(&self, text: &str) {
        let stage = self.stage.lock().unwrap_or_else(|e| e.into_inner());
        match stage.as_ref().and_then(|s| s.bar.as_ref()) {
            Some(bar) => bar.println(text),
            None => eprintln!("{text}"),
        }
    }
}

/// How long a stage still takes if it goes on as it did on the whole so far: layers come in bursts, so that the latest speed says
/// little. Nobody knows at the start.
fn time_left(done: u64, total: u64, spent: Duration) -> String {
    match done {
        0 => "unknown".into(),
        _ => duration(spent.as_secs_f64() * total.saturating_sub(done) as f64 / done as f64),
    }
}

impl Progress for Terminal {
    fn begin(&self, name: &str, total: u64, unit: Unit) {
        if self.verbosity == Verbosity::Quiet {
            return;
        }
        self.done.store(0, Ordering::Relaxed);
        let bar = self.interactive.then(|| {
            let counts = match unit {
                Unit::Bytes => "{bytes}/{total_bytes}, {bytes_per_sec}",
                Unit::Weights => "{percent}% of {human_len} weights",
                Unit::Tokens => "{percent}% of {human_len} tokens",
                Unit::Layers => "{pos} of {len} layers",
                Unit::Steps => "{pos} of {len} steps",
            };
            let template = format!("{{prefix}} [{{bar:30}}] {counts}, ETA {{left}} {{wide_msg:.dim}}");
            let style = ProgressStyle::with_template(&template)
                .expect("the template is fixed")
                .progress_chars("=> ")
                .with_key("left", |state: &ProgressState, text: &mut dyn std::fmt::Write| {
                    let total = state.len().unwrap_or_default();
                    let _ = text.write_str(&time_left(state.pos(), total, state.elapsed()));
                });
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            bar.set_style(style);
            bar.set_prefix(name.to_owned());
            bar
        });
        if bar.is_none() {
            eprintln!("{name} ...");
        }
        let now = Instant::now();
        let stage = Stage { name: name.into(), unit, total, started: now, last_line: now, bar };
        *self.stage.lock().unwrap_or_else(|e| e.into_inner()) = Some(stage);
    }

    fn advance(&self, n: u64) {
        let done = self.done.fetch_add(n, Ordering::Relaxed) + n;
        // Whoever holds the lock is drawing already.
        let Ok(mut guard) = self.stage.try_lock() else { return };
        let Some(stage) = guard.as_mut() else { return };
        match &stage.bar {
            Some(bar) => bar.set_position(done),
            None if stage.last_line.elapsed() >= LINE_EVERY => {
                stage.last_line = Instant::now();
                let share = done as f64 / stage.total.max(1) as f64;
                let left = time_left(done, stage.total, stage.started.elapsed());
                eprintln!("{}: {:.0}%, ETA {left}", stage.name, 100.0 * share);
            }
            None => {}
        }
    }

    fn item(&self, name: &str) {
        if let Some(bar) =
            self.stage.lock().unwrap_or_else(|e| e.into_inner()).as_ref().and_then(|s| s.bar.as_ref())
        {
            bar.set_message(name.to_owned());
        }
    }

    fn end(&self) {
        let Some(stage) = self.stage.lock().unwrap_or_else(|e| e.into_inner()).take() else { return };
        if let Some(bar) = stage.bar {
            bar.finish_and_clear();
        }
        if self.verbosity >= Verbosity::Verbose {
            let what = match stage.unit {
                Unit::Bytes => "bytes",
                Unit::Weights => "weights",
                Unit::Tokens => "tokens",
                Unit::Layers => "layers",
                Unit::Steps => "steps",
            };
            let spent = stage.started.elapsed().as_secs_f64();
            eprintln!("{}: {} {what} in {}", stage.name, stage.total, duration(spent));
        }
    }

    fn warn(&self, message: &str) {
        if self.verbosity > Verbosity::Quiet {
            self.line(&format!("Warning: {message}"));
        }
    }

    fn info(&self, message: &str) {
        if self.verbosity > Verbosity::Quiet {
            self.line(message);
        }
    }

    fn detail(&self, message: &str) {
        if self.verbosity >= Verbosity::Verbose {
            self.line(message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_follows_from_what_is_done() {
        let spent = Duration::from_secs(30);
        let left = [0, 25, 50, 100, 200].map(|done| time_left(done, 100, spent));
        assert_eq!(left, ["unknown", "1m 30s", "30.0s", "0.0s", "0.0s"]);
    }
}
