//! The original model: weights, configuration and tokenizer, from a directory or from the Hub.

pub mod card;
pub mod config;
pub mod dense;
pub mod folded;
#[cfg(feature = "hub")]
pub mod hub;
pub(crate) mod inside;
pub mod mmap;
pub mod safetensors;
pub mod tokenizer;
pub mod vocab;

use std::path::{Path, PathBuf};

use crate::cancel::Cancel;
use crate::error::{Error, Kind, Result};
use crate::progress::Progress;
use config::Config;

/// A model's directory, and its name on the Hub if it came from there.
#[derive(Clone, Debug)]
pub struct SourceModel {
    dir: PathBuf,
    id: Option<String>,
    has_weights: bool,
}

/// How much of a model is needed. From the Hub, no more than that is downloaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// All of it.
    Weights,
    /// Configuration and tokenizer.
    Description,
}

impl SourceModel {
    /// Finds a model: a directory, or `org/name[@revision]` on the Hub, which is downloaded if need be.
    pub fn open(model: &str, need: Need, cancel: &Cancel, progress: &dyn Progress) -> Result<SourceModel> {
        let path = Path::new(model);
        if path.is_dir() {
            return Ok(SourceModel { dir: path.to_owned(), id: None, has_weights: true });
        }
        if path.is_file() {
            return Err(Error::new(Kind::Unsupported, format!("{model} is a file; a model is a directory"))
                .hint("Pass the directory that holds config.json and the safetensors files."));
        }
        from_hub(model, need, cancel, progress)
    }

    /// Whether the weights are at hand.
    pub fn has_weights(&self) -> bool {
        self.has_weights
    }

    /// Where the model's files are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// `org/name`, if the model came from the Hub.
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// The model's own name: the last part of its Hub name, or of its directory as it was given. For `.` and such it is
    /// that of the directory meant.
    pub fn name(&self) -> Result<String> {
        if let Some(id) = &self.id {
            return Ok(id.rsplit('/').next().unwrap_or(id).to_owned());
        }
        let last = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
        if let Some(name) = last(&self.dir) {
            return Ok(name);
        }
        let full = self
            .dir
            .canonicalize()
            .map_err(|e| Error::io(format!("cannot open {}", self.dir.display()), e))?;
        Ok(last(&full).unwrap_or_else(|| "model".into()))
    }

    /// Reads `config.json`.
    pub fn config(&self) -> Result<Config> {
        Config::load(&self.dir)
    }
}

fn not_found(model: &str) -> Error {
    Error::new(Kind::NotFound, format!("model '{model}' not found: there is no such directory"))
        .hint("Check the path, or pass a name on the Hugging Face Hub as org/name.")
}

#[cfg(feature = "hub")]
fn from_hub(model: &str, need: Need, cancel: &Cancel, progress: &dyn Progress) -> Result<SourceModel> {
    use hub::Want;
    let id = hub::HubId::parse(model).ok_or_else(|| not_found(model))?;
    let want = match need {
        Need::Weights => Want::Model,
        Need::Description => Want::Description,
    };
    let dir = hub::download(&hub::HubConfig::from_env(), &id, want, cancel, progress)?;
    Ok(SourceModel { dir, id: Some(id.repo), has_weights: need == Need::Weights })
}

#[cfg(not(feature = "hub"))]
fn from_hub(model: &str, _: Need, _: &Cancel, _: &dyn Progress) -> Result<SourceModel> {
    Err(not_found(model))
}
