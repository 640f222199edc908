//! Random small models at random levels: every shape that a configuration can have becomes a valid file.

use llm_quantize::format::gguf::level::LEVELS;
use proptest::prelude::*;

use crate::checkpoint::{Case, Llama};
use crate::gguf_file::File;
use crate::support::{run, text};

/// Row lengths that are whole blocks of 256, of 32, and of neither.
fn widths() -> impl Strategy<Value = usize> {
    prop::sample::select(vec![32, 64, 96, 160, 256, 288, 320, 512])
}

fn feed_forwards() -> impl Strategy<Value = usize> {
    prop::sample::select(vec![1, 8, 31, 32, 44, 100, 224, 256, 257, 300, 512, 768])
}

prop_compose! {
    fn models()(
        hidden in widths(),
        layers in 1..4usize,
        kv_heads in 1..4usize,
        group in 1..4usize,
        head_dim in prop::sample::select(vec![2, 6, 16, 32, 48, 64]),
        feed_forward in feed_forwards(),
        tied in any::<bool>(),
    ) -> Llama {
        Llama { hidden, layers, heads: kv_heads * group, kv_heads, head_dim, feed_forward, vocab: 512, tied }
    }
}

/// Without the one that needs an importance matrix.
fn levels() -> impl Strategy<Value = &'static str> {
    let names: Vec<&str> = LEVELS.iter().map(|level| level.name).filter(|name| *name != "Q2_K_S").collect();
    prop::sample::select(names)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_model_becomes_a_valid_file(llama in models(), level in levels(), seed in any::<u64>()) {
        let case = Case::generate(&llama, seed);
        let report = case.quantize(level, &["--format", "json"]).success().json();
        prop_assert_eq!(&report["validation_status"], "valid");
        let path = case.out().join(format!("model-{level}.gguf"));
        let size = std::fs::metadata(&path).unwrap().len();
        prop_assert_eq!(&report["file_size"], size);
        let file = File::open(&path);
        prop_assert_eq!(file.tensors.len(), 2 + usize::from(!llama.tied) + 9 * llama.layers);

        let info = run(&["info", &text(&path), "--format", "json"]).success().json();
        prop_assert_eq!(&info["architecture"], "llama");
        prop_assert_eq!(&info["hidden_size"], llama.hidden);
        prop_assert_eq!(&info["num_layers"], llama.layers);
        prop_assert_eq!(&info["num_heads"], llama.heads);
        prop_assert_eq!(&info["vocab_size"], llama.vocab);
        prop_assert_eq!(&info["parameter_count"], &report["metadata"]["parameters"]);
        prop_assert_eq!(&info["gguf"]["level"], level);
        prop_assert_eq!(&info["gguf"]["tensors"], file.tensors.len());
    }
}
