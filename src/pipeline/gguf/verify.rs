//! Opens the finished file with the project's own reader and compares it with the source.

use std::cell::RefCell;
use std::path::Path;

use rayon::prelude::*;

use super::Target;
use super::chunk::{Chunk, chunks};
use crate::backend::Batch;
use crate::cancel::Cancel;
use crate::error::{Error, Kind, Result};
use crate::format::gguf::blocks::{self, Simd};
use crate::format::gguf::reader::Reader;
use crate::format::gguf::{GgmlType, Metadata};
use crate::progress::Progress;

/// Squared error and squared weights of one tensor, summed in float64 in the order of the file.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Loss {
    /// Sum of squared differences.
    pub(super) error: f64,
    /// Sum of squared source weights.
    pub(super) energy: f64,
}

impl Loss {
    /// Normalised mean squared error; 0 for a tensor of zeros that stayed zeros.
    pub(super) fn nmse(self) -> f64 {
        if self.error == 0.0 { 0.0 } else { self.error / self.energy }
    }

    pub(super) fn add(&mut self, other: Loss) {
        self.error += other.error;
        self.energy += other.energy;
    }
}

/// The NMSE that no tensor may exceed.
///
/// One float rounds each weight by at most half a unit in the last place. A block of 32 weights with one absolute scale
/// `m / n` errs by at most half a step each, `32 (m / 2n)^2`, where the block's energy is at least `m^2`: `8 / n^2`. The
/// other types pick their scales by search, and importance weights may move error from one weight to another; all that
/// is certain is that a useful block is nearer to its weights than zeros are.
fn bound(ty: GgmlType) -> f64 {
    match ty {
        GgmlType::F32 => 0.0,
        GgmlType::F16 => 0.25 / (1u64 << 20) as f64 * 1.0001,
        GgmlType::BF16 => 0.25 / (1u64 << 16) as f64 * 1.0001,
        GgmlType::Q8_0 => 8.0 / (127.0 * 127.0) * 1.01,
        _ => 1.0,
    }
}

/// How far a weight may be off whatever its size, because floats near zero are no longer relative to it: half of the
/// smallest float, times what a block multiplies its float16 scale (and minimum) with at most. Tensors that are all but
/// zero, as pruning leaves them, are written like any other.
fn floor(ty: GgmlType) -> f64 {
    let half = 2f64.powi(-25);
    match ty {
        GgmlType::F32 => 0.0,
        GgmlType::BF16 => 2f64.powi(-134),
        GgmlType::F16 | GgmlType::TQ1_0 | GgmlType::TQ2_0 => half,
        GgmlType::Q4_0 => 8.0 * half,
        GgmlType::Q4_1 | GgmlType::Q5_0 => 16.0 * half,
        GgmlType::Q5_1 => 32.0 * half,
        GgmlType::Q2_K => (15.0 * 3.0 + 15.0) * half,
        GgmlType::Q4_K => (63.0 * 15.0 + 63.0) * half,
        GgmlType::Q5_K => (63.0 * 31.0 + 63.0) * half,
        GgmlType::Q3_K => 32.0 * 4.0 * half,
        GgmlType::Q6_K => 128.0 * 32.0 * half,
        GgmlType::IQ4_XS => 32.0 * 127.0 * half,
        _ => 127.0 * half,
    }
}

/// The squared error that a tensor of `weights` weights may have: both errors together, by the triangle inequality.
fn allowed(ty: GgmlType, weights: u64, energy: f64) -> f64 {
    ((bound(ty) * energy).sqrt() + (weights as f64).sqrt() * floor(ty)).powi(2)
}

/// Checks the file at `path`: header, alignment, every tensor's name, shape, type and size, and its weights against the
/// source. Returns each target's loss.
///
/// # Errors
/// `Invalid` if anything differs from what was meant to be written; those of reading the file.
pub(super) fn verify(
    path: &Path,
    metadata: &Metadata,
    targets: &[Target<'_>],
    simd: Simd,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Vec<Loss>> {
    let wrong = |what: String| Error::new(Kind::Invalid, format!("output validation failed: {what}"));
    // A disk that does not give back what it took says nothing against the model.
    let reader = Reader::open(path).map_err(|e| match e.kind() {
        Kind::Invalid | Kind::Unsupported => wrong(e.to_string()),
        _ => e,
    })?;
    if reader.metadata() != metadata {
        return Err(wrong("the metadata read back differs from what was written".into()));
    }
    if reader.tensors().len() != targets.len() {
        return Err(wrong(format!("{} tensors instead of {}", reader.tensors().len(), targets.len())));
    }
    for (info, target) in reader.tensors().iter().zip(targets) {
        let same =
            info.name == target.planned.name && info.shape == target.planned.shape && info.ty == target.ty;
        if !same {
            return Err(wrong(format!(
                "tensor {} is not what was planned for {}",
                info.name, target.planned.name
            )));
        }
    }
    let mut losses = vec![Loss::default(); targets.len()];
    let chunks = chunks(targets, Batch::Core);
    let parts = chunks.par_iter().map(|chunk| {
        cancel.check()?;
        let data = reader.data(&reader.tensors()[chunk.tensor]);
        let data = &data[chunk.start..chunk.start + chunk.bytes];
        let target = &targets[chunk.tensor];
        // Taken, not borrowed: a thread that waits for others to decode may begin another chunk.
        let mut scratch = SCRATCH.take();
        let loss = compare(target, chunk, data, &mut scratch, simd);
        SCRATCH.set(scratch);
        progress.advance(chunk.weights as u64);
        loss
    });
    // Collected before any is looked at: the first failure in order makes the message the same every time.
    let parts: Vec<Result<Loss>> = parts.collect();
    for (chunk, part) in chunks.iter().zip(parts) {
        losses[chunk.tensor].add(part?);
    }
    for (target, loss) in targets.iter().zip(&losses) {
        let allowed = allowed(target.ty, target.planned.len(), loss.energy);
        // Neither NaN nor infinity, which a scale that overflowed leads to, is below anything.
        let within = loss.error <= allowed;
        if !within {
            return Err(wrong(format!(
                "tensor {} as {} differs from its source by an NMSE of {:e} (at most {:e} can be)",
                target.planned.name,
                target.ty,
                loss.nmse(),
                allowed / loss.energy
            ))
            .hint("Weights beyond the range of float16 scales cannot be held; keep this tensor in F32 or BF16 with --tensor-type."));
        }
    }
    Ok(losses)
}

#[derive(Default)]
struct Scratch {
    source: Vec<f32>,
    decoded: Vec<f32>,
}

thread_local! {
    /// Each thread keeps its own: allocating one per chunk costs more than comparing it.
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch { source: Vec::new(), decoded: Vec::new() }) };
}

fn compare(
    target: &Target<'_>,
    chunk: &Chunk,
    data: &[u8],
    scratch: &mut Scratch,
    simd: Simd,
) -> Result<Loss> {
    if target.source.is_copy(target.ty) {
        let mut at = 0;
        let mut same = true;
        target.source.for_pieces(chunk.rows.clone(), |bytes| {
            same &= &data[at..at + bytes.len()] == bytes;
            at += bytes.len();
        });
        if same {
            return Ok(Loss::default());
        }
    }
    scratch.source.resize(chunk.weights, 0.0);
    scratch.decoded.resize(chunk.weights, 0.0);
    target.source.load(chunk.rows.clone(), &mut scratch.source, simd)?;
    blocks::decode(target.ty, data, &mut scratch.decoded);
    let (error, energy) = blocks::difference(&scratch.source, &scratch.decoded, simd);
    Ok(Loss { error, energy })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_weights_may_vanish_and_large_ones_may_not() {
        // A million weights of 1e-7 that a block of Q8_0 cannot tell from zero, and as many of 1.
        assert!(1e6 * 1e-14 <= allowed(GgmlType::Q8_0, 1_000_000, 1e6 * 1e-14));
        assert!(1e6 * 1e-3 > allowed(GgmlType::Q8_0, 1_000_000, 1e6));
        assert_eq!(allowed(GgmlType::F32, 1_000_000, 1e6), 0.0);
        let within = |error: f64| error <= allowed(GgmlType::Q4_K, 256, 1.0);
        assert!(within(0.0) && !within(f64::NAN) && !within(f64::INFINITY));
    }
}
