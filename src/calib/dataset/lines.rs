//! Text files, whole or line by line.

use std::borrow::Cow;
use std::io::{BufRead, BufReader, Read};
use std::ops::ControlFlow;
use std::path::Path;

use flate2::read::MultiGzDecoder;
use serde_json::Value;

use super::record::{Place, sample};
use super::unpacked::Bounded;
use super::{Sample, Sink, open_file};
use crate::error::{Error, Kind, Result};

/// The most that is held of a file at once: a whole text, a JSON document or one line.
const MAX_LEN: u64 = 1 << 30;

/// A file that is read as text, unpacked if its name ends in `.gz`.
pub(super) struct TextFile<'a> {
    name: &'a str,
    reader: Box<dyn BufRead>,
    /// Bytes and lines that were read.
    offset: u64,
    line: usize,
}

impl<'a> TextFile<'a> {
    pub(super) fn open(path: &Path, name: &'a str) -> Result<TextFile<'a>> {
        let file = open_file(path, name)?;
        let size = file.metadata().map_err(|e| Error::io(format!("cannot read {name}"), e))?.len();
        let packed = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gz"));
        let reader: Box<dyn BufRead> = match packed {
            true => {
                Box::new(BufReader::with_capacity(1 << 16, Bounded::new(MultiGzDecoder::new(file), size)))
            }
            false => Box::new(BufReader::with_capacity(1 << 16, file)),
        };
        Ok(TextFile { name, reader, offset: 0, line: 0 })
    }

    /// The rest of the file.
    pub(super) fn rest(&mut self) -> Result<String> {
        let mut bytes = Vec::new();
        let read = self.reader.by_ref().take(MAX_LEN + 1).read_to_end(&mut bytes);
        self.take(bytes, read.map(drop))
    }

    /// The next line, with its end; none at the end of the file.
    pub(super) fn next_line(&mut self) -> Result<Option<String>> {
        let mut bytes = Vec::new();
        let read = self.reader.by_ref().take(MAX_LEN + 1).read_until(b'\n', &mut bytes);
        let line = self.take(bytes, read.map(drop))?;
        self.line += 1;
        Ok(Some(line).filter(|line| !line.is_empty()))
    }

    /// The number of the line that was read last, the first being 1.
    pub(super) fn line(&self) -> usize {
        self.line
    }

    fn take(&mut self, bytes: Vec<u8>, read: std::io::Result<()>) -> Result<String> {
        let name = self.name;
        read.map_err(|e| match e.kind() {
            // What a damaged archive gives.
            std::io::ErrorKind::InvalidInput
            | std::io::ErrorKind::InvalidData
            | std::io::ErrorKind::UnexpectedEof => {
                Error::new(Kind::Invalid, format!("{name} is no intact gzip file")).because(e)
            }
            _ => Error::io(format!("cannot read {name}"), e),
        })?;
        if bytes.len() as u64 > MAX_LEN {
            return Err(Error::new(
                Kind::Unsupported,
                format!("{name} has more than 1 GiB of text in one piece"),
            )
            .hint("Pass a part of it; calibration needs a few megabytes."));
        }
        let start = self.offset;
        self.offset += bytes.len() as u64;
        let text = String::from_utf8(bytes).map_err(|e| {
            let at = start + e.utf8_error().valid_up_to() as u64;
            let byte = e.as_bytes()[e.utf8_error().valid_up_to()];
            Error::new(Kind::Invalid, format!("{name} is not UTF-8: byte 0x{byte:02x} at offset {at}"))
                .hint("Convert it, for example with iconv -t UTF-8.")
        })?;
        // A mark of byte order at the start is no text.
        Ok(match text.strip_prefix('\u{feff}') {
            Some(rest) if start == 0 => rest.to_owned(),
            _ => text,
        })
    }
}

/// A whole file as one sample.
pub(super) fn text(path: &Path, name: &str, sink: &mut Sink<'_>) -> Result<ControlFlow<()>> {
    let text = TextFile::open(path, name)?.rest()?;
    if text.trim().is_empty() {
        return Err(Error::new(Kind::Invalid, format!("{name} is empty")));
    }
    sink(Sample::Text(Cow::Owned(text)))
}

/// JSON Lines: one record in each line. Blank lines are passed over.
pub(super) fn records(
    path: &Path,
    name: &str,
    column: Option<&str>,
    sink: &mut Sink<'_>,
) -> Result<ControlFlow<()>> {
    let mut file = TextFile::open(path, name)?;
    rest(&mut file, name, column, sink)?.ok_or_else(|| Error::new(Kind::Invalid, format!("{name} is empty")))
}

/// The records in the remaining lines; none if there is none.
pub(super) fn rest(
    file: &mut TextFile<'_>,
    name: &str,
    column: Option<&str>,
    sink: &mut Sink<'_>,
) -> Result<Option<ControlFlow<()>>> {
    let mut found = None;
    while let Some(line) = file.next_line()? {
        if line.trim().is_empty() {
            continue;
        }
        let place = Place { file: name, at: Some(("line", file.line())) };
        let value: Value = serde_json::from_str(&line).map_err(|e| place.no_json(&e))?;
        let flow = sink(sample(value, column, &place)?)?;
        found = Some(flow);
        if flow.is_break() {
            break;
        }
    }
    Ok(found)
}
