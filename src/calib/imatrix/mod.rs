//! Importance matrices of llama.cpp: how strongly each column of a weight is used, from `llama-imatrix` or from
//! `analyze importance`.
//!
//! There are two formats, GGUF and an older one without a name (`.dat`). Both are read and turned into importances
//! as `common_imatrix_load` and `load_imatrix` of llama-quantize do, operation by operation: the quantized bytes
//! depend on every bit. What those leave to chance (damaged counts, infinite sums) is an error here.

mod file;
mod sums;
mod write;

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::Result;
use file::{Contents, Parsed, RawEntry};
pub use sums::{DEFAULT_CHUNK_SIZE, Entry, Sums};
pub use write::Format;

/// Importances by tensor name.
#[derive(Clone, Debug, PartialEq)]
pub struct Imatrix {
    /// One importance per column; for a tensor of several matrices (experts) one row after the other.
    pub entries: BTreeMap<String, Vec<f32>>,
    /// The text files that it was computed on.
    pub datasets: Vec<String>,
    /// How many chunks of text it was computed on; 0 if the file does not say.
    pub chunks: u32,
    /// The path as it was given, which llama-quantize notes in its output (cut to 127 bytes, like the data set).
    pub file_name: String,
}

impl Imatrix {
    /// Reads either format.
    pub fn load(path: &Path) -> Result<Imatrix> {
        file::load(path, |contents: Contents| {
            let entries = contents.entries.into_iter().map(|(name, entry)| {
                let importances = importances(&name, entry)?;
                Ok((name, importances))
            });
            Ok(Imatrix {
                entries: entries.collect::<Parsed<_>>()?,
                datasets: contents.datasets,
                // llama-quantize does not note a number that is not positive.
                chunks: u32::try_from(contents.chunks).unwrap_or(0),
                file_name: path.to_string_lossy().into_owned(),
            })
        })
    }

    /// The importances of one tensor.
    pub fn get(&self, tensor: &str) -> Option<&[f32]> {
        self.entries.get(tensor).map(Vec::as_slice)
    }
}

/// Mean squares from sums of squares.
fn importances(name: &str, entry: RawEntry) -> Parsed<Vec<f32>> {
    match entry {
        RawEntry::Gguf { sums: mut values, counts } => {
            let columns = file::columns(name, &values, &counts)?;
            for (row, count) in values.chunks_exact_mut(columns).zip(&counts) {
                // An i64 in llama.cpp, by way of lround and back to float.
                let count = file::count(name, *count)?;
                match count > 0.0 {
                    true => row.iter_mut().for_each(|sum| *sum /= count),
                    // An expert that no token came to.
                    false => row.fill(1.0),
                }
            }
            Ok(values)
        }
        RawEntry::Legacy { mut values, calls } => {
            // The sums are means times this number, whatever its right name would be.
            if calls > 0 {
                values.iter_mut().for_each(|value| *value /= calls as f32);
            }
            Ok(values)
        }
    }
}
