//! Importance matrices of llama.cpp: how strongly each column of a weight is used, from `llama-imatrix`.
//!
//! There are two formats, GGUF and an older one without a name (`.dat`). Both are read and turned into importances
//! as `common_imatrix_load` and `load_imatrix` of llama-quantize do, operation by operation: the quantized bytes
//! depend on every bit. What those leave to chance (damaged counts, infinite sums) is an error here.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::{Error, Kind, Result};
use crate::format::gguf::reader::{Reader, TensorInfo};
use crate::format::gguf::{Array, GgmlType, Value};

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
        let what = || format!("cannot read {}", path.display());
        let mut magic = Vec::new();
        let mut file = File::open(path).map_err(|e| Error::io(what(), e))?;
        file.by_ref().take(4).read_to_end(&mut magic).map_err(|e| Error::io(what(), e))?;
        let loaded = if magic == b"GGUF" {
            from_gguf(&Reader::open(path)?)
        } else {
            let mut bytes = magic;
            file.read_to_end(&mut bytes).map_err(|e| Error::io(what(), e))?;
            from_legacy(&bytes)
        };
        let mut imatrix = loaded.map_err(|message| {
            Error::new(Kind::Invalid, format!("{} is no usable importance matrix: {message}", path.display()))
                .hint("Make it again with llama-imatrix, from the model that is to be quantized.")
        })?;
        imatrix.file_name = path.to_string_lossy().into_owned();
        Ok(imatrix)
    }

    /// The importances of one tensor.
    pub fn get(&self, tensor: &str) -> Option<&[f32]> {
        self.entries.get(tensor).map(Vec::as_slice)
    }
}

/// What is wrong with a file, without its name.
type Parsed<T> = Result<T, String>;

/// `common_imatrix_load` and the GGUF half of `load_imatrix`.
fn from_gguf(file: &Reader) -> Parsed<Imatrix> {
    let metadata = file.metadata();
    let number = |key: &str| match metadata.get(key) {
        Some(Value::U32(n)) => Ok(*n),
        Some(_) => Err(format!("{key} is no u32")),
        None => Err(format!("it has no {key}; is it a model?")),
    };
    let datasets = metadata.get("imatrix.datasets").ok_or("it has no imatrix.datasets; is it a model?")?;
    let chunks = number("imatrix.chunk_count")?;
    number("imatrix.chunk_size")?;
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
        entries.insert(name.to_string(), per_matrix(name, values(sums)?, &values(counts)?)?);
    }
    finish(entries, datasets, chunks.cast_signed())
}

/// Mean squares from sums of squares; `counts` has one number for each matrix of the tensor.
fn per_matrix(name: &str, mut sums: Vec<f32>, counts: &[f32]) -> Parsed<Vec<f32>> {
    if counts.is_empty() || sums.is_empty() || !sums.len().is_multiple_of(counts.len()) {
        return Err(format!("{name} has {} sums for {} counts", sums.len(), counts.len()));
    }
    check(name, &sums)?;
    let columns = sums.len() / counts.len();
    for (row, count) in sums.chunks_exact_mut(columns).zip(counts) {
        // An i64 in llama.cpp, by way of lround and back to float.
        if !(0.0..9.2e18).contains(count) {
            return Err(format!("{name} has the count {count}"));
        }
        let count = count.round();
        match count > 0.0 {
            true => row.iter_mut().for_each(|sum| *sum /= count),
            // An expert that no token came to.
            false => row.fill(1.0),
        }
    }
    Ok(sums)
}

/// `common_imatrix_load_legacy` and the other half of `load_imatrix`.
fn from_legacy(bytes: &[u8]) -> Parsed<Imatrix> {
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
        let values = rest.take(len, || name.to_string())?;
        let mut values = floats(values);
        check(name, &values)?;
        // The sums are means times this number, whatever its right name would be.
        if calls > 0 {
            values.iter_mut().for_each(|value| *value /= calls as f32);
        }
        entries.insert(name.to_string(), values);
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
    finish(entries, datasets, chunks)
}

fn finish(entries: BTreeMap<String, Vec<f32>>, datasets: Vec<String>, chunks: i32) -> Parsed<Imatrix> {
    if entries.is_empty() {
        return Err("it has no entries".into());
    }
    // llama-quantize does not note a number that is not positive.
    let chunks = u32::try_from(chunks).unwrap_or(0);
    Ok(Imatrix { entries, datasets, chunks, file_name: String::new() })
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
