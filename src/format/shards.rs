//! Safetensors files with an index, laid out first and then written in any order.
//!
//! The layout is that of the safetensors library and of `save_pretrained`: within a file tensors lie by alignment and then by
//! name; files are filled up to a limit, in the order in which the tensors are given.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::json;

use crate::atomic::AtomicDir;
use crate::error::{Error, Kind, Result};
use crate::source::dense::not_finite;
use crate::source::safetensors::FloatType;

/// Bytes of tensors per file, unless asked otherwise; that of `save_pretrained`.
pub const SHARD_BYTES: u64 = 5_000_000_000;

/// A tensor that will be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name.
    pub name: String,
    /// The type of its elements, of whole bytes.
    pub dtype: Dtype,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// Bytes of the tensor.
    pub fn bytes(&self) -> u64 {
        self.shape.iter().map(|n| *n as u64).product::<u64>() * self.dtype.bitsize() as u64 / 8
    }
}

#[derive(Clone, Debug)]
struct Shard {
    name: String,
    /// Length of the header and the header itself.
    head: Vec<u8>,
    bytes: u64,
}

#[derive(Clone, Debug)]
struct Place {
    shard: usize,
    /// Where the tensor begins in the file.
    start: u64,
    len: u64,
}

/// Which tensor goes where. Sizes and offsets are known before any work is done.
#[derive(Clone, Debug)]
pub struct Layout {
    shards: Vec<Shard>,
    places: BTreeMap<String, Place>,
    index: Option<String>,
}

impl Layout {
    /// Distributes tensors over files of at most `shard_bytes` of data each; a larger tensor has a file of its own.
    ///
    /// # Errors
    /// `Invalid` if two tensors have the same name, or there are too many for a header.
    pub fn new(tensors: &[TensorSpec], shard_bytes: u64) -> Result<Layout> {
        let mut parts: Vec<Vec<&TensorSpec>> = vec![Vec::new()];
        let mut filled = 0;
        for tensor in tensors {
            if filled > 0 && tensor.bytes() > 0 && filled + tensor.bytes() > shard_bytes {
                parts.push(Vec::new());
                filled = 0;
            }
            filled += tensor.bytes();
            parts.last_mut().expect("there is a part").push(tensor);
        }
        let mut layout = Layout { shards: Vec::new(), places: BTreeMap::new(), index: None };
        for (i, part) in parts.iter().enumerate() {
            let name = match parts.len() {
                1 => "model.safetensors".into(),
                n => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
            };
            layout.add(name, part)?;
        }
        if parts.len() > 1 {
            let total: u64 = tensors.iter().map(TensorSpec::bytes).sum();
            let weight_map: BTreeMap<&str, &str> = layout
                .places
                .iter()
                .map(|(name, place)| (name.as_str(), layout.shards[place.shard].name.as_str()))
                .collect();
            let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
            layout.index = Some(format!("{index:#}\n"));
        }
        Ok(layout)
    }

    fn add(&mut self, name: String, tensors: &[&TensorSpec]) -> Result<()> {
        let mut sorted = tensors.to_vec();
        // An element must lie at a multiple of its size for PyTorch to map it.
        sorted.sort_by(|a, b| b.dtype.cmp(&a.dtype).then_with(|| a.name.cmp(&b.name)));
        let mut infos = Vec::with_capacity(sorted.len());
        let mut end = 0;
        for tensor in &sorted {
            let start = end;
            end += tensor.bytes();
            infos.push((
                tensor.name.clone(),
                TensorInfo {
                    dtype: tensor.dtype,
                    shape: tensor.shape.clone(),
                    data_offsets: (start as usize, end as usize),
                },
            ));
            let place = Place { shard: self.shards.len(), start, len: tensor.bytes() };
            if self.places.insert(tensor.name.clone(), place).is_some() {
                return Err(Error::new(Kind::Invalid, format!("two tensors have the name {}", tensor.name)));
            }
        }
        // Without this entry transformers refuses the file.
        let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let header = Metadata::new(Some(format), infos)
            .map_err(|e| Error::new(Kind::Invalid, format!("cannot lay out {name}")).because(e))?;
        let mut header = serde_json::to_vec(&header).expect("a header is JSON");
        header.resize(header.len().next_multiple_of(8), b' ');
        // The library, and all that use it, read no longer header.
        if header.len() > 100_000_000 {
            return Err(Error::new(Kind::Invalid, format!("{name} would hold too many tensors"))
                .hint("Choose smaller shards."));
        }
        let head = [&(header.len() as u64).to_le_bytes(), header.as_slice()].concat();
        for tensor in &sorted {
            self.places.get_mut(&tensor.name).expect("it was just placed").start += head.len() as u64;
        }
        self.shards.push(Shard { name, bytes: head.len() as u64 + end, head });
        Ok(())
    }

    /// Bytes of all files.
    pub fn file_bytes(&self) -> u64 {
        let index = self.index.as_ref().map_or(0, |index| index.len() as u64);
        index + self.shards.iter().map(|shard| shard.bytes).sum::<u64>()
    }

    /// The names of the safetensors files.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.shards.iter().map(|shard| shard.name.as_str())
    }
}

/// Writes tensors into their places, in any order and in pieces.
#[derive(Debug)]
pub struct ShardWriter {
    layout: Layout,
    files: Vec<File>,
    /// Bytes of each tensor that are written.
    written: BTreeMap<String, u64>,
}

impl ShardWriter {
    /// Makes the files in `dir` and writes their headers and the index.
    pub fn create(dir: &AtomicDir, layout: Layout) -> Result<ShardWriter> {
        let mut files = Vec::with_capacity(layout.shards.len());
        for shard in &layout.shards {
            let file = dir.create_file(&shard.name, shard.bytes)?;
            file.write_all_at(&shard.head, 0).map_err(|e| unwritable(&shard.name, e))?;
            files.push(file);
        }
        if let Some(index) = &layout.index {
            dir.write("model.safetensors.index.json", index.as_bytes())?;
        }
        let written = layout.places.keys().map(|name| (name.clone(), 0)).collect();
        Ok(ShardWriter { layout, files, written })
    }

    /// Writes the next bytes of a tensor.
    ///
    /// # Panics
    /// If there is no such tensor, or it has no room for so many bytes.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let place = self.layout.places.get(name).unwrap_or_else(|| panic!("{name} is not in the layout"));
        let written = self.written.get_mut(name).expect("every place is counted");
        assert!(*written + bytes.len() as u64 <= place.len, "more bytes than {name} has");
        self.files[place.shard].write_all_at(bytes, place.start + *written).map_err(|e| {
            unwritable(&self.layout.shards[place.shard].name, e).missing(place.len - *written)
        })?;
        *written += bytes.len() as u64;
        Ok(())
    }

    /// Writes the next values of a tensor, rounded to the type that it has.
    ///
    /// # Errors
    /// `Invalid` if a value is not finite, or beyond the range of float16.
    ///
    /// # Panics
    /// As [`ShardWriter::write`].
    pub fn write_floats(&mut self, name: &str, dtype: FloatType, values: &[f32]) -> Result<()> {
        // Large tensors go in pieces, so that there is no second copy of them.
        values.chunks(1 << 20).try_for_each(|piece| self.write(name, &float_bytes(name, dtype, piece)?))
    }

    /// Ends the files.
    ///
    /// # Panics
    /// If a tensor's bytes are missing.
    pub fn finish(self) {
        for (name, place) in &self.layout.places {
            assert_eq!(self.written[name], place.len, "bytes of {name}");
        }
    }
}

/// Values of a tensor, rounded to the type that it has, little-endian.
///
/// # Errors
/// `Invalid` if a value is not finite, or beyond the range of float16.
pub fn float_bytes(name: &str, dtype: FloatType, values: &[f32]) -> Result<Vec<u8>> {
    if !values.iter().all(|value| value.is_finite()) {
        return Err(not_finite(name));
    }
    Ok(match dtype {
        FloatType::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        FloatType::BF16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        FloatType::F16 => {
            let halves: Vec<f16> = values.iter().map(|v| f16::from_f32(*v)).collect();
            if let Some(i) = halves.iter().position(|half| !half.is_finite()) {
                return Err(Error::new(
                    Kind::Invalid,
                    format!("tensor {name} holds {}, which is beyond float16", values[i]),
                ));
            }
            halves.iter().flat_map(|half| half.to_le_bytes()).collect()
        }
    })
}

fn unwritable(name: &str, e: std::io::Error) -> Error {
    Error::output(format!("cannot write {name}"), e)
        .hint("Free some space or choose another disk with --output-dir.")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::source::safetensors::Tensors;

    fn spec(name: &str, dtype: Dtype, shape: &[usize]) -> TensorSpec {
        TensorSpec { name: name.into(), dtype, shape: shape.to_vec() }
    }

    fn write(target: &Path, tensors: &[TensorSpec], limit: u64, reverse: bool) {
        let layout = Layout::new(tensors, limit).unwrap();
        let dir = AtomicDir::create(target, layout.file_bytes(), false).unwrap();
        let mut writer = ShardWriter::create(&dir, layout).unwrap();
        let mut order: Vec<_> = tensors.iter().collect();
        if reverse {
            order.reverse();
        }
        for tensor in order {
            let bytes = vec![tensor.name.as_bytes()[0]; tensor.bytes() as usize];
            let (first, second) = bytes.split_at(bytes.len() / 3);
            writer.write(&tensor.name, first).unwrap();
            writer.write(&tensor.name, second).unwrap();
        }
        writer.finish();
        dir.sync().unwrap();
        dir.commit().unwrap();
    }

    #[test]
    fn one_file_if_they_fit_and_else_an_index() {
        let tensors = [
            spec("b", Dtype::F16, &[3]),
            spec("a", Dtype::F32, &[2]),
            spec("c", Dtype::BF16, &[4, 2]),
            spec("d", Dtype::F16, &[0]),
        ];
        let place = tempfile::tempdir().unwrap();
        for (limit, files) in [(100, 1), (14, 2), (1, 3)] {
            let target = place.path().join(limit.to_string());
            write(&target, &tensors, limit, false);
            let read = Tensors::open(&target).unwrap();
            assert_eq!(read.paths().count(), files, "{limit}");
            assert_eq!(read.iter().len(), 4);
            for tensor in &tensors {
                let info = read.get(&tensor.name).unwrap();
                assert_eq!(info.shape, tensor.shape);
                assert!(read.bytes(info).iter().all(|byte| *byte == tensor.name.as_bytes()[0]));
            }
            let index = target.join("model.safetensors.index.json");
            assert_eq!(index.exists(), files > 1);
            if files > 1 {
                let index: serde_json::Value =
                    serde_json::from_slice(&std::fs::read(index).unwrap()).unwrap();
                assert_eq!(index["metadata"]["total_size"], 30);
                // It shares a file with `b` if there is room.
                let shard = files - 1;
                assert_eq!(index["weight_map"]["a"], format!("model-{shard:05}-of-{files:05}.safetensors"));
            }
        }
    }

    #[test]
    fn the_order_of_writing_does_not_show() {
        let tensors = [spec("x", Dtype::F16, &[3]), spec("y", Dtype::F32, &[5]), spec("z", Dtype::F16, &[1])];
        let place = tempfile::tempdir().unwrap();
        let bytes = |reverse: bool| {
            let target = place.path().join(reverse.to_string());
            write(&target, &tensors, SHARD_BYTES, reverse);
            std::fs::read(target.join("model.safetensors")).unwrap()
        };
        let straight = bytes(false);
        assert_eq!(straight, bytes(true));
        // The library's own serializer gives the same file.
        let data: Vec<Vec<u8>> =
            tensors.iter().map(|t| vec![t.name.as_bytes()[0]; t.bytes() as usize]).collect();
        let views = tensors.iter().zip(&data).map(|(t, data)| {
            (t.name.as_str(), safetensors::tensor::TensorView::new(t.dtype, t.shape.clone(), data).unwrap())
        });
        let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        assert_eq!(straight, safetensors::serialize(views, Some(format)).unwrap());
    }

    #[test]
    fn a_name_is_used_once() {
        let e = Layout::new(&[spec("x", Dtype::F16, &[3]), spec("x", Dtype::F32, &[5])], 100).unwrap_err();
        assert!(e.to_string().contains('x'), "{e}");
    }

    #[test]
    #[should_panic(expected = "bytes of x")]
    fn a_tensor_that_is_not_complete_is_a_fault_of_the_program() {
        let place = tempfile::tempdir().unwrap();
        let layout = Layout::new(&[spec("x", Dtype::F16, &[3])], 100).unwrap();
        let dir = AtomicDir::create(&place.path().join("x"), layout.file_bytes(), false).unwrap();
        let mut writer = ShardWriter::create(&dir, layout).unwrap();
        writer.write("x", &[0, 1]).unwrap();
        writer.finish();
    }
}
