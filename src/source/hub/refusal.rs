//! What the Hub's refusals and a failing network mean to the user.

use hf_hub::HFError;

use super::{HubConfig, HubId, RepoKind};
use crate::error::{Error, Kind};

/// Who asked for what: enough to say what an answer means.
pub(super) struct Asked<'a> {
    pub(super) id: &'a HubId,
    pub(super) config: &'a HubConfig,
    pub(super) kind: RepoKind,
}

/// The part of an answer that tells why the Hub refuses.
pub(super) struct Refusal<'a> {
    pub(super) status: u16,
    /// The header `X-Error-Code`.
    pub(super) code: Option<&'a str>,
    /// The header `X-Error-Message`.
    pub(super) message: Option<&'a str>,
}

impl Asked<'_> {
    fn page(&self) -> String {
        let mut page = self.config.endpoint.trim_end_matches('/').to_owned();
        page.extend(self.kind.address().map(|part| format!("/{part}")));
        page + "/" + &self.id.repo
    }

    /// The error for an answer that is no success.
    pub(super) fn refused(&self, refusal: &Refusal<'_>) -> Error {
        let (id, repo) = (self.id, &self.id.repo);
        let said = refusal.message.map(|m| format!(" (the server says: {})", plain(m))).unwrap_or_default();
        match (refusal.status, refusal.code) {
            (401 | 403, Some("GatedRepo")) => Error::new(
                Kind::Auth,
                format!("{repo} is gated: it can be downloaded once its licence is accepted{said}"),
            )
            .hint(format!("Accept the licence at {}, then {}.", self.page(), self.log_in())),
            (401, _) if self.config.token.is_none() => Error::new(
                Kind::Auth,
                format!("{repo} is private or gated and needs a login, or does not exist{said}"),
            )
            .hint(format!(
                "Check the name; if it is right, {}. For a gated model accept the licence at {} first.",
                self.log_in(),
                self.page()
            )),
            (401 | 403, _) => {
                Error::new(Kind::Auth, format!("the Hub refuses access to {repo}{said}")).hint(format!(
                    "Use a token that may read it: {}. For a gated model accept the licence at {} first.",
                    self.log_in(),
                    self.page()
                ))
            }
            (404, Some("RevisionNotFound")) => self.no_revision(),
            (404, Some("EntryNotFound")) => {
                Error::new(Kind::NotFound, format!("a file that {id} lists is not there{said}"))
                    .hint("Try again; the repository may just have changed.")
            }
            (404, _) => self.no_repo(),
            (429, _) => Error::new(Kind::Other, format!("the Hub asks to slow down{said}"))
                .hint(format!("Wait some minutes; or {}, which raises the limit.", self.log_in())),
            (status, _) => Error::new(Kind::Other, format!("the Hub answered {status} for {id}{said}"))
                .hint("Try again later; a broken download goes on where it stopped."),
        }
    }

    fn log_in(&self) -> &'static str {
        "log in (`export HF_TOKEN=...` or `hf auth login`)"
    }

    fn no_repo(&self) -> Error {
        let (noun, repo, endpoint) = (self.kind.noun(), &self.id.repo, &self.config.endpoint);
        Error::new(Kind::NotFound, format!("there is no {noun} {repo} at {endpoint}"))
            .hint("Check the name: organization/name, as in the address of its page.")
    }

    fn no_revision(&self) -> Error {
        let (repo, revision) = (&self.id.repo, self.id.revision());
        Error::new(Kind::NotFound, format!("{repo} has no revision {revision:?}"))
            .hint(format!("Its branches and tags are listed at {}/tree/main", self.page()))
    }

    /// The error for a request that got no answer.
    pub(super) fn unreachable(&self, cause: &dyn std::error::Error) -> Error {
        Error::new(Kind::Other, format!("cannot reach the Hub at {}: {}", self.config.endpoint, root(cause)))
            .hint(
                "Check the connection and HF_ENDPOINT, set HF_HUB_OFFLINE=1 to use the cache, \
             or pass a local path.",
            )
    }

    /// The error for an answer that the Hub would not give.
    pub(super) fn strange(&self, what: &str) -> Error {
        Error::new(Kind::Invalid, format!("{} answers unlike the Hub: {what}", self.config.endpoint))
            .hint("Check HF_ENDPOINT, and whether a proxy or a login page answers instead.")
    }

    /// The error for what hf-hub reports.
    pub(super) fn failed(&self, e: HFError) -> Error {
        let context = match &e {
            HFError::Http { context }
            | HFError::AuthRequired { context }
            | HFError::Forbidden { context }
            | HFError::Conflict { context }
            | HFError::RateLimited { context, .. } => Some(context),
            HFError::RepoNotFound { context, .. } | HFError::RevisionNotFound { context, .. } => {
                context.as_ref()
            }
            _ => None,
        };
        if let Some(context) = context {
            let code = match (&e, context.error_code.as_deref()) {
                (HFError::RevisionNotFound { .. }, None) => Some("RevisionNotFound"),
                (_, code) => code,
            };
            let (status, message) = (context.status.as_u16(), context.server_message.as_deref());
            return self.refused(&Refusal { status, code, message });
        }
        match &e {
            HFError::RevisionNotFound { .. } => self.no_revision(),
            HFError::RepoNotFound { .. } => self.no_repo(),
            HFError::Request { source, .. } if source.is_decode() => self.strange(&root(source)),
            HFError::Request { source, .. } => self.unreachable(source),
            HFError::Json(e) => self.strange(&e.to_string()),
            HFError::Url(e) => Error::new(Kind::Usage, format!("HF_ENDPOINT is no address: {e}")),
            HFError::MalformedResponse { what, .. } => self.strange(what),
            other => Error::new(Kind::Other, format!("cannot ask the Hub for {}: {other}", self.id)),
        }
    }
}

/// The innermost cause. The outer ones repeat the address, which on the way to a file holds a signature.
pub(super) fn root(e: &dyn std::error::Error) -> String {
    let mut e = e;
    while let Some(source) = e.source() {
        e = source;
    }
    plain(&e.to_string())
}

/// Text from outside, fit for a terminal.
fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}
