//! What fuzzing has found, and what it began with, by the same functions as in the fuzzers.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

#[allow(unreachable_pub, reason = "the fuzzers use it as a library")]
#[path = "src/lib.rs"]
mod fuzz;

#[global_allocator]
static ALLOCATOR: fuzz::limit::Counting = fuzz::limit::Counting;

/// One test only: what runs beside it would count as its time and memory.
#[test]
fn every_input_of_the_corpus_is_read_or_refused_in_time() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
    let mut directories: Vec<_> =
        fs::read_dir(&corpus).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    directories.sort();
    assert!(directories.iter().eq(fuzz::TARGETS.iter().map(|(name, _)| *name)), "{directories:?}");
    let mut failures = Vec::new();
    for (target, _) in fuzz::TARGETS {
        let mut inputs: Vec<_> =
            fs::read_dir(corpus.join(target)).unwrap().map(|entry| entry.unwrap().path()).collect();
        inputs.sort();
        assert!(!inputs.is_empty(), "{target} has no corpus");
        for path in inputs {
            let input = fs::read(&path).unwrap();
            if catch_unwind(AssertUnwindSafe(|| fuzz::run(target, &input))).is_err() {
                failures.push(path);
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}
