//! Compares a model with the one that it was made from, layer by layer: both go through the text side by side, with one
//! layer of each in memory.

use std::time::Instant;

use serde_json::Value;

use super::checkpoint::Checkpoint;
use super::evaluate::{Config, Disk, Pair, in_pool, publish};
use super::memory;
use super::model::OpenModel;
use crate::arch::decoder::{Decoder, Hidden};
use crate::cancel::Cancel;
use crate::error::{Error, Kind, Result};
use crate::eval::bits::{bits_per_weight, tensor_bits};
use crate::eval::layers::{LayerError, LinearErrors, compare_hidden};
use crate::eval::quality::Quality;
use crate::eval::report::Evaluation;
use crate::eval::score::{Computed, Score, score};
use crate::progress::{Progress, Unit};

/// The kinds of files in the checkpoint: hidden states of the model and of its reference, and what was found of a layer.
const MODEL: &str = "hidden";
const REFERENCE: &str = "reference";
const ERRORS: &str = "errors";

/// Measures what a model has lost against its reference, and where.
///
/// # Errors
/// As [`evaluate`](super::evaluate::evaluate); `Usage` without a reference, `Invalid` if it has other layers.
pub fn analyze(config: &Config, cancel: &Cancel, progress: &dyn Progress) -> Result<Quality> {
    let started = Instant::now();
    let reference_name = config
        .reference
        .as_deref()
        .ok_or_else(|| Error::new(Kind::Usage, "quality is measured against a reference"))?;
    if let Some(file) = &config.output {
        file.check(&config.checkpoint)?;
    }
    in_pool(config.threads, || {
        let text = config.text.read(cancel, progress)?;
        let open = |model: &str| OpenModel::open(model, &config.ignore_config, cancel, progress);
        let (model, reference) = (open(&config.model)?, open(reference_name)?);
        check_same_layers(&model, &reference)?;
        let windows = config.text.windows(&text, &model, Some(&reference))?;
        drop(text);
        let pair =
            Pair { model: &model, reference: Some(&reference), windows: &windows, compute: config.compute };
        let mut disk = Disk::open(config, pair, model.model.hyper.layers, progress)?;
        if let Some(made) = disk.checkpoint.take_if(|checkpoint| checkpoint.has_made()) {
            return made.take_report(progress);
        }
        let compared = compare(pair, &reference, &mut disk, cancel, progress);
        let (layers, scores) = compared.map_err(|e| disk.end_early(e, progress))?;
        let tensors = tensor_bits(&model.model, &*model.weights);
        let quality = Quality {
            status: "success".into(),
            model: config.model.clone(),
            format: model.format.into(),
            reference: reference_name.to_owned(),
            reference_format: reference.format.into(),
            data: config.text.source(),
            bits_per_weight: bits_per_weight(&tensors),
            reference_bits_per_weight: bits_per_weight(&tensor_bits(&reference.model, &*reference.weights)),
            evaluation: Evaluation::new(&windows, &scores),
            layers,
            tensors,
            duration_seconds: started.elapsed().as_secs_f64(),
            peak_memory_bytes: memory::peak_resident(),
        };
        publish(&quality, config.output.as_ref(), disk.checkpoint, progress)?;
        Ok(quality)
    })
}

/// Takes both models through all layers side by side, and scores what comes out.
fn compare(
    pair: Pair<'_>,
    reference: &OpenModel,
    disk: &mut Disk<'_>,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<(Vec<LayerError>, Vec<Vec<Score>>)> {
    let mut errors = restore(disk.checkpoint.as_ref())?;
    let mut ours = Stream::new(pair.model, MODEL, pair, disk, errors.len())?;
    let mut theirs = Stream::new(reference, REFERENCE, pair, disk, errors.len())?;
    let layers = ours.decoder.layers();
    if let Some(checkpoint) = disk.checkpoint.as_ref().filter(|_| errors.len() < layers) {
        checkpoint.check_space(2 * (ours.hidden.bytes() + theirs.hidden.bytes()))?;
    }
    progress.begin(&format!("Comparing {}", pair.model.name), (layers - errors.len()) as u64, Unit::Layers);
    let compared = (errors.len()..layers).try_for_each(|i| {
        let found = compare_layer(i, &mut ours, &mut theirs, cancel)?;
        disk.keep(MODEL, i, &ours.hidden)?;
        disk.keep(REFERENCE, i, &theirs.hidden)?;
        if let Some(checkpoint) = &mut disk.checkpoint {
            let text = serde_json::to_vec(&found).expect("what was found is plain data");
            let name = Checkpoint::name(ERRORS, i);
            checkpoint.put(&name, text.len() as u64, |out| out.write_all(&text))?;
            checkpoint.commit(i + 1, Value::Null)?;
        }
        errors.push(found);
        progress.advance(1);
        Ok::<(), Error>(())
    });
    progress.end();
    compared?;
    Ok((errors, score(ours.computed(), Some(theirs.computed()), pair.windows, cancel, progress)?))
}

/// What was found of the layers that are done.
fn restore(checkpoint: Option<&Checkpoint>) -> Result<Vec<LayerError>> {
    let Some(checkpoint) = checkpoint else { return Ok(Vec::new()) };
    let read = |layer| {
        let name = Checkpoint::name(ERRORS, layer);
        serde_json::from_slice(&checkpoint.read(&name)?).map_err(|e| {
            Error::new(Kind::Checkpoint, format!("{name} of the checkpoint cannot be read")).because(e)
        })
    };
    (0..checkpoint.done()).map(read).collect()
}

/// A model on its way through the text.
struct Stream<'a> {
    decoder: Decoder<'a>,
    hidden: Hidden,
}

impl<'a> Stream<'a> {
    /// A model after the layers that are `done`.
    fn new(
        model: &'a OpenModel,
        kind: &str,
        pair: Pair<'_>,
        disk: &Disk<'_>,
        done: usize,
    ) -> Result<Stream<'a>> {
        let decoder = model.decoder()?.compute_in(pair.compute);
        Ok(Stream { hidden: disk.hidden(&decoder, pair.windows.inputs(), kind, done)?, decoder })
    }

    fn computed(&self) -> Computed<'_> {
        Computed { decoder: &self.decoder, hidden: &self.hidden }
    }
}

/// Takes both through layer `i`.
fn compare_layer(
    i: usize,
    model: &mut Stream<'_>,
    reference: &mut Stream<'_>,
    cancel: &Cancel,
) -> Result<LayerError> {
    cancel.check()?;
    let (ours, theirs) = (model.decoder.layer(i)?, reference.decoder.layer(i)?);
    let mut errors = LinearErrors::new(&theirs, &ours);
    reference.hidden.advance(&theirs, &mut errors, cancel)?;
    model.hidden.advance(&ours, &mut (), cancel)?;
    let (nmse, token_nmse) = compare_hidden(&reference.hidden, &model.hidden)?;
    Ok(LayerError { layer: i, nmse, token_nmse, linears: errors.finish() })
}

/// # Errors
/// `Invalid` if a layer of one cannot be compared with the same layer of the other.
fn check_same_layers(model: &OpenModel, reference: &OpenModel) -> Result<()> {
    let sizes = |m: &OpenModel| {
        let h = &m.model.hyper;
        [
            ("layers", h.layers),
            ("hidden size", h.hidden),
            ("feed-forward size", h.feed_forward),
            ("heads", h.heads),
            ("key and value heads", h.kv_heads),
            ("head size", h.head_dim),
            ("experts", h.experts),
            ("size of an expert", h.expert_feed_forward),
        ]
    };
    for ((what, ours), (_, theirs)) in sizes(model).into_iter().zip(sizes(reference)) {
        if ours != theirs {
            return Err(Error::new(
                Kind::Invalid,
                format!("{} and its reference {} differ: {what} {ours} and {theirs}", model.name, reference.name),
            )
            .hint("Layers can be compared only with those of the model that was quantized; `evaluate` compares any two models of one vocabulary."));
        }
    }
    Ok(())
}
