//! Requests to the Hub: what a repository holds through hf-hub, files through the HTTP client that it is built on.

use std::time::Duration;

use hf_hub::repository::{RepoTreeEntry, RepoTypeDataset, RepoTypeModel};
use hf_hub::{HFClient, HFError, HFRepositorySync, HFResult};
use reqwest::blocking::Response;
use reqwest::header::{ACCEPT_ENCODING, ETAG, HeaderMap, LOCATION, RANGE, RETRY_AFTER, USER_AGENT};
use reqwest::{Method, StatusCode, Url};

use super::listing::{Content, RemoteFile, TEMPLATES};
use super::refusal::{Asked, Refusal, root};
use super::{HubConfig, HubId, RepoKind, is_commit};
use crate::cancel::Cancel;
use crate::error::{Error, Kind, Result};

/// How often a request is tried that fails for reasons that pass.
pub(super) const ATTEMPTS: u32 = 5;

const AGENT: &str = concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION"));
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// For the headers of an answer, and for each piece of its body.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
const MAX_REDIRECTS: usize = 10;
/// More entries than that in the root of a model's repository are no model.
const MAX_ENTRIES: usize = 10_000;
/// Of the largest data sets no more files are seen than that.
const MAX_DATA_ENTRIES: usize = 100_000;

/// Why a request gave nothing.
pub(super) enum Failure {
    /// Another attempt would fail as well.
    Final(Error),
    /// Another attempt may succeed; the server may say how long to wait before it.
    Passing(Error, Option<Duration>),
}

/// The Hub, as far as one repository is concerned.
pub(super) struct Client<'a> {
    pub(super) config: &'a HubConfig,
    pub(super) id: &'a HubId,
    cancel: &'a Cancel,
    endpoint: Url,
    repository: Repository,
    http: reqwest::blocking::Client,
}

enum Repository {
    Model(HFRepositorySync<RepoTypeModel>),
    Dataset(HFRepositorySync<RepoTypeDataset>),
}

impl<'a> Client<'a> {
    pub(super) fn new(
        config: &'a HubConfig,
        id: &'a HubId,
        kind: RepoKind,
        cancel: &'a Cancel,
    ) -> Result<Self> {
        let asked = Asked { id, config, kind };
        let endpoint = Url::parse(&config.endpoint)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            .ok_or_else(|| {
                let shown = if config.endpoint.contains('@') { "(hidden)" } else { &config.endpoint };
                Error::new(Kind::Usage, format!("HF_ENDPOINT is no address: {shown:?}"))
            })?;
        if !endpoint.username().is_empty() || endpoint.password().is_some() {
            // It would be part of messages and logs.
            return Err(Error::new(Kind::Usage, "HF_ENDPOINT holds a user name or password")
                .hint("Leave them out; the token is in HF_TOKEN, and a proxy has HTTPS_PROXY."));
        }
        if config.token.as_ref().is_some_and(|t| !t.bytes().all(|b| b.is_ascii_graphic())) {
            return Err(Error::new(Kind::Auth, "the token for the Hub has characters that no token has")
                .hint("Set HF_TOKEN again, or run `hf auth login`."));
        }
        let build = || -> reqwest::Result<_> {
            let agent: HeaderMap =
                [(USER_AGENT, reqwest::header::HeaderValue::from_static(AGENT))].into_iter().collect();
            let mut api = reqwest::Client::builder()
                .default_headers(agent.clone())
                .connect_timeout(CONNECT_TIMEOUT)
                .read_timeout(READ_TIMEOUT);
            // Redirects are followed below, where it is clear whom the token goes to.
            let mut http = reqwest::blocking::Client::builder()
                .default_headers(agent)
                .redirect(reqwest::redirect::Policy::none())
                .connect_timeout(CONNECT_TIMEOUT)
                .timeout(READ_TIMEOUT);
            if endpoint.host_str().is_some_and(|h| matches!(h, "localhost" | "127.0.0.1" | "[::1]")) {
                (api, http) = (api.no_proxy(), http.no_proxy());
            }
            Ok((api.build()?, http.build()?))
        };
        let (api, http) = build().map_err(|e| {
            Error::new(Kind::Other, format!("cannot set up HTTPS: {}", root(&e)))
                .hint("Install the system's certificates (ca-certificates), or pass a local directory.")
        })?;
        let mut builder = HFClient::builder()
            .client(api)
            .endpoint(config.endpoint.as_str())
            .retry_base_delay(config.backoff);
        if let Some(token) = &config.token {
            builder = builder.token(token.as_str());
        }
        let client = builder.build_sync().map_err(|e| asked.failed(e))?;
        let (org, name) = hf_hub::split_id(&id.repo);
        let repository = match kind {
            RepoKind::Model => Repository::Model(client.model(org, name)),
            RepoKind::Dataset => Repository::Dataset(client.dataset(org, name)),
        };
        Ok(Client { config, id, cancel, endpoint, repository, http })
    }

    pub(super) fn asked(&self) -> Asked<'_> {
        Asked { id: self.id, config: self.config, kind: self.kind() }
    }

    fn kind(&self) -> RepoKind {
        match self.repository {
            Repository::Model(_) => RepoKind::Model,
            Repository::Dataset(_) => RepoKind::Dataset,
        }
    }

    /// The commit that the revision is now.
    pub(super) fn commit(&self) -> Result<String> {
        let sha = self.query(|| {
            let (revision, sha) = (self.id.revision.clone(), vec!["sha".into()]);
            Ok(match &self.repository {
                Repository::Model(model) => model.info().maybe_revision(revision).expand(sha).send()?.sha,
                Repository::Dataset(data) => data.info().maybe_revision(revision).expand(sha).send()?.sha,
            })
        })?;
        sha.filter(|sha| is_commit(sha)).ok_or_else(|| self.asked().strange("no commit for the revision"))
    }

    /// What lies in the root of a model's repository and in its folder of chat templates; all that a data set has.
    pub(super) fn files(&self, commit: &str) -> Result<Vec<RepoTreeEntry>> {
        let model = match &self.repository {
            Repository::Model(model) => model,
            Repository::Dataset(data) => {
                return self.query(|| {
                    data.list_tree().revision(commit).recursive(true).limit(MAX_DATA_ENTRIES).send()
                });
            }
        };
        let list = |folder: Option<&str>| {
            self.query(|| {
                let list = model.list_tree().revision(commit).limit(MAX_ENTRIES);
                list.maybe_path_in_repo(folder).send()
            })
        };
        let mut entries = list(None)?;
        if entries.iter().any(|e| matches!(e, RepoTreeEntry::Directory { path, .. } if path == TEMPLATES)) {
            entries.extend(list(Some(TEMPLATES))?);
        }
        Ok(entries)
    }

    /// hf-hub repeats requests that get no answer; answers that break off it does not.
    fn query<T>(&self, request: impl Fn() -> HFResult<T>) -> Result<T> {
        let broke_off = |e: &HFError| {
            matches!(e, HFError::Request { source, .. }
                if source.is_body() || (source.is_decode() && !is_json(source)))
        };
        let mut attempt = 1;
        loop {
            self.go_on()?;
            match request() {
                Err(e) if broke_off(&e) && attempt < ATTEMPTS => {
                    std::thread::sleep(self.wait(attempt));
                    attempt += 1;
                }
                answer => return answer.map_err(|e| self.asked().failed(e)),
            }
        }
    }

    /// An error once the user has asked to stop.
    pub(super) fn go_on(&self) -> Result<()> {
        self.cancel.check().map_err(|e| {
            let message = format!("the download of {} was interrupted", self.id);
            Error::new(e.kind(), message).hint("Run again: the download goes on where it stopped.")
        })
    }

    /// How long to wait after failed attempt number `attempt`, the first being 1.
    pub(super) fn wait(&self, attempt: u32) -> Duration {
        self.config.backoff.saturating_mul(2u32.saturating_pow(attempt.saturating_sub(1)))
    }

    fn url(&self, commit: &str, path: &str) -> Url {
        let mut url = self.endpoint.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments
                .pop_if_empty()
                .extend(self.kind().address())
                .extend(self.id.repo.split('/'))
                .extend(["resolve", commit])
                .extend(path.split('/'));
        }
        url
    }

    /// The name of a file's content, which is its blob's name: for large files their sha256.
    pub(super) fn etag(&self, commit: &str, file: &RemoteFile) -> Result<String, Failure> {
        let etag = match &file.content {
            Content::Git(oid) => oid.clone(),
            Content::Large => {
                let answer = self.send(Method::HEAD, self.url(commit, &file.path), 0)?;
                let header = |name: &str| answer.headers().get(name).and_then(|v| v.to_str().ok());
                let size = header("x-linked-size").and_then(|v| v.parse::<u64>().ok());
                if size.is_some_and(|size| size != file.size) {
                    let what =
                        format!("{} has two sizes, {} and {}", file.path, file.size, size.unwrap_or(0));
                    return Err(Failure::Final(self.asked().strange(&what)));
                }
                let etag = header("x-linked-etag").or_else(|| header(ETAG.as_str())).unwrap_or_default();
                etag.trim_start_matches("W/").trim_matches('"').to_string()
            }
        };
        let usable =
            (1..=128).contains(&etag.len()) && etag.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        usable
            .then_some(etag)
            .ok_or_else(|| Failure::Final(self.asked().strange(&format!("no usable ETag for {}", file.path))))
    }

    /// The content of a file from byte `from` on, if the server can; the caller looks at the status.
    pub(super) fn content(&self, commit: &str, path: &str, from: u64) -> Result<Response, Failure> {
        self.send(Method::GET, self.url(commit, path), from)
    }

    fn send(&self, method: Method, start: Url, from: u64) -> Result<Response, Failure> {
        let mut url = start;
        for _ in 0..=MAX_REDIRECTS {
            let own = url.origin() == self.endpoint.origin();
            let mut request =
                self.http.request(method.clone(), url.clone()).header(ACCEPT_ENCODING, "identity");
            if let Some(token) = self.config.token.as_ref().filter(|_| own) {
                request = request.bearer_auth(token);
            }
            if from > 0 {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            let answer = request.send().map_err(|e| Failure::Passing(self.asked().unreachable(&e), None))?;
            if !answer.status().is_redirection() {
                return self.checked(answer, own);
            }
            let next = answer.headers().get(LOCATION).and_then(|v| url.join(v.to_str().ok()?).ok());
            let next = next.filter(|next| next.scheme() == url.scheme() || next.scheme() == "https");
            let next = next.ok_or_else(|| Failure::Final(self.asked().strange("a redirect to nowhere")))?;
            // The storage behind the Hub has other names for the content; the Hub's own are in its redirect.
            if method == Method::HEAD && next.origin() != self.endpoint.origin() {
                return Ok(answer);
            }
            url = next;
        }
        Err(Failure::Final(self.asked().strange("redirects without end")))
    }

    fn checked(&self, answer: Response, own: bool) -> Result<Response, Failure> {
        let status = answer.status();
        // A range that the file does not have is the caller's to mend.
        if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(answer);
        }
        let header = |name: &str| answer.headers().get(name).and_then(|v| v.to_str().ok());
        let refusal = Refusal {
            status: status.as_u16(),
            code: header("x-error-code"),
            message: header("x-error-message"),
        };
        let error = self.asked().refused(&refusal);
        let passing = status.is_server_error()
            || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
            // The storage refuses when the signature in its address has expired; the Hub gives a new one.
            || (!own && status == StatusCode::FORBIDDEN);
        if !passing {
            return Err(Failure::Final(error));
        }
        let wait = header(RETRY_AFTER.as_str()).and_then(|v| v.parse().ok());
        Err(Failure::Passing(error, wait.map(|s: u64| Duration::from_secs(s.min(120)))))
    }
}

fn is_json(e: &reqwest::Error) -> bool {
    std::error::Error::source(e).is_some_and(|s| s.is::<serde_json::Error>())
}
