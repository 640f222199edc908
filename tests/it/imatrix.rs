//! Importance matrices that llama-imatrix wrote, and damaged ones.

use std::path::{Path, PathBuf};

use llm_quantize::Kind;
use llm_quantize::calib::imatrix::Imatrix;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden/tiny-llama").join(name)
}

fn load(bytes: &[u8]) -> llm_quantize::Result<Imatrix> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("imatrix");
    std::fs::write(&path, bytes).unwrap();
    Imatrix::load(&path)
}

/// Asserts that the file is refused for what it holds, in words that tell `word`.
#[track_caller]
fn assert_invalid(bytes: &[u8], word: &str) {
    let e = load(bytes).unwrap_err();
    assert_eq!(e.kind(), Kind::Invalid, "{e}");
    assert!(e.to_string().contains(word), "{e} does not tell {word:?}");
}

#[test]
fn both_formats_say_the_same() {
    let gguf = Imatrix::load(&golden("imatrix.gguf")).unwrap();
    let legacy = Imatrix::load(&golden("imatrix.dat")).unwrap();
    for imatrix in [&gguf, &legacy] {
        assert_eq!(imatrix.entries.len(), 28);
        assert_eq!(imatrix.chunks, 32);
        assert_eq!(imatrix.datasets, ["calibration.txt"]);
    }
    assert_eq!(gguf.file_name, golden("imatrix.gguf").to_str().unwrap());
    for (name, values) in &gguf.entries {
        let other = legacy.get(name).unwrap();
        assert_eq!(values.len(), other.len(), "{name}");
        // The older format stores means times chunks, which are rounded once more.
        let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 2.0 * f32::EPSILON * a.abs();
        assert!(values.iter().zip(other).all(close), "{name}");
    }
    let down = gguf.get("blk.0.ffn_down.weight").unwrap();
    assert!(down.len().is_multiple_of(256) && down.iter().all(|v| *v > 0.0));
    assert_eq!(gguf.get("output.weight"), None);
}

#[test]
fn a_missing_file_is_not_found() {
    assert_eq!(Imatrix::load(&golden("none.gguf")).unwrap_err().kind(), Kind::NotFound);
}

#[test]
fn a_file_that_ends_early_is_refused_wherever_it_ends() {
    for name in ["imatrix.gguf", "imatrix.dat"] {
        let whole = std::fs::read(golden(name)).unwrap();
        for keep in (0..whole.len()).step_by(97) {
            // Without its trailer, which is optional, an old file is whole.
            match load(&whole[..keep]) {
                Ok(imatrix) => {
                    assert!(imatrix.entries.len() == 28 && imatrix.datasets.is_empty(), "{name} to {keep}")
                }
                Err(e) => assert_eq!(e.kind(), Kind::Invalid, "{name} to {keep}: {e}"),
            }
        }
    }
}

/// An old file: entries of (name, calls, values), then the trailer.
fn legacy(entries: &[(&[u8], i32, &[f32])], trailer: &[u8]) -> Vec<u8> {
    let mut out = (entries.len() as i32).to_le_bytes().to_vec();
    for (name, calls, values) in entries {
        out.extend((name.len() as i32).to_le_bytes());
        out.extend(*name);
        out.extend(calls.to_le_bytes());
        out.extend((values.len() as i32).to_le_bytes());
        out.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    }
    out.extend(trailer);
    out
}

#[test]
fn old_sums_are_divided_by_calls() {
    let loaded =
        load(&legacy(&[(b"a", 3, &[1.0, 7.0]), (b"b", 0, &[5.0]), (b"c\0d", -1, &[2.0])], &[])).unwrap();
    assert_eq!(loaded.get("a"), Some(&[1.0 / 3.0, 7.0 / 3.0][..]));
    assert_eq!(loaded.get("b"), Some(&[5.0][..]), "no calls: as they are");
    assert_eq!(loaded.get("c"), Some(&[2.0][..]), "a name ends at NUL, and calls below 1 count as none");
    assert_eq!((loaded.chunks, loaded.datasets.len()), (0, 0));

    let trailer = [&(-5i32).to_le_bytes()[..], &3i32.to_le_bytes(), b"a.b"].concat();
    let loaded = load(&legacy(&[(b"a", 1, &[1.0])], &trailer)).unwrap();
    assert_eq!((loaded.chunks, loaded.datasets), (0, vec!["a.b".to_string()]));
}

#[test]
fn hostile_old_files_are_refused() {
    let a: &[f32] = &[1.0];
    let number = |n: i32| n.to_le_bytes().to_vec();
    assert_invalid(&number(0), "0 entries");
    assert_invalid(&number(-1), "-1 entries");
    assert_invalid(&[number(i32::MAX), number(i32::MAX)].concat(), "length 2147483647");
    assert_invalid(&[number(1), number(-1)].concat(), "length -1");
    assert_invalid(
        &[number(1), number(1), b"a".to_vec(), number(1), number(i32::MAX)].concat(),
        "a has the length",
    );
    assert_invalid(&legacy(&[(b"a", 1, &[])], &[]), "a has no values");
    assert_invalid(&legacy(&[(b"\xff", 1, a)], &[]), "UTF-8");
    assert_invalid(&legacy(&[(b"a", 1, a), (b"blk.1", 1, &[1.0, f32::NAN])], &[]), "value 1 of blk.1 is NaN");
    assert_invalid(&legacy(&[(b"a", 1, &[f32::INFINITY])], &[]), "value 0 of a is inf");
    assert_invalid(&legacy(&[(b"a", 1, &[-1.0])], &[]), "value 0 of a is -1");
    assert_invalid(&legacy(&[(b"a", 1, a)], &[1, 2]), "the number of chunks");
    assert_invalid(&legacy(&[(b"a", 1, a)], &[number(1), number(9)].concat()), "the data set's name");
}

const F32: u32 = 0;
const F16: u32 = 1;

/// A tensor's name, dimensions, type and values; a type of two bytes gets zeros.
type Tensor<'a> = (&'a str, &'a [u64], u32, &'a [f32]);

fn gguf(chunk_count_key: &str, tensors: &[Tensor<'_>]) -> Vec<u8> {
    let string = |s: &str| [&(s.len() as u64).to_le_bytes()[..], s.as_bytes()].concat();
    let mut out = [b"GGUF".to_vec(), 3u32.to_le_bytes().to_vec()].concat();
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend(3u64.to_le_bytes());
    out.extend(
        [string("imatrix.datasets"), 9u32.to_le_bytes().to_vec(), 8u32.to_le_bytes().to_vec()].concat(),
    );
    out.extend([2u64.to_le_bytes().to_vec(), string("a.txt"), string("b\0c")].concat());
    for (key, n) in [(chunk_count_key, 7u32), ("imatrix.chunk_size", 512)] {
        out.extend([string(key), 4u32.to_le_bytes().to_vec(), n.to_le_bytes().to_vec()].concat());
    }
    let mut data = Vec::new();
    for (name, shape, ty, values) in tensors {
        out.extend([string(name), (shape.len() as u32).to_le_bytes().to_vec()].concat());
        out.extend(shape.iter().flat_map(|d| d.to_le_bytes()));
        out.extend([ty.to_le_bytes().to_vec(), (data.len() as u64).to_le_bytes().to_vec()].concat());
        match *ty {
            F32 => data.extend(values.iter().flat_map(|v| v.to_le_bytes())),
            _ => data.extend(values.iter().flat_map(|_| [0; 2])),
        }
        data.resize(data.len().next_multiple_of(32), 0);
    }
    out.resize(out.len().next_multiple_of(32), 0);
    out.extend(data);
    out
}

const CHUNKS: &str = "imatrix.chunk_count";

#[test]
fn each_expert_has_its_own_count() {
    let sums: Tensor<'_> = ("e.in_sum2", &[2, 3], F32, &[1.0, 2.0, 8.0, 9.0, 5.0, 7.0]);
    let loaded = load(&gguf(CHUNKS, &[sums, ("e.counts", &[1, 3], F32, &[3.0, 0.0, 1.5])])).unwrap();
    // No tokens: all ones. Counts are whole numbers, halves away from zero.
    assert_eq!(loaded.get("e"), Some(&[1.0 / 3.0, 2.0 / 3.0, 1.0, 1.0, 2.5, 3.5][..]));
    assert_eq!(loaded.chunks, 7);
    assert_eq!(loaded.datasets, ["a.txt", "b"]);
}

#[test]
fn hostile_gguf_files_are_refused() {
    let sums: Tensor<'_> = ("e.in_sum2", &[2], F32, &[1.0, 2.0]);
    let counts: Tensor<'_> = ("e.counts", &[1], F32, &[3.0]);
    load(&gguf(CHUNKS, &[sums, counts])).unwrap();
    assert_invalid(&gguf("imatrix.other", &[sums, counts]), CHUNKS);
    assert_invalid(&gguf(CHUNKS, &[sums]), "e has sums or counts");
    assert_invalid(&gguf(CHUNKS, &[counts]), "e has sums or counts");
    assert_invalid(&gguf(CHUNKS, &[("token_embd.weight", &[1], F32, &[1.0])]), "no entries");
    assert_invalid(&gguf(CHUNKS, &[sums, ("e.counts", &[1], F16, &[1.0])]), "e.counts is F16");
    assert_invalid(&gguf(CHUNKS, &[sums, ("e.counts", &[1, 3], F32, &[1.0; 3])]), "2 sums for 3 counts");
    for count in [f32::NAN, f32::INFINITY, -1.0, 1e30] {
        assert_invalid(&gguf(CHUNKS, &[sums, ("e.counts", &[1], F32, &[count])]), "e has the count");
    }
    assert_invalid(
        &gguf(CHUNKS, &[("e.in_sum2", &[2], F32, &[1.0, f32::NAN]), counts]),
        "value 1 of e is NaN",
    );
    assert_invalid(&gguf(CHUNKS, &[("e.in_sum2", &[u64::MAX / 8, 8], F32, &[]), counts]), "e.in_sum2");
}
