//! What was written, read again and held against the source.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::Watch;
use super::report::{Linear, weight_nmse};
use crate::error::{Error, Kind, Result};
use crate::format::packed::config::Stated;
use crate::format::packed::{PackedModel, Scheme};
use crate::progress::Unit;
use crate::source::dense::Dense;

/// Opens the checkpoint in `dir` as any other and compares every quantized matrix with what it stands for: the error of the
/// weights must be, to the bit, the one that the solver had.
///
/// # Errors
/// `Invalid`, with the matrix's name, if the file does not hold what was meant.
pub(super) fn verify<H>(
    dir: &Path,
    meant: &dyn Dense,
    linears: &[Linear<H>],
    watch: Watch<'_>,
) -> Result<()> {
    let stated = Stated::find(dir, &read_json(&dir.join("config.json"))?)?
        .ok_or_else(|| Error::new(Kind::Invalid, "the output does not say that it is quantized"))?;
    let model = PackedModel::open(dir, Scheme::read(&stated)?)?;
    let total = linears.iter().map(|l| (l.shape[0] * l.shape[1]) as u64).sum();
    watch.progress.begin("Validating output", total, Unit::Weights);
    let checked = linears.iter().try_for_each(|linear| {
        watch.cancel.check()?;
        let name = format!("{}.weight", linear.name);
        if model.get(&name).is_none_or(|found| found.shape != linear.shape) {
            return Err(damaged(&linear.name, "is missing or has another shape"));
        }
        let mut weights = vec![0.0; linear.shape[0] * linear.shape[1]];
        meant.read(&name, 0..linear.shape[0], &mut weights)?;
        let found = weight_nmse(&weights, &model.linear(&name)?.dequantize());
        if found != linear.weight_nmse {
            return Err(damaged(
                &linear.name,
                &format!("has error {found:e} instead of {:e}", linear.weight_nmse),
            ));
        }
        watch.progress.advance(weights.len() as u64);
        Ok(())
    });
    watch.progress.end();
    checked
}

fn read_json(path: &Path) -> Result<Value> {
    let text =
        fs::read_to_string(path).map_err(|e| Error::io(format!("cannot read {}", path.display()), e))?;
    serde_json::from_str(&text)
        .map_err(|e| Error::new(Kind::Invalid, format!("{} is not valid JSON", path.display())).because(e))
}

fn damaged(name: &str, what: &str) -> Error {
    Error::new(Kind::Invalid, format!("the output failed validation: {name} {what}"))
        .hint("The disk or the memory may be faulty. Nothing was kept.")
}
