//! What a model says of itself: name, licence, origin, recommended sampling.
//!
//! The sources and their precedence are those of `Metadata.load` in llama.cpp's `gguf` package: the model card
//! (`README.md`), then `_name_or_path` of `config.json`, then the directory's name.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::Result;
use front_matter::Yaml;
use model_id::{ModelId, title};

pub(super) mod front_matter;
mod model_id;
mod size;

pub use size::{ParamCounts, size_label};

/// A model or data set that a model was made from.
#[derive(Clone, Debug, Default, PartialEq)]
#[allow(missing_docs)]
pub struct Origin {
    pub name: Option<String>,
    pub author: Option<String>,
    pub version: Option<String>,
    pub organization: Option<String>,
    pub description: Option<String>,
    pub url: Option<String>,
    pub doi: Option<String>,
    pub uuid: Option<String>,
    pub repo_url: Option<String>,
}

/// Recommended sampling parameters.
#[derive(Clone, Debug, Default, PartialEq)]
#[allow(missing_docs)]
pub struct Sampling {
    pub sequence: Option<String>,
    pub top_k: Option<i32>,
    pub top_p: Option<f32>,
    pub min_p: Option<f32>,
    pub xtc_probability: Option<f32>,
    pub xtc_threshold: Option<f32>,
    pub temp: Option<f32>,
    pub penalty_last_n: Option<i32>,
    pub penalty_repeat: Option<f32>,
    pub mirostat: Option<i32>,
    pub mirostat_tau: Option<f32>,
    pub mirostat_eta: Option<f32>,
}

/// What is known of a model beside its weights.
#[derive(Clone, Debug, Default, PartialEq)]
#[allow(missing_docs)]
pub struct Card {
    pub sampling: Sampling,
    pub name: String,
    pub author: Option<String>,
    pub version: Option<String>,
    pub organization: Option<String>,
    pub finetune: Option<String>,
    pub basename: Option<String>,
    pub description: Option<String>,
    pub size_label: Option<String>,
    pub license: Option<String>,
    pub license_name: Option<String>,
    pub license_link: Option<String>,
    pub source_url: Option<String>,
    pub source_doi: Option<String>,
    pub source_uuid: Option<String>,
    pub source_repo_url: Option<String>,
    pub base_models: Option<Vec<Origin>>,
    pub datasets: Option<Vec<Origin>>,
    pub tags: Option<Vec<String>>,
    pub languages: Option<Vec<String>>,
}

/// Reads the card of the model in `dir`, and returns what the user should know of it too.
///
/// `config` is `config.json`; `folder` is the name of the model's directory, or that which it would have if it did not
/// lie in a cache: the last source of a name. A broken card or
/// `generation_config.json` is a warning: nothing of the model depends on it.
///
/// # Errors
///
/// A file that is there but cannot be read.
pub fn load_card(
    dir: &Path,
    config: &Value,
    folder: &str,
    counts: ParamCounts,
) -> Result<(Card, Vec<String>)> {
    let mut warnings = Vec::new();
    let front = front_matter::load(dir, &mut warnings)?;
    let mut draft = Draft { total: counts.total, ..Draft::default() };
    draft.read_front_matter(&front, &mut warnings);
    if let Some(id) = config.get("_name_or_path").and_then(Value::as_str)
        // With more slashes it is a path on the maker's computer.
        && id.matches('/').count() <= 1
    {
        draft.read_model_id(id);
    }
    draft.read_model_id(folder);
    let mut card = draft.card;
    card.name = draft.name.unwrap_or_else(|| folder.to_owned());
    if card.size_label.is_none() && counts.total > 0 {
        card.size_label = Some(size_label(counts));
    }
    card.sampling = load_sampling(dir, &mut warnings)?;
    Ok((card, warnings))
}

/// A card whose name may still be missing.
#[derive(Default)]
struct Draft {
    card: Card,
    name: Option<String>,
    total: u64,
}

impl Draft {
    fn read_front_matter(&mut self, front: &Yaml, warnings: &mut Vec<String>) {
        // The first key that is there and not null, in this order.
        let first = |keys: &[&str]| keys.iter().find_map(|k| front.get(k)?.scalar());
        let card = &mut self.card;
        self.name = first(&["name", "model_name"]);
        card.author = first(&["author", "model_author", "model_creator"]);
        card.version = first(&["version", "model_version"]);
        card.organization = first(&["organization", "model_organization"]);
        card.description = first(&["description", "model_description"]);
        card.finetune = first(&["finetune", "model_finetune"]);
        card.basename = first(&["basename", "model_basename", "model_type"]);
        card.size_label = first(&["size_label", "model_size_label"]);
        card.source_url = first(&["url", "model_url"]);
        card.source_doi = first(&["doi", "model_doi"]);
        card.source_uuid = first(&["uuid", "model_uuid"]);
        card.source_repo_url = first(&["repo_url", "model_repo_url"]);
        card.license = match front.get("license") {
            Some(Yaml::List(list)) => {
                Some(list.iter().filter_map(Yaml::scalar).collect::<Vec<_>>().join(","))
            }
            other => other.and_then(Yaml::scalar),
        };
        card.license_name = first(&["license_name"]);
        card.license_link = first(&["license_link"]);
        self.card.base_models =
            self.origins(front, &["base_model", "base_models", "base_model_sources"], warnings);
        self.card.datasets = self.origins(front, &["datasets", "dataset", "dataset_sources"], warnings);
        self.card.tags = gather(front, &["tags", "pipeline_tag"]);
        self.card.languages = gather(front, &["languages", "language"]);
    }

    /// What the first of `keys` lists: model names, addresses, or descriptions by field.
    fn origins(&self, front: &Yaml, keys: &[&str], warnings: &mut Vec<String>) -> Option<Vec<Origin>> {
        // A key that is there says that there are some, even if it names none.
        let value = keys.iter().find_map(|k| front.entry(k))?;
        let one = std::slice::from_ref(value);
        let list = match value {
            Yaml::List(list) => list,
            Yaml::Str(_) => one,
            _ => &[],
        };
        let origin = |entry: &Yaml| match entry {
            Yaml::Str(id) => self.origin(id),
            Yaml::Map(_) => {
                let field = |key| entry.get(key).and_then(Yaml::scalar);
                Origin {
                    name: field("name"),
                    author: field("author"),
                    version: field("version"),
                    organization: field("organization"),
                    description: field("description"),
                    url: field("url"),
                    doi: field("doi"),
                    uuid: field("uuid"),
                    repo_url: field("repo_url"),
                }
            }
            _ => Origin::default(),
        };
        if list.iter().any(|e| !matches!(e, Yaml::Str(_) | Yaml::Map(_))) {
            warnings
                .push(format!("README.md: an entry of {} is neither a name nor a list of fields", keys[0]));
        }
        Some(list.iter().map(origin).collect())
    }

    /// An origin by its name on the Hub or by an address.
    fn origin(&self, text: &str) -> Origin {
        let is_url = ["http://", "https://", "ssh://"].iter().any(|s| text.starts_with(s));
        let id = if is_url { model_id::from_url(text) } else { Some(text) };
        let mut origin = Origin::default();
        if let Some(id) = id.map(|id| ModelId::parse(id, self.total)) {
            origin.name = Some(title(&id.full_name));
            origin.organization = id.organization.as_deref().map(title);
            origin.repo_url = id.organization.map(|o| format!("https://huggingface.co/{o}/{}", id.full_name));
            origin.version = id.version;
        }
        if is_url {
            origin.repo_url = Some(text.to_owned());
        }
        origin
    }

    /// Fills what is missing from the parts of a model's name.
    fn read_model_id(&mut self, text: &str) {
        let id = ModelId::parse(text, self.total);
        self.name.get_or_insert_with(|| title(&id.full_name));
        let fill = |field: &mut Option<String>, part: Option<String>| {
            if field.is_none() {
                *field = part;
            }
        };
        fill(&mut self.card.organization, id.organization.as_deref().map(title));
        fill(&mut self.card.basename, id.basename);
        fill(&mut self.card.finetune, id.finetune);
        fill(&mut self.card.version, id.version);
        fill(&mut self.card.size_label, id.size_label);
    }
}

/// All that the keys list, one after the other; nothing if none of them is there.
fn gather(front: &Yaml, keys: &[&str]) -> Option<Vec<String>> {
    let mut all = None;
    for value in keys.iter().filter_map(|k| front.get(k)) {
        let all = all.get_or_insert_with(Vec::new);
        match value {
            Yaml::Str(text) => all.push(text.clone()),
            Yaml::List(list) => all.extend(list.iter().filter_map(Yaml::scalar)),
            _ => {}
        }
    }
    all
}

fn load_sampling(dir: &Path, warnings: &mut Vec<String>) -> Result<Sampling> {
    let path = dir.join("generation_config.json");
    let Some(bytes) = super::tokenizer::json::read_bytes(&path)? else { return Ok(Sampling::default()) };
    let config: Map<String, Value> = match serde_json::from_slice(&bytes) {
        Ok(config) => config,
        Err(e) => {
            warnings.push(format!("{} is left out: {e}", path.display()));
            return Ok(Sampling::default());
        }
    };
    let mut odd = Vec::new();
    let mut float = |key: &str| match config.get(key)? {
        Value::Null => None,
        v => v.as_f64().map(|v| v as f32).filter(|v| v.is_finite()).or_else(|| {
            odd.push(key.to_owned());
            None
        }),
    };
    let mut sampling = Sampling {
        top_p: float("top_p"),
        min_p: float("min_p"),
        xtc_probability: float("xtc_probability"),
        xtc_threshold: float("xtc_threshold"),
        temp: float("temperature"),
        penalty_repeat: float(if config.contains_key("penalty_repeat") {
            "penalty_repeat"
        } else {
            "repetition_penalty"
        }),
        mirostat_tau: float("mirostat_tau"),
        mirostat_eta: float("mirostat_eta"),
        ..Sampling::default()
    };
    let mut int = |key: &str| match config.get(key)? {
        Value::Null => None,
        v => v.as_i64().and_then(|v| i32::try_from(v).ok()).or_else(|| {
            odd.push(key.to_owned());
            None
        }),
    };
    sampling.top_k = int("top_k");
    sampling.penalty_last_n = int("penalty_last_n");
    sampling.mirostat = int("mirostat");
    sampling.sequence = config.get("sequence").and_then(Value::as_str).map(str::to_owned);
    for key in odd {
        warnings.push(format!("{}: {key} is no number of its kind and is left out", path.display()));
    }
    Ok(sampling)
}

#[cfg(test)]
mod tests;
