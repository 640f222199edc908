//! The decoder computes what transformers computes.
//!
//! `reference.safetensors` of a model holds 64 tokens and what transformers 5.23 makes of them in float32.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{Device, Tensor};
use llm_quantize::arch::Model;
use llm_quantize::arch::decoder::{Activations, Compute, Decoder, Hidden, Input, LinearId, Tap};
use llm_quantize::arch::spec::Use;
use llm_quantize::cancel::Cancel;
use llm_quantize::error::Kind;
use llm_quantize::source::config::Config;
use llm_quantize::source::safetensors::Tensors;

use crate::support::{self, MODELS};

/// The largest error of any state, relative to the state: its sum of squares over the state's.
const LIMIT: f64 = 1e-8;

fn open(dir: &Path) -> (Model, Tensors) {
    (Model::read(Config::load(dir).unwrap(), &[]).unwrap(), Tensors::open(dir).unwrap())
}

fn reference(dir: &Path) -> (Vec<u32>, HashMap<String, Tensor>) {
    let states = candle_core::safetensors::load(dir.join("reference.safetensors"), &Device::Cpu).unwrap();
    let tokens = states["input_ids"].flatten_all().unwrap().to_vec1::<i64>().unwrap();
    (tokens.into_iter().map(|t| u32::try_from(t).unwrap()).collect(), states)
}

fn nmse(found: &Tensor, expected: &Tensor) -> f64 {
    let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (found, expected) = (values(found), values(expected));
    assert_eq!(found.len(), expected.len());
    let error: f64 = found.iter().zip(&expected).map(|(f, e)| (f64::from(*f) - f64::from(*e)).powi(2)).sum();
    error / expected.iter().map(|e| f64::from(*e).powi(2)).sum::<f64>()
}

/// The largest error of any state and of the logits of one model.
fn worst(name: &str, compute: Compute) -> f64 {
    let dir = support::model(name);
    let (model, tensors) = open(&dir);
    let (tokens, states) = reference(&dir);
    let decoder = Decoder::new(&model, &tensors).unwrap().compute_in(compute);
    let context = decoder.context(tokens.len());
    let mut worst = 0f64;
    let mut check = |state: &str, found: &Tensor| {
        let error = nmse(found, &states[state]);
        // The maximum of NaN and a number is the number.
        assert!(error.is_finite(), "{name}: {state} is not finite");
        worst = worst.max(error);
    };
    let mut hidden = decoder.embed(&[&tokens]).unwrap();
    for i in 0..decoder.layers() {
        check(&format!("hidden.{i}"), &hidden);
        hidden = decoder.layer(i).unwrap().forward(&hidden, &context, &mut ()).unwrap();
    }
    // transformers reports the last state after the norm.
    check(&format!("hidden.{}", decoder.layers()), &decoder.norm(&hidden).unwrap());
    let logits = decoder.head(&hidden).unwrap();
    assert_eq!(logits.dims(), [1, tokens.len(), model.hyper.vocab], "{name}");
    check("logits", &logits);
    worst
}

#[test]
fn all_states_and_logits_are_those_of_transformers() {
    for name in MODELS {
        let error = worst(name, Compute::F32);
        assert!(error < LIMIT, "{name}: a state differs by {error:e}");
    }
}

#[test]
fn bfloat16_comes_near_them() {
    for name in MODELS {
        let error = worst(name, Compute::Bf16);
        assert!(error < 1e-3, "{name}: a state differs by {error:e}");
        // That it is not float32 that was computed.
        assert!(error > LIMIT, "{name}: no state differs by more than {error:e}");
    }
}

#[test]
fn windows_do_not_see_each_other() {
    for name in ["gemma3", "mixtral"] {
        let dir = support::model(name);
        let (model, tensors) = open(&dir);
        let (tokens, _) = reference(&dir);
        let decoder = Decoder::new(&model, &tensors).unwrap();
        let run = |windows: &[Vec<u32>]| {
            let mut hidden = Hidden::embed(&decoder, windows).unwrap();
            for i in 0..decoder.layers() {
                hidden.advance(&decoder.layer(i).unwrap(), &mut (), &Cancel::new()).unwrap();
            }
            hidden
        };
        let windows: Vec<Vec<u32>> = [0..24, 24..48, 48..64, 40..64].map(|r| tokens[r].to_vec()).into();
        let together = run(&windows);
        assert_eq!((together.windows(), together.tokens()), (4, 88));
        for (i, window) in windows.iter().enumerate() {
            let alone = run(std::slice::from_ref(window));
            let error = nmse(&together.window(i).unwrap(), &alone.window(0).unwrap());
            assert!(error < LIMIT, "{name}: window {i} differs by {error:e}");
        }
    }
}

#[test]
fn a_pass_can_be_stopped() {
    let (model, tensors) = open(&support::model("llama"));
    let decoder = Decoder::new(&model, &tensors).unwrap();
    let mut hidden = Hidden::embed(&decoder, &[vec![1, 2, 3]]).unwrap();
    let cancel = Cancel::new();
    cancel.request();
    let stopped = hidden.advance(&decoder.layer(0).unwrap(), &mut (), &cancel);
    assert_eq!(stopped.unwrap_err().kind(), Kind::Interrupted);
}

/// Shapes of what went by.
#[derive(Default)]
struct Shapes(BTreeMap<LinearId, Vec<Vec<usize>>>);

impl Tap for Shapes {
    fn input(&mut self, linear: LinearId, x: &Activations) -> llm_quantize::Result<()> {
        self.0.entry(linear).or_default().push(x.shape()?.to_vec());
        Ok(())
    }
}

#[test]
fn the_tap_sees_the_input_of_each_matrix_once() {
    for name in MODELS {
        let dir = support::model(name);
        let (model, tensors) = open(&dir);
        let (tokens, _) = reference(&dir);
        let decoder = Decoder::new(&model, &tensors).unwrap();
        let (layers, context) = (decoder.layers(), decoder.context(32));
        let mut hidden = decoder.embed(&[&tokens[..32], &tokens[32..]]).unwrap();
        let mut tap = Shapes::default();
        for i in 0..layers {
            hidden = decoder.layer(i).unwrap().forward(&hidden, &context, &mut tap).unwrap();
        }

        let mut seen = BTreeMap::<String, usize>::new();
        for (id, shapes) in &tap.0 {
            let [shape] = shapes.as_slice() else { panic!("{name}: {id:?} was seen {} times", shapes.len()) };
            for tensor in id.tensors(model.spec) {
                let rule = model.spec.rule(&tensor.replace(&format!(".{}.", id.layer), ".{}.")).unwrap();
                let width = rule.shape.last().unwrap().size(&model.hyper);
                assert_eq!(shape[1], width, "{name}: {id:?}");
                *seen.entry(tensor).or_default() += shape[0];
            }
        }
        let matrices = model.spec.tensors.iter().copied().flatten().filter(|rule| {
            rule.per_layer() && rule.shape.len() == 2 && !matches!(rule.usage, Use::Norm | Use::Embedding)
        });
        let expected = (0..layers)
            .flat_map(|i| {
                matrices.clone().map(move |rule| (rule.gguf.replace("{}", &i.to_string()), rule.usage))
            })
            .map(|(tensor, usage)| {
                // Each token goes to so many experts.
                (tensor, if usage == Use::Expert { 64 * model.hyper.experts_used } else { 64 })
            });
        assert_eq!(seen, expected.collect(), "{name}");
        let attention = tap.0.keys().filter(|id| id.input == Input::Attention);
        assert!(attention.map(|id| id.layer).eq(0..layers), "{name}");
    }
}

#[test]
fn impossible_sequences_are_refused() {
    let (model, tensors) = open(&support::model("llama"));
    let decoder = Decoder::new(&model, &tensors).unwrap();
    let kind = |sequences: &[&[u32]]| decoder.embed(sequences).unwrap_err().kind();
    assert_eq!(kind(&[&[0, 512]]), Kind::Invalid);
    assert_eq!(kind(&[&[u32::MAX]]), Kind::Invalid);
    assert_eq!(kind(&[&[0, 1], &[2]]), Kind::Usage);
    assert_eq!(kind(&[]), Kind::Usage);
    assert_eq!(kind(&[&[]]), Kind::Usage);
    let hidden = decoder.embed(&[[1, 2, 3]]).unwrap();
    let layer = decoder.layer(0).unwrap();
    assert_eq!(layer.forward(&hidden, &decoder.context(4), &mut ()).unwrap_err().kind(), Kind::Usage);
}
