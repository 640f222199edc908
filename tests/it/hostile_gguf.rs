//! GGUF files that lie, after the list that llama.cpp tests its own reader with (`tests/test-gguf.cpp`): each is refused
//! at once, with a message that says where.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::support::{Outcome, program, text};

const U32: u32 = 4;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;
const U64: u32 = 10;
const F32_TENSOR: u32 = 0;
const Q4_K_TENSOR: u32 = 12;

/// A file under construction. Every part is raw bytes, so that all of it can be wrong.
#[derive(Clone)]
struct Draft {
    magic: [u8; 4],
    version: u32,
    /// Numbers of tensors and keys, if they are not to be the true ones.
    counts: [Option<u64>; 2],
    keys: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    alignment: usize,
    data: Vec<u8>,
}

fn string(s: &str) -> Vec<u8> {
    [&(s.len() as u64).to_le_bytes(), s.as_bytes()].concat()
}

/// A key with the id of its type and the bytes of its value.
fn key(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&string(name), &kind.to_le_bytes()[..], value].concat()
}

/// The value of an array: type and number of its elements, and their bytes.
fn array(kind: u32, n: u64, elements: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &n.to_le_bytes(), elements].concat()
}

fn tensor(name: &str, shape: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let mut out = [&string(name)[..], &(shape.len() as u32).to_le_bytes()].concat();
    out.extend(shape.iter().flat_map(|d| d.to_le_bytes()));
    out.extend(kind.to_le_bytes());
    out.extend(offset.to_le_bytes());
    out
}

impl Draft {
    /// A file that is right: two keys and two tensors.
    fn valid() -> Draft {
        Draft {
            magic: *b"GGUF",
            version: 3,
            counts: [None, None],
            keys: vec![
                key("general.architecture", STRING, &string("llama")),
                key("llama.block_count", U32, &2u32.to_le_bytes()),
            ],
            tensors: vec![tensor("first", &[8, 2], F32_TENSOR, 0), tensor("second", &[256], Q4_K_TENSOR, 64)],
            alignment: 32,
            data: vec![0; 64 + 160],
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let [tensors, keys] = self.counts;
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(tensors.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(keys.unwrap_or(self.keys.len() as u64).to_le_bytes());
        self.keys.iter().chain(&self.tensors).for_each(|part| out.extend(part));
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out.extend(&self.data);
        out
    }
}

/// Time of all processors that refusing a file may take at most.
const TIME: Duration = Duration::from_millis(100);

/// Memory that the program gets, the mapped file not counted.
const MEMORY: libc::rlim_t = 100 << 20;

/// Runs the program, which must not take more than that.
#[track_caller]
#[allow(clippy::zombie_processes, reason = "wait4 waits, and says what it took")]
fn run(args: &[&str]) -> Outcome {
    let mut command = program();
    command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).stdin(Stdio::null());
    // SAFETY: the call is one that may be made between fork and exec.
    unsafe {
        command.pre_exec(|| {
            let limit = libc::rlimit { rlim_cur: MEMORY, rlim_max: MEMORY };
            match libc::setrlimit(libc::RLIMIT_DATA, &raw const limit) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    let mut child = command.spawn().unwrap();
    let (mut stdout, mut stderr) = (String::new(), String::new());
    child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    let mut status = 0;
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: both pointers are valid, and nobody else waits for this child.
    let waited = unsafe { libc::wait4(child.id() as i32, &raw mut status, 0, usage.as_mut_ptr()) };
    assert_eq!(waited, child.id() as i32);
    // SAFETY: the call has filled it.
    let usage = unsafe { usage.assume_init() };
    let time = |t: libc::timeval| Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1000);
    let time = time(usage.ru_utime) + time(usage.ru_stime);
    assert!(libc::WIFEXITED(status), "{stderr}");
    assert!(time < TIME, "{time:?}: {stderr}");
    Outcome { code: libc::WEXITSTATUS(status), stdout, stderr }
}

#[track_caller]
fn info(bytes: &[u8], format: &[&str]) -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hostile.gguf");
    std::fs::write(&path, bytes).unwrap();
    run(&[&["info", &text(&path)], format].concat())
}

#[track_caller]
fn assert_refused(bytes: &[u8], code: i32, words: &[&str]) {
    let outcome = info(bytes, &[]).failure(code, &[&["hostile.gguf"], words].concat());
    assert_eq!(outcome.stdout, "");
}

/// Changes the valid file and asserts that it is refused as invalid.
#[track_caller]
fn assert_invalid(change: impl FnOnce(&mut Draft), words: &[&str]) {
    let mut draft = Draft::valid();
    change(&mut draft);
    assert_refused(&draft.bytes(), 6, words);
}

#[test]
fn the_valid_file_is_read() {
    let found = info(&Draft::valid().bytes(), &["--format", "json"]).success().json();
    assert_eq!((&found["parameter_count"], &found["num_layers"]), (&(16 + 256).into(), &2.into()));
    // Some writers do not pad the last tensor; llama.cpp does.
    let mut draft = Draft::valid();
    draft.data.truncate(64 + 144);
    info(&draft.bytes(), &[]).success();
    draft.version = 2;
    info(&draft.bytes(), &[]).success();
}

#[test]
fn magic_and_version() {
    assert_invalid(|d| d.magic = *b"GGUE", &["not a GGUF file"]);
    assert_invalid(|d| d.magic = *b"FUGG", &["not a GGUF file"]);
    assert_refused(b"", 6, &["not a GGUF file"]);
    assert_refused(b"GGU", 6, &["not a GGUF file"]);
    for (version, word) in [
        (0, "version 0"),
        (1, "version 1"),
        (4, "version 4"),
        (3u32.swap_bytes(), "big-endian"),
        (u32::MAX, "version"),
    ] {
        let draft = Draft { version, ..Draft::valid() };
        assert_refused(&draft.bytes(), 8, &[word]);
    }
}

#[test]
fn a_file_that_ends_early() {
    let whole = Draft::valid().bytes();
    let end = whole.len() - 16;
    for keep in (4..end).step_by(7).chain([end - 1]) {
        assert_refused(&whole[..keep], 6, &["byte"]);
    }
}

#[test]
fn counts_and_lengths_that_cannot_be() {
    for n in [1000, 1 << 40, i64::MAX as u64, u64::MAX] {
        assert_invalid(|d| d.counts[0] = Some(n), &["byte", "tensor count"]);
        assert_invalid(|d| d.counts[1] = Some(n), &["byte", "key count"]);
        assert_invalid(|d| d.keys[0][..8].copy_from_slice(&n.to_le_bytes()), &["byte 32", "length"]);
        let strings = [&n.to_le_bytes()[..], b"abc"].concat();
        assert_invalid(|d| d.keys.push(key("a", STRING, &strings)), &["byte", "length"]);
        assert_invalid(|d| d.keys.push(key("a", ARRAY, &array(U64, n, &[0; 64]))), &["byte", "array length"]);
        assert_invalid(
            |d| d.keys.push(key("a", ARRAY, &array(STRING, n, &[0; 64]))),
            &["byte", "array length"],
        );
        assert_invalid(
            |d| d.keys.push(key("a", ARRAY, &array(BOOL, n, &[0; 64]))),
            &["byte", "array length"],
        );
        assert_invalid(|d| d.tensors[0][..8].copy_from_slice(&n.to_le_bytes()), &["byte", "length"]);
    }
    // One key or tensor more than there is: the next part is taken for it.
    assert_invalid(|d| d.counts[1] = Some(3), &["byte"]);
    assert_invalid(|d| d.counts[0] = Some(3), &["byte"]);
}

#[test]
fn keys() {
    assert_invalid(|d| d.keys.push(d.keys[0].clone()), &["byte", "'general.architecture' appears twice"]);
    assert_invalid(|d| d.keys.push(key("", U32, &[0; 4])), &["byte", "0 bytes long"]);
    assert_invalid(|d| d.keys.push(key(&"k".repeat(65536), U32, &[0; 4])), &["byte", "'kkk", "65536"]);
    assert_invalid(
        |d| {
            let mut bad = key("ab", U32, &[0; 4]);
            bad[8] = 0xff;
            d.keys.push(bad);
        },
        &["byte", "UTF-8"],
    );
    for kind in [13, 255, u32::MAX] {
        assert_invalid(|d| d.keys.push(key("odd", kind, &[0; 8])), &["byte", "'odd'", "unknown value type"]);
        let list = array(kind, 1, &[0; 8]);
        assert_invalid(|d| d.keys.push(key("odd", ARRAY, &list)), &["byte", "'odd'", "unknown value type"]);
    }
    let nested = array(ARRAY, 1, &array(U32, 1, &[0; 4]));
    assert_invalid(|d| d.keys.push(key("nested", ARRAY, &nested)), &["byte", "'nested'", "array of arrays"]);
    for value in [2, 255] {
        assert_invalid(|d| d.keys.push(key("flag", BOOL, &[value])), &["byte", "'flag'", &value.to_string()]);
        let list = array(BOOL, 2, &[1, value]);
        assert_invalid(|d| d.keys.push(key("flag", ARRAY, &list)), &["byte", "'flag'", &value.to_string()]);
    }
}

#[test]
fn alignment() {
    for bad in [0u32, 3, 33, 1 << 17, u32::MAX] {
        let alignment = key("general.alignment", U32, &bad.to_le_bytes());
        assert_invalid(|d| d.keys.push(alignment), &["general.alignment", &bad.to_string()]);
    }
    let wide = key("general.alignment", U64, &32u64.to_le_bytes());
    assert_invalid(|d| d.keys.push(wide), &["general.alignment", "uint32"]);
    // Another one than the tensors keep.
    let larger = key("general.alignment", U32, &128u32.to_le_bytes());
    assert_invalid(|d| (d.keys.push(larger), d.alignment = 128).1, &["'second'", "128"]);
}

#[test]
fn tensors() {
    let first = |d: &mut Draft, shape: &[u64], kind: u32| d.tensors[0] = tensor("first", shape, kind, 0);
    assert_invalid(
        |d| d.tensors[1] = tensor("first", &[256], Q4_K_TENSOR, 64),
        &["byte", "'first' appears twice"],
    );
    for len in [0, 64, 300] {
        let name = "n".repeat(len);
        assert_invalid(
            |d| d.tensors[0] = tensor(&name, &[8], F32_TENSOR, 0),
            &["byte", &format!("{len} bytes")],
        );
    }
    assert_invalid(|d| first(d, &[], F32_TENSOR), &["byte", "'first' has 0 dimensions"]);
    assert_invalid(|d| first(d, &[4, 2, 2, 1, 1], F32_TENSOR), &["byte", "'first' has 5 dimensions"]);
    for shape in [
        &[0u64][..],
        &[8, 0],
        &[u64::MAX],
        &[1 << 63],
        &[1 << 32, 1 << 32],
        &[1 << 62, 1 << 62, 4],
        // As many weights as can be counted, and more bytes.
        &[1 << 62],
    ] {
        assert_invalid(|d| first(d, shape, F32_TENSOR), &["'first'"]);
    }
    for kind in [4, 5, 9, 15, 31, 200, u32::MAX] {
        assert_invalid(|d| first(d, &[8, 2], kind), &["byte", "'first' has unknown type", &kind.to_string()]);
    }
    assert_invalid(
        |d| d.tensors[1] = tensor("second", &[255], Q4_K_TENSOR, 64),
        &["byte", "'second'", "255"],
    );
    assert_invalid(
        |d| d.tensors[1] = tensor("second", &[128, 2], Q4_K_TENSOR, 64),
        &["byte", "'second'", "128"],
    );
}

#[test]
fn offsets() {
    for offset in [0, 32, 63, 65, 96, 1 << 40, u64::MAX, u64::MAX - 31] {
        assert_invalid(
            |d| d.tensors[1] = tensor("second", &[256], Q4_K_TENSOR, offset),
            &["'second'", "byte", "64"],
        );
    }
    assert_invalid(|d| d.tensors[0] = tensor("first", &[8, 2], F32_TENSOR, 32), &["'first'", "byte 32"]);
    assert_invalid(|d| d.data.truncate(64 + 143), &["'second'", "byte"]);
    assert_invalid(|d| d.data.clear(), &["'first'", "byte"]);
    assert_invalid(|d| d.data.resize(64 + 160 + 1, 0), &["bytes after its last tensor"]);
    assert_invalid(|d| d.data.resize(1 << 20, 7), &["bytes after its last tensor"]);
}

/// A file with so many zeros at the end that whatever its header claims is there: holes take no room on the disk.
fn info_of_holes(draft: &Draft, path: &Path) -> Outcome {
    let mut file = std::fs::File::create(path).unwrap();
    let bytes = draft.bytes();
    let header = bytes.len() - draft.data.len();
    file.write_all(&bytes[..header]).unwrap();
    file.set_len(4 << 30).unwrap();
    run(&["info", &text(path)])
}

#[test]
fn claims_that_a_file_full_of_zeros_makes_good() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hostile.gguf");
    let n = 1u64 << 28;
    let cases = [
        key("strings", ARRAY, &array(STRING, n, &[])),
        key("numbers", ARRAY, &array(U64, n, &[])),
        key("bytes", ARRAY, &array(0, n, &[])),
        key("flags", ARRAY, &array(BOOL, n, &[])),
        key("text", STRING, &n.to_le_bytes()),
        // The key itself.
        n.to_le_bytes().to_vec(),
    ];
    for part in cases {
        let mut draft = Draft::valid();
        draft.keys.push(part);
        draft.tensors.clear();
        draft.alignment = 1;
        info_of_holes(&draft, &path).failure(6, &["hostile.gguf", "byte"]);
    }
    let mut draft = Draft::valid();
    (draft.counts[0], draft.alignment) = (Some(1 << 26), 1);
    info_of_holes(&draft, &path).failure(6, &["hostile.gguf", "byte"]);
    (draft.counts, draft.keys) = ([Some(0), Some(1 << 27)], Vec::new());
    info_of_holes(&draft, &path).failure(6, &["hostile.gguf", "byte"]);
}

/// Keys that all are there, of a file of ten megabytes.
#[test]
fn as_many_keys_as_fit() {
    let mut draft = Draft::valid();
    draft.keys.extend((0..400_000).map(|i| key(&format!("k{i}"), U32, &[0; 4])));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hostile.gguf");
    std::fs::write(&path, draft.bytes()).unwrap();
    run(&["info", &text(&path)]).failure(6, &["hostile.gguf", "byte", "the header takes more"]);
}

/// What is computed of a model is refused like what is only looked at.
#[test]
fn conversions_and_evaluations_refuse_in_the_same_way() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hostile.gguf");
    let out = text(&dir.path().join("out"));
    let mut draft = Draft::valid();
    draft.tensors[1] = tensor("second", &[256], Q4_K_TENSOR, 32);
    std::fs::write(&path, draft.bytes()).unwrap();
    let path = text(&path);
    for args in [
        &["convert", &path, "hf", "-o", &out][..],
        &["convert", &path, "gptq", "-o", &out],
        &["evaluate", &path, "--data", &path],
    ] {
        run(args).failure(6, &["'second'", "byte 32"]);
    }
    // Nothing is wrong with this header but what it does not say.
    std::fs::write(&path, Draft::valid().bytes()).unwrap();
    for to in ["hf", "gptq"] {
        run(&["convert", &path, to, "-o", &out]).failure(6, &["embedding_length"]);
    }
    assert!(!Path::new(&out).exists() || std::fs::read_dir(&out).unwrap().next().is_none());
}

/// The failure is as good JSON as any other.
#[test]
fn refusals_as_json() {
    let failure = info(b"GGUF\x03\0\0\0", &["--format", "json"]).failure(6, &[]).json();
    assert_eq!((&failure["error_code"], &failure["error_type"]), (&6.into(), &"ValidationError".into()));
}
