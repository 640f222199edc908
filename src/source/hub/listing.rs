//! What a repository holds, and which of it quantization needs.

use hf_hub::repository::RepoTreeEntry;

use super::HubId;
use crate::error::{Error, Kind, Result};

/// One file to have: where it lies in the repository, its size, and how its content is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RemoteFile {
    pub(super) path: String,
    pub(super) size: u64,
    pub(super) content: Content,
}

impl RemoteFile {
    /// Whether it holds weights.
    pub(super) fn is_weights(&self) -> bool {
        is_weights(&self.path)
    }
}

fn is_weights(path: &str) -> bool {
    path.ends_with(".safetensors")
}

/// What names a file's content, and with it the blob in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// A file in git itself: its object id.
    Git(String),
    /// A large file: the Hub tells its sha256 when the file is asked for.
    Large,
}

/// The folder of chat templates beside the main one.
pub(super) const TEMPLATES: &str = "additional_chat_templates";

const FILES: &[&str] = &[
    "README.md",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "model.safetensors.index.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
];

fn is_wanted(path: &str) -> bool {
    match path.strip_prefix(TEMPLATES).and_then(|rest| rest.strip_prefix('/')) {
        Some(name) => !name.contains('/') && name.ends_with(".jinja"),
        None => FILES.contains(&path) || (!path.contains('/') && path.ends_with(".safetensors")),
    }
}

/// Whether `path` stays below the directory that it is joined to, on every system.
pub(super) fn is_safe(path: &str) -> bool {
    !path.contains(['\\', ':']) && !path.contains(char::is_control) && path.split('/').all(is_name)
}

fn is_name(part: &str) -> bool {
    !matches!(part, "" | "." | "..")
}

/// All files of a data set. Whether a name [`is_safe`] is checked again where a file is chosen.
///
/// # Errors
/// `Invalid` if one has a name that leads out of the directory that it would be put into.
pub(super) fn all(id: &HubId, entries: Vec<RepoTreeEntry>) -> Result<Vec<RemoteFile>> {
    let mut files = Vec::new();
    for entry in entries {
        let RepoTreeEntry::File { oid, size, path, lfs, .. } = entry else { continue };
        if !path.split('/').all(is_name) {
            return Err(unsafe_name(id, &path));
        }
        let content = if lfs.is_some() { Content::Large } else { Content::Git(oid) };
        files.push(RemoteFile { path, size, content });
    }
    Ok(files)
}

/// The error for a name that cannot be one of a file in the cache.
pub(super) fn unsafe_name(id: &HubId, path: &str) -> Error {
    Error::new(Kind::Invalid, format!("{id} lists a file with the unsafe name {path:?}"))
        .hint("Do not trust this repository, or the server in HF_ENDPOINT.")
}

/// The files of `entries` that quantization needs, small ones first.
///
/// Names that lead out of the directory are an error wherever they are. Other odd ones are if the file is needed.
pub(super) fn select(id: &HubId, entries: Vec<RepoTreeEntry>) -> Result<Vec<RemoteFile>> {
    let mut files = Vec::new();
    let mut others = Vec::new();
    for entry in entries {
        let RepoTreeEntry::File { oid, size, path, lfs, .. } = entry else { continue };
        if !path.split('/').all(is_name) || (is_wanted(&path) && !is_safe(&path)) {
            return Err(unsafe_name(id, &path));
        }
        if is_wanted(&path) {
            let content = if lfs.is_some() { Content::Large } else { Content::Git(oid) };
            files.push(RemoteFile { path, size, content });
        } else {
            others.push(path);
        }
    }
    // The original weights of some models lie beside those in the layout of transformers.
    if files.iter().any(|f| f.path.starts_with("model") && is_weights(&f.path)) {
        files.retain(|f| !(f.path.starts_with("consolidated") && is_weights(&f.path)));
    }
    if !files.iter().any(|f| f.path == "config.json") {
        return Err(Error::new(Kind::Invalid, format!("{id} has no config.json"))
            .hint("Pass a model in the layout of Hugging Face transformers."));
    }
    if !files.iter().any(|f| is_weights(&f.path)) {
        let found = others.iter().find(|p| [".bin", ".pth", ".gguf"].iter().any(|end| p.ends_with(end)));
        let found = found.map(|p| format!(" (but {p:?})")).unwrap_or_default();
        return Err(Error::new(Kind::Unsupported, format!("{id} has no *.safetensors weights{found}"))
            .hint("Pass a model whose weights are safetensors; pickled weights are never loaded."));
    }
    files.sort_by(|a, b| (a.content == Content::Large, &a.path).cmp(&(b.content == Content::Large, &b.path)));
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str) -> RepoTreeEntry {
        let lfs =
            if path.ends_with(".safetensors") { r#"{"oid":"f","size":1,"pointerSize":1}"# } else { "null" };
        let path = serde_json::to_string(path).unwrap();
        serde_json::from_str(&format!(r#"{{"type":"file","oid":"a","size":1,"path":{path},"lfs":{lfs}}}"#))
            .unwrap()
    }

    fn names(paths: &[&str]) -> Result<Vec<String>> {
        let id = HubId::parse("org/name").unwrap();
        let files = select(&id, paths.iter().map(|p| entry(p)).collect())?;
        Ok(files.into_iter().map(|f| f.path).collect())
    }

    #[test]
    fn only_what_is_needed_is_taken() {
        let all = [
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "config.json",
            "tokenizer.json",
            "consolidated.00.safetensors",
            "original/consolidated.00.pth",
            "pytorch_model.bin",
            "model-q4.gguf",
            "onnx/model.onnx",
            "onnx/config.json",
            ".gitattributes",
            "LICENSE",
            "additional_chat_templates/tool_use.jinja",
            "additional_chat_templates/deep/x.jinja",
            "chat_template.jinja",
            "odd\\name.bin",
        ];
        let expected = [
            "additional_chat_templates/tool_use.jinja",
            "chat_template.jinja",
            "config.json",
            "model.safetensors.index.json",
            "tokenizer.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
        ];
        assert_eq!(names(&all).unwrap(), expected);
        let only = names(&["config.json", "consolidated.safetensors"]).unwrap();
        assert_eq!(only, ["config.json", "consolidated.safetensors"]);
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        let hostile = [
            "../model.safetensors",
            "/etc/model.safetensors",
            "a/../../b",
            "..\\model.safetensors",
            "C:model.safetensors",
            "a//b",
            "./config.json",
            "additional_chat_templates/../x.jinja",
            "additional_chat_templates/..\\x.jinja",
            "model\n.safetensors",
            "",
        ];
        for path in hostile {
            let e = names(&["config.json", "model.safetensors", path]).unwrap_err();
            assert_eq!(e.kind(), Kind::Invalid, "{path:?}");
        }
    }

    #[test]
    fn a_repository_without_a_model_is_refused() {
        assert_eq!(names(&["config.json", "pytorch_model.bin"]).unwrap_err().kind(), Kind::Unsupported);
        assert_eq!(names(&["model.safetensors"]).unwrap_err().kind(), Kind::Invalid);
    }
}
