//! Reading the JSON files beside a model.

use std::path::Path;

use serde::de::DeserializeOwned;

use crate::error::{Error, Kind, Result};
use crate::source::inside;

/// The bytes of `path`, or nothing if there is no such file.
pub(crate) fn read_bytes(path: &Path) -> Result<Option<Vec<u8>>> {
    inside::read(path)
}

/// The text of `path` with line ends as `\n`, or nothing if there is no such file.
///
/// Line ends are made uniform because Python's text mode does so: a template with `\r\n` enters the GGUF file
/// with `\n`.
pub(crate) fn read_text(path: &Path) -> Result<Option<String>> {
    read_bytes(path)?.map(|bytes| text(path, bytes)).transpose()
}

/// The same of a file anywhere below the model's directory `dir`.
pub(crate) fn read_text_of(dir: &Path, path: &Path) -> Result<Option<String>> {
    inside::read_of(dir, path)?.map(|bytes| text(path, bytes)).transpose()
}

fn text(path: &Path, bytes: Vec<u8>) -> Result<String> {
    let text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::new(Kind::Invalid, format!("{}: not valid UTF-8 at byte {at}", path.display()))
    })?;
    Ok(if text.contains('\r') { text.replace("\r\n", "\n").replace('\r', "\n") } else { text })
}

/// `path` read as JSON, or nothing if there is no such file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let Some(bytes) = read_bytes(path)? else { return Ok(None) };
    // The cause names line and column.
    serde_json::from_slice(&bytes).map(Some).map_err(|e| {
        Error::new(Kind::Invalid, format!("{} is not what it should be", path.display())).because(e)
    })
}

/// An error of kind `Invalid` about `path`.
pub(crate) fn invalid(path: &Path, what: impl std::fmt::Display) -> Error {
    Error::new(Kind::Invalid, format!("{}: {what}", path.display()))
}
