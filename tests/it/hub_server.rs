//! A Hub on this machine: as much of its interface as a download uses, and the ways in which it fails.
//!
//! Like the real one it keeps large files on another server (here another port), to which it redirects.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};

use sha2::{Digest, Sha256};

/// The commit that `main` and `v1` are.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// The token that opens a gated repository.
pub(crate) const TOKEN: &str = "hf_testtoken";

/// What a test can set, and what it can look at afterwards.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    /// Files need [`TOKEN`].
    pub(crate) gated: bool,
    /// The next answers with this file's content break off after so many bytes.
    pub(crate) cuts: Vec<(String, usize)>,
    /// The next so many requests are answered with status 500.
    pub(crate) failures: usize,
    /// The storage sends the whole file whatever range is asked for.
    pub(crate) ignores_ranges: bool,
    /// The next answers with these files' content have a wrong byte.
    pub(crate) damaged: Vec<String>,
    /// The size that large files are said to have.
    pub(crate) announced: Option<u64>,
    pub(crate) requests: Vec<Request>,
}

/// One request that was seen.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) range: Option<String>,
    pub(crate) authorization: Option<String>,
    /// Whether it came to the storage rather than to the Hub itself.
    pub(crate) storage: bool,
}

/// The running server; it lives as long as the test process.
pub(crate) struct HubServer {
    pub(crate) endpoint: String,
    state: Arc<Mutex<State>>,
}

impl HubServer {
    /// Starts a server that has these files, as the model `org/tiny` and as the data set `org/text`.
    pub(crate) fn start(files: &[(&str, Vec<u8>)]) -> HubServer {
        let files = files.iter().map(|(name, content)| (name.to_string(), content.clone())).collect();
        let state = Arc::new(Mutex::new(State { files, ..State::default() }));
        let [hub, storage] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let address = |l: &TcpListener| format!("http://{}", l.local_addr().unwrap());
        let (endpoint, storage_address) = (address(&hub), address(&storage));
        for (listener, is_storage) in [(hub, false), (storage, true)] {
            let (state, storage_address) = (state.clone(), storage_address.clone());
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let (state, storage_address) = (state.clone(), storage_address.clone());
                    std::thread::spawn(move || serve(stream, is_storage, &state, &storage_address));
                }
            });
        }
        HubServer { endpoint, state }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// What was asked since the last call.
    pub(crate) fn take_requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.state().requests)
    }
}

struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    cut: Option<usize>,
}

impl Answer {
    fn new(status: u16, body: impl Into<Vec<u8>>) -> Answer {
        Answer { status, headers: vec![], body: body.into(), cut: None }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Answer {
        self.headers.push((name, value.into()));
        self
    }
}

fn serve(stream: TcpStream, storage: bool, state: &Mutex<State>, storage_address: &str) {
    let mut reader = BufReader::new(&stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap_or(0);
    let mut words = line.split_whitespace().map(String::from);
    let (Some(method), Some(target)) = (words.next(), words.next()) else { return };
    let mut request = Request { method, target, range: None, authorization: None, storage };
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header).unwrap_or(0) == 0 || header.trim().is_empty() {
            break;
        }
        let Some((name, value)) = header.trim().split_once(':') else { continue };
        match name.to_ascii_lowercase().as_str() {
            "range" => request.range = Some(value.trim().to_string()),
            "authorization" => request.authorization = Some(value.trim().to_string()),
            _ => {}
        }
    }
    let answer = {
        let mut state = state.lock().unwrap();
        state.requests.push(request.clone());
        if state.failures > 0 {
            state.failures -= 1;
            Answer::new(500, "")
        } else if storage {
            content(&mut state, &request, request.target.trim_start_matches('/'))
        } else {
            hub(&mut state, &request, storage_address)
        }
    };
    let _ = send(&stream, &request, &answer);
}

fn send(mut stream: &TcpStream, request: &Request, answer: &Answer) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", answer.status);
    head += &format!("Content-Length: {}\r\n", answer.body.len());
    for (name, value) in &answer.headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all((head + "\r\n").as_bytes())?;
    if request.method != "HEAD" {
        stream.write_all(&answer.body[..answer.cut.unwrap_or(answer.body.len())])?;
    }
    stream.flush()
}

fn hub(state: &mut State, request: &Request, storage_address: &str) -> Answer {
    let (target, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
    let not_found = |code: &str| Answer::new(404, "{}").with("X-Error-Code", code);
    if let Some(rest) = target.strip_prefix("/api/models/org/tiny") {
        return match rest.split('/').collect::<Vec<_>>()[..] {
            [""] | ["", "revision", "main" | "v1" | COMMIT] => {
                Answer::new(200, format!(r#"{{"_id":"1","id":"org/tiny","sha":"{COMMIT}"}}"#))
            }
            ["", "tree", COMMIT] => Answer::new(200, tree(state, "")),
            ["", "tree", COMMIT, folder] => Answer::new(200, tree(state, folder)),
            _ => not_found("RevisionNotFound"),
        };
    }
    if let Some(rest) = target.strip_prefix("/api/datasets/org/text") {
        return match rest.split('/').collect::<Vec<_>>()[..] {
            [""] | ["", "revision", "main" | "v1" | COMMIT] => {
                Answer::new(200, format!(r#"{{"_id":"2","id":"org/text","sha":"{COMMIT}"}}"#))
            }
            ["", "tree", COMMIT] if query.contains("recursive=true") => Answer::new(200, all_files(state)),
            _ => not_found("RevisionNotFound"),
        };
    }
    let of = |repo: &str| target.strip_prefix(&format!("/{repo}/resolve/{COMMIT}/"));
    let Some(path) = of("org/tiny").or_else(|| of("datasets/org/text")) else {
        return not_found("RepoNotFound");
    };
    if state.gated && request.authorization.as_deref() != Some(&format!("Bearer {TOKEN}")) {
        return Answer::new(401, "")
            .with("X-Error-Code", "GatedRepo")
            .with("X-Error-Message", "Access is restricted.");
    }
    match state.files.get(path) {
        None => not_found("EntryNotFound"),
        Some(content) if is_large(path) => Answer::new(302, "")
            .with("Location", format!("{storage_address}/{path}"))
            .with("X-Repo-Commit", COMMIT)
            .with("X-Linked-Size", state.announced.unwrap_or(content.len() as u64).to_string())
            .with("X-Linked-Etag", format!("\"{}\"", sha256(content))),
        Some(_) => content(state, request, path).with("X-Repo-Commit", COMMIT),
    }
}

fn content(state: &mut State, request: &Request, path: &str) -> Answer {
    let Some(whole) = state.files.get(path) else { return Answer::new(404, "") };
    let mut body = whole.clone();
    let size = body.len();
    if request.method == "GET"
        && let Some(i) = state.damaged.iter().position(|name| name == path)
    {
        state.damaged.remove(i);
        body[0] ^= 1;
    }
    let range = request.range.as_ref().filter(|_| !state.ignores_ranges);
    let from: Option<usize> =
        range.map(|r| r.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap());
    let mut answer = match from {
        Some(from) => Answer::new(206, body.split_off(from))
            .with("Content-Range", format!("bytes {from}-{}/{size}", size - 1)),
        None => Answer::new(200, body),
    };
    if request.method == "GET"
        && let Some(i) = state.cuts.iter().position(|(name, _)| name == path)
    {
        answer.cut = Some(state.cuts.remove(i).1);
    }
    answer.with("ETag", "\"the-storage-has-names-of-its-own\"")
}

fn tree(state: &State, folder: &str) -> String {
    let mut folders = Vec::new();
    let mut entries = Vec::new();
    for (path, content) in &state.files {
        match path.rsplit_once('/').filter(|_| !path.contains("..") && !path.starts_with('/')) {
            Some((parent, _)) if parent != folder => {
                if folder.is_empty() && !folders.contains(&parent) {
                    folders.push(parent);
                    entries.push(format!(r#"{{"type":"directory","oid":"d","path":"{parent}"}}"#));
                }
            }
            None if !folder.is_empty() => {}
            _ => entries.push(file(state, path, content)),
        }
    }
    format!("[{}]", entries.join(","))
}

fn all_files(state: &State) -> String {
    let files: Vec<String> = state.files.iter().map(|(path, content)| file(state, path, content)).collect();
    format!("[{}]", files.join(","))
}

fn file(state: &State, path: &str, content: &[u8]) -> String {
    format!(
        r#"{{"type":"file","oid":"{}","size":{},"path":{path:?}{}}}"#,
        &sha256(content)[..40],
        state.announced.filter(|_| is_large(path)).unwrap_or(content.len() as u64),
        if is_large(path) { r#","lfs":{"oid":"x","size":1,"pointerSize":1}"# } else { "" },
    )
}

fn is_large(path: &str) -> bool {
    path.ends_with(".safetensors") || path.ends_with(".parquet")
}

pub(crate) fn sha256(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|b| format!("{b:02x}")).collect()
}
