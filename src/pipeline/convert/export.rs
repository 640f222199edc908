//! To a plain Hugging Face directory: every weight as a float.

use std::path::Path;

use super::Work;
use crate::cancel::Cancel;
use crate::error::Result;
use crate::format::hf::{HfWriter, Target};
use crate::format::shards::float_bytes;
use crate::pipeline::checkpoint::stream::{Stream, steps};
use crate::pipeline::checkpoint::{Checkpoint, Identity, Settings};
use crate::pipeline::model::OpenModel;
use crate::progress::{Progress, Unit};
use crate::source::folded::Moved;
use crate::source::safetensors::FloatType;

/// Weights that are in memory at a time: about so many.
const COPIED: usize = 1 << 22;

/// The type that loses least without wasting room: the one that most weights outside of codes have, as far as they are
/// matrices; bfloat16 if there are none.
pub(super) fn natural_dtype(opened: &OpenModel) -> FloatType {
    let mut weights = std::collections::BTreeMap::<FloatType, usize>::new();
    for name in opened.weights.names() {
        let shape = opened.weights.shape(name).unwrap_or_default();
        if let (Some(dtype), true) = (opened.weights.float_type(name), shape.len() > 1) {
            *weights.entry(dtype).or_default() += shape.iter().product::<usize>();
        }
    }
    weights.into_iter().max_by_key(|(_, n)| *n).map_or(FloatType::BF16, |(dtype, _)| dtype)
}

/// Writes the directory.
///
/// # Errors
/// `Invalid` if a weight is beyond the range of float16, `Resources` if the disk is full, `Checkpoint` for a checkpoint of
/// another job.
pub(super) fn export(
    opened: &OpenModel,
    dtype: FloatType,
    output: &Path,
    settings: &Settings,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Work> {
    let config = opened.model.config.unquantized();
    let spec = opened.model.spec;
    // A tied head is the embedding, which is there already.
    let is_tied_head =
        |name: &str| opened.model.hyper.tied && spec.canonical(name).as_deref() == Some("lm_head.weight");
    let names = opened.weights.names().into_iter().filter(|name| !is_tied_head(name));
    let tensors: Vec<(String, Vec<usize>)> = names
        .map(|name| (name.to_owned(), opened.weights.shape(name).unwrap_or_default().to_vec()))
        .collect();
    let size = |shape: &[usize]| shape.iter().product::<usize>() as u64;
    let sizes = || tensors.iter().map(|(_, shape)| size(shape) * dtype.bytes() as u64);
    let steps = steps(tensors.iter().map(|(name, _)| name.as_str()).zip(sizes()));
    let identity = Identity::new(&settings.command)
        .with("dtype", dtype.name())
        .with_model(&opened.model, &*opened.weights)?;
    let checkpoint = match Checkpoint::open(settings, identity, steps.len(), progress)? {
        Some(made) if made.has_made() => return Ok(Work::Before(made)),
        other => other,
    };
    let mut writer = HfWriter::create(Target::new(output, opened.origin.dir(), &config, dtype), &tensors)?;
    opened.origin.write_rebuilt(writer.path())?;
    let mut kept = Stream::new(checkpoint, steps);
    kept.check_space()?;
    let left = &tensors[kept.done()..];
    let total = left.iter().map(|(_, shape)| size(shape)).sum();
    progress.begin(&format!("Writing {}", dtype.name()), total, Unit::Weights);
    let written = kept.replay(sizes(), |i, bytes| writer.bytes(&tensors[i].0, bytes)).and_then(|()| {
        left.iter().try_for_each(|(name, shape)| {
            progress.item(name);
            let rows = shape.first().copied().unwrap_or(1);
            let width: usize = shape.iter().skip(1).product();
            let at_a_time = (COPIED / width.max(1)).max(1);
            for start in (0..rows).step_by(at_a_time) {
                cancel.check()?;
                let rows = start..(start + at_a_time).min(rows);
                let mut values = vec![0.0; rows.len() * width];
                opened.weights.read(name, rows, &mut values)?;
                let bytes = float_bytes(name, dtype, &values).map_err(|e| match dtype {
                    FloatType::F16 if e.suggestion().is_none() => e.hint("Pass --dtype bf16 or f32."),
                    _ => e,
                })?;
                writer.bytes(name, &bytes)?;
                kept.write(&bytes)?;
                progress.advance(values.len() as u64);
            }
            Ok(())
        })
    });
    progress.end();
    let written = written.and_then(|()| cancel.check()).and_then(|()| writer.finish());
    match written {
        Ok(_) => Ok(Work::Done { moved: Moved::default(), checkpoint: kept.into_checkpoint() }),
        Err(e) => Err(kept.end_early(e, progress)),
    }
}
