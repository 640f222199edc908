//! Checks a directory: weights in 16 or 32 bits, or layers that GPTQ or AWQ has quantized.

use std::path::Path;

use serde_json::Value;

use super::numbers::first_not_finite;
use super::{Problem, Verification};
use crate::arch::Model;
use crate::arch::decoder::Decoder;
use crate::cancel::Cancel;
use crate::error::{Error, Kind, Result};
use crate::format::packed::config::Stated;
use crate::format::packed::{PackedModel, Scheme};
use crate::pipeline::gguf::plan;
use crate::progress::{Progress, Unit};
use crate::source::SourceModel;
use crate::source::dense::Dense;
use crate::source::inside;
use crate::source::safetensors::Tensors;
use crate::source::tokenizer::encoder::Encoder;
use crate::source::tokenizer::load_vocab;

/// Weights of a quantized layer that are unpacked at a time.
const UNPACKED: usize = 1 << 22;

/// Headers and sizes; all weights; the files beside them; and the model that they make.
pub(super) fn verify(
    source: &SourceModel,
    stated: Option<&Stated>,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<Verification> {
    let dir = source.dir();
    let config = source.config()?;
    let Some(stated) = stated else {
        let tensors = Tensors::open(dir)?;
        let found = weights(&tensors, cancel, progress)?;
        return whole(dir, Model::read(config, &[])?, &tensors, found);
    };
    let model = PackedModel::open(dir, Scheme::read(stated)?)?;
    let mut found = weights(model.tensors(), cancel, progress)?;
    layers(&model, &mut found, cancel, progress)?;
    whole(dir, Model::read(config.without("quantization_config"), &[])?, &model, found)
}

/// All numbers that are stored one by one, scales among them.
fn weights(tensors: &Tensors, cancel: &Cancel, progress: &dyn Progress) -> Result<Verification> {
    let mut found = Verification::of(tensors.paths().count(), tensors.file_bytes());
    found.tensors = tensors.iter().len() + tensors.integers().len();
    let bytes = tensors.iter().map(|(_, info)| tensors.bytes(info).len() as u64).sum();
    progress.begin("Verifying", bytes, Unit::Bytes);
    let scanned: Result<()> = tensors.iter().try_for_each(|(name, info)| {
        cancel.check()?;
        progress.item(name);
        found.weights += info.len() as u64;
        if let Some((weight, byte)) = first_not_finite(info.dtype.ggml(), tensors.bytes(info)) {
            let (file, start) = tensors.place(info);
            let problem = format!("element {weight} ({}) is NaN or infinite", info.dtype.name());
            found.add(Problem {
                file: file_name(file),
                tensor: Some(name.into()),
                offset: Some(start + byte),
                problem,
            });
        }
        progress.advance(tensors.bytes(info).len() as u64);
        Ok(())
    });
    progress.end();
    scanned.map(|()| found)
}

/// All codes, zero points and group indices.
fn layers(
    model: &PackedModel,
    found: &mut Verification,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<()> {
    let size = |[n, k]: [usize; 2]| (n * k) as u64;
    progress.begin("Unpacking", model.linears().map(|(_, linear)| size(linear.shape)).sum(), Unit::Weights);
    let unpacked: Result<()> = model.linears().try_for_each(|(weight, linear)| {
        progress.item(&linear.name);
        let [outputs, inputs] = linear.shape;
        let at_a_time = (UNPACKED / inputs).clamp(1, outputs);
        let mut values = vec![0.0; at_a_time * inputs];
        for first in (0..outputs).step_by(at_a_time) {
            cancel.check()?;
            let rows = first..(first + at_a_time).min(outputs);
            let values = &mut values[..rows.len() * inputs];
            if let Err(e) = model.read(weight, rows, values) {
                let file = model.tensors().get(&format!("{}.scales", linear.name));
                let file = file.map(|info| file_name(model.tensors().place(info).0)).unwrap_or_default();
                found.add(Problem {
                    file,
                    tensor: Some(linear.name.clone()),
                    offset: None,
                    problem: e.to_string(),
                });
                break;
            }
            progress.advance(values.len() as u64);
        }
        found.weights += size(linear.shape);
        Ok(())
    });
    progress.end();
    unpacked
}

/// Whether configuration, tensors and tokenizer make a model.
fn whole(dir: &Path, model: Model, weights: &dyn Dense, mut found: Verification) -> Result<Verification> {
    companions(dir, &mut found)?;
    let found = found.passed(&dir.display().to_string())?;
    plan(&model, weights, None)?;
    Decoder::new(&model, weights)?;
    match dir.join("tokenizer.json").is_file() {
        true => drop(Encoder::open(dir)?),
        false => {
            drop(load_vocab(dir, model.spec.vocab, Some(model.hyper.vocab)).map_err(|e| match e.kind() {
                Kind::NotFound => Error::new(Kind::Invalid, e.to_string()),
                _ => e,
            })?)
        }
    }
    Ok(found)
}

/// The JSON files beside the weights, which must be JSON.
fn companions(dir: &Path, found: &mut Verification) -> Result<()> {
    let unreadable = |e| Error::io(format!("cannot read {}", dir.display()), e);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(unreadable)? {
        names.extend(entry.map_err(unreadable)?.file_name().into_string());
    }
    names.sort();
    for name in names.iter().filter(|name| name.ends_with(".json")) {
        let Some(bytes) = inside::read(&dir.join(name))? else { continue };
        if let Err(e) = serde_json::from_slice::<Value>(&bytes) {
            let problem = format!("it is not valid JSON: {e}");
            found.add(Problem { file: name.clone(), tensor: None, offset: None, problem });
        }
    }
    Ok(())
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
