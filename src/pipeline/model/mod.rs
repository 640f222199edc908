//! A model that can be computed.

pub mod gguf;
mod origin;
pub mod packed;

use std::io::Read;
use std::path::Path;

use crate::arch::Model;
use crate::arch::decoder::Decoder;
use crate::cancel::Cancel;
use crate::error::Result;
use crate::format::gguf::reader::MAGIC;
use crate::progress::Progress;
use crate::source::dense::Dense;
use crate::source::safetensors::Tensors;
use crate::source::tokenizer::encoder::Encoder;
use crate::source::{Need, SourceModel};
pub use origin::Origin;

/// A model with its weights and its tokenizer.
#[derive(Debug)]
pub struct OpenModel {
    /// The model's own name.
    pub name: String,
    /// What it computes.
    pub model: Model,
    /// Its weights; they stay in their files until they are read.
    pub weights: Box<dyn Dense>,
    /// Its tokenizer.
    pub encoder: Encoder,
    /// The format that it came in, as commands call it.
    pub format: &'static str,
    /// Where it came from.
    pub origin: Origin,
    /// Bytes of the files that hold its weights.
    pub file_bytes: u64,
}

impl OpenModel {
    /// Opens a model: a GGUF file, a directory in Hugging Face's format (unquantized, GPTQ or AWQ), or `org/name` on the
    /// Hub. Keys of `ignore_config` in its `config.json` or metadata are accepted whatever they say.
    ///
    /// # Errors
    /// `NotFound` if there is no such model or no tokenizer, `Unsupported` for an architecture that is not known,
    /// `Invalid` for damaged files.
    pub fn open(
        model: &str,
        ignore_config: &[String],
        cancel: &Cancel,
        progress: &dyn Progress,
    ) -> Result<OpenModel> {
        let path = Path::new(model);
        if is_gguf(path) {
            return gguf::open(path, ignore_config, progress);
        }
        OpenModel::of(SourceModel::open(model, Need::Weights, cancel, progress)?, ignore_config, progress)
    }

    /// The same of a directory.
    ///
    /// # Errors
    /// As [`OpenModel::open`].
    pub fn of(source: SourceModel, ignore_config: &[String], progress: &dyn Progress) -> Result<OpenModel> {
        let Some((model, weights)) = packed::open(&source, ignore_config)? else {
            return OpenModel::unquantized(source, ignore_config, progress);
        };
        let (method, bytes) = (weights.scheme().method, weights.tensors().file_bytes());
        OpenModel::with(source, model, Box::new(weights), method, bytes, progress)
    }

    /// The same of a directory whose weights are not quantized.
    ///
    /// # Errors
    /// As [`OpenModel::open`].
    pub fn unquantized(
        source: SourceModel,
        ignore_config: &[String],
        progress: &dyn Progress,
    ) -> Result<OpenModel> {
        let model = Model::read(source.config()?, ignore_config)?;
        let tensors = Tensors::open(source.dir())?;
        let bytes = tensors.file_bytes();
        OpenModel::with(source, model, Box::new(tensors), "hf", bytes, progress)
    }

    fn with(
        source: SourceModel,
        model: Model,
        weights: Box<dyn Dense>,
        format: &'static str,
        file_bytes: u64,
        progress: &dyn Progress,
    ) -> Result<OpenModel> {
        model.warnings.iter().for_each(|w| progress.warn(w));
        let encoder = Encoder::open(source.dir())?;
        let name = source.name()?;
        Ok(OpenModel { name, model, weights, encoder, format, origin: Origin::Directory(source), file_bytes })
    }

    /// The decoder of this model.
    ///
    /// # Errors
    /// `Invalid` if the configuration contradicts itself.
    pub fn decoder(&self) -> Result<Decoder<'_>> {
        Decoder::new(&self.model, &*self.weights)
    }
}

/// Whether a path is a file that is GGUF or is named so.
pub(in crate::pipeline) fn is_gguf(path: &Path) -> bool {
    let begins = || {
        let mut magic = [0; MAGIC.len()];
        std::fs::File::open(path)
            .and_then(|mut file| file.read_exact(&mut magic))
            .is_ok_and(|()| magic == *MAGIC)
    };
    path.is_file() && (path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) || begins())
}
