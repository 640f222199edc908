//! Data sets of text: files, directories of files, data sets on the Hub, and the text that is built in.
//!
//! A file says by its ending how it is read: `.txt` is one text; `.jsonl` and `.json` hold records; `.parquet` has columns.
//! A record's text is in `text` or `content`, or it is a conversation in `messages`. Nothing is guessed: what is not of
//! this form is an error, never skipped.

pub(super) mod chat;
mod json;
mod lines;
mod parquet;
mod record;
mod unpacked;

use std::borrow::Cow;
use std::fs::File;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::builtin;
use crate::cancel::Cancel;
use crate::error::{Error, Kind, Result};
use crate::progress::Progress;
#[cfg(feature = "hub")]
use crate::source::hub::{HubConfig, HubId, RemoteDataset};

/// One sample.
#[derive(Clone, Debug, PartialEq)]
pub enum Sample<'a> {
    /// Running text.
    Text(Cow<'a, str>),
    /// A conversation: a list of objects with `role` and `content`, for the model's chat template.
    Chat(Value),
}

/// Takes samples and says whether more are wanted.
pub type Sink<'a> = dyn FnMut(Sample<'_>) -> Result<ControlFlow<()>> + 'a;

/// What part of a data set is wanted.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// The configuration (subset) of a data set on the Hub.
    pub config: Option<String>,
    /// The split of a data set on the Hub; none is `train`, or the only one.
    pub split: Option<String>,
    /// The column or key that holds the text or the conversation; none is `text`, `content` or `messages`.
    pub column: Option<String>,
}

/// A source of samples, in files that are read one after the other.
#[derive(Debug)]
pub struct Dataset {
    source: String,
    column: Option<String>,
    files: Files,
}

#[derive(Debug)]
enum Files {
    BuiltIn,
    Local(Vec<PathBuf>),
    #[cfg(feature = "hub")]
    Remote(Box<RemoteDataset>),
}

impl Dataset {
    /// The text that is compiled in.
    pub fn built_in() -> Dataset {
        Dataset { source: "built-in".into(), column: None, files: Files::BuiltIn }
    }

    /// Opens a file, a directory, or `org/name[@revision]` on the Hub.
    ///
    /// # Errors
    /// `NotFound` if there is no such thing; `Unsupported` for a file of another kind; `Usage` for a selection that the
    /// data cannot have; on the Hub whatever a download can fail with.
    pub fn open(
        data: &str,
        selection: Selection,
        cancel: &Cancel,
        progress: &dyn Progress,
    ) -> Result<Dataset> {
        let path = Path::new(data);
        if !path.exists() {
            return remote(data, selection, cancel, progress);
        }
        if selection.config.is_some() || selection.split.is_some() {
            return Err(Error::new(
                Kind::Usage,
                format!("{data} is no data set of the Hub: it has no configurations or splits"),
            )
            .hint("Leave out --dataset-config and --dataset-split, or pass the one file that is wanted."));
        }
        let files = match path.is_dir() {
            true => in_directory(path)?,
            false => {
                if FileKind::of(path)? == FileKind::Text && selection.column.is_some() {
                    return Err(Error::new(Kind::Usage, format!("{data} is plain text: it has no columns"))
                        .hint("Leave out --text-column."));
                }
                vec![path.to_owned()]
            }
        };
        let full = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let name = path.file_name().or(full.file_name()).map_or(data.into(), |n| n.to_string_lossy());
        Ok(Dataset { source: name.into_owned(), column: selection.column, files: Files::Local(files) })
    }

    /// Its name: a file's or directory's own, the data set's on the Hub, or `built-in`.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether it is the text that is compiled in.
    pub fn is_built_in(&self) -> bool {
        matches!(self.files, Files::BuiltIn)
    }

    #[cfg(feature = "hub")]
    fn remote(&self) -> Option<&RemoteDataset> {
        match &self.files {
            Files::Remote(remote) => Some(remote),
            _ => None,
        }
    }

    /// Whether its files have to be downloaded.
    pub fn is_remote(&self) -> bool {
        #[cfg(feature = "hub")]
        return self.remote().is_some();
        #[cfg(not(feature = "hub"))]
        false
    }

    /// The commit on the Hub.
    pub fn revision(&self) -> Option<&str> {
        #[cfg(feature = "hub")]
        return self.remote().map(RemoteDataset::commit);
        #[cfg(not(feature = "hub"))]
        None
    }

    /// The configuration of a data set on the Hub, if it has several.
    pub fn config(&self) -> Option<&str> {
        #[cfg(feature = "hub")]
        return self.remote().and_then(RemoteDataset::config);
        #[cfg(not(feature = "hub"))]
        None
    }

    /// The split of a data set on the Hub, if it has splits.
    pub fn split(&self) -> Option<&str> {
        #[cfg(feature = "hub")]
        return self.remote().and_then(RemoteDataset::split);
        #[cfg(not(feature = "hub"))]
        None
    }

    /// All texts in their order, with an empty line between two, as they are joined for the tables of papers.
    ///
    /// # Errors
    /// `Invalid` for data that cannot be read as promised, `Unsupported` for conversations.
    pub fn joined(&self, cancel: &Cancel, progress: &dyn Progress) -> Result<String> {
        let mut joined = String::new();
        for index in self.order(None) {
            let _ = self.read(index, cancel, progress, &mut |sample| {
                cancel.check()?;
                let Sample::Text(text) = sample else {
                    return Err(Error::new(
                        Kind::Unsupported,
                        format!("{} holds conversations, which are no running text", self.source),
                    )
                    .hint("Pass data with a column `text` or `content`."));
                };
                if !joined.is_empty() {
                    joined.push_str("\n\n");
                }
                joined.push_str(&text);
                Ok(ControlFlow::Continue(()))
            })?;
        }
        Ok(joined)
    }

    /// The files by number, in the order in which they are to be read. A seed changes it only on the Hub, where not all
    /// of them may be needed.
    pub(super) fn order(&self, seed: Option<u64>) -> Vec<usize> {
        let _ = seed;
        match &self.files {
            Files::BuiltIn => vec![0],
            Files::Local(files) => (0..files.len()).collect(),
            #[cfg(feature = "hub")]
            Files::Remote(remote) => remote.order(seed),
        }
    }

    /// Gives the samples of file `index` to `sink`, until it wants no more.
    pub(super) fn read(
        &self,
        index: usize,
        cancel: &Cancel,
        progress: &dyn Progress,
        sink: &mut Sink<'_>,
    ) -> Result<ControlFlow<()>> {
        let _ = (cancel, progress);
        match &self.files {
            Files::BuiltIn => {
                builtin::TEXTS.iter().try_fold(ControlFlow::Continue(()), |flow, (_, text)| match flow {
                    ControlFlow::Break(()) => Ok(flow),
                    ControlFlow::Continue(()) => sink(Sample::Text(Cow::Borrowed(text))),
                })
            }
            Files::Local(files) => self.read_file(&files[index], &files[index].display().to_string(), sink),
            #[cfg(feature = "hub")]
            Files::Remote(remote) => {
                let path = remote.fetch(index, cancel, progress)?;
                self.read_file(&path, &format!("{}: {}", self.source, remote.path(index)), sink)
            }
        }
    }

    fn read_file(&self, path: &Path, name: &str, sink: &mut Sink<'_>) -> Result<ControlFlow<()>> {
        let column = self.column.as_deref();
        match FileKind::of(path)? {
            FileKind::Text => lines::text(path, name, sink),
            FileKind::Jsonl => lines::records(path, name, column, sink),
            FileKind::Json => json::records(path, name, column, sink),
            FileKind::Parquet => parquet::records(path, name, column, sink),
        }
    }
}

/// How a file is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FileKind {
    Text,
    Jsonl,
    Json,
    Parquet,
}

impl FileKind {
    /// By the file's ending; `.gz` may follow those of text.
    fn of(path: &Path) -> Result<FileKind> {
        FileKind::known(path).ok_or_else(|| {
            Error::new(
                Kind::Unsupported,
                format!("{} is no kind of file that is read for text", path.display()),
            )
            .hint("Pass .txt, .jsonl, .json or .parquet, a directory of these, or a data set of the Hub.")
        })
    }

    fn known(path: &Path) -> Option<FileKind> {
        let name = path.file_name()?.to_str()?.to_ascii_lowercase();
        let (stem, packed) = match name.strip_suffix(".gz") {
            Some(stem) => (stem, true),
            None => (name.as_str(), false),
        };
        match stem.rsplit_once('.')?.1 {
            // The WikiText archives name their text files .raw.
            "txt" | "raw" => Some(FileKind::Text),
            "jsonl" | "ndjson" => Some(FileKind::Jsonl),
            "json" => Some(FileKind::Json),
            "parquet" if !packed => Some(FileKind::Parquet),
            _ => None,
        }
    }
}

/// Opens a file of data called `name`. Whatever keeps it from being opened, the data is not there for the user.
fn open_file(path: &Path, name: &str) -> Result<File> {
    File::open(path).map_err(|e| {
        Error::new(Kind::NotFound, format!("cannot open {name}"))
            .because(e)
            .hint("Check that the file is there and may be read.")
    })
}

/// The data files right in `dir`, by name.
fn in_directory(dir: &Path) -> Result<Vec<PathBuf>> {
    let what = || format!("cannot read {}", dir.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| Error::io(what(), e))? {
        let path = entry.map_err(|e| Error::io(what(), e))?.path();
        let hidden = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
        if !hidden && path.is_file() && FileKind::known(&path).is_some() {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(Error::new(
            Kind::Invalid,
            format!("{} has no .txt, .jsonl, .json or .parquet file", dir.display()),
        )
        .hint("Directories inside it are not looked into."));
    }
    files.sort();
    Ok(files)
}

fn not_found(data: &str) -> Error {
    Error::new(
        Kind::NotFound,
        format!("calibration data '{data}' not found: there is no such file or directory"),
    )
    .hint("Check the path, or pass a data set on the Hugging Face Hub as org/name.")
}

#[cfg(feature = "hub")]
fn remote(data: &str, selection: Selection, cancel: &Cancel, progress: &dyn Progress) -> Result<Dataset> {
    let id = HubId::parse(data).filter(|_| FileKind::known(Path::new(data)).is_none());
    let id = id.ok_or_else(|| not_found(data))?;
    Dataset::from_hub(&HubConfig::from_env(), &id, selection, cancel, progress)
}

#[cfg(not(feature = "hub"))]
fn remote(data: &str, _: Selection, _: &Cancel, _: &dyn Progress) -> Result<Dataset> {
    Err(not_found(data))
}

#[cfg(feature = "hub")]
impl Dataset {
    /// Finds a data set's files on the Hub. They are downloaded as they are needed.
    ///
    /// # Errors
    /// Whatever a download can fail with; `Usage` if a configuration or split must be chosen or is not there.
    pub fn from_hub(
        hub: &HubConfig,
        id: &HubId,
        selection: Selection,
        cancel: &Cancel,
        progress: &dyn Progress,
    ) -> Result<Dataset> {
        let known = |path: &str| FileKind::known(Path::new(path)).is_some();
        let remote = RemoteDataset::open(
            hub,
            id,
            selection.config.as_deref(),
            selection.split.as_deref(),
            &known,
            cancel,
            progress,
        )?;
        Ok(Dataset {
            source: id.repo.clone(),
            column: selection.column,
            files: Files::Remote(Box::new(remote)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_opened_is_not_found() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let e = open_file(&file.path().join("below.txt"), "below.txt").unwrap_err();
        assert_eq!(e.kind(), Kind::NotFound);
        assert!(e.to_string().starts_with("cannot open below.txt: "), "{e}");
    }

    #[test]
    fn files_are_known_by_their_ending() {
        for (name, kind) in [
            ("a.txt", Some(FileKind::Text)),
            ("wiki.train.raw", Some(FileKind::Text)),
            ("A.JSONL", Some(FileKind::Jsonl)),
            ("c4-train.00000-of-01024.json.gz", Some(FileKind::Json)),
            ("x/train-00000-of-00001.parquet", Some(FileKind::Parquet)),
            ("a.parquet.gz", None),
            ("a.csv", None),
            ("txt", None),
            (".txt", Some(FileKind::Text)),
        ] {
            assert_eq!(FileKind::known(Path::new(name)), kind, "{name}");
        }
    }
}
