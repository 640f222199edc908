//! Writes both formats, as `save_imatrix` and `save_imatrix_legacy` of llama-imatrix do.

use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::sums::{Entry, Sums};
use crate::format::gguf::writer::{Layout, Writer};
use crate::format::gguf::{Array, GgmlType, Metadata, Value};

/// A format of importance matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Sums and counts in a GGUF file.
    Gguf,
    /// The older one: means, and chunks instead of counts. An expert that no token came to has ones.
    Dat,
}

impl Format {
    /// The format that a file of this name should have: `.dat`, else GGUF.
    pub fn of(path: &Path) -> Format {
        match path.extension() {
            Some(extension) if extension.eq_ignore_ascii_case("dat") => Format::Dat,
            _ => Format::Gguf,
        }
    }

    /// The whole file.
    pub fn encode(self, sums: &Sums) -> Vec<u8> {
        let written = match self {
            Format::Gguf => gguf(sums),
            Format::Dat => dat(sums),
        };
        written.expect("memory takes whatever is written")
    }
}

fn gguf(sums: &Sums) -> io::Result<Vec<u8>> {
    let mut metadata = Metadata::new();
    metadata.set("general.type", "imatrix");
    let datasets = sums.datasets.iter().map(|name| name.as_bytes().to_vec()).collect();
    metadata.set("imatrix.datasets", Value::Array(Array::Str(datasets)));
    metadata.set("imatrix.chunk_count", sums.chunks());
    metadata.set("imatrix.chunk_size", sums.chunk_size);
    let tensors = sums.entries.iter().flat_map(|(name, entry)| {
        let matrices = entry.counts.len() as u64;
        let columns = entry.squares.len() as u64 / matrices.max(1);
        // Trailing dimensions of 1 are not written (`ggml_n_dims`).
        let shape = |row| if matrices == 1 { vec![row] } else { vec![row, matrices] };
        [
            (format!("{name}.in_sum2"), shape(columns), GgmlType::F32),
            (format!("{name}.counts"), shape(1), GgmlType::F32),
        ]
    });
    let layout = Layout::new(&metadata, tensors);
    let mut writer = Writer::new(Vec::with_capacity(layout.file_bytes() as usize), layout)?;
    for entry in sums.entries.values() {
        writer.write(bytemuck::cast_slice(&little_endian(&entry.squares)))?;
        let counts: Vec<f32> = entry.counts.iter().map(|count| *count as f32).collect();
        writer.write(bytemuck::cast_slice(&little_endian(&counts)))?;
    }
    writer.finish()
}

fn dat(sums: &Sums) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    let number = |n: usize| i32::try_from(n).unwrap_or(i32::MAX).to_le_bytes();
    let stored = || sums.entries.iter().filter(|(_, entry)| entry.counts.iter().any(|count| *count > 0));
    out.write_all(&number(stored().count()))?;
    for (name, entry) in stored() {
        out.write_all(&number(name.len()))?;
        out.write_all(name.as_bytes())?;
        let most = entry.counts.iter().max().copied().unwrap_or(0);
        // Rounded up, so that it is never 0.
        let chunks = most.div_ceil(u64::from(sums.chunk_size.max(1)));
        out.write_all(&number(chunks as usize))?;
        out.write_all(&number(entry.squares.len()))?;
        out.write_all(bytemuck::cast_slice(&little_endian(&means(entry, chunks as f32))))?;
    }
    out.write_all(&number(sums.chunks() as usize))?;
    // There is room for one name.
    let dataset = sums.datasets.last().map_or("", String::as_str);
    out.write_all(&number(dataset.len()))?;
    out.write_all(dataset.as_bytes())?;
    Ok(out)
}

fn means(entry: &Entry, times: f32) -> Vec<f32> {
    let columns = entry.squares.len() / entry.counts.len().max(1);
    let rows = entry.squares.chunks_exact(columns.max(1)).zip(&entry.counts);
    rows.flat_map(|(row, count)| {
        row.iter().map(move |sum| match count {
            0 => times,
            count => sum / *count as f32 * times,
        })
    })
    .collect()
}

fn little_endian(values: &[f32]) -> Vec<[u8; 4]> {
    values.iter().map(|value| value.to_le_bytes()).collect()
}
