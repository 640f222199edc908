//! Data sets from a Hub on this machine.

use std::path::PathBuf;
use std::time::Duration;

use llm_quantize::Result;
use llm_quantize::calib::dataset::{Dataset, Selection};
use llm_quantize::calib::rows::{Limits, Rows, Want};
use llm_quantize::cancel::Cancel;
use llm_quantize::error::Kind;
use llm_quantize::source::hub::{HubConfig, HubId};
use llm_quantize::source::tokenizer::encoder::Encoder;
use tempfile::TempDir;

use crate::data::Said;
use crate::hub_server::{COMMIT, HubServer, TOKEN};
use crate::support::{data, model};

const CARD: &str = "---
license: cc0-1.0
configs:
- config_name: news
  data_files:
  - split: train
    path: news/part-*.jsonl
  - split: test
    path: news/test.jsonl
- config_name: chat
  data_files: chat/*.parquet
---
# Text
";

fn record(text: &str) -> Vec<u8> {
    format!("{{\"text\": \"{text}\"}}\n").into_bytes()
}

fn words(seed: usize) -> String {
    (0..120).map(|i| format!("{} ", (seed * 7919 + i * 104_729) % 9973)).collect()
}

fn files() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("README.md", CARD.as_bytes().to_vec()),
        ("LICENSE.txt", b"Free.".to_vec()),
        ("news/part-0.jsonl", record(&words(1))),
        ("news/part-1.jsonl", record(&words(2))),
        ("news/part-2.jsonl", record(&words(3))),
        ("news/test.jsonl", record(&words(4))),
        ("chat/text.parquet", std::fs::read(data("datasets/text-snappy.parquet")).unwrap()),
    ]
}

struct Setup {
    server: HubServer,
    cache: TempDir,
}

impl Setup {
    fn new() -> Setup {
        Setup { server: HubServer::start(&files()), cache: tempfile::tempdir().unwrap() }
    }

    fn config(&self) -> HubConfig {
        HubConfig {
            endpoint: self.server.endpoint.clone(),
            cache: self.cache.path().to_path_buf(),
            token: None,
            offline: false,
            backoff: Duration::from_millis(2),
        }
    }

    fn rows(&self, config: Option<&str>, split: Option<&str>, want: Want) -> Result<Rows> {
        rows_from(&self.config(), "org/text", config, split, want, &Said::default())
    }

    fn folder(&self) -> PathBuf {
        self.cache.path().join("datasets--org--text")
    }

    /// The data files that were fetched since the last call.
    fn fetched(&self) -> Vec<String> {
        let mut files: Vec<String> = self
            .server
            .take_requests()
            .into_iter()
            .filter(|r| r.method == "GET" && !r.target.starts_with("/api/"))
            .map(|r| r.target.rsplit('/').next().unwrap().to_owned())
            .filter(|name| name != "README.md")
            .collect();
        files.sort();
        files.dedup();
        files
    }
}

fn rows_from(
    hub: &HubConfig,
    id: &str,
    config: Option<&str>,
    split: Option<&str>,
    want: Want,
    said: &Said,
) -> Result<Rows> {
    let selection =
        Selection { config: config.map(String::from), split: split.map(String::from), column: None };
    let cancel = Cancel::new();
    let data = Dataset::from_hub(hub, &HubId::parse(id).unwrap(), selection, &cancel, said)?;
    let encoder = Encoder::open(&model("tiny-llama")).unwrap();
    Rows::cut(&data, &encoder, Limits { context: 512, vocab: 2048 }, want, &cancel, said)
}

fn want(rows: usize, seed: Option<u64>) -> Want {
    Want { rows: Some(rows), seq_len: Some(32), seed }
}

#[test]
fn only_the_files_that_are_needed_are_fetched() {
    let hub = Setup::new();
    let first = hub.rows(Some("news"), None, want(4, None)).unwrap();
    assert_eq!(hub.fetched(), ["part-0.jsonl"]);
    let record = serde_json::to_value(&first.record).unwrap();
    assert_eq!(record["source"], "org/text");
    assert_eq!(
        (&record["revision"], &record["config"], &record["split"]),
        (&COMMIT.into(), &"news".into(), &"train".into())
    );

    let more = hub.rows(Some("news"), None, want(20, None)).unwrap();
    assert_eq!(hub.fetched(), ["part-1.jsonl"], "the first is in the cache");
    assert_eq!(more.rows[..4], first.rows);

    hub.rows(Some("news"), Some("test"), want(4, None)).unwrap();
    assert_eq!(hub.fetched(), ["test.jsonl"]);
    let link = hub.folder().join("snapshots").join(COMMIT).join("news/part-0.jsonl");
    assert!(std::fs::read_link(link).unwrap().starts_with("../../../blobs"));
    assert!(!hub.folder().join("snapshots").join(COMMIT).join("LICENSE.txt").exists());
}

#[test]
fn large_files_come_from_the_storage_and_are_checked() {
    let hub = Setup::new();
    hub.server.state().damaged = vec!["chat/text.parquet".into()];
    hub.server.state().cuts = vec![("chat/text.parquet".into(), 100)];
    let rows = hub.rows(Some("chat"), None, want(4, None)).unwrap();
    assert_eq!(rows.rows.len(), 4);
    assert_eq!(rows.record.split.as_deref(), Some("train"));
}

#[test]
fn a_seed_shuffles_the_files_and_repeats() {
    let hub = Setup::new();
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..12 {
        let hub = Setup::new();
        let drawn = hub.rows(Some("news"), None, want(4, Some(seed))).unwrap();
        let fetched = hub.fetched();
        assert_eq!(fetched.len(), 1, "{fetched:?}");
        seen.extend(fetched);
        assert_eq!(hub.rows(Some("news"), None, want(4, Some(seed))).unwrap(), drawn);
    }
    assert_eq!(seen.len(), 3, "{seen:?}");
    let all = hub.rows(Some("news"), None, want(1000, Some(1))).unwrap();
    assert_eq!(hub.fetched().len(), 3);
    assert!(all.record.rows > 20);
}

#[test]
fn what_the_data_set_does_not_have_is_told() {
    let hub = Setup::new();
    for (config, split, words) in
        [(None, None, "news"), (Some("sport"), None, "news"), (Some("news"), Some("validation"), "train")]
    {
        let e = hub.rows(config, split, want(4, None)).unwrap_err();
        assert_eq!(e.kind(), Kind::Usage, "{e}");
        assert!(e.suggestion().unwrap().contains(words), "{e:?}");
    }
    let e = rows_from(&hub.config(), "org/other", None, None, want(4, None), &Said::default()).unwrap_err();
    assert_eq!(e.kind(), Kind::NotFound);
    assert!(e.to_string().contains("no data set org/other"), "{e}");
}

#[test]
fn hostile_names_are_refused() {
    for name in ["../evil.jsonl", "/evil.jsonl", "a/../../evil.jsonl"] {
        let hub = Setup::new();
        hub.server.state().files.insert(name.into(), b"x".to_vec());
        let e = hub.rows(Some("news"), None, want(4, None)).unwrap_err();
        assert_eq!(e.kind(), Kind::Invalid, "{name}: {e}");
        assert!(std::fs::read_dir(hub.cache.path()).unwrap().next().is_none(), "{name}");
    }
}

#[test]
fn a_gated_data_set_needs_a_token() {
    let hub = Setup::new();
    hub.server.state().gated = true;
    let e = hub.rows(Some("news"), None, want(4, None)).unwrap_err();
    assert_eq!(e.kind(), Kind::Auth, "{e}");
    assert!(e.suggestion().unwrap().contains("/datasets/org/text"), "{e:?}");
    let config = HubConfig { token: Some(TOKEN.into()), ..hub.config() };
    rows_from(&config, "org/text@v1", Some("news"), None, want(4, None), &Said::default()).unwrap();
}

#[test]
fn offline_the_cache_is_used_and_it_is_said() {
    let hub = Setup::new();
    let offline = HubConfig { offline: true, ..hub.config() };
    let of = |said: &Said| rows_from(&offline, "org/text", Some("news"), None, want(4, None), said);
    assert_eq!(of(&Said::default()).unwrap_err().kind(), Kind::NotFound);
    let rows = hub.rows(Some("news"), None, want(4, None)).unwrap();
    hub.server.take_requests();
    let said = Said::default();
    assert_eq!(of(&said).unwrap(), rows);
    assert!(hub.server.take_requests().is_empty());
    assert!(said.warnings.into_inner().unwrap()[0].starts_with("Offline: "));
}
