//! Data sets: their files are found at once and downloaded one by one, as they are read.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::cache::Cache;
use super::client::Client;
use super::layout::{Layout, choose};
use super::listing::{self, RemoteFile};
use super::{HubConfig, HubId, RepoKind, fetch, is_commit};
use crate::cancel::Cancel;
use crate::error::{Error, Kind, Result};
use crate::progress::Progress;
use crate::source::card::front_matter;

/// The files of one configuration and split of a data set.
#[derive(Debug)]
pub struct RemoteDataset {
    hub: HubConfig,
    id: HubId,
    commit: String,
    layout: Layout,
    /// As many as `layout.files` and in that order; none if only the cache is used.
    files: Option<Vec<RemoteFile>>,
}

impl RemoteDataset {
    /// Finds the data files that `known` says can be read; `config` and `split` choose among them.
    ///
    /// # Errors
    /// Whatever a download can fail with; `Usage` if a configuration or split must be chosen or is not there.
    pub fn open(
        hub: &HubConfig,
        id: &HubId,
        config: Option<&str>,
        split: Option<&str>,
        known: &dyn Fn(&str) -> bool,
        cancel: &Cancel,
        progress: &dyn Progress,
    ) -> Result<RemoteDataset> {
        let cache = Cache::new(&hub.cache, id, RepoKind::Dataset);
        let (commit, mut files) = match hub.offline {
            true => (offline_commit(hub, id, &cache)?, None),
            false => {
                let client = Client::new(hub, id, RepoKind::Dataset, cancel)?;
                let commit = client.commit()?;
                let files = listing::all(id, client.files(&commit)?)?;
                let card = files.iter().find(|f| f.path == "README.md").filter(|f| !cache.has(&commit, f));
                if let Some(card) = card {
                    fetch::fetch(&client, &cache, &commit, std::slice::from_ref(card), progress)?;
                }
                if !is_commit(id.revision()) {
                    cache.write_ref(id.revision(), &commit)?;
                }
                (commit, Some(files))
            }
        };
        let dir = cache.snapshot(&commit);
        let paths = match &files {
            Some(files) => files.iter().map(|f| f.path.clone()).collect(),
            None => in_snapshot(&dir)?,
        };
        let mut warnings = Vec::new();
        let card = front_matter::load(&dir, &mut warnings)?;
        warnings.iter().for_each(|warning| progress.warn(warning));
        let layout = choose(id, &paths, &card, config, split, known)?;
        if let Some(path) = layout.files.iter().find(|path| !listing::is_safe(path)) {
            return Err(listing::unsafe_name(id, path));
        }
        match &mut files {
            Some(files) => {
                let find = |path: &String| files.iter().find(|f| f.path == *path).cloned();
                *files = layout.files.iter().filter_map(find).collect();
            }
            None => progress.warn(&format!(
                "Offline: of {id} only what the cache has is used, files: {}",
                layout.files.len()
            )),
        }
        Ok(RemoteDataset { hub: hub.clone(), id: id.clone(), commit, layout, files })
    }

    /// The commit.
    pub fn commit(&self) -> &str {
        &self.commit
    }

    /// The configuration, if the data set has more than one.
    pub fn config(&self) -> Option<&str> {
        self.layout.config.as_deref()
    }

    /// The split, if the data set has splits.
    pub fn split(&self) -> Option<&str> {
        self.layout.split.as_deref()
    }

    /// The path in the repository of file `index`.
    pub fn path(&self, index: usize) -> &str {
        &self.layout.files[index]
    }

    /// The files by number: by name, or shuffled by a seed, so that each keeps its place among those that are there.
    pub fn order(&self, seed: Option<u64>) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.layout.files.len()).collect();
        if let Some(seed) = seed {
            order.sort_by_cached_key(|index| {
                let hash = Sha256::new().chain_update(seed.to_le_bytes()).chain_update(self.path(*index));
                hash.finalize().to_vec()
            });
        }
        order
    }

    /// File `index` in the cache; it is downloaded if it is not there.
    pub fn fetch(&self, index: usize, cancel: &Cancel, progress: &dyn Progress) -> Result<PathBuf> {
        let cache = Cache::new(&self.hub.cache, &self.id, RepoKind::Dataset);
        if let Some(file) = self.files.as_ref().map(|files| &files[index])
            && !cache.has(&self.commit, file)
        {
            let client = Client::new(&self.hub, &self.id, RepoKind::Dataset, cancel)?;
            fetch::fetch(&client, &cache, &self.commit, std::slice::from_ref(file), progress)?;
        }
        Ok(cache.snapshot(&self.commit).join(self.path(index)))
    }
}

fn offline_commit(hub: &HubConfig, id: &HubId, cache: &Cache) -> Result<String> {
    let commit = match is_commit(id.revision()) {
        true => Some(id.revision().to_owned()),
        false => cache.read_ref(id.revision()),
    };
    commit.filter(|commit| cache.snapshot(commit).is_dir()).ok_or_else(|| {
        Error::new(Kind::NotFound, format!("the data set {id} is not in the cache {}", hub.cache.display()))
            .hint("Run once with a connection and without HF_HUB_OFFLINE, or pass a local file.")
    })
}

/// The paths of all files below `dir`, with `/` between their parts, sorted.
fn in_snapshot(dir: &Path) -> Result<Vec<String>> {
    let mut paths = Vec::new();
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        let path = dir.join(&folder);
        let what = || format!("cannot read {}", path.display());
        for entry in std::fs::read_dir(&path).map_err(|e| Error::io(what(), e))? {
            let entry = entry.map_err(|e| Error::io(what(), e))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let full = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            match entry.path().is_dir() {
                true => folders.push(full),
                false => paths.push(full),
            }
        }
    }
    paths.sort();
    Ok(paths)
}
