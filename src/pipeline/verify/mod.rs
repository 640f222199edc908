//! Checks a finished model as far as that can be done without the model that it was made from: the structure of its files, the
//! sizes, types and shapes of all tensors, every scale and every weight for being a number, every index and zero point for
//! being within its range, and whether configuration, tokenizer and tensors belong together.
//!
//! What this cannot see is a damaged value that is as good as any other: one code instead of another. No format that is written
//! here has a place for hashes of which its readers know, and GGUF files are llama.cpp's, byte for byte.

mod directory;
mod gguf;
mod numbers;

use serde::Serialize;

use super::detect::{Found, find};
use super::evaluate::in_pool;
use crate::cancel::Cancel;
use crate::error::{Error, Kind, Result};
use crate::progress::Progress;
use crate::source::Need;

/// Problems that are listed; a file of zeros has one in every tensor.
const LISTED: usize = 100;

/// What was looked at, and what is wrong.
#[derive(Clone, Debug, Serialize)]
pub struct Verification {
    /// `valid` or `invalid`.
    pub validation_status: &'static str,
    /// Files of weights.
    pub files: usize,
    /// Their bytes.
    pub file_size: u64,
    /// Tensors that were checked, those of quantized layers one by one.
    pub tensors: usize,
    /// Weights that were decoded.
    pub weights: u64,
    /// What is wrong; at most a hundred.
    pub problems: Vec<Problem>,
    /// Problems that are not listed.
    pub more_problems: usize,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The file's name.
    pub file: String,
    /// The tensor or quantized layer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tensor: Option<String>,
    /// The byte of the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// What is wrong with it.
    pub problem: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: ", self.file)?;
        if let Some(tensor) = &self.tensor {
            write!(f, "{tensor}: ")?;
        }
        f.write_str(&self.problem)?;
        match self.offset {
            Some(offset) => write!(f, ", at byte {offset}"),
            None => Ok(()),
        }
    }
}

impl Verification {
    fn of(files: usize, file_size: u64) -> Verification {
        Verification {
            validation_status: "valid",
            files,
            file_size,
            tensors: 0,
            weights: 0,
            problems: Vec::new(),
            more_problems: 0,
        }
    }

    fn add(&mut self, problem: Problem) {
        self.validation_status = "invalid";
        match self.problems.len() < LISTED {
            true => self.problems.push(problem),
            false => self.more_problems += 1,
        }
    }

    /// An error if anything is wrong, which holds all of it.
    fn passed(self, model: &str) -> Result<Verification> {
        let Some(first) = self.problems.first() else { return Ok(self) };
        let more = match self.problems.len() - 1 + self.more_problems {
            0 => String::new(),
            n => format!(" (and {n} more)"),
        };
        Err(Error::new(Kind::Invalid, format!("{model} is damaged: {first}{more}"))
            .hint("Make it again, or download it again. --format json lists everything that was found.")
            .details(&self))
    }
}

/// Checks a GGUF file, a directory (unquantized, GPTQ or AWQ), or `org/name` on the Hub, on so many threads.
///
/// # Errors
/// `Invalid`, with what is wrong and where, and all of it in the error's details; `Unsupported` for a model that is not known
/// well enough to be checked whole; `NotFound`; `Interrupted`.
pub fn verify(model: &str, threads: usize, cancel: &Cancel, progress: &dyn Progress) -> Result<Verification> {
    let found = find(model, Need::Weights, cancel, progress)?;
    in_pool(threads, || match &found {
        Found::Gguf(path) => gguf::verify(path, cancel, progress),
        Found::Directory(source, stated) => directory::verify(source, stated.as_ref(), cancel, progress),
    })
}
