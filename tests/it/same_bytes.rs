//! The same bytes, however the work is divided and whichever instructions do it.

use llm_quantize::format::gguf::blocks::Simd;

use crate::support::{imatrix, model, quantized, sha256};

/// Quantizes again and again: once more in the same way, with other numbers of threads, and with each instruction set.
#[track_caller]
fn assert_same_bytes(name: &str, level: &str, extra: &[&str]) {
    let model = model(name);
    let first = quantized(&model, level, extra);
    let mut ways = vec![vec![], vec!["--threads", "2"], vec!["--threads", "7"]];
    ways.extend(Simd::available().iter().map(|simd| vec!["--simd", simd.name()]));
    for way in ways {
        let again = quantized(&model, level, &[extra, &way].concat());
        assert!(sha256(&again) == sha256(&first) && again == first, "{name} {level} {way:?} differs");
    }
}

#[test]
fn q4_k_m() {
    assert_same_bytes("tiny-llama", "Q4_K_M", &[]);
}

#[test]
fn q2_k() {
    assert_same_bytes("tiny-llama", "Q2_K", &[]);
}

#[test]
fn q2_k_with_an_importance_matrix() {
    assert_same_bytes("tiny-llama", "Q2_K", &["--imatrix", &imatrix()]);
}

#[test]
fn iq4_xs() {
    assert_same_bytes("tiny-llama", "IQ4_XS", &[]);
}

#[test]
fn q8_0() {
    assert_same_bytes("tiny-llama", "Q8_0", &[]);
}

#[test]
fn bf16() {
    assert_same_bytes("tiny-llama", "BF16", &[]);
}

#[test]
fn experts() {
    assert_same_bytes("mixtral", "Q4_0", &[]);
}
