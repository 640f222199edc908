//! How the library tells what it is doing. The command line draws bars or prints lines from this.

/// Receives progress and messages. All methods may be called from several threads.
pub trait Progress: Sync {
    /// A stage begins; `total` is in `unit`s.
    fn begin(&self, stage: &str, total: u64, unit: Unit);
    /// `done` more units of the current stage are finished.
    fn advance(&self, done: u64);
    /// What is being worked on, for example a tensor's name.
    fn item(&self, name: &str);
    /// The current stage is over.
    fn end(&self);
    /// Something the user should know and may have to act on.
    fn warn(&self, message: &str);
    /// An ordinary message.
    fn info(&self, message: &str);
    /// A detail for `--verbosity verbose`.
    fn detail(&self, message: &str);
}

/// What a stage counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes, shown as KB, MB, GB.
    Bytes,
    /// Weights, shown as thousands, millions, billions.
    Weights,
    /// Tokens of a text.
    Tokens,
    /// Layers of a model.
    Layers,
    /// Steps of a descent.
    Steps,
}

/// Progress that goes nowhere.
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _: &str, _: u64, _: Unit) {}
    fn advance(&self, _: u64) {}
    fn item(&self, _: &str) {}
    fn end(&self) {}
    fn warn(&self, _: &str) {}
    fn info(&self, _: &str) {}
    fn detail(&self, _: &str) {}
}
