//! A model in GGUF: everything that a Hugging Face directory holds, out of one file.

mod files;
mod params;
mod weights;

use std::path::Path;

use super::OpenModel;
use crate::arch::Model;
use crate::error::{Error, Kind, Result};
use crate::format::gguf::vocab::read_vocab;
use crate::format::gguf::{Metadata, Value};
use crate::progress::Progress;
use crate::source::config::Config;
use crate::source::tokenizer::rebuild::{Rebuilt, rebuild};
use files::Files;
use weights::Weights;

/// Opens the model at `path`, which may be the first of several files. Keys of `ignore_config` are accepted whatever they
/// say; those of the metadata have their full names.
///
/// # Errors
/// `Unsupported` for an architecture, tokenizer or tensor type that is not supported; `Invalid` if the file is damaged,
/// or a key or tensor is missing.
pub(super) fn open(path: &Path, ignore_config: &[String], progress: &dyn Progress) -> Result<OpenModel> {
    let files = Files::open(path)?;
    let config = Config::rebuilt(params::rebuild(&files)?, format!("config.json rebuilt from {}", path.display()))?;
    let model = Model::read(config, ignore_config)?;
    model.warnings.iter().for_each(|w| progress.warn(w));
    let tokenizer = tokenizer(path, files.metadata(), model.hyper.vocab)?;
    tokenizer.warnings.iter().for_each(|w| progress.warn(w));
    Ok(OpenModel {
        name: name(path, files.metadata()),
        encoder: tokenizer.encoder()?,
        weights: Box::new(Weights::new(&model, files)?),
        model,
        format: "gguf",
    })
}

/// The tokenizer of a file, in Hugging Face's format.
fn tokenizer(path: &Path, meta: &Metadata, embedding_rows: usize) -> Result<Rebuilt> {
    let at = |e: Error| {
        let message = format!("{}: {e}", path.display());
        let new = Error::new(e.kind(), message);
        match e.suggestion() {
            Some(hint) => new.hint(hint),
            None => new,
        }
    };
    let vocab = read_vocab(meta).map_err(at)?;
    if vocab.tokens.len() != embedding_rows {
        return Err(at(Error::new(
            Kind::Invalid,
            format!("the vocabulary has {} tokens, the embedding {embedding_rows}", vocab.tokens.len()),
        )));
    }
    rebuild(&vocab).map_err(at)
}

/// What the file calls the model, else its own name without the extension.
fn name(path: &Path, meta: &Metadata) -> String {
    let stated = meta.get("general.name").and_then(Value::as_str).filter(|name| !name.is_empty());
    let stem = || path.file_stem().map_or("model".into(), |stem| stem.to_string_lossy().into_owned());
    stated.map_or_else(stem, str::to_owned)
}
