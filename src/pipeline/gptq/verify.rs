//! What was written, read again and held against the source.

use std::path::Path;

use super::report::{Linear, weight_nmse};
use crate::cancel::Cancel;
use crate::error::{Error, Kind, Result};
use crate::format::packed::config::Stated;
use crate::format::packed::{PackedModel, Scheme};
use crate::progress::{Progress, Unit};
use crate::source::dense::Dense;

/// Opens the checkpoint in `dir` as any other and compares every quantized matrix with its source: the error of the weights
/// must be, to the bit, the one that the solver had.
///
/// # Errors
/// `Invalid`, with the matrix's name, if the file does not hold what was meant.
pub(super) fn verify(
    dir: &Path,
    source: &dyn Dense,
    linears: &[Linear],
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<()> {
    let stated = Stated::find(dir, &read_config(dir)?)?
        .ok_or_else(|| Error::new(Kind::Invalid, "the output does not say that it is quantized"))?;
    let model = PackedModel::open(dir, Scheme::read(&stated)?)?;
    let total = linears.iter().map(|l| (l.shape[0] * l.shape[1]) as u64).sum();
    progress.begin("Validating output", total, Unit::Weights);
    let checked = linears.iter().try_for_each(|linear| {
        cancel.check()?;
        let name = format!("{}.weight", linear.name);
        if model.get(&name).is_none_or(|found| found.shape != linear.shape) {
            return Err(damaged(&linear.name, "is missing or has another shape"));
        }
        let mut weights = vec![0.0; linear.shape[0] * linear.shape[1]];
        source.read(&name, 0..linear.shape[0], &mut weights)?;
        let found = weight_nmse(&weights, &model.linear(&name)?.dequantize());
        if found != linear.weight_nmse {
            return Err(damaged(
                &linear.name,
                &format!("has error {found:e} instead of {:e}", linear.weight_nmse),
            ));
        }
        progress.advance(weights.len() as u64);
        Ok(())
    });
    progress.end();
    checked
}

fn read_config(dir: &Path) -> Result<serde_json::Value> {
    super::read_json(&dir.join("config.json"))
}

fn damaged(name: &str, what: &str) -> Error {
    Error::new(Kind::Invalid, format!("the output failed validation: {name} {what}"))
        .hint("The disk or the memory may be faulty. Nothing was kept.")
}
