//! The library's error: what failed, as which exit code, and what to do next.

use std::fmt;

/// What kind of failure it is; the number is the program's exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Anything without a code of its own.
    Other = 1,
    /// Wrong arguments; also an output that exists and may not be overwritten.
    Usage = 2,
    /// The model or data is not there.
    NotFound = 3,
    /// The Hub asks for a token.
    Auth = 4,
    /// Out of memory or disk space.
    Resources = 5,
    /// The input or the output is not what it claims to be.
    Invalid = 6,
    /// A checkpoint cannot be used.
    Checkpoint = 7,
    /// An architecture, level, tensor type or conversion that is not supported.
    Unsupported = 8,
    /// The result is worse than asked for.
    Quality = 11,
    /// Stopped by the user.
    Interrupted = 130,
}

impl Kind {
    /// The name that JSON output carries as `error_type`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Other => "Error",
            Kind::Usage => "UsageError",
            Kind::NotFound => "ModelNotFoundError",
            Kind::Auth => "AuthenticationError",
            Kind::Resources => "ResourceError",
            Kind::Invalid => "ValidationError",
            Kind::Checkpoint => "CheckpointError",
            Kind::Unsupported => "UnsupportedError",
            Kind::Quality => "QualityError",
            Kind::Interrupted => "Interrupted",
        }
    }
}

/// A failure: what happened and where, and what to do about it.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    hint: Option<String>,
    details: Option<Box<serde_json::Value>>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The library's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind`; `message` says what happened and where.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Error { kind, message: message.into(), hint: None, details: None, source: None }
    }

    /// Says what to do next.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Keeps what was found out until the failure, for JSON output.
    pub fn details(mut self, value: &impl serde::Serialize) -> Self {
        self.details = serde_json::to_value(value).ok().map(Box::new);
        self
    }

    /// Keeps what caused this error.
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// An I/O failure while reading: `what` says of which file.
    pub fn io(what: impl Into<String>, e: std::io::Error) -> Self {
        use std::io::ErrorKind::*;
        let kind = match e.kind() {
            NotFound => Kind::NotFound,
            OutOfMemory => Kind::Resources,
            _ => Kind::Other,
        };
        Error::new(kind, what).because(e)
    }

    /// An I/O failure while writing, or while reading back what a run has put aside for itself. The place that was meant to take
    /// it does not: that is a lack of resources.
    pub fn output(what: impl Into<String>, e: std::io::Error) -> Self {
        use std::io::ErrorKind::*;
        // What a writer was given may have failed before it was written, and has said what it is.
        let own = e.get_ref().and_then(|inner| inner.downcast_ref::<Error>()).map(Error::kind);
        let kind = own.unwrap_or_else(|| match e.kind() {
            StorageFull | QuotaExceeded | FileTooLarge | OutOfMemory | ReadOnlyFilesystem
            | PermissionDenied => Kind::Resources,
            _ if e.raw_os_error() == Some(libc::EIO) => Kind::Resources,
            _ => Kind::Other,
        });
        Error::new(kind, what).because(e)
    }

    /// Says how much is missing, if this is an error of a full disk that was still to take so many bytes.
    pub fn missing(mut self, bytes: u64) -> Self {
        use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        let cause = self.source.as_ref().and_then(|source| source.downcast_ref::<std::io::Error>());
        if cause.is_some_and(|e| matches!(e.kind(), StorageFull | QuotaExceeded | FileTooLarge)) {
            self.message += &format!(" ({bytes} bytes are still to be written)");
        }
        self
    }

    /// Which kind it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The program's exit code for it.
    pub fn exit_code(&self) -> u8 {
        self.kind as u8
    }

    /// What was found out until the failure.
    pub fn found(&self) -> Option<&serde_json::Value> {
        self.details.as_deref()
    }

    /// What to do next, if there is something to say.
    pub fn suggestion(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(source) = &self.source {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        // The cause is already part of the message.
        self.source.as_deref().and_then(|s| s.source())
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn what_failed_before_it_could_be_written_keeps_its_kind() {
        let eio = || io::Error::from_raw_os_error(libc::EIO);
        for (inner, kind) in [
            (Error::output("cannot read states back", eio()), Kind::Resources),
            (Error::io("cannot read the source", eio()), Kind::Other),
            (Error::new(Kind::Invalid, "no number"), Kind::Invalid),
        ] {
            assert_eq!(Error::output("cannot write a part", io::Error::other(inner)).kind(), kind);
        }
        assert_eq!(Error::output("cannot write a part", io::Error::other("what?")).kind(), Kind::Other);
    }
}
