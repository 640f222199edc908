//! Progress without messages.

use crate::progress::{Progress, Unit};

/// Progress without messages: those about a model have been given when it was opened first.
pub(super) struct Quiet<'a>(pub(super) &'a dyn Progress);

impl Progress for Quiet<'_> {
    fn begin(&self, stage: &str, total: u64, unit: Unit) {
        self.0.begin(stage, total, unit);
    }
    fn advance(&self, done: u64) {
        self.0.advance(done);
    }
    fn item(&self, name: &str) {
        self.0.item(name);
    }
    fn end(&self) {
        self.0.end();
    }
    fn warn(&self, _: &str) {}
    fn info(&self, _: &str) {}
    fn detail(&self, message: &str) {
        self.0.detail(message);
    }
}
