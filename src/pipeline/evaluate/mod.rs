//! Evaluates a model on a text, alone or against a reference: each goes through the text a layer at a time, over all
//! windows, so that no more than one layer's weights are in memory.

mod disk;
mod judge;
mod layers;
mod output;
mod summary;
mod text;

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::checkpoint::Settings;
use super::memory;
use super::model::OpenModel;
use crate::arch::decoder::Compute;
use crate::cancel::Cancel;
use crate::error::{Error, Kind, Result};
use crate::eval::report::Evaluation;
use crate::eval::score::score;
use crate::progress::Progress;
pub(super) use disk::{Disk, Pair};
pub(super) use judge::Judge;
use layers::Through;
pub use output::ReportFile;
pub(super) use output::publish;
pub use summary::Evaluated;
pub use text::TextConfig;

/// What to evaluate, and how.
#[derive(Clone, Debug)]
pub struct Config {
    /// The model: whatever [`OpenModel::open`] takes.
    pub model: String,
    /// What it is compared with, for example the model that it was quantized from.
    pub reference: Option<String>,
    /// What is evaluated on.
    pub text: TextConfig,
    /// Keys of `config.json` that are accepted although they are not understood.
    pub ignore_config: Vec<String>,
    /// What matrices are multiplied in.
    pub compute: Compute,
    /// The file that the report is written to, if it is.
    pub output: Option<ReportFile>,
    /// Whether and where there is a checkpoint.
    pub checkpoint: Settings,
    /// Worker threads.
    pub threads: usize,
}

/// The result of an evaluation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// `success`, unless the model is worse than asked for.
    pub status: String,
    /// The model, as it was given.
    pub model: String,
    /// Its format.
    pub format: String,
    /// The reference, as it was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// Its format.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference_format: Option<String>,
    /// The text's file, as it was given, or `built-in`.
    pub data: String,
    /// What matrices were multiplied in.
    pub compute: String,
    /// Perplexity and comparison.
    #[serde(flatten)]
    pub evaluation: Evaluation,
    /// All of the work.
    pub duration_seconds: f64,
    /// Peak resident memory, mapped model files included.
    pub peak_memory_bytes: Option<u64>,
}

/// Evaluates a model.
///
/// # Errors
/// `NotFound`, `Invalid` or `Unsupported` for a model or a text that cannot be used, for a text shorter than a window and
/// for a reference that makes other tokens of it; `Usage` for a window that the model cannot have, or a file that exists;
/// `Checkpoint` for a checkpoint of another job; `Resources`; `Interrupted`.
pub fn evaluate(config: &Config, cancel: &Cancel, progress: &dyn Progress) -> Result<Report> {
    let started = Instant::now();
    if let Some(file) = &config.output {
        file.check(&config.checkpoint)?;
    }
    in_pool(config.threads, || {
        let text = config.text.read(cancel, progress)?;
        let open = |model: &str| OpenModel::open(model, &config.ignore_config, cancel, progress);
        let model = open(&config.model)?;
        let reference = config.reference.as_deref().map(open).transpose()?;
        let windows = config.text.windows(&text, &model, reference.as_ref())?;
        drop(text);
        let pair =
            Pair { model: &model, reference: reference.as_ref(), windows: &windows, compute: config.compute };
        let mut disk = Disk::open(config, pair, layers::steps(pair), progress)?;
        if let Some(made) = disk.checkpoint.take_if(|checkpoint| checkpoint.has_made()) {
            return made.take_report(progress);
        }
        let scores = layers::all_layers(pair, &mut disk, cancel, progress).and_then(|(reference, model)| {
            let compared = reference.as_ref().map(Through::computed);
            score(model.computed(), compared, &windows, cancel, progress)
        });
        let scores = scores.map_err(|e| disk.end_early(e, progress))?;
        let report = Report {
            status: "success".into(),
            model: config.model.clone(),
            format: model.format.into(),
            reference: config.reference.clone(),
            reference_format: reference.as_ref().map(|r| r.format.into()),
            data: config.text.source(),
            compute: config.compute.name().into(),
            evaluation: Evaluation::new(&windows, &scores),
            duration_seconds: started.elapsed().as_secs_f64(),
            peak_memory_bytes: memory::peak_resident(),
        };
        publish(&report, config.output.as_ref(), disk.checkpoint, progress)?;
        Ok(report)
    })
}

/// Runs `work` on so many threads.
pub(super) fn in_pool<T: Send>(threads: usize, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|e| Error::new(Kind::Resources, "cannot start worker threads").because(e))?;
    pool.install(work)
}
