//! A GGUF file, as a container and as a model.

use llm_quantize::cancel::Cancel;
use llm_quantize::format::gguf::reader::Reader;
use llm_quantize::format::gguf::vocab::read_vocab;
use llm_quantize::pipeline::inspect::inspect;
use llm_quantize::pipeline::model::OpenModel;
use llm_quantize::progress::Silent;

use super::place::Place;
use super::safetensors::read_all;

pub(super) fn gguf(input: &[u8]) {
    let place = Place::with(&[("model.gguf", input)]);
    let path = place.path().join("model.gguf");
    let Ok(file) = Reader::open(&path) else { return };
    for tensor in file.tensors() {
        assert_eq!(file.data(tensor).len() as u64, tensor.bytes());
    }
    let _ = read_vocab(file.metadata());
    let name = path.to_str().expect("a temporary directory has a plain name");
    let _ = inspect(name, &Cancel::new(), &Silent);
    let Ok(open) = OpenModel::open(name, &[], &Cancel::new(), &Silent) else { return };
    read_all(&*open.weights);
    let _ = open.encoder.encode("Once upon a time");
    let _ = open.decoder();
    let copy = tempfile::tempdir().expect("there is room");
    let _ = open.origin.write_rebuilt(copy.path());
}
