//! What the two formats hold, before anybody makes sense of it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::{Error, Kind, Result};
use crate::format::gguf::reader::{Reader, TensorInfo};
use crate::format::gguf::{Array, GgmlType, Value};

/// What is wrong with a file, without its name.
pub(super) type Parsed<T> = std::result::Result<T, String>;

/// Either file.
pub(super) struct Contents {
    /// At least one.
    pub(super) entries: BTreeMap<String, RawEntry>,
    pub(super) datasets: Vec<String>,
    /// As the file has it: it may be 0 or less.
    pub(super) chunks: i32,
    /// Tokens in a chunk; the older format does not say.
    pub(super) chunk_size: Option<u32>,
}

/// One tensor. No value is negative, NaN or infinite.
pub(super) enum RawEntry {
    /// Sums of squares, and the number of tokens of each matrix of the tensor.
    Gguf { sums: Vec<f32>, counts: Vec<f32> },
    /// Means of squares times `calls`.
    Legacy { values: Vec<f32>, calls: i32 },
}

/// Reads a file and makes of it what `make` does.
pub(super) fn load<T>(path: &Path, make: impl FnOnce(Contents) -> Parsed<T>) -> Result<T> {
    let what = || format!("cannot read {}", path.display());
    let mut magic = Vec::new();
    let mut file = File::open(path).map_err(|e| Error::io(what(), e))?;
    file.by_ref().take(4).read_to_end(&mut magic).map_err(|e| Error::io(what(), e))?;
    let contents = if magic == b"GGUF" {
        from_gguf(&Reader::open(path)?)
    } else {
        let mut bytes = magic;
        file.read_to_end(&mut bytes).map_err(|e| Error::io(what(), e))?;
        from_legacy(&bytes)
    };
    contents.and_then(make).map_err(|message| {
        Error::new(Kind::Invalid, format!("{} is no usable importance matrix: {message}", path.display()))
            .hint("Make it again with `analyze importance` or llama-imatrix, from the model that is to be quantized.")
    })
}

/// `common_imatrix_load`.
fn from_gguf(file: &Reader) -> Parsed<Contents> {
    let metadata = file.metadata();
    let number = |key: &str| match metadata.get(key) {
        Some(Value::U32(n)) => Ok(*n),
        Some(_) => Err(format!("{key} is no u32")),
        None => Err(format!("it has no {key}; is it a model?")),
    };
    let datasets = metadata.get("imatrix.datasets").ok_or("it has no imatrix.datasets; is it a model?")?;
    let chunks = number("imatrix.chunk_count")?;
    let chunk_size = number("imatrix.chunk_size")?;
    let datasets = match datasets {
        Value::Array(Array::Str(names)) => names.iter().map(|name| text(name)).collect(),
        _ => Vec::new(),
    };

    let mut pairs: BTreeMap<&str, (Option<&TensorInfo>, Option<&TensorInfo>)> = BTreeMap::new();
    for tensor in file.tensors() {
        if let Some(name) = tensor.name.strip_suffix(".in_sum2") {
            pairs.entry(name).or_default().0 = Some(tensor);
        } else if let Some(name) = tensor.name.strip_suffix(".counts") {
            pairs.entry(name).or_default().1 = Some(tensor);
        }
    }
    let mut entries = BTreeMap::new();
    for (name, pair) in pairs {
        let (Some(sums), Some(counts)) = pair else {
            return Err(format!("{name} has sums or counts, but not both"));
        };
        let values = |tensor: &TensorInfo| match tensor.ty {
            GgmlType::F32 => Ok(floats(file.data(tensor))),
            other => Err(format!("{} is {other}, not F32", tensor.name)),
        };
        let (sums, counts) = (values(sums)?, values(counts)?);
        columns(name, &sums, &counts)?;
        check(name, &sums)?;
        entries.insert(name.to_string(), RawEntry::Gguf { sums, counts });
    }
    finish(entries, datasets, chunks.cast_signed(), Some(chunk_size))
}

/// `common_imatrix_load_legacy`.
fn from_legacy(bytes: &[u8]) -> Parsed<Contents> {
    let mut rest = Bytes(bytes);
    let count = rest.i32("the number of entries")?;
    if count < 1 {
        return Err(format!("it has {count} entries"));
    }
    let mut entries = BTreeMap::new();
    for i in 1..=count {
        let len = rest.len(1, || format!("the name of entry {i}"))?;
        let name = text_before_nul(rest.take(len, || format!("the name of entry {i}"))?);
        let name = std::str::from_utf8(name).map_err(|_| format!("the name of entry {i} is no UTF-8"))?;
        let calls = rest.i32(name)?;
        let len = rest.len(size_of::<f32>(), || name.to_string())?;
        if len == 0 {
            return Err(format!("{name} has no values"));
        }
        let values = floats(rest.take(len, || name.to_string())?);
        check(name, &values)?;
        entries.insert(name.to_string(), RawEntry::Legacy { values, calls });
    }
    let (mut datasets, mut chunks) = (Vec::new(), 0);
    if !rest.0.is_empty() {
        chunks = rest.i32("the number of chunks")?;
        if !rest.0.is_empty() {
            let what = || "the data set's name".to_string();
            let len = rest.len(1, what)?;
            let name = rest.take(len, what)?;
            datasets.extend((len > 0).then(|| text(name)));
        }
    }
    finish(entries, datasets, chunks, None)
}

fn finish(
    entries: BTreeMap<String, RawEntry>,
    datasets: Vec<String>,
    chunks: i32,
    chunk_size: Option<u32>,
) -> Parsed<Contents> {
    if entries.is_empty() {
        return Err("it has no entries".into());
    }
    Ok(Contents { entries, datasets, chunks, chunk_size })
}

/// The number of columns of a tensor with these sums and one count for each of its matrices.
pub(super) fn columns(name: &str, sums: &[f32], counts: &[f32]) -> Parsed<usize> {
    if counts.is_empty() || sums.is_empty() || !sums.len().is_multiple_of(counts.len()) {
        return Err(format!("{name} has {} sums for {} counts", sums.len(), counts.len()));
    }
    Ok(sums.len() / counts.len())
}

/// A count as llama.cpp reads it: a whole number.
pub(super) fn count(name: &str, count: f32) -> Parsed<f32> {
    if !(0.0..9.2e18).contains(&count) {
        return Err(format!("{name} has the count {count}"));
    }
    Ok(count.round())
}

fn check(name: &str, sums: &[f32]) -> Parsed<()> {
    match sums.iter().position(|v| !(v.is_finite() && *v >= 0.0)) {
        Some(i) => Err(format!("value {i} of {name} is {}", sums[i])),
        None => Ok(()),
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// Strings go through C: they end at the first NUL.
fn text_before_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|b| *b == 0).next().unwrap_or_default()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(text_before_nul(bytes)).into_owned()
}

/// What is left of a legacy file.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, len: usize, what: impl Fn() -> String) -> Parsed<&'a [u8]> {
        let (taken, rest) =
            self.0.split_at_checked(len).ok_or_else(|| format!("it ends within {}", what()))?;
        self.0 = rest;
        Ok(taken)
    }

    fn i32(&mut self, what: &str) -> Parsed<i32> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or_else(|| format!("it ends within {what}"))?;
        self.0 = rest;
        Ok(i32::from_le_bytes(*bytes))
    }

    /// A number of items of `size` bytes each, as bytes; checked against what is left before anybody allocates.
    fn len(&mut self, size: usize, what: impl Fn() -> String) -> Parsed<usize> {
        let n = self.i32(&what())?;
        let len = usize::try_from(n).ok().and_then(|n| n.checked_mul(size));
        len.filter(|len| *len <= self.0.len())
            .ok_or_else(|| format!("{} has the length {n}, and {} bytes are left", what(), self.0.len()))
    }
}
