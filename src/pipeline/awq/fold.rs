//! Factors on their way into the tensors of a checkpoint.

use half::f16;

use crate::arch::Model;
use crate::arch::decoder::LinearId;
use crate::arch::fold::{Fold, Source};
use crate::error::Result;
use crate::pipeline::layerwise::Names;
use crate::pipeline::layerwise::matrices::expert_of;
use crate::source::dense::Dense;
use crate::source::folded::Folded;

/// What is divided, as it is in the checkpoint.
#[derive(Debug)]
pub(super) enum Divided {
    /// A norm: its weights with the family's offset, and the offset.
    Norm {
        /// Name of the tensor.
        name: String,
        /// `[channels]`.
        weight: Vec<f32>,
        offset: f32,
    },
    /// Rows of a matrix or vector.
    Rows {
        /// Names of the matrix, and of its bias if it has one.
        names: Vec<String>,
        first: usize,
    },
}

impl Divided {
    /// Finds what `fold` divides in a layer.
    ///
    /// # Errors
    /// `Invalid` if a weight is not finite.
    pub(super) fn find(
        fold: &Fold,
        model: &Model,
        names: &Names<'_>,
        weights: &dyn Dense,
        layer: usize,
    ) -> Result<Divided> {
        Ok(match &fold.source {
            Source::Norm(gguf) => {
                let name = names.find(gguf, layer, 0).expect("the decoder has read it").to_owned();
                let width = weights.shape(&name).and_then(|shape| shape.first()).copied().unwrap_or(0);
                let mut weight = vec![0.0; width];
                weights.read(&name, 0..width, &mut weight)?;
                let offset = model.spec.norm_offset;
                weight.iter_mut().for_each(|w| *w += offset);
                Divided::Norm { name, weight, offset }
            }
            Source::Rows { stem, expert, rows } => {
                let find = |end| names.find(&format!("blk.{{}}.{stem}.{end}"), layer, *expert);
                let names = ["weight", "bias"].into_iter().filter_map(find).map(str::to_owned).collect();
                Divided::Rows { names, first: rows.start }
            }
        })
    }

    /// The factors by which matrices must be multiplied if the division by `factors` is stored in float16. Rows of a matrix are
    /// divided by way of its scales, which does not change what the factors are.
    pub(super) fn stored(&self, factors: &[f32]) -> Vec<f32> {
        match self {
            Divided::Rows { .. } => factors.to_vec(),
            Divided::Norm { weight, offset, .. } => {
                weight.iter().zip(factors).map(|(w, factor)| store(*w, *offset, *factor).1).collect()
            }
        }
    }

    /// Divides by factors, and multiplies all matrices that the input goes into.
    pub(super) fn fold(
        &self,
        fold: &Fold,
        model: &Model,
        names: &Names<'_>,
        layer: usize,
        factors: &[f32],
        folded: &mut Folded<'_>,
    ) {
        let effective = self.stored(factors);
        match self {
            Divided::Rows { names, first } => {
                names.iter().for_each(|name| folded.divide_rows(name, *first, factors.to_vec()));
            }
            Divided::Norm { name, weight, offset } => {
                let stored = weight.iter().zip(factors).map(|(w, factor)| store(*w, *offset, *factor).0);
                folded.replace(name, stored.collect());
            }
        }
        for input in &fold.inputs {
            let rules = LinearId { layer, input: *input }.rules(model.spec);
            for name in rules.filter_map(|rule| names.of(rule, layer, expert_of(*input)).ok()) {
                let inputs = folded.shape(name).and_then(|shape| shape.get(1)).copied().unwrap_or(0);
                let columns = (0..inputs).map(|i| effective[fold.channel(i)]).collect();
                folded.multiply_columns(name, columns);
            }
        }
    }
}

/// A norm's weight (with the offset) divided by a factor: what is stored in float16, without the offset, and the factor that
/// this stands for.
fn store(weight: f32, offset: f32, factor: f32) -> (f32, f32) {
    let attempt = |factor: f32| {
        let stored = f16::from_f32(weight / factor - offset).to_f32();
        (stored, weight / (stored + offset))
    };
    let usable = |(stored, factor): (f32, f32)| stored.is_finite() && factor.is_finite() && factor > 0.0;
    let (stored, effective) = attempt(factor);
    if usable((stored, effective)) {
        (stored, effective)
    } else if usable(attempt(1.0)) {
        attempt(1.0)
    } else {
        // A channel that is always zero, now or then.
        (f16::from_f32(weight - offset).to_f32(), 1.0)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::arch::decoder::Decoder;
    use crate::source::config::Config;
    use crate::source::safetensors::Tensors;

    #[test]
    fn the_factor_is_what_the_stored_norm_makes_it() {
        for (weight, offset, factor) in
            [(0.37, 0.0, 3.3), (1.01, 1.0, 0.2), (-0.4, 0.0, 7.0), (30.0, 1.0, 100.0)]
        {
            let (stored, effective) = store(weight, offset, factor);
            assert_eq!(f16::from_f32(stored).to_f32(), stored);
            assert!((effective / factor - 1.0).abs() < 4e-3, "{weight} {factor}: {effective}");
            assert!(((stored + offset) * effective / weight - 1.0f32).abs() < 1e-6);
        }
    }

    #[test]
    fn a_norm_that_cannot_be_divided_stays() {
        assert_eq!(store(0.0, 0.0, 5.0), (0.0, 1.0), "zero stays zero");
        for weight in [60_000.0, 1e-6] {
            let factor = if weight > 1.0 { 1e-3 } else { 128.0 };
            let stored = f16::from_f32(weight).to_f32();
            assert_eq!(store(weight, 0.0, factor), (stored, weight / stored));
        }
    }

    /// Factors from 1/4 to 4.
    fn factors(channels: usize, seed: &mut u32) -> Vec<f32> {
        std::iter::repeat_with(|| {
            *seed = seed.wrapping_mul(1664525).wrapping_add(1013904223);
            ((*seed >> 8) as f32 / (1 << 24) as f32 * 4.0 - 2.0).exp2()
        })
        .take(channels)
        .collect()
    }

    fn logits(model: &Model, weights: &dyn Dense) -> Vec<f32> {
        let decoder = Decoder::new(model, weights).unwrap();
        let tokens: Vec<u32> = (0..48).map(|i| i * 7 % 300).collect();
        let context = decoder.context(tokens.len());
        let mut hidden = decoder.embed(&[&tokens]).unwrap();
        for i in 0..decoder.layers() {
            hidden = decoder.layer(i).unwrap().forward(&hidden, &context, &mut ()).unwrap();
        }
        decoder.head(&hidden).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn models_of_all_families_compute_the_same_when_they_are_folded() {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models");
        let mut seed = 1;
        let mut count = 0;
        for dir in std::fs::read_dir(models).unwrap().map(|entry| entry.unwrap().path()) {
            let model = Model::read(Config::load(&dir).unwrap(), &[]).unwrap();
            let tensors = Tensors::open(&dir).unwrap();
            let names = Names::new(&model, &tensors);
            let mut folded = Folded::new(&tensors);
            for layer in 0..model.hyper.layers {
                for fold in Fold::all(&model) {
                    let channels = match &fold.source {
                        Source::Norm(_) => model.hyper.hidden,
                        Source::Rows { rows, .. } => rows.len(),
                    };
                    let divided = Divided::find(&fold, &model, &names, &tensors, layer).unwrap();
                    divided.fold(&fold, &model, &names, layer, &factors(channels, &mut seed), &mut folded);
                }
            }
            let (found, expected) = (logits(&model, &folded), logits(&model, &tensors));
            let square = |v: f32| f64::from(v).powi(2);
            let error: f64 = found.iter().zip(&expected).map(|(f, e)| square(f - e)).sum();
            let nmse = error / expected.iter().map(|e| square(*e)).sum::<f64>();
            assert!(nmse < 1e-9, "{}: {nmse:e}", dir.display());
            count += 1;
        }
        assert!(count >= 13, "{count} models");
    }

    #[test]
    fn a_consumer_that_is_left_out_shows() {
        // The test above can fail: without the router a mixture computes something else.
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models/mixtral");
        let model = Model::read(Config::load(&dir).unwrap(), &[]).unwrap();
        let tensors = Tensors::open(&dir).unwrap();
        let names = Names::new(&model, &tensors);
        let mut folded = Folded::new(&tensors);
        let mut fold = Fold::all(&model).remove(2);
        fold.inputs.remove(0);
        let divided = Divided::find(&fold, &model, &names, &tensors, 0).unwrap();
        divided.fold(&fold, &model, &names, 0, &factors(model.hyper.hidden, &mut 1), &mut folded);
        assert_ne!(logits(&model, &folded), logits(&model, &tensors));
    }
}
