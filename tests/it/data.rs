//! Calibration data: files, directories and the built-in text to rows of tokens.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Mutex;

use clap::Parser;
use flate2::{Compression, write::GzEncoder};
use llm_quantize::Result;
use llm_quantize::calib::rows::{DEFAULT_ROWS, Limits, Rows};
use llm_quantize::calib::{builtin, dataset::Dataset};
use llm_quantize::cancel::Cancel;
use llm_quantize::cli::data::DataArgs;
use llm_quantize::error::Kind;
use llm_quantize::progress::{Progress, Unit};
use llm_quantize::source::tokenizer::encoder::{Encoder, SpecialTokens};
use llm_quantize::source::vocab::ChatTemplate;
use tempfile::TempDir;

use crate::support::{data, model, text};

/// A command line with the options of calibration data only.
#[derive(Parser)]
struct Line {
    #[command(flatten)]
    data: DataArgs,
}

/// What was said on the way.
#[derive(Default)]
pub(crate) struct Said {
    pub(crate) warnings: Mutex<Vec<String>>,
    pub(crate) messages: Mutex<Vec<String>>,
}

impl Progress for Said {
    fn begin(&self, _: &str, _: u64, _: Unit) {}
    fn advance(&self, _: u64) {}
    fn item(&self, _: &str) {}
    fn end(&self) {}
    fn warn(&self, message: &str) {
        self.warnings.lock().unwrap().push(message.to_owned());
    }
    fn info(&self, message: &str) {
        self.messages.lock().unwrap().push(message.to_owned());
    }
    fn detail(&self, _: &str) {}
}

const LIMITS: Limits = Limits { context: 512, vocab: 2048 };

fn encoder() -> Encoder {
    Encoder::open(&model("tiny-llama")).unwrap()
}

/// The same tokenizer for a model that wants BOS and has a chat template.
fn chat_encoder() -> Encoder {
    let template =
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}\n{% endfor %}";
    let plain = encoder();
    let special = SpecialTokens {
        add_bos: true,
        chat_template: Some(ChatTemplate::One(template.into())),
        ..plain.special().clone()
    };
    Encoder::new(plain.tokenizer().clone(), special)
}

/// Rows with the options of a command line, and what was warned of.
fn rows_of(encoder: &Encoder, limits: Limits, options: &[&str]) -> (Result<Rows>, Vec<String>) {
    let line = Line::try_parse_from([&["test"], options].concat()).unwrap();
    let said = Said::default();
    let rows = line.data.rows(encoder, limits, &Cancel::new(), &said);
    (rows, said.warnings.into_inner().unwrap())
}

fn rows(options: &[&str]) -> Result<Rows> {
    rows_of(&encoder(), LIMITS, options).0
}

/// Files that a test writes.
struct Files(TempDir);

impl Files {
    fn new() -> Files {
        Files(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        text(&path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

/// Lines of text that differ.
fn prose(lines: usize) -> String {
    (0..lines).map(|i| format!("Line {i}: the cat number {} sat on the mat of {}.\n", i * 7, i * i)).collect()
}

#[test]
fn a_plain_text_gives_its_windows_in_order() {
    let files = Files::new();
    let content = prose(200);
    let path = files.write("a.txt", &content);
    let ids = encoder().encode(&content).unwrap();
    let Rows { rows, record } =
        rows(&["--calibration-data", &path, "--calibration-samples", "10", "--seq-len", "64"]).unwrap();
    assert_eq!(rows.concat(), ids[..640]);
    assert!(rows.iter().all(|row| row.len() == 64));
    assert_eq!((record.source.as_str(), record.seed), ("a.txt", None), "no directory is told");
    assert_eq!((record.rows, record.seq_len, record.tokens), (10, 64, 640));
    let bytes: Vec<u8> = ids[..640].iter().flat_map(|id| id.to_le_bytes()).collect();
    assert_eq!(record.sha256, sha256(&bytes));
    let json = serde_json::to_value(&record).unwrap();
    assert_eq!(json["seed"], serde_json::Value::Null);
    assert!(json.get("revision").is_none() && json.get("split").is_none(), "{json}");
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn every_kind_of_file_gives_the_same_rows() {
    let files = Files::new();
    let samples = [prose(40), "Zwei Sätze. “Quoted”\nand a tab\t.".to_owned(), prose(3)];
    let quoted: Vec<String> = samples.iter().map(|s| serde_json::to_string(s).unwrap()).collect();
    let lines =
        |key: &str| quoted.iter().map(|q| format!("{{\"id\": 1, \"{key}\": {q}}}\n")).collect::<String>();
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(lines("text").as_bytes()).unwrap();
    let directory = files.path("dir");
    fs::create_dir(&directory).unwrap();
    for (i, sample) in samples.iter().enumerate() {
        fs::write(directory.join(format!("{i}.txt")), sample).unwrap();
    }
    fs::write(directory.join("notes.pdf"), b"\xff").unwrap();
    fs::write(directory.join(".hidden.txt"), b"\xff").unwrap();

    let of = |path: &str, extra: &[&str]| {
        let options = ["--calibration-data", path, "--seq-len", "32"];
        let rows = rows(&[&options, extra].concat()).unwrap();
        assert!(!rows.rows.is_empty());
        rows.rows
    };
    let expected = of(&text(&directory), &[]);
    let ids = encoder().encode(&samples.join("\n\n")).unwrap();
    assert_eq!(expected[0], ids[..32]);
    for (name, content, extra) in [
        ("text.jsonl", lines("text").into_bytes(), &[][..]),
        ("content.jsonl", lines("content").into_bytes(), &[]),
        ("story.jsonl", lines("story").into_bytes(), &["--text-column", "story"]),
        ("strings.jsonl", (quoted.join("\n\n") + "\n").into_bytes(), &[]),
        ("bom.jsonl", ["\u{feff}", &lines("text")].concat().into_bytes(), &[]),
        ("lines.json", lines("text").into_bytes(), &[]),
        ("packed.json.gz", packed.finish().unwrap(), &[]),
        ("list.json", format!("[{}]", quoted.join(",")).into_bytes(), &[]),
        ("object.json", format!("{{\n\"texts\": [{}]\n}}", quoted.join(",\n")).into_bytes(), &[]),
        ("records.json", format!("[{}]", lines("text").trim().replace('\n', ",")).into_bytes(), &[]),
    ] {
        assert_eq!(of(&files.write(name, content), extra), expected, "{name}");
    }
}

/// Written by pyarrow: `tests/data/README.md` says how.
#[test]
fn parquet_files_are_read_whatever_their_compression() {
    let of = |name: &str, extra: &[&str]| {
        let path = text(&data("datasets").join(name));
        let options = ["--calibration-data", path.as_str(), "--seq-len", "16"];
        rows_of(&chat_encoder(), LIMITS, &[&options, extra].concat()).0.unwrap().rows
    };
    let plain = of("text-snappy.parquet", &[]);
    assert!(plain.len() > 20);
    for name in ["text-zstd.parquet", "text-gzip.parquet", "text-none.parquet", "text.jsonl"] {
        assert_eq!(of(name, &[]), plain, "{name}");
    }
    assert_eq!(of("messages.parquet", &[]), of("messages.jsonl", &[]));
    assert_eq!(
        of("messages.parquet", &["--text-column", "summary"]),
        of("messages.jsonl", &["--text-column", "summary"])
    );
}

#[test]
fn conversations_go_through_the_chat_template() {
    let files = Files::new();
    let line = r#"{"messages": [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "A <|bos|> cat."}]}"#;
    let path = files.write("chat.jsonl", [line, "\n", line].concat());
    let encoder = chat_encoder();
    let options = ["--calibration-data", path.as_str(), "--seq-len", "8"];
    let rows = rows_of(&encoder, LIMITS, &options).0.unwrap().rows;
    let text = "<|bos|>[user] Who are you?<|eos|>\n[assistant] A <|bos|> cat.<|eos|>\n";
    let ids = encoder.encode_with_special(text).unwrap();
    assert_eq!(
        ids.iter().filter(|id| **id == 1).count(),
        2,
        "the template's end of a turn is a special token"
    );
    assert_eq!(rows[0], ids[..8], "no second BOS is put before the template's own");
    assert!(rows.iter().all(|row| row[0] == 0), "every row begins with BOS: {rows:?}");

    let strict = "{% for m in messages %}{{ raise_exception('No ' + m.role) if m.role == 'tool' else m.content }}{% endfor %}";
    let special =
        SpecialTokens { chat_template: Some(ChatTemplate::One(strict.into())), ..encoder.special().clone() };
    let strict = Encoder::new(encoder.tokenizer().clone(), special);
    let tool = files.write("tool.jsonl", [line, "\n", &line.replace("assistant", "tool")].concat());
    let e = rows_of(&strict, LIMITS, &["--calibration-data", &tool]).0.unwrap_err();
    assert_eq!(e.kind(), Kind::Invalid);
    assert!(e.to_string().contains("sample 2") && e.to_string().contains("No tool"), "{e}");

    let (refused, _) = rows_of(&self::encoder(), LIMITS, &options);
    let e = refused.unwrap_err();
    assert_eq!(e.kind(), Kind::Unsupported);
    assert!(e.to_string().contains("no chat template"), "{e}");
}

#[test]
fn a_model_with_bos_gets_it_before_each_text_and_row() {
    let files = Files::new();
    let path =
        files.write("a.json", r#"["One two three.", "Four five six seven eight nine ten eleven twelve."]"#);
    let encoder = chat_encoder();
    let options = ["--calibration-data", path.as_str(), "--seq-len", "6"];
    let rows = rows_of(&encoder, LIMITS, &options).0.unwrap().rows;
    let mut stream = [&[0], &encoder.encode("One two three.").unwrap()[..]].concat();
    stream.push(0);
    stream.extend(encoder.encode("Four five six seven eight nine ten eleven twelve.").unwrap());
    let mut rest = &stream[..];
    for row in rows {
        let own = if rest[0] == 0 { &row[..] } else { &row[1..] };
        assert_eq!((row[0], row.len()), (0, 6));
        assert_eq!(own, &rest[..own.len()], "no token is lost");
        rest = &rest[own.len()..];
    }
    assert!(rest.len() < 6);
}

#[test]
fn a_seed_draws_rows_without_replacement_from_the_whole() {
    let files = Files::new();
    let path = files.write("a.txt", prose(400));
    let of =
        |extra: &[&str]| rows(&[&["--calibration-data", &path, "--seq-len", "32"], extra].concat()).unwrap();
    let all = of(&["--calibration-samples", "100000"]).rows;
    let place = |row: &Vec<u32>| all.iter().position(|other| other == row).unwrap();
    let drawn = of(&["--calibration-samples", "20", "--seed", "7"]);
    assert_eq!(drawn.record.seed, Some(7));
    let places: Vec<usize> = drawn.rows.iter().map(place).collect();
    assert!(places.is_sorted_by(|a, b| a < b), "each once, in the order of the text: {places:?}");
    assert!(places[19] > all.len() / 2, "not only from the start: {places:?}");
    assert_eq!(of(&["--calibration-samples", "20", "--seed", "7"]), drawn);
    assert_ne!(of(&["--calibration-samples", "20", "--seed", "8"]).rows, drawn.rows);
    // The draw itself is fixed by a test of the generator; here, that it is used as it is.
    let mut reservoir = llm_quantize::calib::random::Reservoir::new(20, 7);
    (0..all.len()).for_each(|i| reservoir.offer(i));
    assert_eq!(places, reservoir.into_items());
    assert_eq!(of(&["--calibration-samples", "100000", "--seed", "7"]).rows, all);
}

#[test]
fn the_built_in_text_is_used_and_said() {
    let line = Line::try_parse_from(["test", "--calibration-samples", "16", "--seq-len", "128"]).unwrap();
    let said = Said::default();
    let rows = line.data.rows(&encoder(), LIMITS, &Cancel::new(), &said).unwrap();
    let messages = said.messages.into_inner().unwrap().join("\n");
    let expected = format!("No --calibration-data: using the built-in text ({} kB)", builtin::size() / 1000);
    assert!(messages.contains(&expected), "{messages}");
    assert_eq!(rows.record.source, "built-in");
    assert_eq!(rows.rows.len(), 16);
    let all =
        rows_of(&encoder(), LIMITS, &["--seq-len", "128", "--calibration-samples", "100000"]).0.unwrap().rows;
    let places: Vec<usize> =
        rows.rows.iter().map(|row| all.iter().position(|other| other == row).unwrap()).collect();
    let gaps: Vec<usize> = places.windows(2).map(|w| w[1] - w[0]).collect();
    assert!(gaps.iter().max().unwrap() - gaps.iter().min().unwrap() <= 1, "spread evenly: {places:?}");
    assert!(all.len() > 400, "{}", all.len());

    let (rows, warnings) = rows_of(&encoder(), Limits { context: 8192, ..LIMITS }, &[]);
    let record = rows.unwrap().record;
    assert_eq!(record.seq_len, 2048);
    assert!((20..DEFAULT_ROWS).contains(&record.rows) && warnings.is_empty(), "{record:?} {warnings:?}");
    let (_, warnings) =
        rows_of(&encoder(), Limits { context: 8192, ..LIMITS }, &["--calibration-samples", "500"]);
    assert!(warnings[0].contains("500 were wanted"), "{warnings:?}");
}

#[test]
fn what_the_user_should_know_is_warned_of() {
    let files = Files::new();
    let sample = prose(30);
    let json = serde_json::json!([sample, "", " \n", sample, "another one"]).to_string();
    let path = files.write("a.json", json);
    let (rows, warnings) = rows_of(&encoder(), LIMITS, &["--calibration-data", &path, "--seq-len", "64"]);
    assert!(!rows.unwrap().rows.is_empty());
    let expected = ["2 of 5 samples are empty", "1 of 5 samples repeat another", "256 were wanted"];
    assert_eq!(warnings.len(), expected.len(), "{warnings:?}");
    for (warning, words) in warnings.iter().zip(expected) {
        assert!(warning.contains(words), "{warning}");
    }
}

#[test]
fn a_bad_file_is_an_error_that_says_where() {
    let files = Files::new();
    let deep = "[".repeat(100_000);
    let cases: &[(&str, &[u8], &[&str])] = &[
        ("empty.txt", b"", &["empty.txt is empty"]),
        ("blank.txt", b" \n\n\t", &["blank.txt is empty"]),
        ("empty.jsonl", b"\n", &["empty.jsonl is empty"]),
        ("empty.json", b"", &["empty.json is empty"]),
        ("empty-list.json", b"[]", &["empty-list.json has no text"]),
        ("short.txt", b"Too short.", &["short.txt has", "no row of 512"]),
        ("latin.txt", b"caf\xe9 au lait", &["latin.txt is not UTF-8", "0xe9", "offset 3"]),
        ("latin.jsonl", b"{\"text\": \"a\"}\n{\"text\": \"\xe9\"}\n", &["not UTF-8", "offset 24"]),
        ("cut.jsonl", b"{\"text\": \"a\"}\n\n{\"text\": \"b", &["cut.jsonl, line 3", "invalid JSON"]),
        ("cut.json", b"[\"a\",\n\"b", &["cut.json: invalid JSON in line 2"]),
        ("deep.json", deep.as_bytes(), &["invalid JSON", "recursion"]),
        ("deep.jsonl", deep.as_bytes(), &["line 1", "recursion"]),
        (
            "columns.jsonl",
            b"{\"text\": \"a\"}\n{\"story\": \"a\", \"id\": 1}",
            &["line 2", "found: story, id"],
        ),
        ("number.jsonl", b"17", &["line 1", "a number"]),
        ("number.json", b"17", &["a number"]),
        ("torn.json.gz", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff\x01", &["no intact gzip"]),
        ("no.json.gz", b"[\"a\"]", &["no intact gzip"]),
        ("no.parquet", b"PAR1 but not really PAR1", &["no intact Parquet"]),
        ("empty.parquet", b"", &["no intact Parquet"]),
    ];
    for (name, content, words) in cases {
        let path = files.write(name, content);
        let e = rows(&["--calibration-data", &path]).unwrap_err();
        assert_eq!(e.kind(), Kind::Invalid, "{name}: {e}");
        for word in *words {
            assert!(e.to_string().contains(word), "{name}: {word:?} is not in {e}");
        }
    }
    let path = text(&data("datasets/messages.parquet"));
    let e = rows(&["--calibration-data", &path, "--text-column", "prompt"]).unwrap_err();
    assert!(e.to_string().contains("found: id, summary, messages"), "{e}");
}

#[test]
fn damaged_parquet_files_are_errors() {
    let whole = fs::read(data("datasets/messages.parquet")).unwrap();
    let files = Files::new();
    let mut seed = 1u64;
    let mut next = |n: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % n
    };
    let encoder = chat_encoder();
    let mut refused = 0;
    for i in 0..600 {
        let mut bytes = whole.clone();
        match i % 3 {
            0 => bytes.truncate(next(whole.len())),
            1 => bytes[next(whole.len())] ^= 1 << next(8),
            _ => (0..20).for_each(|_| bytes[next(whole.len())] = next(256) as u8),
        }
        let path = files.write("damaged.parquet", &bytes);
        let (rows, _) = rows_of(&encoder, LIMITS, &["--calibration-data", &path, "--seq-len", "16"]);
        match rows {
            // A letter may have become another.
            Ok(_) => {}
            Err(e) => {
                assert_eq!(e.kind(), Kind::Invalid, "{e}");
                refused += 1;
            }
        }
    }
    assert!(refused > 300, "{refused}");
}

#[test]
fn what_is_not_there_or_not_wanted_is_refused() {
    let files = Files::new();
    let plain = files.write("a.txt", prose(50));
    let csv = files.write("a.csv", "a,b\n");
    let empty = text(files.0.path()) + "/sub";
    fs::create_dir(&empty).unwrap();
    let missing = text(&files.path("missing.txt"));
    for (options, kind, word) in [
        (&["--calibration-data", missing.as_str()][..], Kind::NotFound, "missing.txt"),
        (&["--calibration-data", "data/missing.jsonl"], Kind::NotFound, "data/missing.jsonl"),
        (&["--calibration-data", "no such thing"], Kind::NotFound, "no such thing"),
        (&["--calibration-data", &csv], Kind::Unsupported, "a.csv"),
        (&["--calibration-data", &empty], Kind::Invalid, "has no .txt"),
        (&["--calibration-data", &plain, "--seq-len", "513"], Kind::Usage, "context of 512"),
        (&["--calibration-data", &plain, "--seq-len", "1"], Kind::Usage, "too short"),
        (&["--calibration-data", &plain, "--calibration-samples", "0"], Kind::Usage, "no calibration rows"),
        (&["--calibration-data", &plain, "--text-column", "text"], Kind::Usage, "no columns"),
        (&["--calibration-data", &plain, "--dataset-split", "train"], Kind::Usage, "no data set of the Hub"),
        (&["--dataset-split", "train"], Kind::Usage, "--dataset-split is of no use"),
        (&["--text-column", "a"], Kind::Usage, "--text-column is of no use"),
    ] {
        let e = rows(options).unwrap_err();
        assert_eq!(e.kind(), kind, "{options:?}: {e}");
        assert!(e.to_string().contains(word), "{e}");
    }
    assert_eq!(Kind::NotFound as u8, 3);
}

#[cfg(unix)]
#[test]
fn a_file_that_may_not_be_read_is_an_error() {
    let files = Files::new();
    // The root user may read everything; a directory in place of the file cannot be read by anyone.
    fs::create_dir(files.path("d")).unwrap();
    fs::create_dir(files.path("d/a.txt")).unwrap();
    let e = rows(&["--calibration-data", &text(&files.path("d"))]).unwrap_err();
    assert_eq!(e.kind(), Kind::Invalid, "{e}");
    std::os::unix::fs::symlink(files.path("gone"), files.path("link.txt")).unwrap();
    let e = rows(&["--calibration-data", &text(&files.path("link.txt"))]).unwrap_err();
    assert_eq!(e.kind(), Kind::NotFound, "{e}");
}

#[test]
fn tokens_that_the_model_does_not_have_are_refused() {
    let files = Files::new();
    let path = files.write("a.txt", prose(50));
    let limits = Limits { vocab: 300, ..LIMITS };
    let e = rows_of(&encoder(), limits, &["--calibration-data", &path]).0.unwrap_err();
    assert_eq!(e.kind(), Kind::Invalid);
    assert!(e.to_string().contains("vocabulary ends at 300"), "{e}");
}

#[test]
fn the_context_caps_the_default_length_and_it_is_said() {
    let files = Files::new();
    let path = files.write("a.txt", prose(500));
    let line = Line::try_parse_from(["test", "--calibration-data", &path]).unwrap();
    let said = Said::default();
    let rows = line.data.rows(&encoder(), LIMITS, &Cancel::new(), &said).unwrap();
    assert_eq!(rows.record.seq_len, 512);
    let messages = said.messages.into_inner().unwrap();
    assert!(messages.iter().any(|m| m.contains("512 tokens, the model's context")), "{messages:?}");
}

#[test]
fn an_interruption_stops_the_reading() {
    let cancel = Cancel::new();
    cancel.request();
    let said = Said::default();
    let want = llm_quantize::calib::rows::Want::default();
    let e = Rows::cut(&Dataset::built_in(), &encoder(), LIMITS, want, &cancel, &said).unwrap_err();
    assert_eq!(e.kind(), Kind::Interrupted);
}
