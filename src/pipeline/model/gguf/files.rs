//! The file, or the files that `llama-gguf-split` made of one.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Result};
use crate::format::gguf::Metadata;
use crate::format::gguf::reader::{Reader, TensorInfo};

/// More parts than anybody makes; their number has five digits.
const MAX_PARTS: usize = 99_999;

/// All tensors of a model, in one file or several.
#[derive(Debug)]
pub(in crate::pipeline) struct Files {
    path: PathBuf,
    readers: Vec<Reader>,
    /// Part and place of each tensor, by its name.
    index: HashMap<String, (usize, usize)>,
}

impl Files {
    /// Opens the file at `path` and, if it is the first of several, the others beside it.
    ///
    /// # Errors
    /// `Invalid` if a file is damaged, a part is missing, or the parts do not fit each other; `Usage` for a part that is
    /// not the first.
    pub(in crate::pipeline) fn open(path: &Path) -> Result<Files> {
        let first = Reader::open(path)?;
        let count = part_number(first.metadata(), "split.count").unwrap_or(1);
        let mut readers = vec![first];
        if count > 1 {
            let named = split_name(path).filter(|(_, _, of)| *of == count);
            let Some((prefix, number, _)) = named else {
                return Err(Error::new(
                    Kind::Invalid,
                    format!("{} is one of {count} files, which its name does not say", path.display()),
                )
                .hint(format!("Give it back its name, which ends in -00001-of-{count:05}.gguf.")));
            };
            if number != 1 {
                return Err(Error::new(
                    Kind::Usage,
                    format!("{} is number {number} of {count} files", path.display()),
                )
                .hint(format!("Pass the first one, {}.", part_name(&prefix, 1, count))));
            }
            for part in 2..=count {
                let other = path.with_file_name(part_name(&prefix, part, count));
                let reader = Reader::open(&other).map_err(|e| match e.kind() {
                    Kind::NotFound => Error::new(Kind::Invalid, format!("{} is missing", other.display()))
                        .hint(format!("The model is in {count} files; all of them must be in one place.")),
                    _ => e,
                })?;
                if part_number(reader.metadata(), "split.no") != Some(part - 1) {
                    return Err(Error::new(
                        Kind::Invalid,
                        format!(
                            "{}: split.no is not {}, as its name would have it",
                            other.display(),
                            part - 1
                        ),
                    ));
                }
                readers.push(reader);
            }
        }
        let files = Files { index: index(&readers)?, path: path.to_owned(), readers };
        let promised = part_number(files.metadata(), "split.tensors.count").filter(|_| count > 1);
        match promised {
            Some(promised) if promised != files.index.len() => Err(Error::new(
                Kind::Invalid,
                format!(
                    "{} and its parts hold {} tensors; split.tensors.count is {promised}",
                    files.path.display(),
                    files.index.len()
                ),
            )),
            _ => Ok(files),
        }
    }

    /// Where the first file is.
    pub(in crate::pipeline) fn path(&self) -> &Path {
        &self.path
    }

    /// The key-value part, which is the first file's.
    pub(in crate::pipeline) fn metadata(&self) -> &Metadata {
        self.readers[0].metadata()
    }

    /// The tensor of this name.
    pub(in crate::pipeline) fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        let (part, at) = self.index.get(name)?;
        Some(&self.readers[*part].tensors()[*at])
    }

    /// All tensors, in the files' order.
    pub(in crate::pipeline) fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        self.readers.iter().flat_map(|reader| reader.tensors())
    }

    /// The names of all tensors, in the files' order.
    pub(in crate::pipeline) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors().map(|t| t.name.as_str())
    }

    /// Bytes of all files.
    pub(in crate::pipeline) fn bytes(&self) -> u64 {
        self.readers.iter().map(Reader::file_bytes).sum()
    }

    /// How many files there are.
    pub(in crate::pipeline) fn count(&self) -> usize {
        self.readers.len()
    }

    /// Version of the container.
    pub(in crate::pipeline) fn version(&self) -> u32 {
        self.readers[0].header().version
    }

    /// The file that a tensor is in, and the byte at which it begins there.
    pub(in crate::pipeline) fn place(&self, name: &str) -> (PathBuf, u64) {
        let (part, at) = self.index.get(name).copied().unwrap_or_default();
        let header = self.readers[part].header();
        let start = header.data_start + header.tensors.get(at).map_or(0, |tensor| tensor.offset);
        let path = match split_name(&self.path) {
            Some((prefix, _, count)) if self.readers.len() > 1 => {
                self.path.with_file_name(part_name(&prefix, part + 1, count))
            }
            _ => self.path.clone(),
        };
        (path, start)
    }

    /// The bytes of a tensor; empty if there is none of this name.
    pub(in crate::pipeline) fn data(&self, name: &str) -> &[u8] {
        let Some((part, at)) = self.index.get(name) else { return &[] };
        let reader = &self.readers[*part];
        reader.data(&reader.tensors()[*at])
    }
}

fn part_number(meta: &Metadata, key: &str) -> Option<usize> {
    meta.get(key)?.as_u64()?.try_into().ok()
}

fn index(readers: &[Reader]) -> Result<HashMap<String, (usize, usize)>> {
    let mut index = HashMap::new();
    for (part, reader) in readers.iter().enumerate() {
        for (at, tensor) in reader.tensors().iter().enumerate() {
            if index.insert(tensor.name.clone(), (part, at)).is_some() {
                return Err(Error::new(
                    Kind::Invalid,
                    format!("tensor '{}' is in two parts of the model", tensor.name),
                ));
            }
        }
    }
    Ok(index)
}

/// What comes before the number, the number, and how many there are: `PREFIX-00001-of-00005.gguf`.
fn split_name(path: &Path) -> Option<(String, usize, usize)> {
    let stem = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (prefix, number) = rest.rsplit_once('-')?;
    let digits = |s: &str| (s.len() == 5).then(|| s.parse().ok()).flatten();
    let (number, count) = (digits(number)?, digits(count)?);
    (1..=MAX_PARTS).contains(&count).then(|| (prefix.to_owned(), number, count))
}

fn part_name(prefix: &str, number: usize, count: usize) -> String {
    format!("{prefix}-{number:05}-of-{count:05}.gguf")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_told_by_their_names() {
        let name = |s: &str| split_name(Path::new(s));
        assert_eq!(name("dir/a-b-00002-of-00005.gguf"), Some(("a-b".into(), 2, 5)));
        assert_eq!(part_name("a-b", 2, 5), "a-b-00002-of-00005.gguf");
        for other in ["a.gguf", "a-00001-of-00000.gguf", "a-1-of-5.gguf", "a-00001-of-00005", "-of-.gguf"] {
            assert_eq!(name(other), None, "{other}");
        }
    }
}
