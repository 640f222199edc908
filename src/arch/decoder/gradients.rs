//! Gradients of the decoder's operations, held against finite differences.
//!
//! The differences are taken of float32 results, so that they carry the rounding of two sums of some hundred terms: with a
//! step `h` an error near `1e-6 / h` of the sum's size, and one of `h^2` for the third derivative. Steps near 1e-2 make both
//! small beside the tolerance of 1 %.

use std::path::Path;

use candle_core::{Device, Tensor, Var};

use super::feed_forward::Gate;
use super::norm::Norm;
use super::softmax::CausalSoftmax;
use super::{Activations, Decoder, Layer, product};
use crate::arch::Model;
use crate::arch::spec::Activation;
use crate::noise::wide_noise;
use crate::source::config::Config;
use crate::source::safetensors::Tensors;

fn tensor(shape: &[usize], seed: u32) -> Tensor {
    Tensor::from_vec(wide_noise(seed, shape.iter().product()), shape, &Device::Cpu).unwrap()
}

/// The sum of all values, each times a fixed number.
fn weighted(y: &Tensor) -> Tensor {
    (y * tensor(y.dims(), 99)).unwrap().sum_all().unwrap()
}

fn value(y: &Tensor) -> f64 {
    let values = weighted_values(y);
    values.iter().sum()
}

fn root_mean_square(x: &Tensor) -> f64 {
    f64::from(x.sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap().sqrt())
}

/// The same in float64.
fn weighted_values(y: &Tensor) -> Vec<f64> {
    let values = y.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let weights = wide_noise(99, values.len());
    values.iter().zip(weights).map(|(v, w)| f64::from(*v) * f64::from(w)).collect()
}

/// Compares the gradients of `weighted(f(..))` for each of `inputs` with differences along random directions.
#[track_caller]
fn check(name: &str, inputs: &[Tensor], step: f64, f: impl Fn(&[Tensor]) -> Tensor) {
    let vars: Vec<Var> = inputs.iter().map(|x| Var::from_tensor(x).unwrap()).collect();
    let tracked: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let gradients = weighted(&f(&tracked)).backward().unwrap();
    for (i, input) in inputs.iter().enumerate() {
        let gradient =
            gradients.get(&tracked[i]).unwrap_or_else(|| panic!("{name}: input {i} has a gradient"));
        for direction in 0..3 {
            // A step is a share of the size that the values have: weights of 0.02 bend what follows within 0.01.
            let along = (tensor(input.dims(), 7 + direction) * root_mean_square(input)).unwrap();
            let moved = |by: f64| {
                let mut inputs = inputs.to_vec();
                inputs[i] = (input + (&along * by).unwrap()).unwrap();
                value(&f(&inputs))
            };
            let difference = (moved(step) - moved(-step)) / (2.0 * step);
            let product = (gradient * &along).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let found: f64 = product.iter().map(|v| f64::from(*v)).sum();
            let size = product.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
            assert!(
                (found - difference).abs() < 0.01 * size.max(0.2),
                "{name}, input {i}: {found} instead of {difference}, of terms of {size}"
            );
        }
    }
}

#[test]
fn the_norm() {
    let inputs = [tensor(&[150, 24], 1), tensor(&[24], 2)];
    check("norm", &inputs, 1e-2, |x| {
        let y = Norm::new(x[1].clone(), 1e-3).forward(&Activations::Memory(x[0].clone()));
        y.unwrap().tensor().unwrap()
    });
}

#[test]
fn the_products() {
    let inputs = [tensor(&[3, 20, 30], 10), tensor(&[3, 25, 30], 11)];
    check("product, transposed", &inputs, 1e-2, |x| product::of_each(&x[0], &x[1], true).unwrap());
    let inputs = [tensor(&[3, 20, 30], 12), tensor(&[3, 30, 25], 13)];
    check("product", &inputs, 1e-2, |x| product::of_each(&x[0], &x[1], false).unwrap());
    let inputs = [tensor(&[20, 30], 14), tensor(&[25, 30], 15)];
    check("linear", &inputs, 1e-2, |x| product::times_transposed(&x[0], &x[1]).unwrap());
}

#[test]
fn the_gates() {
    for activation in [Activation::Silu, Activation::GeluTanh] {
        let inputs = [(tensor(&[9, 600], 3) * 3.0).unwrap(), tensor(&[9, 600], 4)];
        check("gate", &inputs, 1e-2, |x| x[0].apply_op2(&x[1], Gate(activation)).unwrap());
    }
}

#[test]
fn the_softmax() {
    for (soft_cap, window) in [(None, None), (Some(2.0), None), (None, Some(5))] {
        let softmax = CausalSoftmax { scale: 0.7, soft_cap, window };
        let inputs = [(tensor(&[3, 21, 21], 5) * 4.0).unwrap()];
        check("softmax", &inputs, 1e-2, |x| softmax.forward(x[0].clone()).unwrap());
    }
}

/// A layer of each kind of arithmetic, with gradients for its input, all of its matrices and all of its norms. What it computes
/// is the same to the bit without gradients.
#[test]
fn whole_layers() {
    for name in ["llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "smollm3"] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models").join(name);
        let model = Model::read(Config::load(&dir).unwrap(), &[]).unwrap();
        let tensors = Tensors::open(&dir).unwrap();
        let decoder = Decoder::new(&model, &tensors).unwrap();
        let layer = decoder.layer(0).unwrap();
        let context = decoder.context(11);
        let mut inputs = vec![tensor(&[2, 11, decoder.hidden()], 6)];
        let stems = matrices(&layer, name == "phi3");
        inputs.extend(stems.iter().map(|(_, weight)| weight.clone()));
        let norms: Vec<&str> = layer.norms().iter().map(|(stem, _)| *stem).collect();
        inputs.extend(layer.norms().into_iter().map(|(_, norm)| norm.weight().unwrap()));
        let tracked = Var::from_tensor(&inputs[0]).unwrap();
        let [with, without] =
            [tracked.as_tensor(), &inputs[0]].map(|x| layer.forward(x, &context, &mut ()).unwrap());
        let bits = |y: &Tensor| -> Vec<u32> {
            y.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|v| v.to_bits()).collect()
        };
        assert!(with.track_op() && !without.track_op());
        assert!(bits(&with) == bits(&without), "{name}: other results with gradients");
        check(name, &inputs, 1e-2, |x| {
            let mut layer = decoder.layer(0).unwrap();
            let (matrices, rest) = x[1..].split_at(stems.len());
            for ((stem, _), weight) in stems.iter().zip(matrices) {
                layer.replace_by(stem, 0, weight).unwrap();
            }
            for (stem, weight) in norms.iter().zip(rest) {
                layer.replace_norm(stem, weight).unwrap();
            }
            layer.forward(&x[0], &context, &mut ()).unwrap()
        });
    }
}

/// The layer's matrices as the checkpoint has them.
fn matrices(layer: &Layer, joined: bool) -> Vec<(&'static str, Tensor)> {
    use super::Input::{Attention, AttentionOutput, Down, FeedForward};
    let of = |input| {
        layer.linears(input).into_iter().map(|(stem, linear)| (stem, linear.weight().unwrap().clone()))
    };
    if !joined {
        return [Attention, AttentionOutput, FeedForward, Down].into_iter().flat_map(of).collect();
    }
    let join = |input| Tensor::cat(&of(input).map(|(_, weight)| weight).collect::<Vec<_>>(), 0).unwrap();
    let mut all = vec![("attn_qkv", join(Attention)), ("ffn_up", join(FeedForward))];
    all.extend([AttentionOutput, Down].into_iter().flat_map(of));
    all
}

#[test]
fn the_head_with_and_without_a_cap() {
    for name in ["llama", "gemma2"] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models").join(name);
        let model = Model::read(Config::load(&dir).unwrap(), &[]).unwrap();
        let tensors = Tensors::open(&dir).unwrap();
        let decoder = Decoder::new(&model, &tensors).unwrap();
        let head = decoder.head_rows(0..decoder.vocab()).unwrap();
        let x = (tensor(&[5, decoder.hidden()], 8) * 3.0).unwrap();
        let logits = head.forward(&x).unwrap();
        let found = head.backward(&logits, &tensor(logits.dims(), 99)).unwrap();
        let along = tensor(x.dims(), 9);
        let moved = |by: f64| value(&head.forward(&(&x + (&along * by).unwrap()).unwrap()).unwrap());
        let difference = (moved(1e-2) - moved(-1e-2)) / 2e-2;
        let product = value_of(&found, &along);
        assert!((product / difference - 1.0).abs() < 0.01, "{name}: {product} {difference}");
    }
}

fn value_of(a: &Tensor, b: &Tensor) -> f64 {
    (a * b).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().into()
}
