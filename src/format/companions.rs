//! The files beside the weights: what goes along with a copy of a model.

use std::fs;
use std::path::Path;

use crate::atomic::AtomicDir;
use crate::error::{Error, Kind, Result};
use crate::source::inside;

/// Files of a model that a copy with other weights needs too.
fn is_companion(name: &str) -> bool {
    let exact = [
        "added_tokens.json",
        "generation_config.json",
        "merges.txt",
        "preprocessor_config.json",
        "processor_config.json",
        "special_tokens_map.json",
        "spiece.model",
        "vocab.json",
        "vocab.txt",
    ];
    let starts = ["tokenizer", "chat_template", "LICENSE", "NOTICE"];
    exact.contains(&name) || name.ends_with(".py") || starts.iter().any(|start| name.starts_with(start))
}

/// Copies the files of the model in `source` that do not change with its weights: tokenizer, chat templates, licence, code.
///
/// # Errors
/// If one of them cannot be read or written.
pub(crate) fn copy(source: &Path, dir: &AtomicDir) -> Result<()> {
    let unreadable = |path: &Path| {
        let what = format!("cannot read {}", path.display());
        move |e| Error::io(what, e)
    };
    let entries = fs::read_dir(source).map_err(unreadable(source))?;
    let entries = entries.collect::<std::io::Result<Vec<_>>>().map_err(unreadable(source))?;
    let mut names: Vec<String> =
        entries.iter().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    for name in names.iter().filter(|name| is_companion(name)) {
        let path = source.join(name);
        // Through links within the model: the Hub's cache consists of them.
        if let Some(bytes) = inside::read(&path)? {
            dir.write(name, &bytes)?;
        }
    }
    Ok(())
}

/// Refuses to write a result over the model that it is made from.
///
/// # Errors
/// `Usage` if both are the same directory.
pub(crate) fn refuse_source(source: &Path, target: &Path) -> Result<()> {
    let same = matches!((source.canonicalize(), target.canonicalize()), (Ok(a), Ok(b)) if a == b);
    match same {
        true => Err(Error::new(Kind::Usage, format!("output {} is the model itself", target.display()))
            .hint("Choose another place with --output-dir.")),
        false => Ok(()),
    }
}
