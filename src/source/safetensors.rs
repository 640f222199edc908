//! The weights of a Hugging Face checkpoint: one safetensors file, or several shards with an index.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use safetensors::{Dtype, SafeTensors};

use super::inside;
use super::mmap::Map;
use crate::error::{Error, Kind, Result};
use crate::format::gguf::GgmlType;

/// How the weights of a source tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum FloatType {
    F32,
    F16,
    BF16,
}

impl FloatType {
    /// Bytes per weight.
    pub fn bytes(self) -> usize {
        match self {
            FloatType::F32 => 4,
            FloatType::F16 | FloatType::BF16 => 2,
        }
    }

    /// The same type in GGUF.
    pub fn ggml(self) -> GgmlType {
        match self {
            FloatType::F32 => GgmlType::F32,
            FloatType::F16 => GgmlType::F16,
            FloatType::BF16 => GgmlType::BF16,
        }
    }

    /// The same type in safetensors.
    pub fn stored(self) -> Dtype {
        match self {
            FloatType::F32 => Dtype::F32,
            FloatType::F16 => Dtype::F16,
            FloatType::BF16 => Dtype::BF16,
        }
    }

    /// The name that PyTorch has for it.
    pub fn name(self) -> &'static str {
        match self {
            FloatType::F32 => "float32",
            FloatType::F16 => "float16",
            FloatType::BF16 => "bfloat16",
        }
    }
}

/// Where one tensor lies.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// How its weights are stored.
    pub dtype: FloatType,
    /// Outermost dimension first, as in PyTorch.
    pub shape: Vec<usize>,
    shard: usize,
    bytes: Range<usize>,
}

impl TensorInfo {
    /// Number of weights.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the tensor has no weights.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Where a tensor of 32-bit integers lies, in which quantized checkpoints pack their codes.
#[derive(Clone, Debug)]
pub struct IntegerInfo {
    /// Outermost dimension first, as in PyTorch.
    pub shape: Vec<usize>,
    shard: usize,
    bytes: Range<usize>,
}

/// All tensors of a checkpoint, mapped into memory and validated.
#[derive(Debug)]
pub struct Tensors {
    shards: Vec<(PathBuf, Map)>,
    tensors: BTreeMap<String, TensorInfo>,
    integers: BTreeMap<String, IntegerInfo>,
}

/// Which types of tensors a checkpoint may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Accept {
    Floats,
    Integers,
}

impl Tensors {
    /// Opens the checkpoint in `dir`: the shards that `model.safetensors.index.json` names, else `model.safetensors`,
    /// else the only `*.safetensors` file. It must be unquantized.
    pub fn open(dir: &Path) -> Result<Tensors> {
        Tensors::open_with(dir, Accept::Floats)
    }

    /// Opens a checkpoint that may also hold 32-bit integers.
    pub fn open_packed(dir: &Path) -> Result<Tensors> {
        Tensors::open_with(dir, Accept::Integers)
    }

    fn open_with(dir: &Path, accept: Accept) -> Result<Tensors> {
        let index = dir.join("model.safetensors.index.json");
        let (files, promised) = if let Some(bytes) = inside::read(&index)? {
            let promised = read_index(&index, &bytes)?;
            let files: BTreeSet<String> = promised.values().cloned().collect();
            (files.into_iter().collect(), Some(promised))
        } else {
            (find_single(dir)?, None)
        };
        let mut shards = Vec::with_capacity(files.len());
        let mut places = BTreeMap::new();
        let (mut tensors, mut integers) = (BTreeMap::new(), BTreeMap::new());
        for (i, file) in files.iter().enumerate() {
            let path = dir.join(file);
            if !inside::is_file(&path)? {
                return Err(Error::new(
                    Kind::Invalid,
                    format!("shard {file} is missing from {}", dir.display()),
                )
                .hint("Download the model again; model.safetensors.index.json names this file."));
            }
            let map = Map::open(&path)?;
            for (name, found) in read_header(&path, &map, i, accept)? {
                if places.insert(name.clone(), i).is_some() {
                    return Err(Error::new(
                        Kind::Invalid,
                        format!("tensor {name} is in two shards (again in {file})"),
                    ));
                }
                match found {
                    Found::Float(info) => drop(tensors.insert(name, info)),
                    Found::Integer(info) => drop(integers.insert(name, info)),
                }
            }
            shards.push((path, map));
        }
        if let Some(promised) = promised {
            check_index(&promised, &places, &shards)?;
        }
        Ok(Tensors { shards, tensors, integers })
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// All tensors by name.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &TensorInfo)> {
        self.tensors.iter().map(|(name, info)| (name.as_str(), info))
    }

    /// The bytes of a tensor, little-endian, row-major.
    pub fn bytes(&self, info: &TensorInfo) -> &[u8] {
        &self.shards[info.shard].1[info.bytes.clone()]
    }

    /// The file that a tensor is in, and the byte at which it begins there.
    pub fn place(&self, info: &TensorInfo) -> (&Path, u64) {
        (self.shards[info.shard].0.as_path(), info.bytes.start as u64)
    }

    /// All tensors of integers by name.
    pub fn integers(&self) -> impl ExactSizeIterator<Item = (&str, &IntegerInfo)> {
        self.integers.iter().map(|(name, info)| (name.as_str(), info))
    }

    /// The tensor of integers of this name.
    pub fn get_integers(&self, name: &str) -> Option<&IntegerInfo> {
        self.integers.get(name)
    }

    /// The integers of a tensor, little-endian, row-major.
    pub fn words(&self, info: &IntegerInfo) -> &[[u8; 4]] {
        self.shards[info.shard].1[info.bytes.clone()].as_chunks().0
    }

    /// Asks the kernel to read `range` of the tensor's bytes ahead.
    pub fn will_need(&self, info: &TensorInfo, range: Range<usize>) {
        let start = info.bytes.start;
        self.shards[info.shard].1.will_need(start + range.start..start + range.end);
    }

    /// Bytes of all shards together.
    pub fn file_bytes(&self) -> u64 {
        self.shards.iter().map(|(_, map)| map.len() as u64).sum()
    }

    /// The shards' paths.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.shards.iter().map(|(path, _)| path.as_path())
    }
}

enum Found {
    Float(TensorInfo),
    Integer(IntegerInfo),
}

fn read_header(path: &Path, map: &Map, shard: usize, accept: Accept) -> Result<Vec<(String, Found)>> {
    let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let (header, meta) = SafeTensors::read_metadata(map).map_err(|e| {
        Error::new(Kind::Invalid, format!("{file} is not a valid safetensors file ({} bytes)", map.len()))
            .because(e)
            .hint("The file is truncated or damaged; download it again.")
    })?;
    let data = header + 8;
    let mut found = Vec::new();
    for (name, info) in meta.tensors() {
        let (start, end) = info.data_offsets;
        let bytes = data + start..data + end;
        let dtype = match info.dtype {
            Dtype::I32 if accept == Accept::Integers => {
                let info = IntegerInfo { shape: info.shape.clone(), shard, bytes };
                found.push((name, Found::Integer(info)));
                continue;
            }
            Dtype::I32 if [".qweight", ".qzeros", ".g_idx"].iter().any(|suffix| name.ends_with(suffix)) => {
                return Err(Error::new(
                    Kind::Unsupported,
                    format!("tensor {name} in {file} has type I32: it belongs to packed codes, and the model is quantized already"),
                )
                .hint("Start from the unquantized 16-bit checkpoint. To be read as GPTQ or AWQ, the model must have its quantization_config in config.json."));
            }
            Dtype::F32 => FloatType::F32,
            Dtype::F16 => FloatType::F16,
            Dtype::BF16 => FloatType::BF16,
            other => {
                return Err(Error::new(
                    Kind::Unsupported,
                    format!("tensor {name} in {file} has type {other:?}; only F32, F16 and BF16 weights can be quantized"),
                )
                .hint("Start from the unquantized 16-bit checkpoint."));
            }
        };
        found.push((name, Found::Float(TensorInfo { dtype, shape: info.shape.clone(), shard, bytes })));
    }
    Ok(found)
}

/// The map from tensor to shard. File names come from a stranger: they must stay in the model's directory.
fn read_index(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index = serde_json::from_slice(bytes).map_err(|e| {
        Error::new(Kind::Invalid, format!("{} is not a valid index", path.display())).because(e)
    })?;
    if index.weight_map.is_empty() {
        return Err(Error::new(Kind::Invalid, format!("{} names no tensor", path.display())));
    }
    for (tensor, file) in &index.weight_map {
        let mut parts = Path::new(file).components();
        let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
        if !plain || file.contains('\\') || !file.ends_with(".safetensors") {
            return Err(Error::new(
                Kind::Invalid,
                format!("model.safetensors.index.json places tensor {tensor} in '{file}', which is not a safetensors file of the model's directory"),
            )
            .hint("Do not use this model: its index points outside its own directory."));
        }
    }
    Ok(index.weight_map)
}

fn check_index(
    promised: &BTreeMap<String, String>,
    places: &BTreeMap<String, usize>,
    shards: &[(PathBuf, Map)],
) -> Result<()> {
    for (name, file) in promised {
        let Some(shard) = places.get(name) else {
            return Err(Error::new(
                Kind::Invalid,
                format!("tensor {name} is missing: the index places it in {file}"),
            ));
        };
        let found = shards[*shard].0.file_name().unwrap_or_default().to_string_lossy();
        if found != *file {
            return Err(Error::new(
                Kind::Invalid,
                format!("tensor {name} is in {found}, but the index places it in {file}"),
            ));
        }
    }
    if let Some(extra) = places.keys().find(|name| !promised.contains_key(*name)) {
        return Err(Error::new(Kind::Invalid, format!("tensor {extra} is in a shard but not in the index")));
    }
    Ok(())
}

/// The names of the safetensors files in a directory, in order.
///
/// # Errors
/// Those of reading it: a file that is overlooked would be a model with weights missing.
pub fn weight_files(dir: &Path) -> Result<Vec<String>> {
    let unreadable = |e| Error::io(format!("cannot read {}", dir.display()), e);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(unreadable)? {
        if let Ok(name) = entry.map_err(unreadable)?.file_name().into_string()
            && name.ends_with(".safetensors")
        {
            found.push(name);
        }
    }
    found.sort();
    Ok(found)
}

fn find_single(dir: &Path) -> Result<Vec<String>> {
    if inside::is_file(&dir.join("model.safetensors"))? {
        return Ok(vec!["model.safetensors".into()]);
    }
    let found = weight_files(dir)?;
    match found.len() {
        1 => Ok(found),
        0 => Err(Error::new(Kind::NotFound, format!("{} holds no safetensors file", dir.display()))
            .hint("Pass a directory with config.json and model.safetensors (PyTorch .bin files are never unpickled).")),
        n => Err(Error::new(
            Kind::Invalid,
            format!("{} holds {n} safetensors files but no model.safetensors.index.json", dir.display()),
        )
        .hint("Download the index too; without it nobody knows whether a shard is missing.")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, file: &str, header: &str, data: &[u8]) {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(data);
        std::fs::write(dir.join(file), bytes).unwrap();
    }

    const ONE: &str = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;

    #[test]
    fn reads_a_single_file() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "model.safetensors", ONE, &[0, 0, 128, 63, 0, 0, 0, 64]);
        let t = Tensors::open(dir.path()).unwrap();
        let a = t.get("a").unwrap();
        assert_eq!((a.dtype, a.shape.as_slice()), (FloatType::F32, &[2][..]));
        assert_eq!(t.bytes(a), [1.0f32.to_le_bytes(), 2.0f32.to_le_bytes()].concat());
    }

    #[test]
    fn refuses_files_that_lie() {
        for (header, data, why) in [
            (ONE, &[0u8; 7][..], "truncated"),
            (
                r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#,
                &[0; 4],
                "size differs from the shape",
            ),
            (
                r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
                &[0; 4],
                "overlap",
            ),
            (
                r#"{"a":{"dtype":"F32","shape":[4611686018427387905,4],"data_offsets":[0,16]}}"#,
                &[0; 16],
                "overflow",
            ),
            (r#"{"a":"#, &[], "broken JSON"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            write(dir.path(), "model.safetensors", header, data);
            let e = Tensors::open(dir.path()).expect_err(why);
            assert_eq!(e.kind(), Kind::Invalid, "{why}: {e}");
            assert!(e.to_string().contains("model.safetensors"), "{e}");
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("model.safetensors"), u64::MAX.to_le_bytes()).unwrap();
        assert_eq!(
            Tensors::open(dir.path()).unwrap_err().kind(),
            Kind::Invalid,
            "header longer than the file"
        );
    }

    #[test]
    fn a_shard_never_leaves_the_directory() {
        for file in [
            "../model.safetensors",
            "/etc/x.safetensors",
            "a/../../x.safetensors",
            "sub/x.safetensors",
            "x.bin",
        ] {
            let dir = tempfile::tempdir().unwrap();
            let index = serde_json::json!({"weight_map": {"a": file}});
            std::fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
            let e = Tensors::open(dir.path()).unwrap_err();
            assert_eq!(e.kind(), Kind::Invalid, "{file}");
            assert!(e.to_string().contains(file), "{e}");
        }
    }

    #[test]
    fn index_and_shards_must_agree() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "m-1.safetensors", ONE, &[0; 8]);
        let index = |v: serde_json::Value| {
            std::fs::write(dir.path().join("model.safetensors.index.json"), v.to_string()).unwrap()
        };
        index(serde_json::json!({"weight_map": {"a": "m-1.safetensors"}}));
        assert_eq!(Tensors::open(dir.path()).unwrap().iter().len(), 1);
        index(serde_json::json!({"weight_map": {"a": "m-1.safetensors", "b": "m-1.safetensors"}}));
        assert!(Tensors::open(dir.path()).unwrap_err().to_string().contains("tensor b is missing"));
        index(serde_json::json!({"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}));
        assert!(Tensors::open(dir.path()).unwrap_err().to_string().contains("m-2.safetensors is missing"));
    }
}
