//! The program with a model's name on a Hub.

use std::fs;
use std::path::Path;

use crate::hub_server::{HubServer, TOKEN};
use crate::support::{Outcome, model, outcome, program, text};

/// The repository `org/tiny` with the files of the test model `llama`.
fn serve() -> HubServer {
    let files: Vec<(String, Vec<u8>)> = fs::read_dir(model("llama"))
        .unwrap()
        .flatten()
        .map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap()))
        .collect();
    let files: Vec<(&str, Vec<u8>)> =
        files.iter().map(|(name, content)| (name.as_str(), content.clone())).collect();
    HubServer::start(&files)
}

fn run(server: &HubServer, home: &Path, token: Option<&str>, args: &[&str]) -> Outcome {
    let mut command = program();
    command.env("HF_ENDPOINT", &server.endpoint).env("HF_HOME", home).args(args);
    if let Some(token) = token {
        command.env("HF_TOKEN", token);
    }
    outcome(command)
}

#[test]
fn a_model_is_quantized_by_its_name() {
    let (server, dir) = (serve(), tempfile::tempdir().unwrap());
    let out = text(&dir.path().join("out"));
    let args = ["quantize", "org/tiny", "gguf", "-q", "Q8_0", "-o", &out];
    run(&server, dir.path(), None, &args).success();

    // A directory of the same name gives the same file: nothing of the cache shows.
    let local = dir.path().join("tiny");
    fs::create_dir(&local).unwrap();
    for e in fs::read_dir(model("llama")).unwrap().flatten() {
        fs::copy(e.path(), local.join(e.file_name())).unwrap();
    }
    let direct = text(&dir.path().join("direct"));
    let args = ["quantize", &text(&local), "gguf", "-q", "Q8_0", "-o", &direct];
    run(&server, dir.path(), None, &args).success();
    let file = |d: &str| fs::read(Path::new(d).join("tiny-Q8_0.gguf")).unwrap();
    assert!(file(&out) == file(&direct));
}

#[test]
fn info_of_a_name_needs_no_weights() {
    let (server, dir) = (serve(), tempfile::tempdir().unwrap());
    let said = run(&server, dir.path(), None, &["info", "org/tiny"]).success();
    assert!(said.stdout.contains("LlamaForCausalLM") && said.stdout.contains("org/tiny"), "{}", said.stdout);
    let asked = server.take_requests();
    assert!(asked.iter().all(|r| !r.target.contains("model.safetensors")), "{asked:?}");
}

#[test]
fn a_gated_model_without_a_token_says_how_to_log_in() {
    let (server, dir) = (serve(), tempfile::tempdir().unwrap());
    server.state().gated = true;
    let out = text(&dir.path().join("out"));
    let args = ["quantize", "org/tiny", "gguf", "-q", "Q8_0", "-o", &out];
    run(&server, dir.path(), None, &args).failure(4, &["gated", "HF_TOKEN"]);
    assert!(!dir.path().join("out").exists());
    let said = run(&server, dir.path(), Some(TOKEN), &args).success();
    assert!(!format!("{}{}", said.stdout, said.stderr).contains(TOKEN), "the token is never printed");
}

#[test]
fn an_unknown_name_is_not_found() {
    let (server, dir) = (serve(), tempfile::tempdir().unwrap());
    run(&server, dir.path(), None, &["info", "org/other"]).failure(3, &["org/other"]);
}

#[test]
fn credentials_are_in_no_log() {
    let (server, dir) = (serve(), tempfile::tempdir().unwrap());
    server.state().gated = true;
    let run = |endpoint: &str, args: &[&str]| {
        let mut command = program();
        command.env("HF_ENDPOINT", endpoint).env("HF_HOME", dir.path()).env("HF_TOKEN", TOKEN);
        command.env("RUST_LOG", "trace").args(args);
        outcome(command)
    };
    let said = run(&server.endpoint, &["info", "org/tiny", "--verbosity", "debug"]).success();
    assert!(said.stderr.contains("TRACE") || said.stderr.contains("DEBUG"), "there is a log");
    assert!(!format!("{}{}", said.stdout, said.stderr).contains(TOKEN), "{}", said.stderr);
    for endpoint in ["http://me:secret-word@127.0.0.1:9", "me:secret-word@hub"] {
        let said = run(endpoint, &["info", "org/tiny"]).failure(2, &["HF_ENDPOINT"]);
        assert!(!said.stderr.contains("secret-word"), "{}", said.stderr);
    }
}
