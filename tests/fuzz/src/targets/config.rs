//! What a model says of itself: `config.json` and the card.

use std::sync::Arc;

use llm_quantize::backend::Cpu;
use llm_quantize::cancel::Cancel;
use llm_quantize::format::gguf::blocks::Simd;
use llm_quantize::format::gguf::level::Level;
use llm_quantize::format::gguf::mix::Overrides;
use llm_quantize::pipeline::checkpoint::Settings;
use llm_quantize::pipeline::gguf::{Config, Job};
use llm_quantize::progress::Silent;
use llm_quantize::source::card::{ParamCounts, load_card};
use llm_quantize::source::{Need, SourceModel};

use super::place::{Place, split};
use super::tokenizer::TOKENIZER;

/// The weights of a Llama with one layer.
const WEIGHTS: &[u8] = include_bytes!("../../fixtures/model.safetensors");

/// `config.json`, a NUL, the model card, a NUL, and `generation_config.json`: as far as quantizing intact weights to GGUF goes
/// before anything is written.
pub(super) fn config(input: &[u8]) {
    let (config, rest) = split(input);
    let (card, generation) = split(rest);
    let place = Place::with(&[
        ("config.json", config),
        ("README.md", card),
        ("generation_config.json", generation),
        ("model.safetensors", WEIGHTS),
        ("tokenizer.json", TOKENIZER),
    ]);
    let named = serde_json::json!({"_name_or_path": "org/Name-7B"});
    let _ = load_card(place.path(), &named, "model", ParamCounts::default());
    let source = SourceModel::open(&place.text(), Need::Weights, &Cancel::new(), &Silent)
        .expect("the directory is there");
    let config = Config {
        level: Level::from_name("Q4_K_M").expect("a level"),
        output: place.path().join("out.gguf"),
        force: false,
        checkpoint: Settings::default(),
        overrides: Overrides::default(),
        imatrix: None,
        metadata: Vec::new(),
        ignore_config: Vec::new(),
        threads: 1,
        simd: Simd::best(),
        backend: Arc::new(Cpu { simd: Simd::best() }),
    };
    if let Ok(job) = Job::prepare(&source, config, &Silent) {
        let _ = job.dry_run();
    }
}
