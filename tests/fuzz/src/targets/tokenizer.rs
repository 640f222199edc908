//! The files of a tokenizer, and the chat template.

use llm_quantize::calib::chunks::{Chunking, chunks};
use llm_quantize::calib::dataset::{Dataset, Selection};
use llm_quantize::cancel::Cancel;
use llm_quantize::progress::Silent;
use llm_quantize::source::tokenizer::encoder::Encoder;
use llm_quantize::source::tokenizer::rebuild::rebuild;
use llm_quantize::source::tokenizer::{VocabScheme, known_tokens, load_vocab};

use super::place::{Place, split};

/// A tokenizer whose tokens are bytes.
pub(super) const TOKENIZER: &[u8] = include_bytes!("../../fixtures/tokenizer.json");

const TEXT: &str = "Once upon a time, in 2024 or so:\n\n\tnaïve façades \u{1f980} cost <s>1,234.50€</s>\r\n";

/// `tokenizer.json`, a NUL, and `tokenizer_config.json`; or, if it is no JSON object, `tokenizer.model`.
pub(super) fn tokenizer(input: &[u8]) {
    match input.first() {
        Some(b'{') => json(input),
        _ => vocabularies(&Place::with(&[("tokenizer.model", input)])),
    }
}

fn json(input: &[u8]) {
    let (tokenizer, config) = split(input);
    let mut place = Place::with(&[("tokenizer.json", tokenizer)]);
    if !config.is_empty() {
        place.write("tokenizer_config.json", config);
    }
    let _ = known_tokens(place.path());
    vocabularies(&place);
    let Ok(encoder) = Encoder::open(place.path()) else { return };
    let _ = encoder.encode(TEXT);
    let _ = encoder.encode_with_special(TEXT);
    let _ = encoder.vocab_size();
    assert!(encoder.same_vocabulary(&encoder) || encoder.vocab_size() == 0);
}

fn vocabularies(place: &Place) {
    use VocabScheme::*;
    let mut last = None;
    for scheme in [Llama, Qwen, Bpe, Gemma2, Gemma3, Phi3] {
        let Ok(vocab) = load_vocab(place.path(), scheme, None) else { continue };
        // Many schemes read the same, and going back to `tokenizer.json` takes the time.
        if last.as_ref() != Some(&vocab)
            && let Ok(rebuilt) = rebuild(&vocab)
            && let Ok(encoder) = rebuilt.encoder()
        {
            let _ = encoder.encode(TEXT);
        }
        last = Some(vocab);
    }
}

/// A chat template, a NUL, and conversations, a line each.
pub(super) fn chat_template(input: &[u8]) {
    let (template, conversations) = split(input);
    let files =
        [("tokenizer.json", TOKENIZER), ("chat_template.jinja", template), ("data.jsonl", conversations)];
    let place = Place::with(&files);
    let Ok(encoder) = Encoder::open(place.path()) else { return };
    let data = place.path().join("data.jsonl");
    let data = data.to_str().expect("a temporary directory has a plain name");
    let Ok(data) = Dataset::open(data, Selection::default(), &Cancel::new(), &Silent) else { return };
    let chunking = Chunking { length: 8, limit: Some(2), parse_special: false };
    let _ = chunks(&data, &encoder, &chunking, &Cancel::new(), &Silent);
}
