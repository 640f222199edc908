//! Evaluates a model on a text, alone or against a reference: each goes through the text a layer at a time, over all
//! windows, so that no more than one layer's weights are in memory.

mod judge;
mod summary;
mod text;

use std::time::Instant;

use serde::Serialize;

use super::memory;
use super::model::OpenModel;
use crate::arch::decoder::{Compute, Decoder, Hidden};
use crate::cancel::Cancel;
use crate::error::{Error, Kind, Result};
use crate::eval::report::Evaluation;
use crate::eval::score::{Computed, score};
use crate::eval::windows::Windows;
use crate::progress::{Progress, Unit};
pub(super) use judge::Judge;
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
    /// Worker threads.
    pub threads: usize,
}

/// The result of an evaluation.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// `success`, unless the model is worse than asked for.
    pub status: &'static str,
    /// The model, as it was given.
    pub model: String,
    /// Its format.
    pub format: &'static str,
    /// The reference, as it was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// Its format.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference_format: Option<&'static str>,
    /// The text's file, as it was given, or `built-in`.
    pub data: String,
    /// What matrices were multiplied in.
    pub compute: &'static str,
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
/// for a reference that makes other tokens of it; `Usage` for a window that the model cannot have; `Interrupted`.
pub fn evaluate(config: &Config, cancel: &Cancel, progress: &dyn Progress) -> Result<Report> {
    let started = Instant::now();
    in_pool(config.threads, || {
        let text = config.text.read(cancel, progress)?;
        let open = |model: &str| OpenModel::open(model, &config.ignore_config, cancel, progress);
        let model = open(&config.model)?;
        let reference = config.reference.as_deref().map(open).transpose()?;
        let windows = config.text.windows(&text, &model, reference.as_ref())?;
        drop(text);
        let reference_through = match &reference {
            Some(reference) => {
                Some(Through::all_layers(reference, &windows, config.compute, cancel, progress)?)
            }
            None => None,
        };
        let through = Through::all_layers(&model, &windows, config.compute, cancel, progress)?;
        let compared = reference_through.as_ref().map(Through::computed);
        let scores = score(through.computed(), compared, &windows, cancel, progress)?;
        Ok(Report {
            status: "success",
            model: config.model.clone(),
            format: model.format,
            reference: config.reference.clone(),
            reference_format: reference.as_ref().map(|r| r.format),
            data: config.text.source(),
            compute: config.compute.name(),
            evaluation: Evaluation::new(&windows, &scores),
            duration_seconds: started.elapsed().as_secs_f64(),
            peak_memory_bytes: memory::peak_resident(),
        })
    })
}

/// A model, and what its last layer makes of all windows.
struct Through<'a> {
    decoder: Decoder<'a>,
    hidden: Hidden,
}

impl<'a> Through<'a> {
    fn all_layers(
        model: &'a OpenModel,
        windows: &Windows,
        compute: Compute,
        cancel: &Cancel,
        progress: &dyn Progress,
    ) -> Result<Through<'a>> {
        let decoder = model.decoder()?.compute_in(compute);
        progress.begin(&format!("Computing {}", model.name), decoder.layers() as u64, Unit::Layers);
        let hidden = all_layers(&decoder, windows, cancel, progress);
        progress.end();
        Ok(Through { hidden: hidden?, decoder })
    }

    fn computed(&self) -> Computed<'_> {
        Computed { decoder: &self.decoder, hidden: &self.hidden }
    }
}

fn all_layers(
    decoder: &Decoder<'_>,
    windows: &Windows,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<Hidden> {
    let mut hidden = Hidden::embed(decoder, windows.inputs())?;
    for i in 0..decoder.layers() {
        cancel.check()?;
        hidden.advance(&decoder.layer(i)?, &mut (), cancel)?;
        progress.advance(1);
    }
    Ok(hidden)
}

/// Runs `work` on so many threads.
pub(super) fn in_pool<T: Send>(threads: usize, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|e| Error::new(Kind::Resources, "cannot start worker threads").because(e))?;
    pool.install(work)
}
