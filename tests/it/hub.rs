//! Downloads from a Hub on this machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use llm_quantize::cancel::Cancel;
use llm_quantize::error::Kind;
use llm_quantize::progress::{Progress, Silent, Unit};
use llm_quantize::source::hub::{HubConfig, HubId, Want, cached, download};

use crate::hub_server::{COMMIT, HubServer, TOKEN, sha256};

const FIRST: &str = "model-00001-of-00002.safetensors";
const SECOND: &str = "model-00002-of-00002.safetensors";
const TEMPLATE: &str = "additional_chat_templates/tool_use.jinja";

fn noise(len: usize, seed: u32) -> Vec<u8> {
    let mut x = seed;
    let next = || {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (x >> 24) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// A model of two shards, and files that nobody needs.
fn model() -> Vec<(&'static str, Vec<u8>)> {
    let index = format!(r#"{{"weight_map":{{"a":"{FIRST}","b":"{SECOND}"}}}}"#);
    vec![
        (FIRST, noise(3_000_000, 1)),
        (SECOND, noise(700_000, 2)),
        ("model.safetensors.index.json", index.into_bytes()),
        ("config.json", b"{\"model_type\": \"llama\"}".to_vec()),
        ("tokenizer.json", noise(50_000, 3)),
        ("added_tokens.json", Vec::new()),
        (TEMPLATE, b"{{ tools }}".to_vec()),
        ("consolidated.00.safetensors", noise(100, 4)),
        ("pytorch_model.bin", noise(100, 5)),
        ("original/params.json", b"{}".to_vec()),
    ]
}

const NEEDED: &[&str] = &[
    FIRST,
    SECOND,
    "model.safetensors.index.json",
    "config.json",
    "tokenizer.json",
    "added_tokens.json",
    TEMPLATE,
];

struct Setup {
    server: HubServer,
    cache: tempfile::TempDir,
}

impl Setup {
    fn new() -> Setup {
        Setup { server: HubServer::start(&model()), cache: tempfile::tempdir().unwrap() }
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

    fn download(&self) -> llm_quantize::Result<PathBuf> {
        download(&self.config(), &id("org/tiny"), Want::Model, &Cancel::new(), &Silent)
    }

    fn folder(&self) -> PathBuf {
        self.cache.path().join("models--org--tiny")
    }
}

fn id(text: &str) -> HubId {
    HubId::parse(text).unwrap()
}

fn assert_whole(dir: &Path) {
    for (name, content) in model() {
        match NEEDED.contains(&name) {
            true => assert!(fs::read(dir.join(name)).unwrap() == content, "{name} differs"),
            false => assert!(!dir.join(name).exists(), "{name} is not needed"),
        }
    }
}

#[test]
fn a_sharded_model_is_fetched_once() {
    let hub = Setup::new();
    let dir = hub.download().unwrap();
    assert_eq!(dir, hub.folder().join("snapshots").join(COMMIT));
    assert_whole(&dir);
    assert_eq!(fs::read_to_string(hub.folder().join("refs/main")).unwrap(), COMMIT);
    assert!(hub.server.take_requests().iter().all(|r| r.authorization.is_none()));

    assert_eq!(hub.download().unwrap(), dir);
    let again = hub.server.take_requests();
    assert!(again.iter().all(|r| r.target.starts_with("/api/")), "{again:?}");
}

#[cfg(unix)]
#[test]
fn the_cache_is_laid_out_as_huggingface_hub_does() {
    let hub = Setup::new();
    let dir = hub.download().unwrap();
    for (name, up) in [(FIRST, "../.."), (TEMPLATE, "../../..")] {
        let content = model().into_iter().find(|(n, _)| *n == name).unwrap().1;
        let hash = sha256(&content);
        let etag = if name == FIRST { hash.as_str() } else { &hash[..40] };
        assert_eq!(fs::read_link(dir.join(name)).unwrap(), Path::new(&format!("{up}/blobs/{etag}")));
    }
    let blobs: Vec<_> =
        fs::read_dir(hub.folder().join("blobs")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(blobs.len(), NEEDED.len(), "{blobs:?}");
}

#[test]
fn a_connection_that_breaks_is_taken_up_again() {
    let hub = Setup::new();
    hub.server.state().cuts =
        vec![(FIRST.into(), 1_234_567), (FIRST.into(), 10), ("tokenizer.json".into(), 77)];
    assert_whole(&hub.download().unwrap());
    let ranges: Vec<String> = hub.server.take_requests().into_iter().filter_map(|r| r.range).collect();
    // How much arrived before a cut is the network's business; both cuts of the shard left something behind.
    assert!(ranges.len() >= 2, "{ranges:?}");
    assert!(ranges.contains(&"bytes=77-".to_string()), "{ranges:?}");
}

/// Leaves the first shard's beginning in the cache, as a run that was killed does.
fn leave_partial(hub: &Setup, content: &[u8]) -> PathBuf {
    let blobs = hub.folder().join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    let partial = blobs.join(format!("{}.incomplete", sha256(&model()[0].1)));
    fs::write(&partial, content).unwrap();
    partial
}

#[test]
fn a_killed_run_is_taken_up_by_the_next() {
    let hub = Setup::new();
    let partial = leave_partial(&hub, &model()[0].1[..2_000_000]);
    let progress = Counter::default();
    assert_whole(&download(&hub.config(), &id("org/tiny"), Want::Model, &Cancel::new(), &progress).unwrap());
    assert!(!partial.exists());
    let requests = hub.server.take_requests();
    let shard: Vec<_> = requests.iter().filter(|r| r.storage && r.target.ends_with(FIRST)).collect();
    assert_eq!(shard.len(), 1);
    assert_eq!(shard[0].range.as_deref(), Some("bytes=2000000-"));
    let sizes: u64 = model().iter().filter(|(n, _)| NEEDED.contains(n)).map(|(_, c)| c.len() as u64).sum();
    assert_eq!(*progress.0.lock().unwrap(), (sizes, sizes), "progress counts what was there and what came");
}

#[test]
fn an_interrupted_run_is_taken_up_by_the_next() {
    let hub = Setup::new();
    let interrupter = Interrupter::default();
    let e =
        download(&hub.config(), &id("org/tiny"), Want::Model, &interrupter.cancel, &interrupter).unwrap_err();
    assert_eq!(e.kind(), Kind::Interrupted);
    assert!(cached(&hub.config(), &id("org/tiny")).is_err());
    hub.server.take_requests();
    assert_whole(&hub.download().unwrap());
    assert!(hub.server.take_requests().iter().any(|r| r.range.is_some()));
}

#[test]
fn a_partial_file_that_is_not_the_files_beginning_is_thrown_away() {
    for wrong in [noise(2_000_000, 9), noise(3_000_000, 9), noise(4_000_000, 9)] {
        let hub = Setup::new();
        leave_partial(&hub, &wrong);
        assert_whole(&hub.download().unwrap());
    }
}

#[test]
fn a_server_without_ranges_sends_it_all_again() {
    let hub = Setup::new();
    hub.server.state().ignores_ranges = true;
    leave_partial(&hub, &model()[0].1[..2_000_000]);
    assert_whole(&hub.download().unwrap());
}

#[test]
fn damage_is_found_by_the_hash() {
    let hub = Setup::new();
    hub.server.state().damaged = vec![SECOND.into()];
    assert_whole(&hub.download().unwrap());
    let shard = |r: &crate::hub_server::Request| r.storage && r.target.ends_with(SECOND);
    assert_eq!(hub.server.take_requests().into_iter().filter(shard).count(), 2);
}

#[test]
fn damage_that_stays_is_an_error() {
    let hub = Setup::new();
    hub.server.state().damaged = vec![SECOND.into(); 2];
    let e = hub.download().unwrap_err();
    assert_eq!(e.kind(), Kind::Invalid);
    assert!(e.to_string().contains(SECOND) && e.to_string().contains("sha256"), "{e}");
    assert!(!hub.folder().join("refs/main").exists(), "an unfinished snapshot must not be promised");
}

#[test]
fn server_errors_are_tried_again() {
    let hub = Setup::new();
    hub.server.state().failures = 3;
    assert_whole(&hub.download().unwrap());
}

#[test]
fn a_server_that_stays_broken_is_given_up() {
    let hub = Setup::new();
    hub.server.state().failures = usize::MAX;
    let e = hub.download().unwrap_err();
    assert_eq!(e.kind(), Kind::Other);
    assert!(e.to_string().contains("500"), "{e}");
}

#[test]
fn a_gated_model_needs_a_token_which_only_the_hub_gets() {
    let hub = Setup::new();
    hub.server.state().gated = true;
    let e = hub.download().unwrap_err();
    assert_eq!(e.kind(), Kind::Auth);
    assert!(e.to_string().contains("gated"), "{e}");
    let hint = e.suggestion().unwrap();
    assert!(
        hint.contains("HF_TOKEN") && hint.contains(&format!("{}/org/tiny", hub.server.endpoint)),
        "{hint}"
    );
    hub.server.take_requests();

    let config = HubConfig { token: Some(TOKEN.into()), ..hub.config() };
    assert_whole(&download(&config, &id("org/tiny"), Want::Model, &Cancel::new(), &Silent).unwrap());
    let (storage, own): (Vec<_>, Vec<_>) = hub.server.take_requests().into_iter().partition(|r| r.storage);
    assert!(!storage.is_empty() && storage.iter().all(|r| r.authorization.is_none()), "{storage:?}");
    let bearer = format!("Bearer {TOKEN}");
    assert!(own.iter().all(|r| r.authorization.as_deref() == Some(bearer.as_str())), "{own:?}");
}

#[test]
fn a_token_that_is_refused_is_not_shown() {
    let hub = Setup::new();
    hub.server.state().gated = true;
    let config = HubConfig { token: Some("hf_wrong".into()), ..hub.config() };
    let e = download(&config, &id("org/tiny"), Want::Model, &Cancel::new(), &Silent).unwrap_err();
    assert_eq!(e.kind(), Kind::Auth);
    assert!(!format!("{e} {e:?} {config:?}").contains("hf_wrong"));
}

#[test]
fn what_the_hub_does_not_have_is_not_found() {
    let hub = Setup::new();
    for (name, word) in [("org/other", "org/other"), ("org/tiny@v2", "v2")] {
        let e = download(&hub.config(), &id(name), Want::Model, &Cancel::new(), &Silent).unwrap_err();
        assert_eq!(e.kind(), Kind::NotFound, "{name}: {e}");
        assert!(e.to_string().contains(word), "{e}");
    }
}

#[test]
fn a_revision_is_kept_by_its_name() {
    let hub = Setup::new();
    let dir = download(&hub.config(), &id("org/tiny@v1"), Want::Model, &Cancel::new(), &Silent).unwrap();
    assert_eq!(fs::read_to_string(hub.folder().join("refs/v1")).unwrap(), COMMIT);
    assert!(!hub.folder().join("refs/main").exists());
    let commit = id(&format!("org/tiny@{COMMIT}"));
    assert_eq!(download(&hub.config(), &commit, Want::Model, &Cancel::new(), &Silent).unwrap(), dir);
    assert_eq!(cached(&hub.config(), &commit).unwrap(), dir);
}

#[test]
fn hostile_file_names_are_refused() {
    for name in ["../evil.safetensors", "/evil.safetensors", "..\\evil.safetensors", "a/../../evil.json"] {
        let hub = Setup::new();
        hub.server.state().files.insert(name.into(), b"x".to_vec());
        let e = hub.download().unwrap_err();
        assert_eq!(e.kind(), Kind::Invalid, "{name}: {e}");
        assert!(fs::read_dir(hub.cache.path()).unwrap().next().is_none(), "{name}: something was written");
    }
}

#[test]
fn offline_only_the_cache_is_used() {
    let hub = Setup::new();
    let offline = HubConfig { offline: true, ..hub.config() };
    let tiny = id("org/tiny");
    let e = download(&offline, &tiny, Want::Model, &Cancel::new(), &Silent).unwrap_err();
    assert_eq!(e.kind(), Kind::NotFound);
    assert!(hub.server.take_requests().is_empty());

    let dir = hub.download().unwrap();
    hub.server.take_requests();
    assert_eq!(download(&offline, &tiny, Want::Model, &Cancel::new(), &Silent).unwrap(), dir);
    assert!(hub.server.take_requests().is_empty());

    // A shard that went missing makes the copy incomplete.
    fs::remove_file(dir.join(SECOND)).unwrap();
    assert_eq!(cached(&offline, &tiny).unwrap_err().kind(), Kind::NotFound);
}

#[test]
fn an_unreachable_hub_is_told_from_a_missing_model() {
    let hub = Setup::new();
    // A port that was free a moment ago.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = HubConfig { endpoint: format!("http://{closed}"), ..hub.config() };
    let e = download(&config, &id("org/tiny"), Want::Model, &Cancel::new(), &Silent).unwrap_err();
    assert_eq!(e.kind(), Kind::Other);
    assert!(e.suggestion().unwrap().contains("HF_ENDPOINT"));
    let config = HubConfig { endpoint: "no address".into(), ..hub.config() };
    assert_eq!(
        download(&config, &id("org/tiny"), Want::Model, &Cancel::new(), &Silent).unwrap_err().kind(),
        Kind::Usage
    );
}

#[test]
fn a_model_larger_than_the_disk_is_not_begun() {
    let hub = Setup::new();
    hub.server.state().announced = Some(u64::MAX / 4);
    let e = hub.download().unwrap_err();
    assert_eq!(e.kind(), Kind::Resources, "{e}");
    assert!(hub.server.take_requests().iter().all(|r| r.method == "HEAD" || r.target.starts_with("/api/")));
}

/// Counts the announced and the finished units.
#[derive(Default)]
struct Counter(Mutex<(u64, u64)>);

impl Progress for Counter {
    fn begin(&self, _: &str, total: u64, unit: Unit) {
        assert_eq!(unit, Unit::Bytes);
        self.0.lock().unwrap().0 += total;
    }
    fn advance(&self, done: u64) {
        self.0.lock().unwrap().1 += done;
    }
    fn item(&self, _: &str) {}
    fn end(&self) {}
    fn warn(&self, _: &str) {}
    fn info(&self, _: &str) {}
    fn detail(&self, _: &str) {}
}

/// Asks to stop when more has come than the small files and the second shard together: the first shard is on its way.
#[derive(Default)]
struct Interrupter {
    cancel: Cancel,
    received: AtomicU64,
}

impl Progress for Interrupter {
    fn begin(&self, _: &str, _: u64, _: Unit) {}
    fn advance(&self, done: u64) {
        if self.received.fetch_add(done, Ordering::Relaxed) + done > 1_000_000 {
            self.cancel.request();
        }
    }
    fn item(&self, _: &str) {}
    fn end(&self) {}
    fn warn(&self, _: &str) {}
    fn info(&self, _: &str) {}
    fn detail(&self, _: &str) {}
}

#[test]
fn a_description_comes_without_the_weights() {
    let hub = Setup::new();
    let dir = download(&hub.config(), &id("org/tiny"), Want::Description, &Cancel::new(), &Silent).unwrap();
    assert!(dir.join("config.json").is_file());
    let weights = std::fs::read_dir(&dir).unwrap().flatten();
    assert_eq!(weights.filter(|e| e.file_name().to_string_lossy().ends_with(".safetensors")).count(), 0);
    assert!(cached(&hub.config(), &id("org/tiny")).is_err(), "offline, the model is not there");
    assert_whole(&hub.download().unwrap());
}
