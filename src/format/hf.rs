//! Writes a directory in Hugging Face's format: safetensors in one float type, and what goes with them.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::companions;
use super::shards::{self, SHARD_BYTES, ShardWriter, TensorSpec};
use crate::atomic::AtomicDir;
use crate::error::{Error, Kind, Result};
use crate::source::safetensors::FloatType;

/// Writes a checkpoint. Tensors may come in any order; the bytes are the same. Dropped without [`HfWriter::finish`], it leaves
/// nothing behind.
#[derive(Debug)]
pub struct HfWriter {
    dir: AtomicDir,
    shards: ShardWriter,
    file_bytes: u64,
}

/// What is to be written.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The directory to be.
    pub dir: &'a Path,
    /// Whether a model that is there may be replaced.
    pub force: bool,
    /// The directory of the source, whose tokenizer and other files go along; none if it has none.
    pub source: Option<&'a Path>,
    /// `config.json`, without a quantization.
    pub config: &'a Value,
    /// What all tensors are stored as.
    pub dtype: FloatType,
    /// Most bytes of tensors per file; see [`SHARD_BYTES`].
    pub shard_bytes: u64,
}

impl<'a> Target<'a> {
    /// A directory that must not hold anything yet.
    pub fn new(dir: &'a Path, source: Option<&'a Path>, config: &'a Value, dtype: FloatType) -> Target<'a> {
        Target { dir, force: false, source, config, dtype, shard_bytes: SHARD_BYTES }
    }
}

impl HfWriter {
    /// Lays out a checkpoint of `tensors`, names and shapes in the order in which they fill the files, and writes everything
    /// but their values.
    ///
    /// # Errors
    /// `Usage` if the directory exists and may not be replaced, `Resources` if the disk has no room.
    pub fn create(target: Target<'_>, tensors: &[(String, Vec<usize>)]) -> Result<HfWriter> {
        let stored = target.dtype.stored();
        let specs: Vec<TensorSpec> = tensors
            .iter()
            .map(|(name, shape)| TensorSpec { name: name.clone(), dtype: stored, shape: shape.clone() })
            .collect();
        let shards = shards::Layout::new(&specs, target.shard_bytes)?;
        if let Some(source) = target.source {
            companions::refuse_source(source, target.dir)?;
        }
        let file_bytes = shards.file_bytes();
        let dir = AtomicDir::create(target.dir, file_bytes, target.force)?;
        let config = with_dtype(target.config, target.dtype)?;
        dir.write("config.json", format!("{config:#}\n").as_bytes())?;
        if let Some(source) = target.source {
            companions::copy(source, &dir)?;
        }
        let shards = ShardWriter::create(&dir, shards)?;
        Ok(HfWriter { dir, shards, file_bytes })
    }

    /// Writes the next bytes of a tensor, little-endian, in the type that it is stored in.
    ///
    /// # Panics
    /// If there is no such tensor or no room for so many bytes.
    pub fn bytes(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.shards.write(name, bytes)
    }

    /// Where the files are until the checkpoint is finished.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Flushes everything to the disk and gives the directory its name. Returns it and the bytes of the weights' files.
    ///
    /// # Panics
    /// If a tensor's values are missing.
    pub fn finish(self) -> Result<(PathBuf, u64)> {
        self.shards.finish();
        let dir = self.dir.target().to_owned();
        self.dir.sync()?;
        self.dir.commit()?;
        Ok((dir, self.file_bytes))
    }
}

/// `config.json` with the type that weights have, under the new name of the key and the one that everybody knows.
pub(super) fn with_dtype(config: &Value, dtype: FloatType) -> Result<Value> {
    let mut config = config.clone();
    let Some(keys) = config.as_object_mut() else {
        return Err(Error::new(Kind::Invalid, "config.json is not a JSON object"));
    };
    keys.insert("dtype".into(), json!(dtype.name()));
    keys.insert("torch_dtype".into(), json!(dtype.name()));
    if let Some(text) = keys.get_mut("text_config").and_then(Value::as_object_mut) {
        for key in ["dtype", "torch_dtype"] {
            if let Some(value) = text.get_mut(key) {
                *value = json!(dtype.name());
            }
        }
    }
    Ok(config)
}
