//! A model in GGUF: everything that a Hugging Face directory holds, out of one file.

pub(in crate::pipeline) mod files;
mod params;
mod weights;

use std::path::Path;

use super::{OpenModel, Origin};
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
pub(in crate::pipeline) fn open(
    path: &Path,
    ignore_config: &[String],
    progress: &dyn Progress,
) -> Result<OpenModel> {
    let files = Files::open(path)?;
    let config =
        Config::rebuilt(params::rebuild(&files)?, format!("config.json rebuilt from {}", path.display()))?;
    let model = Model::read(config, ignore_config)?;
    model.warnings.iter().for_each(|w| progress.warn(w));
    let (tokenizer, tokens) = read_tokenizer(path, files.metadata())?;
    if tokens != model.hyper.vocab {
        let rows = model.hyper.vocab;
        return Err(Error::new(
            Kind::Invalid,
            format!("{}: the vocabulary has {tokens} tokens, the embedding {rows}", path.display()),
        ));
    }
    tokenizer.warnings.iter().for_each(|w| progress.warn(w));
    Ok(OpenModel {
        name: name(path, files.metadata()),
        encoder: tokenizer.encoder()?,
        origin: Origin::Gguf { metadata: files.metadata().clone(), tokenizer: Box::new(tokenizer) },
        file_bytes: files.bytes(),
        weights: Box::new(Weights::new(&model, files)?),
        model,
        format: "gguf",
    })
}

/// The tokenizer of the file at `path`, in Hugging Face's format.
///
/// # Errors
/// As [`OpenModel::open`].
pub fn tokenizer(path: &Path) -> Result<Rebuilt> {
    read_tokenizer(path, Files::open(path)?.metadata()).map(|(rebuilt, _)| rebuilt)
}

/// The same from metadata, and the number of tokens.
fn read_tokenizer(path: &Path, meta: &Metadata) -> Result<(Rebuilt, usize)> {
    let read = || {
        let vocab = read_vocab(meta)?;
        Ok((rebuild(&vocab)?, vocab.tokens.len()))
    };
    read().map_err(|e: Error| {
        let at = Error::new(e.kind(), format!("{}: {e}", path.display()));
        match e.suggestion() {
            Some(hint) => at.hint(hint),
            None => at,
        }
    })
}

/// What the file calls the model, else its own name without the extension.
fn name(path: &Path, meta: &Metadata) -> String {
    let stated = meta.get("general.name").and_then(Value::as_str).filter(|name| !name.is_empty());
    let stem = || path.file_stem().map_or("model".into(), |stem| stem.to_string_lossy().into_owned());
    stated.map_or_else(stem, str::to_owned)
}
