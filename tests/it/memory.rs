//! Memory does not grow with the model.

use crate::checkpoint::Case;
use crate::support::quantize;

/// What the program may allocate whatever the model's size, the mapped checkpoint not counted.
const LIMIT: u64 = 300 << 20;

#[test]
fn slices_are_all_that_is_allocated() {
    let case = Case::large();
    for level in ["Q4_K_M", "F32", "BF16"] {
        let args = ["--threads", "2", "--format", "json", "--force"];
        let found = quantize(&case.model(), level, &case.out(), &args).success().json();
        let allocated = found["anonymous_memory_bytes"].as_u64().unwrap();
        // As much as the slabs in flight, however large the file: F32 makes 190 MB.
        assert!(allocated > 1 << 20 && allocated < LIMIT / 2, "{level}: {allocated}");
    }
}
