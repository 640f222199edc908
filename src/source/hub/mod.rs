//! Models and data sets by their name on the Hugging Face Hub, kept in the cache that all Hugging Face tools share.
//!
//! hf-hub answers what a repository holds. The files themselves are fetched here, because hf-hub neither goes on
//! with a broken download nor checks what it received, and drops the sha256 that the Hub gives for each large file.

mod cache;
mod client;
mod dataset;
mod fetch;
mod layout;
mod listing;
mod refusal;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::cancel::Cancel;
use crate::error::{Error, Kind, Result};
use crate::progress::Progress;

use cache::Cache;
use client::Client;

pub use dataset::RemoteDataset;

/// What a repository holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RepoKind {
    Model,
    Dataset,
}

impl RepoKind {
    fn noun(self) -> &'static str {
        match self {
            RepoKind::Model => "model",
            RepoKind::Dataset => "data set",
        }
    }

    /// What its folder in the cache begins with, without the plural.
    fn folder(self) -> &'static str {
        match self {
            RepoKind::Model => "model",
            RepoKind::Dataset => "dataset",
        }
    }

    /// What stands before its name in addresses.
    fn address(self) -> Option<&'static str> {
        (self == RepoKind::Dataset).then_some("datasets")
    }
}

/// A repository on the Hub: `org/name`, at a branch, tag or commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubId {
    /// `org/name`.
    pub repo: String,
    /// Branch, tag or commit; none is the branch `main`.
    pub revision: Option<String>,
}

impl HubId {
    /// Reads `org/name` or `org/name@revision`; `None` for whatever cannot be a name on the Hub.
    pub fn parse(text: &str) -> Option<HubId> {
        let (repo, revision) = match text.split_once('@') {
            Some((repo, revision)) => (repo, Some(revision)),
            None => (text, None),
        };
        let (org, name) = repo.split_once('/')?;
        (is_repo_part(org) && is_repo_part(name) && revision.is_none_or(is_revision))
            .then(|| HubId { repo: repo.to_string(), revision: revision.map(String::from) })
    }

    /// The revision's name, `main` by default.
    fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }
}

impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo)?;
        self.revision.iter().try_for_each(|revision| write!(f, "@{revision}"))
    }
}

/// The Hub's own rule for users and repositories; `--` separates the parts of a folder's name in the cache.
fn is_repo_part(part: &str) -> bool {
    (1..=96).contains(&part.len())
        && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        && !part.starts_with(['-', '.'])
        && !part.ends_with(['-', '.'])
        && !part.contains("--")
        && !part.contains("..")
}

/// Git's rule for branches and tags, and stricter: it also becomes a path in the cache.
fn is_revision(revision: &str) -> bool {
    revision.len() <= 200
        && revision.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./+".contains(&b))
        && revision.split('/').all(|part| !part.is_empty() && !part.starts_with(['.', '-']))
        && !revision.contains("..")
        && !revision.ends_with('.')
}

fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Where the Hub and the cache are, and who asks.
#[derive(Clone)]
pub struct HubConfig {
    /// The Hub's address.
    pub endpoint: String,
    /// The cache, laid out as huggingface_hub does.
    pub cache: PathBuf,
    /// The user's token; it is sent to the endpoint and nowhere else.
    pub token: Option<String>,
    /// Use nothing but the cache.
    pub offline: bool,
    /// The wait before the first retry; it doubles with each further one.
    pub backoff: Duration,
}

impl HubConfig {
    /// The configuration that the environment gives, by the rules of huggingface_hub.
    pub fn from_env() -> HubConfig {
        HubConfig::from_vars(|name| std::env::var(name).ok())
    }

    fn from_vars(var: impl Fn(&str) -> Option<String>) -> HubConfig {
        let var = |name: &str| var(name).map(|v| v.trim().to_string()).filter(|v| !v.is_empty());
        let home = var("HF_HOME").map(PathBuf::from).unwrap_or_else(|| {
            let cache = var("XDG_CACHE_HOME").map(PathBuf::from);
            cache
                .unwrap_or_else(|| PathBuf::from(var("HOME").unwrap_or_else(|| ".".into())).join(".cache"))
                .join("huggingface")
        });
        let saved = |path: PathBuf| {
            let token = std::fs::read_to_string(path).ok()?;
            Some(token.trim().to_string()).filter(|t| !t.is_empty())
        };
        let token = match var("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            Some(_) => None,
            None => var("HF_TOKEN")
                .or_else(|| saved(var("HF_TOKEN_PATH")?.into()))
                .or_else(|| saved(home.join("token"))),
        };
        let offline = var("HF_HUB_OFFLINE").or_else(|| var("TRANSFORMERS_OFFLINE"));
        HubConfig {
            endpoint: var("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into()),
            cache: var("HF_HUB_CACHE")
                .or_else(|| var("HUGGINGFACE_HUB_CACHE"))
                .map_or_else(|| home.join("hub"), PathBuf::from),
            token,
            offline: offline.is_some_and(|v| ["1", "ON", "YES", "TRUE"].contains(&v.to_uppercase().as_str())),
            backoff: Duration::from_millis(500),
        }
    }
}

impl fmt::Debug for HubConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubConfig")
            .field("endpoint", &self.endpoint)
            .field("cache", &self.cache)
            .field("token", &self.token.as_ref().map(|_| "(hidden)"))
            .field("offline", &self.offline)
            .field("backoff", &self.backoff)
            .finish()
    }
}

/// How much of a model is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Everything that quantization needs.
    Model,
    /// The same without the weights.
    Description,
}

/// Brings a model into the cache and returns its directory there. Interrupted, the next call goes on from there.
pub fn download(
    config: &HubConfig,
    id: &HubId,
    want: Want,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<PathBuf> {
    if config.offline {
        return cached(config, id);
    }
    let client = Client::new(config, id, RepoKind::Model, cancel)?;
    let commit = client.commit()?;
    let cache = Cache::new(&config.cache, id, RepoKind::Model);
    let mut files = listing::select(id, client.files(&commit)?)?;
    files.retain(|file| want == Want::Model || !file.is_weights());
    files.retain(|file| !cache.has(&commit, file));
    if files.is_empty() {
        progress.detail(&format!("{id} is in the cache at commit {commit}"));
    } else {
        fetch::fetch(&client, &cache, &commit, &files, progress)?;
    }
    // Only now: a name in `refs` promises the snapshot behind it to whoever works offline.
    if want == Want::Model && !is_commit(id.revision()) {
        cache.write_ref(id.revision(), &commit)?;
    }
    Ok(cache.snapshot(&commit))
}

/// The directory of a model that is wholly in the cache, found without any network access.
pub fn cached(config: &HubConfig, id: &HubId) -> Result<PathBuf> {
    let cache = Cache::new(&config.cache, id, RepoKind::Model);
    let complete = match is_commit(id.revision()) {
        true => cache.complete_snapshot(id.revision()),
        false => cache.read_ref(id.revision()).and_then(|commit| cache.complete_snapshot(&commit)),
    };
    complete.ok_or_else(|| {
        Error::new(Kind::NotFound, format!("{id} is not complete in the cache {}", config.cache.display()))
            .hint("Run once with a connection and without HF_HUB_OFFLINE, or pass a local directory.")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart() {
        let id = HubId::parse("meta-llama/Llama-3.2-1B").unwrap();
        assert_eq!((id.repo.as_str(), id.revision()), ("meta-llama/Llama-3.2-1B", "main"));
        let id = HubId::parse("a/b@refs/pr/1").unwrap();
        assert_eq!(id.revision.as_deref(), Some("refs/pr/1"));
        assert_eq!(id.to_string(), "a/b@refs/pr/1");
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let bad = [
            "", "gpt2", "/a", "a/", "a/b/c", "../a", "a/..", "./model", "a/b..c", "a/b--c", "a/-b", "a/b.",
            "a b/c", "a/b@", "a/b@/x", "a/b@x/", "a/b@a..b", "a/b@../x", "a/b@x//y", "a/b@.x", "a\\b/c",
            "a/b@x@y", "~/a", "a/b?x",
        ];
        for text in bad {
            assert_eq!(HubId::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn the_environment_is_read_as_huggingface_hub_does() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("token"), "hf_saved\n").unwrap();
        let path = home.path().to_str().unwrap().to_string();
        let from = |vars: &[(&str, &str)]| {
            let vars: Vec<(String, String)> =
                vars.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
            HubConfig::from_vars(|name| vars.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone()))
        };
        let config = from(&[("HF_HOME", &path), ("HF_HUB_OFFLINE", "0")]);
        assert_eq!(config.cache, home.path().join("hub"));
        assert_eq!(config.endpoint, "https://huggingface.co");
        assert_eq!(config.token.as_deref(), Some("hf_saved"));
        assert!(!config.offline);

        let vars = [
            ("HF_HOME", path.as_str()),
            ("HF_TOKEN", " hf_set\n"),
            ("HF_HUB_CACHE", "/c"),
            ("HF_HUB_OFFLINE", "1"),
        ];
        let config = from(&vars);
        assert_eq!(config.token.as_deref(), Some("hf_set"));
        assert_eq!(config.cache, PathBuf::from("/c"));
        assert!(config.offline);
        assert!(!format!("{config:?}").contains("hf_set"), "a token must not be printed");

        let config = from(&[("HOME", "/h"), ("HF_TOKEN", ""), ("HF_ENDPOINT", "https://mirror")]);
        assert_eq!(config.cache, PathBuf::from("/h/.cache/huggingface/hub"));
        assert_eq!((config.token, config.endpoint.as_str()), (None, "https://mirror"));
    }
}
