//! Calibration data.

use llm_quantize::calib::chunks::{Chunking, chunks};
use llm_quantize::calib::dataset::{Dataset, Selection};
use llm_quantize::calib::rows::{Limits, Rows, Want};
use llm_quantize::cancel::Cancel;
use llm_quantize::progress::Silent;
use llm_quantize::source::tokenizer::encoder::Encoder;

use super::place::Place;
use super::tokenizer::TOKENIZER;

const TEMPLATE: &[u8] = b"{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";

/// A file of calibration data, of the kind that its first bytes say.
pub(super) fn data(input: &[u8]) {
    match input {
        [b'P', b'A', b'R', b'1', ..] => read("data.parquet", input),
        [0x1f, 0x8b, ..] => ["data.jsonl.gz", "data.txt.gz"].iter().for_each(|name| read(name, input)),
        _ => ["data.txt", "data.json", "data.jsonl"].iter().for_each(|name| read(name, input)),
    }
}

fn read(name: &str, input: &[u8]) {
    let files = [(name, input), ("tokenizer.json", TOKENIZER), ("chat_template.jinja", TEMPLATE)];
    let place = Place::with(&files);
    let encoder = Encoder::open(place.path()).expect("the tokenizer is intact");
    let path = place.path().join(name);
    let path = path.to_str().expect("a temporary directory has a plain name");
    // Each input is read in one of the ways in which data are read: what they cost is a matter of how much text there is.
    let way = input.len();
    let column = way.is_multiple_of(7).then(|| "story".to_owned());
    let selection = Selection { column, ..Selection::default() };
    let Ok(data) = Dataset::open(path, selection, &Cancel::new(), &Silent) else { return };
    if way.is_multiple_of(3) {
        let _ = data.joined(&Cancel::new(), &Silent);
    } else if way % 3 == 1 {
        let limits = Limits { context: 64, vocab: encoder.vocab_size() };
        let want = Want { rows: Some(4), seq_len: Some(8), seed: way.is_multiple_of(2).then_some(1) };
        let _ = Rows::cut(&data, &encoder, limits, want, &Cancel::new(), &Silent);
    } else {
        let chunking = Chunking { length: 8, limit: Some(4), parse_special: way.is_multiple_of(2) };
        let _ = chunks(&data, &encoder, &chunking, &Cancel::new(), &Silent);
    }
}
