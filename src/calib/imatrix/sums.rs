//! Sums of squares, which can be added up: what an importance matrix is made of.

use std::collections::BTreeMap;
use std::path::Path;

use super::file::{self, Contents, Parsed, RawEntry};
use crate::error::{Error, Kind, Result};

/// Chunks of llama-imatrix where nobody says otherwise.
pub const DEFAULT_CHUNK_SIZE: u32 = 512;

/// Sums by tensor name, and what they were computed on.
#[derive(Clone, Debug, PartialEq)]
pub struct Sums {
    /// One entry for each tensor.
    pub entries: BTreeMap<String, Entry>,
    /// The names of the texts.
    pub datasets: Vec<String>,
    /// Tokens in a chunk of text.
    pub chunk_size: u32,
}

/// The inputs of one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Sums of squares, one per column; for a tensor of several matrices (experts) one row after the other.
    pub squares: Vec<f32>,
    /// Tokens that were added up, one number for each matrix. Both formats hold them as float32.
    pub counts: Vec<u64>,
}

impl Sums {
    /// No sums.
    pub fn new(chunk_size: u32) -> Sums {
        Sums { entries: BTreeMap::new(), datasets: Vec::new(), chunk_size }
    }

    /// Reads either format. The older one holds means and counts chunks, of `chunk_size` tokens each; the newer one says
    /// itself how long its chunks are.
    ///
    /// # Errors
    /// `NotFound`, or `Invalid` for a file that is not an importance matrix.
    pub fn load(path: &Path, chunk_size: u32) -> Result<Sums> {
        file::load(path, |contents: Contents| {
            let chunk_size = contents.chunk_size.unwrap_or(chunk_size);
            let entries = contents.entries.into_iter().map(|(name, raw)| {
                let entry = entry(&name, raw, chunk_size)?;
                Ok((name, entry))
            });
            Ok(Sums { entries: entries.collect::<Parsed<_>>()?, datasets: contents.datasets, chunk_size })
        })
    }

    /// Adds the sums of `other`, as `llama-imatrix --in-file` does; the size of a chunk stays. One count for all matrices
    /// of a tensor, as the older format has it, counts for each of them.
    ///
    /// # Errors
    /// `Invalid` if a tensor has another size there.
    pub fn add(&mut self, other: Sums) -> Result<()> {
        for (name, theirs) in other.entries {
            let Some(ours) = self.entries.get_mut(&name) else {
                self.entries.insert(name, theirs);
                continue;
            };
            let matrices = ours.counts.len().max(theirs.counts.len());
            if ours.squares.len() != theirs.squares.len()
                || [&ours.counts, &theirs.counts].iter().any(|c| c.len() != 1 && c.len() != matrices)
            {
                return Err(Error::new(
                    Kind::Invalid,
                    format!(
                        "{name} has {} sums for {} matrices in one importance matrix and {} for {} in another",
                        ours.squares.len(),
                        ours.counts.len(),
                        theirs.squares.len(),
                        theirs.counts.len()
                    ),
                )
                .hint("They belong to different models."));
            }
            ours.squares.iter_mut().zip(&theirs.squares).for_each(|(sum, more)| *sum += more);
            ours.counts = (0..matrices)
                .map(|m| {
                    let of = |counts: &[u64]| counts.get(m).or(counts.first()).copied().unwrap_or(0);
                    of(&ours.counts).saturating_add(of(&theirs.counts))
                })
                .collect();
        }
        self.datasets.extend(other.datasets);
        Ok(())
    }

    /// Chunks of text, as llama-imatrix counts them: by the matrix that saw most tokens.
    pub fn chunks(&self) -> u32 {
        let most = self.entries.values().flat_map(|entry| &entry.counts).max().copied().unwrap_or(0);
        u32::try_from(most / u64::from(self.chunk_size.max(1))).unwrap_or(u32::MAX)
    }

    /// Experts that no token came to, with the tensors that they are in.
    pub fn without_data(&self) -> impl Iterator<Item = (&str, usize)> {
        self.entries.iter().filter_map(|(name, entry)| {
            let unused = entry.counts.iter().filter(|count| **count == 0).count();
            (unused > 0).then_some((name.as_str(), unused))
        })
    }
}

fn entry(name: &str, raw: RawEntry, chunk_size: u32) -> Parsed<Entry> {
    match raw {
        RawEntry::Gguf { sums, counts } => {
            let counts = counts.iter().map(|count| Ok(file::count(name, *count)? as u64));
            Ok(Entry { squares: sums, counts: counts.collect::<Parsed<_>>()? })
        }
        RawEntry::Legacy { mut values, calls } => {
            let calls = u64::try_from(calls).ok().filter(|calls| *calls > 0);
            let calls =
                calls.ok_or_else(|| format!("{name} does not say of how many chunks its sums are"))?;
            values.iter_mut().for_each(|value| *value *= chunk_size as f32);
            Ok(Entry { squares: values, counts: vec![calls * u64::from(chunk_size)] })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(entries: &[(&str, &[f32], &[u64])]) -> Sums {
        let entry =
            |squares: &[f32], counts: &[u64]| Entry { squares: squares.into(), counts: counts.into() };
        let entries = entries.iter().map(|(name, s, c)| ((*name).to_owned(), entry(s, c))).collect();
        Sums { entries, datasets: vec!["a.txt".into()], chunk_size: 8 }
    }

    #[test]
    fn sums_and_counts_are_added() {
        let mut all = sums(&[("x", &[1.0, 2.0], &[16])]);
        all.add(sums(&[("x", &[3.0, 4.0], &[25]), ("y", &[5.0], &[3])])).unwrap();
        let expected = sums(&[("x", &[4.0, 6.0], &[41]), ("y", &[5.0], &[3])]);
        assert_eq!(all.entries, expected.entries);
        assert_eq!(all.datasets, ["a.txt", "a.txt"]);
        assert_eq!(all.chunks(), 5);
    }

    #[test]
    fn one_count_for_all_experts_counts_for_each() {
        for swapped in [false, true] {
            let mut parts =
                [sums(&[("x", &[1.0, 2.0, 3.0, 4.0], &[8])]), sums(&[("x", &[1.0, 0.0, 0.0, 0.0], &[2, 0])])];
            if swapped {
                parts.reverse();
            }
            let [mut first, second] = parts;
            first.add(second).unwrap();
            assert_eq!(first.entries, sums(&[("x", &[2.0, 2.0, 3.0, 4.0], &[10, 8])]).entries);
        }
    }

    #[test]
    fn another_models_sums_are_refused() {
        for (other, counts) in [(&[1.0, 2.0, 3.0][..], &[1][..]), (&[1.0, 2.0, 3.0, 4.0], &[1, 1, 1, 1])] {
            let mut all = sums(&[("x", &[1.0, 2.0, 3.0, 4.0], &[1, 1])]);
            let e = all.add(sums(&[("x", other, counts)])).unwrap_err();
            assert_eq!(e.kind(), Kind::Invalid, "{e}");
        }
    }
}
