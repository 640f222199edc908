//! What a stranger's files and other programs must not be able to do: the tests behind `docs/threats.md` that have no place
//! elsewhere.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::sync::Arc;

use flate2::write::GzEncoder;
use parquet::basic::{Compression, GzipLevel, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::json;

use crate::checkpoint::{Case, Llama};
use crate::support::{data, entries, outcome, program, run, text};

const SMALL: Llama = Llama {
    hidden: 64,
    layers: 1,
    heads: 2,
    kv_heads: 1,
    head_dim: 32,
    feed_forward: 64,
    vocab: 512,
    tied: true,
};

/// Puts a file of the model elsewhere, and a link in its place.
fn move_out(case: &Case, name: &str) {
    let elsewhere = case.out().with_file_name("elsewhere");
    fs::create_dir_all(&elsewhere).unwrap();
    match case.file(name).exists() {
        true => fs::rename(case.file(name), elsewhere.join(name)).unwrap(),
        false => fs::write(elsewhere.join(name), "the user's own").unwrap(),
    }
    symlink(Path::new("../elsewhere").join(name), case.file(name)).unwrap();
}

#[test]
fn links_out_of_the_model_are_not_followed() {
    for name in
        ["config.json", "tokenizer.json", "model.safetensors", "tokenizer_config.json", "chat_template.jinja"]
    {
        let case = Case::generate(&SMALL, 1);
        move_out(&case, name);
        case.refused("Q8_0", &[], 6, &[name, "out of the model's directory"]);
    }
    for name in ["quantize_config.json", "model.safetensors"] {
        let case = Case::generate(&SMALL, 1);
        move_out(&case, name);
        run(&["info", &text(&case.model())]).failure(6, &[name, "out of the model's directory"]);
    }
    // What is copied beside the weights would be published with them.
    let case = Case::generate(&SMALL, 1);
    move_out(&case, "LICENSE");
    let out = text(&case.out());
    let data = text(&data("text/evaluation.txt"));
    let model = text(&case.model());
    let args = [
        "quantize",
        &model,
        "awq",
        "-q",
        "4bit",
        "--group-size",
        "32",
        "--calibration-data",
        &data,
        "-o",
        &out,
    ];
    let few = ["--seq-len", "16", "--calibration-samples", "2"];
    run(&[&args[..], &few].concat()).failure(6, &["LICENSE", "out of the model's directory"]);
    assert_eq!(entries(&case.out()), [""; 0]);

    // A link within the model is a file of the model.
    let case = Case::generate(&SMALL, 1);
    fs::create_dir(case.file("files")).unwrap();
    fs::rename(case.file("model.safetensors"), case.file("files/weights")).unwrap();
    symlink("files/weights", case.file("model.safetensors")).unwrap();
    case.quantize("Q8_0", &[]).success();
}

#[test]
fn outputs_have_the_permissions_that_the_user_wants() {
    for (umask, file, dir) in [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)] {
        let case = Case::generate(&SMALL, 1);
        let run = |args: &[&str]| {
            let mut command = program();
            command.args(args);
            // SAFETY: the call may be made between fork and exec.
            unsafe {
                command.pre_exec(move || {
                    libc::umask(umask);
                    Ok(())
                });
            }
            outcome(command).success()
        };
        let (model, out) = (text(&case.model()), text(&case.out()));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        run(&["quantize", &model, "gguf", "-q", "Q8_0", "-o", &out]);
        assert_eq!(mode(&case.out().join("model-Q8_0.gguf")), file);
        let gguf = text(&case.out().join("model-Q8_0.gguf"));
        run(&["convert", &gguf, "hf", "--dtype", "f16", "-n", "copy", "-o", &out]);
        let copy = case.out().join("copy");
        assert_eq!(mode(&copy), dir);
        for name in entries(&copy) {
            assert_eq!(mode(&copy.join(&name)), file, "{name}");
        }
    }
}

#[test]
fn a_template_sees_no_files_and_comes_to_an_end() {
    for (template, word) in [
        ("{% include '/etc/passwd' %}", "chat template"),
        ("{% import '/etc/passwd' as x %}{{ x }}", "chat template"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "refuses it"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "come to an end"),
        ("{% for m in messages %}{{ m.content * 99999999 }}{% endfor %}", "refuses it"),
    ] {
        let case = Case::generate(&SMALL, 1);
        case.edit("tokenizer_config.json", |config| config["chat_template"] = json!(template));
        let (model, out) = (text(&case.model()), text(&case.out().with_extension("gguf")));
        let chats = text(&data("datasets/messages.jsonl"));
        let args = ["analyze", "importance", &model, "--calibration-data", &chats, "--ctx", "16", "-o", &out];
        let said = run(&args);
        assert!([6, 8].contains(&said.code), "{template}: {said:?}");
        let said = said.failure(if word == "chat template" { 8 } else { 6 }, &[word]);
        assert!(!said.stderr.contains("root:"), "{}", said.stderr);
    }
}

/// A Parquet file with a column of these texts.
fn parquet(path: &Path, texts: &[ByteArray], compression: Compression) {
    let schema = parse_message_type("message m { REQUIRED BYTE_ARRAY text (UTF8); }").unwrap();
    let properties = WriterProperties::builder().set_compression(compression).build();
    let file = File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, Arc::new(schema), Arc::new(properties)).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<ByteArrayType>().write_batch(texts, None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
}

#[test]
fn a_little_that_unpacks_to_much_is_refused() {
    let case = Case::generate(&SMALL, 1);
    let dir = tempfile::tempdir().unwrap();
    let read = |name: &str| {
        let (model, data) = (text(&case.model()), text(&dir.path().join(name)));
        let out = text(&dir.path().join("out.gguf"));
        run(&[
            "analyze",
            "importance",
            &model,
            "--calibration-data",
            &data,
            "--ctx",
            "16",
            "--chunks",
            "1",
            "-o",
            &out,
        ])
    };
    let line = format!("{{\"text\": \"{}\"}}\n", "la ".repeat(10_000_000));
    for name in ["bomb.txt.gz", "bomb.jsonl.gz", "bomb.json.gz"] {
        let mut file =
            GzEncoder::new(File::create(dir.path().join(name)).unwrap(), flate2::Compression::best());
        file.write_all(line.as_bytes()).unwrap();
        file.finish().unwrap();
        read(name).failure(6, &[name, "more than 100 times its size"]);
    }
    let bomb = ByteArray::from(line.as_str());
    for (name, compression) in
        [("gzip", Compression::GZIP(GzipLevel::default())), ("zstd", Compression::ZSTD(ZstdLevel::default()))]
    {
        let name = format!("{name}.parquet");
        parquet(&dir.path().join(&name), std::slice::from_ref(&bomb), compression);
        read(&name).failure(6, &[&name, "more than 100 times its size"]);
    }
    // Half a million rows of the same text are a few bytes.
    let same = vec![ByteArray::from("the same text again and again"); 500_000];
    parquet(&dir.path().join("rows.parquet"), &same, Compression::UNCOMPRESSED);
    let args = |model: &str, data: &str| ["evaluate", model, "--data", data].map(String::from);
    run(&args(&text(&case.model()), &text(&dir.path().join("rows.parquet"))))
        .failure(6, &["rows.parquet", "more than 100 times its size"]);
    // As much as usual is not.
    let usual: Vec<ByteArray> = (0..2000)
        .map(|i| ByteArray::from(format!("{i}: the text of row {i}, which is like others").as_str()))
        .collect();
    parquet(&dir.path().join("usual.parquet"), &usual, Compression::GZIP(GzipLevel::default()));
    read("usual.parquet").success();
}
