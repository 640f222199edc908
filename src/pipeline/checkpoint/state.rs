//! The small file that says what a checkpoint holds.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::identity::Identity;
use super::{elsewhere, is_part};
use crate::atomic::AtomicFile;
use crate::error::{Error, Kind, Result};

/// Its name. Replacing it is the only commit point.
pub(super) const STATE: &str = "checkpoint.json";

/// The version of the layout.
const VERSION: u32 = 1;

/// A state file is a few kilobytes for each layer; more is not ours.
const MAX_BYTES: u64 = 64 << 20;

/// What a checkpoint holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    version: u32,
    /// The job.
    pub(super) identity: Identity,
    /// Steps that are done.
    pub(super) done: usize,
    /// The files that belong to it. They are written once and never changed.
    pub(super) files: BTreeMap<String, Record>,
    /// What the job wants to remember.
    pub(super) note: Value,
    /// The output that was about to appear.
    pub(super) output: Option<Output>,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    pub(super) bytes: u64,
    pub(super) sha256: String,
}

/// A file or directory, whatever its name: renaming changes none of this.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Output {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

impl Output {
    pub(super) fn of(metadata: &Metadata) -> Output {
        Output {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

impl State {
    pub(super) fn new(identity: Identity) -> State {
        State { version: VERSION, identity, done: 0, files: BTreeMap::new(), note: Value::Null, output: None }
    }

    /// Reads the state of the checkpoint in `dir`, if there is one.
    ///
    /// # Errors
    /// `Checkpoint` if it is damaged.
    pub(super) fn load(dir: &Path) -> Result<Option<State>> {
        let path = dir.join(STATE);
        let unusable = |why: String| {
            Error::new(Kind::Checkpoint, format!("{} cannot be used: {why}", path.display()))
                .hint(format!("Remove {} to start again, or choose another --checkpoint-dir.", dir.display()))
        };
        let bytes = match fs::metadata(&path).and_then(|meta| {
            if meta.len() > MAX_BYTES {
                return Err(io::Error::other(format!("it has {} bytes", meta.len())));
            }
            fs::read(&path)
        }) {
            Ok(bytes) => bytes,
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(e) => return Err(unusable(e.to_string())),
        };
        let state: State = serde_json::from_slice(&bytes).map_err(|e| unusable(e.to_string()))?;
        if state.version != VERSION {
            return Err(unusable(format!("its version is {}, not {VERSION}", state.version)));
        }
        if let Some(name) = state.files.keys().find(|name| !is_part(name)) {
            return Err(unusable(format!("it names the file {name:?}")));
        }
        Ok(Some(state))
    }

    /// Puts this state in the place of the one before.
    pub(super) fn commit(&self, dir: &Path) -> Result<()> {
        let text = serde_json::to_vec_pretty(self).expect("a state is plain data");
        let mut file = AtomicFile::create(&dir.join(STATE), text.len() as u64, true).map_err(elsewhere)?;
        file.file()
            .write_all(&text)
            .map_err(|e| elsewhere(Error::output("cannot write the checkpoint", e)))?;
        file.sync()?;
        file.commit()
    }
}
