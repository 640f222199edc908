//! What the tests share: where the data is, and how the program is run.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

/// The small random models, one of each family and more, with what transformers makes of them.
pub(crate) const MODELS: &[&str] = &[
    "gemma2",
    "gemma3",
    "llama",
    "llama-spm",
    "llama3-rope",
    "mistral-swa",
    "mixtral",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3-moe",
    "smollm3",
];

/// A path in `tests/data`.
pub(crate) fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(path)
}

/// The directory of a test model.
pub(crate) fn model(name: &str) -> PathBuf {
    data("models").join(name)
}

/// The importance matrix of tiny-llama.
pub(crate) fn imatrix() -> String {
    text(&data("golden/tiny-llama/imatrix.gguf"))
}

/// A path as an argument.
pub(crate) fn text(path: &Path) -> String {
    path.to_str().expect("paths of the tests are UTF-8").to_owned()
}

/// The program, in an environment that says nothing to it.
pub(crate) fn program() -> std::process::Command {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_llm-quantize"));
    for name in ["HF_HOME", "HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "RUST_LOG"] {
        command.env_remove(name);
    }
    command
}

/// What the program said and how it ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Outcome {
    /// Asserts that it ended well.
    #[track_caller]
    pub(crate) fn success(self) -> Outcome {
        assert_eq!(self.code, 0, "{}{}", self.stdout, self.stderr);
        self
    }

    /// Asserts that it failed with `code`, and said each of `words` on standard error.
    #[track_caller]
    pub(crate) fn failure(self, code: i32, words: &[&str]) -> Outcome {
        assert_eq!(self.code, code, "{}{}", self.stdout, self.stderr);
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is not in:\n{}", self.stderr);
        }
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }

    /// Standard output, which must be exactly one JSON object.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        let value: Value = serde_json::from_str(&self.stdout).expect("standard output is one JSON value");
        assert!(value.is_object(), "{value}");
        value
    }
}

/// Runs the program in the current directory.
pub(crate) fn run<S: Into<OsString> + Clone>(args: &[S]) -> Outcome {
    run_in(Path::new("."), args)
}

/// Runs the program in `dir`.
pub(crate) fn run_in<S: Into<OsString> + Clone>(dir: &Path, args: &[S]) -> Outcome {
    let mut command = program();
    command.current_dir(dir).args(args.iter().cloned().map(Into::into));
    outcome(command)
}

/// Runs a command to its end.
pub(crate) fn outcome(command: std::process::Command) -> Outcome {
    let mut command = assert_cmd::Command::from_std(command);
    // Nothing hangs. To compare two models on the whole text takes 65 s of a slow machine, twice that beside another test.
    let output =
        command.timeout(Duration::from_secs(300)).output().expect("the program starts and ends in time");
    Outcome {
        code: output.status.code().expect("the program is not killed"),
        stdout: String::from_utf8(output.stdout).expect("output is UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("output is UTF-8"),
    }
}

/// The arguments of `quantize` into `out`, on one thread unless `extra` says otherwise.
pub(crate) fn arguments(model: &Path, level: &str, out: &Path, extra: &[&str]) -> Vec<String> {
    let (model, out) = (text(model), text(out));
    let mut args = vec!["quantize", &model, "gguf", "-q", level, "-o", &out];
    if !extra.contains(&"--threads") {
        args.extend(["--threads", "1"]);
    }
    args.extend(extra);
    args.into_iter().map(String::from).collect()
}

/// Runs `quantize` into `out`.
pub(crate) fn quantize(model: &Path, level: &str, out: &Path, extra: &[&str]) -> Outcome {
    run(&arguments(model, level, out, extra))
}

/// The bytes of a quantized model.
#[track_caller]
pub(crate) fn quantized(model: &Path, level: &str, extra: &[&str]) -> Vec<u8> {
    let out = tempfile::tempdir().unwrap();
    quantize(model, level, out.path(), &[&["-n", "out.gguf"], extra].concat()).success();
    assert_eq!(entries(out.path()), ["out.gguf"], "only the result is there");
    std::fs::read(out.path().join("out.gguf")).unwrap()
}

/// The names in a directory, hidden ones included; none if it does not exist.
pub(crate) fn entries(dir: &Path) -> Vec<String> {
    let Ok(found) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut names: Vec<String> =
        found.map(|entry| entry.unwrap().file_name().into_string().expect("names are UTF-8")).collect();
    names.sort();
    names
}

/// SHA-256 in hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}
