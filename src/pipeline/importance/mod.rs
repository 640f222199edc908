//! A model and a text in, an importance matrix out; or several importance matrices in, their sum out.

mod collect;

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::checkpoint::Settings;
use super::evaluate::in_pool;
use super::memory;
use crate::arch::decoder::Compute;
use crate::atomic::{self, AtomicFile};
use crate::calib::dataset::Dataset;
use crate::calib::imatrix::{DEFAULT_CHUNK_SIZE, Format, Sums};
use crate::cancel::Cancel;
use crate::error::{Error, Kind, Result};
use crate::progress::Progress;
use collect::{Outcome, collect};

/// What to do.
#[derive(Debug)]
pub struct Config {
    /// What is computed; none if importance matrices are only added up.
    pub collect: Option<Collect>,
    /// Importance matrices that are added.
    pub merge: Vec<PathBuf>,
    /// Tokens in a chunk; none for 512, or what the first of the files says.
    pub ctx: Option<usize>,
    /// The file to write.
    pub output: PathBuf,
    /// Its format.
    pub format: Format,
    /// Whether it may be overwritten.
    pub force: bool,
    /// Whether and where there is a checkpoint.
    pub checkpoint: Settings,
    /// Worker threads.
    pub threads: usize,
}

/// A model, and the text that it is computed on.
#[derive(Debug)]
pub struct Collect {
    /// Whatever [`OpenModel::open`](super::model::OpenModel::open) takes.
    pub model: String,
    /// The text.
    pub data: Dataset,
    /// Chunks at most.
    pub chunks: Option<usize>,
    /// Whether special tokens in the text are taken for what they mean.
    pub parse_special: bool,
    /// Whether the head's input is collected too.
    pub process_output: bool,
    /// What matrices are multiplied in.
    pub compute: Compute,
    /// Keys of `config.json` that are accepted whatever they say.
    pub ignore_config: Vec<String>,
}

/// The result.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Always `success`; a failure has no report.
    pub status: String,
    /// The file that was written.
    pub output_path: String,
    /// Its format.
    pub format: Format,
    /// Its size.
    pub file_size: u64,
    /// Tensors that it has entries for.
    pub tensors: usize,
    /// Layers that were computed; none if importance matrices were only added up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers: Option<usize>,
    /// Chunks of text, those of added files included.
    pub chunks: u32,
    /// Tokens in each.
    pub chunk_size: u32,
    /// Tokens that were computed.
    pub tokens: u64,
    /// Rows that were left out because they held NaN or infinity, over all inputs.
    pub dropped_rows: u64,
    /// Pairs of a tensor and an expert that no token came to.
    pub experts_without_data: usize,
    /// The texts.
    pub datasets: Vec<String>,
    /// All of the work of this run.
    pub duration_seconds: f64,
    /// Peak resident memory, mapped model files included.
    pub peak_memory_bytes: Option<u64>,
}

/// Does it.
///
/// # Errors
/// `Usage` if the output exists, or for chunks longer than the model's context; `NotFound`, `Invalid` or `Unsupported` for a
/// model, text or importance matrix that cannot be used; `Checkpoint` for a checkpoint of another job; `Resources`;
/// `Interrupted`.
pub fn run(config: &Config, cancel: &Cancel, progress: &dyn Progress) -> Result<Report> {
    let started = Instant::now();
    config
        .checkpoint
        .check_output(|| atomic::refuse_existing(&config.output, config.force))
        .map_err(elsewhere)?;
    let mut sums = merged(config)?;
    let (mut layers, mut tokens, mut dropped_rows, mut checkpoint) = (None, 0, 0, None);
    if let Some(job) = &config.collect {
        let length = sums.chunk_size as usize;
        let outcome = in_pool(config.threads, || collect(job, length, &config.checkpoint, cancel, progress))?;
        let collected = match outcome {
            Outcome::Collected(collected) => *collected,
            Outcome::Finished(report) => return Ok(*report),
        };
        sums.add(collected.sums)?;
        (layers, tokens, dropped_rows) = (Some(collected.layers), collected.tokens, collected.dropped);
        checkpoint = collected.checkpoint;
    }
    let experts_without_data = warn_of_experts(&sums, progress);
    let bytes = config.format.encode(&sums);
    let mut report = Report {
        status: "success".into(),
        output_path: config.output.display().to_string(),
        format: config.format,
        file_size: bytes.len() as u64,
        tensors: sums.entries.len(),
        layers,
        chunks: sums.chunks(),
        chunk_size: sums.chunk_size,
        tokens,
        dropped_rows,
        experts_without_data,
        datasets: sums.datasets,
        duration_seconds: 0.0,
        peak_memory_bytes: memory::peak_resident(),
    };

    let mut file = AtomicFile::create(&config.output, report.file_size, config.force).map_err(elsewhere)?;
    let unwritten = |e| Error::output(format!("cannot write {}", config.output.display()), e);
    file.file().write_all(&bytes).map_err(unwritten)?;
    file.sync()?;
    report.duration_seconds = started.elapsed().as_secs_f64();
    if let Some(checkpoint) = &mut checkpoint {
        let note = serde_json::to_value(&report).expect("a report is plain data");
        checkpoint.seal(file.path(), note)?;
    }
    file.commit()?;
    if let Some(checkpoint) = checkpoint {
        checkpoint.remove(progress);
    }
    Ok(report)
}

/// The sum of the files to be added.
fn merged(config: &Config) -> Result<Sums> {
    let asked = config.ctx.map(|ctx| u32::try_from(ctx).unwrap_or(u32::MAX));
    let files = || config.merge.iter().map(|path| Sums::load(path, asked.unwrap_or(DEFAULT_CHUNK_SIZE)));
    let first = files().next().transpose()?.map(|sums| sums.chunk_size).filter(|size| *size > 0);
    let mut all = Sums::new(asked.or(first).unwrap_or(DEFAULT_CHUNK_SIZE));
    for sums in files() {
        all.add(sums?)?;
    }
    Ok(all)
}

/// Says which experts no token came to: they are quantized as if all their columns mattered the same.
fn warn_of_experts(sums: &Sums, progress: &dyn Progress) -> usize {
    let (mut tensors, mut experts) = (0, 0);
    for (name, unused) in sums.without_data() {
        progress.detail(&format!("{name}: {unused} experts saw no token"));
        (tensors, experts) = (tensors + 1, experts + unused);
    }
    if tensors > 0 {
        progress.warn(&format!(
            "in {tensors} tensors there are experts that no token came to ({experts} in all); a longer or more varied text \
             reaches more"
        ));
    }
    experts
}

/// Where else an output can go in this command.
fn elsewhere(e: Error) -> Error {
    match e.kind() {
        Kind::Usage => e.hint("Pass --force to overwrite it, or choose another name with --output."),
        Kind::Resources => e.hint("Free some space, or choose another place with --output."),
        _ => e,
    }
}
