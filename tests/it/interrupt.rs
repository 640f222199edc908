//! A signal in the middle of the work: the right exit code, and nothing left behind.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::checkpoint::Case;
use crate::support::{arguments, data, entries, program, text};

/// Whether the temporary file of the output is there.
fn has_started(case: &Case) -> bool {
    entries(&case.out()).iter().any(|name| name.starts_with('.') && name.ends_with(".tmp"))
}

fn stop(child: &Child, signal: libc::c_int) {
    let pid = libc::pid_t::try_from(child.id()).unwrap();
    // SAFETY: the process is our child and has not been waited for, so its id is still its own.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

#[track_caller]
fn assert_stops(case: &Case, signal: libc::c_int, format: &[&str]) -> String {
    let args = arguments(&case.model(), "Q2_K", &case.out(), &[&["--simd", "portable"], format].concat());
    let mut child = program()
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let deadline = Instant::now() + Duration::from_secs(60);
    while !has_started(case) {
        assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none(), "it never began to write");
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(50));
    stop(&child, signal);
    let signalled = Instant::now();
    let output = child.wait_with_output().unwrap();
    assert!(signalled.elapsed() < Duration::from_secs(10), "it stops soon");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8(text).unwrap();
    assert_eq!(output.status.code(), Some(130), "{text}");
    assert_eq!(entries(&case.out()), [""; 0], "nothing is left behind");
    text
}

#[test]
fn an_evaluation_can_be_stopped() {
    let case = Case::large();
    let mut child = program()
        .args(["evaluate", &text(&case.model()), "--data", &text(&data("text/evaluation.txt"))])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("Computing") {
        line.clear();
        assert!(stderr.read_line(&mut line).unwrap() > 0, "it never began to compute");
    }
    std::thread::sleep(Duration::from_millis(200));
    let signalled = Instant::now();
    stop(&child, libc::SIGINT);
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest}");
    assert!(signalled.elapsed() < Duration::from_secs(20), "it stops soon");
    assert!(rest.contains("interrupted"), "{rest}");
}

/// The first signal waits until the tokens at hand have gone through the layer; the second does not.
#[test]
fn a_second_signal_ends_the_program_at_once_and_harms_nothing() {
    let case = Case::large();
    let output = case.out().join("q.json");
    std::fs::create_dir(case.out()).unwrap();
    let (model, data, out) = (text(&case.model()), text(&data("text/evaluation.txt")), text(&output));
    // One batch of tokens, for which a layer takes about a second here.
    let args =
        ["evaluate", &model, "--data", &data, "--ctx", "128", "--chunks", "16", "-o", &out, "--threads", "1"];
    let start = || {
        let mut command = program();
        command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts")
    };
    let mut child = start();
    let state = case.out().join("q.json.checkpoint/checkpoint.json");
    while !state.exists() {
        assert!(child.try_wait().unwrap().is_none(), "there never was a checkpoint");
        std::thread::sleep(Duration::from_millis(2));
    }
    stop(&child, libc::SIGINT);
    std::thread::sleep(Duration::from_millis(30));
    stop(&child, libc::SIGTERM);
    let signalled = Instant::now();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(signalled.elapsed() < Duration::from_secs(2), "it leaves at once: {:?}", signalled.elapsed());
    assert_eq!(entries(&case.out()), ["q.json.checkpoint"]);
    let output = start().wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.contains("of 4 layers are done"), "{said}");
    assert_eq!(entries(&case.out()), ["q.json"]);
}

/// The result is complete when it is measured, and has no name yet.
#[test]
fn a_conversion_can_be_stopped_and_harms_nothing() {
    let case = Case::large();
    std::fs::create_dir(case.out()).unwrap();
    let old = case.out().join("r.gguf");
    std::fs::write(&old, "old").unwrap();
    let (source, out, evaluation) =
        (text(&case.model()), text(&case.out()), text(&data("text/evaluation.txt")));
    let mut child = program()
        .args(["convert", &source, "gguf", "-q", "Q8_0", "-o", &out, "-n", "r", "--force"])
        .args(["--evaluate", "--data", &evaluation])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("Computing") {
        line.clear();
        assert!(stderr.read_line(&mut line).unwrap() > 0, "it never began to compute");
    }
    stop(&child, libc::SIGTERM);
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest}");
    assert_eq!(
        (entries(&case.out()), std::fs::read(&old).unwrap()),
        (vec!["r.gguf".into(), "r.gguf.checkpoint".into()], b"old".to_vec())
    );
}

#[test]
fn signals_leave_nothing_behind() {
    let case = Case::large();
    let text = assert_stops(&case, libc::SIGINT, &[]);
    assert!(text.contains("interrupted"), "{text}");
    assert_stops(&case, libc::SIGTERM, &[]);
    let text = assert_stops(&case, libc::SIGINT, &["--format", "json"]);
    assert!(text.contains(r#""error_code": 130"#) && text.contains(r#""Interrupted""#), "{text}");
}
