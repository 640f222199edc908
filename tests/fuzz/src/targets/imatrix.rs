//! Importance matrices, in either format.

use llm_quantize::calib::imatrix::{DEFAULT_CHUNK_SIZE, Format, Imatrix, Sums};

use super::place::Place;

pub(super) fn imatrix(input: &[u8]) {
    let place = Place::with(&[("imatrix", input)]);
    let path = place.path().join("imatrix");
    if let Ok(imatrix) = Imatrix::load(&path) {
        assert!(imatrix.entries.values().flatten().all(|value| value.is_finite() && *value >= 0.0));
    }
    let Ok(mut sums) = Sums::load(&path, DEFAULT_CHUNK_SIZE) else { return };
    let _ = sums.add(sums.clone());
    let _ = sums.chunks();
    let _ = Format::Gguf.encode(&sums);
    let _ = Format::Dat.encode(&sums);
}
