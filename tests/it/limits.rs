//! Limits on memory, and files that change while they are read.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::checkpoint::Case;
use crate::support::{arguments, data, entries, model, outcome, program, run, sha256, text};

/// The number before a word.
fn number_before(text: &str, word: &str) -> u64 {
    let before =
        text.split(word).next().filter(|before| before.len() < text.len()).expect("the word is there");
    before.rsplit([' ', '(']).next().unwrap().parse().unwrap()
}

/// A job that is refused with the memory that it needs at least fits into just that: the system would end it otherwise. The bytes
/// are those of a run that may take what it wants.
#[track_caller]
fn assert_fits_what_it_asks_for(job: &[&str], out: &str, too_little: &str, says: Option<&str>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(out);
    let at = |limit: &str| {
        let place = match job[0] {
            "quantize" => text(dir.path()),
            _ => text(&path),
        };
        let limit = ["--memory-limit", limit];
        let limit = if limit[1].is_empty() { &[][..] } else { &limit };
        run(&[job, &["-o", &place, "--threads", "2"], limit].concat())
    };
    let bytes = || match path.is_dir() {
        true => entries(&path).iter().map(|name| sha256(&std::fs::read(path.join(name)).unwrap())).collect(),
        false => vec![sha256(&std::fs::read(&path).unwrap())],
    };
    let remove = || match path.is_dir() {
        true => std::fs::remove_dir_all(&path).unwrap(),
        false => std::fs::remove_file(&path).unwrap(),
    };
    at("").success();
    let expected = bytes();
    remove();
    let refused =
        at(too_little).failure(5, &["not enough memory", "missing", "--memory-limit", "Give it more memory"]);
    assert_eq!(entries(dir.path()), [""; 0], "nothing is left");
    let needed = number_before(&refused.stderr, " bytes are needed");
    assert!(number_before(&refused.stderr, " missing)") < needed, "{}", refused.stderr);
    let ended = at(&needed.to_string()).success();
    if let Some(words) = says {
        assert!(ended.stderr.contains(words), "{}", ended.stderr);
    }
    assert_eq!(entries(dir.path()), [out]);
    if !out.ends_with(".json") {
        assert!(bytes() == expected, "other bytes");
    }
}

#[test]
fn gptq_and_awq_fit_the_memory_that_they_ask_for() {
    let (model, data) = (text(&model("tiny-llama")), text(&data("text/evaluation.txt")));
    let rows = [
        "--calibration-data",
        &data,
        "--calibration-samples",
        "12",
        "--seq-len",
        "128",
        "--group-size",
        "32",
    ];
    for format in ["gptq", "awq"] {
        let job = [&["quantize", &model, format, "-q", "4bit", "-n", "q"], &rows[..]].concat();
        assert_fits_what_it_asks_for(&job, "q", "60MB", Some("going on as with --offload"));
    }
}

#[test]
fn tuning_fits_the_memory_that_it_asks_for() {
    let (model, data) = (text(&model("tiny-llama")), text(&data("text/evaluation.txt")));
    // With many short rows those that are held out are more than those of a step.
    for (by, rows, tokens) in [("block", "16", "128"), ("global", "16", "128"), ("global", "256", "16")] {
        let job = [
            "quantize",
            &model,
            "gptq",
            "-q",
            "3bit",
            "-n",
            "q",
            "--group-size",
            "32",
            "--calibration-data",
            &data,
            "--calibration-samples",
            rows,
            "--seq-len",
            tokens,
            "--tune",
            by,
            "--tune-steps",
            "4",
        ];
        assert_fits_what_it_asks_for(&job, "q", "60MB", None);
    }
}

#[test]
fn other_jobs_fit_the_memory_that_they_ask_for() {
    let (model, data) = (text(&model("tiny-llama")), text(&data("text/evaluation.txt")));
    assert_fits_what_it_asks_for(
        &["quantize", &model, "gguf", "-q", "F32", "-n", "q"],
        "q.gguf",
        "30MB",
        None,
    );
    let texts = ["--calibration-data", &data, "--chunks", "4"];
    assert_fits_what_it_asks_for(
        &[&["analyze", "importance", &model], &texts[..]].concat(),
        "q.gguf",
        "60MB",
        None,
    );
    let evaluation =
        ["evaluate", &model, "--reference", &model, "--data", &data, "--ctx", "128", "--chunks", "8"];
    assert_fits_what_it_asks_for(&evaluation, "q.json", "80MB", None);
    let place = tempfile::tempdir().unwrap();
    let nowhere = [&evaluation[..], &["--memory-limit", "80MB"]].concat();
    run(&nowhere).failure(5, &["not enough memory", "--checkpoint-dir"]);
    assert_eq!(entries(place.path()), [""; 0]);
    run(&["info", &model, "--memory-limit", "much"]).failure(2, &["--memory-limit", "512MB"]);
}

/// Memory that the system refuses in the middle of the work is an orderly end.
#[test]
fn memory_that_cannot_be_had_is_an_error_with_the_right_code() {
    let (dir, model, data) =
        (tempfile::tempdir().unwrap(), text(&model("tiny-llama")), text(&data("text/evaluation.txt")));
    let out = text(dir.path());
    let args = [
        "quantize",
        &model,
        "gptq",
        "-q",
        "4bit",
        "-o",
        &out,
        "-n",
        "q",
        "--threads",
        "1",
        "--calibration-data",
        &data,
    ];
    for format in ["human", "json"] {
        let ours = program();
        let mut command = Command::new("sh");
        // Kilobytes: enough to begin with, and not for the activations.
        command.args(["-c", "ulimit -d 30000 && exec \"$@\"", "sh"]).arg(ours.get_program()).args(args);
        command.args(["--seq-len", "128", "--calibration-samples", "12", "--format", format]);
        for (name, _) in ours.get_envs() {
            command.env_remove(name);
        }
        let ended = outcome(command);
        assert_eq!(ended.code, 5, "{}{}", ended.stdout, ended.stderr);
        if format == "json" {
            let value = ended.json();
            assert_eq!((&value["error_code"], &value["error_type"]), (&5.into(), &"ResourceError".into()));
            assert!(
                value["message"].as_str().unwrap().starts_with("out of memory: the system does not give")
            );
        } else {
            assert!(ended.stderr.contains("Error: out of memory"), "{}", ended.stderr);
        }
        assert!(!dir.path().join("q").exists());
    }
    run(&[&args[..], &["--group-size", "32", "--seq-len", "32", "--calibration-samples", "2"]].concat())
        .success();
    assert_eq!(entries(dir.path()), ["q"], "what was left is gone");
}

/// A page of a mapped file that is gone would end the program by SIGBUS.
#[test]
fn a_model_that_becomes_shorter_is_an_error_of_the_model() {
    let case = Case::large();
    let args = arguments(&case.model(), "Q2_K", &case.out(), &["--simd", "portable"]);
    let mut child = program()
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let deadline = Instant::now() + Duration::from_secs(60);
    while !entries(&case.out()).iter().any(|name| name.ends_with(".tmp")) {
        assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none(), "it never began to write");
        std::thread::sleep(Duration::from_millis(5));
    }
    let weights = std::fs::OpenOptions::new().write(true).open(case.file("model.safetensors")).unwrap();
    weights.set_len(1 << 20).unwrap();
    let ended = crate::stop::ended(child);
    ended.failure(6, &["model.safetensors", "became shorter", "byte", "must not change during a run"]);
    assert!(!entries(&case.out()).iter().any(|name| name.ends_with(".gguf")));
}
