//! What format a model is in, told from its files.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::model::is_gguf;
use crate::cancel::Cancel;
use crate::error::{Error, Kind, Result};
use crate::format::packed::Scheme;
use crate::format::packed::config::Stated;
use crate::progress::Progress;
use crate::source::safetensors::weight_files;
use crate::source::{Need, SourceModel};

/// A format of models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A GGUF file, or several that are parts of one.
    Gguf,
    /// A directory with GPTQ's codes.
    Gptq,
    /// A directory with AWQ's codes.
    Awq,
    /// A directory with weights in 16 or 32 bits.
    Hf,
}

impl Format {
    /// As commands call it.
    pub fn name(self) -> &'static str {
        match self {
            Format::Gguf => "gguf",
            Format::Gptq => "gptq",
            Format::Awq => "awq",
            Format::Hf => "hf",
        }
    }

    /// As people call it.
    pub fn title(self) -> &'static str {
        match self {
            Format::Gguf => "GGUF",
            Format::Gptq => "GPTQ",
            Format::Awq => "AWQ",
            Format::Hf => "Hugging Face",
        }
    }

    /// Whether a model in it is a directory.
    pub fn is_dir(self) -> bool {
        self != Format::Gguf
    }
}

/// A model whose format is known.
#[derive(Debug)]
pub enum Detected {
    /// A GGUF file: the first one, if there are several.
    Gguf(PathBuf),
    /// A directory, and the format of what it holds.
    Directory(SourceModel, Format),
}

impl Detected {
    /// Its format.
    pub fn format(&self) -> Format {
        match self {
            Detected::Gguf(_) => Format::Gguf,
            Detected::Directory(_, format) => *format,
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        match self {
            Detected::Gguf(path) => path,
            Detected::Directory(source, _) => source.dir(),
        }
    }
}

/// Finds a model: a file that begins as GGUF does, a directory, or `org/name` on the Hub.
///
/// # Errors
/// `NotFound` if there is nothing, `Invalid` if a file is no GGUF or a directory holds half a model, `Unsupported` for other
/// methods of quantization.
pub fn detect(model: &str, need: Need, cancel: &Cancel, progress: &dyn Progress) -> Result<Detected> {
    Ok(match find(model, need, cancel, progress)? {
        Found::Gguf(path) => Detected::Gguf(path),
        Found::Directory(source, None) => Detected::Directory(source, Format::Hf),
        Found::Directory(source, Some(stated)) => {
            let format = match Scheme::read(&stated)?.method {
                "awq" => Format::Awq,
                _ => Format::Gptq,
            };
            Detected::Directory(source, format)
        }
    })
}

/// A model, and what it says of its quantization.
pub(super) enum Found {
    Gguf(PathBuf),
    Directory(SourceModel, Option<Stated>),
}

/// The same, whatever the method of quantization.
pub(super) fn find(model: &str, need: Need, cancel: &Cancel, progress: &dyn Progress) -> Result<Found> {
    let path = Path::new(model);
    if is_gguf(path) {
        return Ok(Found::Gguf(path.to_owned()));
    }
    if path.is_file() {
        return Err(Error::new(
            Kind::Invalid,
            format!("{model} is not a GGUF file: it does not begin with 'GGUF'"),
        )
        .hint("A model is a GGUF file, the directory of a Hugging Face model, or org/name on the Hub."));
    }
    let source = SourceModel::open(model, need, cancel, progress)?;
    let stated = stated(&source)?;
    Ok(Found::Directory(source, stated))
}

/// What the model in a directory says of its quantization; none if it is not quantized.
///
/// # Errors
/// `Invalid`, saying what is there and what is not, if the directory holds half a model.
fn stated(source: &SourceModel) -> Result<Option<Stated>> {
    let dir = source.dir();
    let config = match dir.join("config.json").is_file() {
        true => source.config()?.raw().clone(),
        false => Value::Null,
    };
    let stated = Stated::find(dir, &config)?;
    let weights = weight_files(dir)?;
    let mut found = Vec::new();
    let mut missing = Vec::new();
    match (&config, &stated) {
        (Value::Null, _) => missing.push("config.json"),
        (_, Some(stated)) => found.push(format!("config.json and a quantization ({})", name_of(stated))),
        (_, None) => found.push("config.json".to_owned()),
    }
    if let (Value::Null, Some(stated)) = (&config, &stated) {
        found.push(format!("a quantization ({})", name_of(stated)));
    }
    match weights.first() {
        Some(first) if weights.len() == 1 => found.push(first.clone()),
        Some(first) => found.push(format!("{first} and {} more", weights.len() - 1)),
        None if source.has_weights() => missing.push("a safetensors file"),
        None => {}
    }
    let tokenizer = ["tokenizer.json", "tokenizer.model"].into_iter().find(|name| dir.join(name).is_file());
    found.extend(tokenizer.map(str::to_owned));
    if missing.is_empty() {
        return Ok(stated);
    }
    let missing = missing.join(" and ");
    let at = dir.display();
    let hint = match has_pickles(dir) {
        true => "PyTorch .bin files are never unpickled; convert them to safetensors first.",
        false => "Pass the directory of a whole model: config.json, safetensors files and a tokenizer.",
    };
    Err(match found.is_empty() {
        true => Error::new(Kind::NotFound, format!("{at} holds no model: {missing} is missing")),
        false => {
            let found = found.join(", ");
            Error::new(Kind::Invalid, format!("{at} holds half a model: found {found}; {missing} is missing"))
        }
    }
    .hint(hint))
}

fn name_of(stated: &Stated) -> String {
    stated.opt_str(&["quant_method", "method"]).ok().flatten().unwrap_or("method not stated").to_owned()
}

fn has_pickles(dir: &Path) -> bool {
    let Ok(listed) = std::fs::read_dir(dir) else { return false };
    let mut names = listed.flatten().map(|entry| entry.file_name());
    names.any(|name| name.to_str().is_some_and(|n| n.ends_with(".bin") || n.ends_with(".pt")))
}
