//! Compares a model with the one that it was made from, layer by layer: both go through the text side by side, with one
//! layer of each in memory.

use std::time::Instant;

use super::evaluate::{Config, in_pool};
use super::memory;
use super::model::OpenModel;
use crate::arch::decoder::{Decoder, Hidden};
use crate::cancel::Cancel;
use crate::error::{Error, Kind, Result};
use crate::eval::bits::{bits_per_weight, tensor_bits};
use crate::eval::layers::{LayerError, LinearErrors, compare_hidden};
use crate::eval::quality::Quality;
use crate::eval::report::Evaluation;
use crate::eval::score::{Computed, score};
use crate::progress::{Progress, Unit};

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
    in_pool(config.threads, || {
        let text = config.text.read(cancel, progress)?;
        let open = |model: &str| OpenModel::open(model, &config.ignore_config, cancel, progress);
        let (model, reference) = (open(&config.model)?, open(reference_name)?);
        check_same_layers(&model, &reference)?;
        let windows = config.text.windows(&text, &model, Some(&reference))?;
        drop(text);
        let mut ours = Stream::new(&model, windows.inputs())?;
        let mut theirs = Stream::new(&reference, windows.inputs())?;
        progress.begin(&format!("Comparing {}", model.name), ours.decoder.layers() as u64, Unit::Layers);
        let layers = (0..ours.decoder.layers())
            .map(|i| {
                let layer = compare_layer(i, &mut ours, &mut theirs, cancel)?;
                progress.advance(1);
                Ok(layer)
            })
            .collect::<Result<Vec<_>>>();
        progress.end();
        let layers = layers?;
        let scores = score(ours.computed(), Some(theirs.computed()), &windows, cancel, progress)?;
        let tensors = tensor_bits(&model.model, &*model.weights);
        Ok(Quality {
            status: "success",
            model: config.model.clone(),
            format: model.format,
            reference: reference_name.to_owned(),
            reference_format: reference.format,
            data: config.text.source(),
            bits_per_weight: bits_per_weight(&tensors),
            reference_bits_per_weight: bits_per_weight(&tensor_bits(&reference.model, &*reference.weights)),
            evaluation: Evaluation::new(&windows, &scores),
            layers,
            tensors,
            duration_seconds: started.elapsed().as_secs_f64(),
            peak_memory_bytes: memory::peak_resident(),
        })
    })
}

/// A model on its way through the text.
struct Stream<'a> {
    decoder: Decoder<'a>,
    hidden: Hidden,
}

impl<'a> Stream<'a> {
    fn new(model: &'a OpenModel, windows: &[Vec<u32>]) -> Result<Stream<'a>> {
        let decoder = model.decoder()?;
        Ok(Stream { hidden: Hidden::embed(&decoder, windows)?, decoder })
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
