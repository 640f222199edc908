//! A model that can be computed.

mod packed;

use crate::arch::Model;
use crate::arch::decoder::Decoder;
use crate::cancel::Cancel;
use crate::error::Result;
use crate::progress::Progress;
use crate::source::dense::Dense;
use crate::source::safetensors::Tensors;
use crate::source::tokenizer::encoder::Encoder;
use crate::source::{Need, SourceModel};

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
}

impl OpenModel {
    /// Opens a model: a directory in Hugging Face's format, unquantized or in GPTQ or AWQ, or `org/name` on the Hub. Keys of `ignore_config` in its
    /// `config.json` are accepted whatever they say.
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
        let source = SourceModel::open(model, Need::Weights, cancel, progress)?;
        let (model, weights, format): (Model, Box<dyn Dense>, _) = match packed::open(&source, ignore_config)?
        {
            Some((model, weights)) => {
                let method = weights.scheme().method;
                (model, Box::new(weights), method)
            }
            None => {
                let model = Model::read(source.config()?, ignore_config)?;
                (model, Box::new(Tensors::open(source.dir())?), "hf")
            }
        };
        model.warnings.iter().for_each(|w| progress.warn(w));
        let encoder = Encoder::open(source.dir())?;
        Ok(OpenModel { name: source.name()?, model, weights, encoder, format })
    }

    /// The decoder of this model.
    ///
    /// # Errors
    /// `Invalid` if the configuration contradicts itself.
    pub fn decoder(&self) -> Result<Decoder<'_>> {
        Decoder::new(&self.model, &*self.weights)
    }
}
