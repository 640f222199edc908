//! Layers of all families on a GPU, or on the GPU twin: the same bits as in memory. As in `cuda.rs`, without either the tests say
//! so and pass.

use candle_core::Tensor;
use llm_quantize::Result;
use llm_quantize::arch::Model;
use llm_quantize::arch::decoder::{Activations, Decoder, Layer, LinearId, Tap};
use llm_quantize::backend::{Backend, Cuda};
use llm_quantize::source::config::Config;
use llm_quantize::source::safetensors::Tensors;

use crate::cuda::gpu_is_there;
use crate::support::model;

/// Keeps all inputs of matrices.
#[derive(Default)]
struct Inputs(Vec<(LinearId, Vec<f32>)>);

impl Tap for Inputs {
    fn input(&mut self, linear: LinearId, x: &Activations) -> Result<()> {
        self.0.push((linear, values(&x.tensor()?)));
        Ok(())
    }
}

fn values(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

fn same(a: &[f32], b: &[f32]) -> bool {
    a.iter().map(|v| v.to_bits()).eq(b.iter().map(|v| v.to_bits()))
}

/// Computes the first layers of a model on both, on sequences that are longer than its sliding window.
fn assert_same_bits(name: &str, layers: usize) {
    if !gpu_is_there() {
        return;
    }
    let gpu = Cuda::open(0).unwrap().accelerator().expect("a GPU computes layers");
    let dir = model(name);
    let (model, tensors) =
        (Model::read(Config::load(&dir).unwrap(), &[]).unwrap(), Tensors::open(&dir).unwrap());
    let decoder = Decoder::new(&model, &tensors).unwrap();
    let length = 29;
    let sequence = |first: u32| (0..length).map(|i| (first + i * 37) % model.hyper.vocab as u32).collect();
    let windows: [Vec<u32>; 2] = [sequence(3), sequence(100)];
    let context = decoder.context(length as usize);
    let mut hidden = decoder.embed(&windows).unwrap();
    for i in 0..layers.min(decoder.layers()) {
        let compute = |layer: &Layer| {
            let mut inputs = Inputs::default();
            (layer.forward(&hidden, &context, &mut inputs).unwrap(), inputs.0)
        };
        let mut layer = decoder.layer(i).unwrap();
        let (of_cpu, inputs_of_cpu) = compute(&layer);
        layer.move_to(&gpu).unwrap();
        let (of_gpu, inputs_of_gpu) = compute(&layer);
        assert_eq!(inputs_of_cpu.len(), inputs_of_gpu.len(), "{name}");
        for ((id, of_cpu), (other, of_gpu)) in inputs_of_cpu.iter().zip(&inputs_of_gpu) {
            assert!(id == other && same(of_cpu, of_gpu), "{name}: {id:?} differs");
        }
        assert!(same(&values(&of_cpu), &values(&of_gpu)), "{name}: layer {i} differs");
        hidden = of_cpu;
    }
}

#[test]
fn plain_layers_are_the_same() {
    assert_same_bits("llama", 1);
    assert_same_bits("llama3-rope", 1);
}

#[test]
fn soft_caps_windows_and_norms_after_are_the_same() {
    assert_same_bits("gemma2", 2);
}

#[test]
fn norms_of_heads_and_two_ropes_are_the_same() {
    assert_same_bits("qwen3", 1);
    assert_same_bits("gemma3", 1);
}

#[test]
fn biases_joined_matrices_and_windows_are_the_same() {
    assert_same_bits("qwen2", 1);
    assert_same_bits("phi3", 1);
    assert_same_bits("mistral-swa", 1);
}

#[test]
fn experts_are_the_same() {
    assert_same_bits("mixtral", 1);
    assert_same_bits("qwen3-moe", 1);
}

#[test]
fn layers_without_rope_are_the_same() {
    assert_same_bits("smollm3", 4);
}
