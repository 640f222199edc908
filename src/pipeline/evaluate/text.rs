//! From a file to the windows that a model, and its reference, are given.

use std::path::{Path, PathBuf};

use crate::calib::dataset::{Dataset, Selection};
use crate::cancel::Cancel;
use crate::error::{Error, Kind, Result};
use crate::eval::windows::{Protocol, Windows};
use crate::pipeline::model::OpenModel;
use crate::progress::Progress;
use crate::source::tokenizer::encoder::Encoder;

/// A text, and how it is cut.
#[derive(Clone, Debug)]
pub struct TextConfig {
    /// The file; none for the text that is built in.
    pub data: Option<PathBuf>,
    /// How it is cut and what is scored.
    pub protocol: Protocol,
    /// Tokens in each window; none for the protocol's usual number, or the model's context if that is shorter.
    pub ctx: Option<usize>,
    /// At most so many windows, from the beginning of the text.
    pub chunks: Option<usize>,
}

impl TextConfig {
    /// Reads the text: `.jsonl`, `.json` and `.parquet` as data sets, whose texts are joined; any other file as it is.
    ///
    /// # Errors
    /// `NotFound` if it is not there, `Invalid` if it is empty, not UTF-8 or damaged, `Unsupported` for conversations.
    pub fn read(&self, cancel: &Cancel, progress: &dyn Progress) -> Result<String> {
        let Some(path) = &self.data else { return Dataset::built_in().joined(cancel, progress) };
        let text = match is_structured(path) {
            true => {
                let data = Dataset::open(&path.to_string_lossy(), Selection::default(), cancel, progress)?;
                data.joined(cancel, progress)?
            }
            false => read(path)?,
        };
        if text.trim().is_empty() {
            return Err(Error::new(Kind::Invalid, format!("--data {} holds no text", path.display())));
        }
        Ok(text)
    }

    /// What the text is called in reports.
    pub(in crate::pipeline) fn source(&self) -> String {
        self.data.as_ref().map_or_else(|| "built-in".into(), |path| path.display().to_string())
    }

    /// The windows of `text` that the model and its reference are given.
    ///
    /// # Errors
    /// `Usage` for a window that a model cannot have, `Invalid` for a text shorter than one window, for tokens that a
    /// model does not have, and for two models which do not make the same tokens of the text.
    pub(in crate::pipeline) fn windows(
        &self,
        text: &str,
        model: &OpenModel,
        reference: Option<&OpenModel>,
    ) -> Result<Windows> {
        let ctx = self.window_length(model, reference)?;
        let windows = self.cut(text, &model.encoder, ctx)?;
        if let Some(reference) = reference {
            self.check_same_tokens(text, &windows, model, reference)?;
        }
        for model in [Some(model), reference].into_iter().flatten() {
            let vocab = model.model.hyper.vocab;
            let mut tokens = windows.inputs().iter().flatten().chain(windows.targets().iter().flatten());
            if let Some(token) = tokens.find(|token| **token as usize >= vocab) {
                let message = format!(
                    "the tokenizer of {} makes token {token}, but the model has only {vocab} tokens",
                    model.name
                );
                return Err(
                    Error::new(Kind::Invalid, message).hint("The tokenizer's files belong to another model.")
                );
            }
        }
        Ok(windows)
    }

    /// Tokens in each window: as asked for, or as is usual.
    fn window_length(&self, model: &OpenModel, reference: Option<&OpenModel>) -> Result<usize> {
        let models = [Some(model), reference].into_iter().flatten();
        let shortest = models.filter_map(|m| Some((m.model.hyper.context?, &m.name))).min();
        match (self.ctx, shortest) {
            (Some(ctx), Some((context, name))) if ctx > context => Err(Error::new(
                Kind::Usage,
                format!("--ctx {ctx} is longer than the context of {name}, {context} tokens"),
            )
            .hint(format!("Pass --ctx {context} or less."))),
            (Some(ctx), _) => Ok(ctx),
            (None, shortest) => {
                let usual = self.protocol.usual_ctx();
                Ok(shortest.map_or(usual, |(context, _)| usual.min(context)))
            }
        }
    }

    fn cut(&self, text: &str, encoder: &Encoder, ctx: usize) -> Result<Windows> {
        let text = match self.protocol {
            // llama.cpp's tools leave out the line end that closes a file.
            Protocol::LlamaCpp => text.strip_suffix('\n').unwrap_or(text),
            Protocol::Full => text,
        };
        let bos = if encoder.add_bos() { encoder.bos() } else { None };
        Windows::cut(self.protocol, &encoder.encode(text)?, bos, ctx, self.chunks)
    }

    /// # Errors
    /// `Invalid` if predictions of the two models cannot be compared: their vocabularies differ, or the same text becomes
    /// other tokens.
    fn check_same_tokens(
        &self,
        text: &str,
        windows: &Windows,
        model: &OpenModel,
        reference: &OpenModel,
    ) -> Result<()> {
        let differ = |what: String| {
            let hint =
                "A reference must have the model's own tokenizer: pass what the model was quantized from.";
            Error::new(Kind::Invalid, format!("{} and its reference {} {what}", model.name, reference.name))
                .hint(hint)
        };
        let (own, other) = (&model.encoder, &reference.encoder);
        if !own.same_vocabulary(other) {
            let sizes = (own.vocab_size(), other.vocab_size());
            return Err(differ(format!(
                "have different vocabularies (of {} and {} tokens)",
                sizes.0, sizes.1
            )));
        }
        let others = self.cut(text, other, windows.ctx())?;
        let mut pairs = windows.inputs().iter().flatten().zip(others.inputs().iter().flatten());
        if let Some(i) = pairs.position(|(a, b)| a != b) {
            return Err(differ(format!("make different tokens of the text, from token {i} on")));
        }
        if *windows != others {
            return Err(differ("make different numbers of tokens of the text".into()));
        }
        Ok(())
    }
}

/// Whether a file is known by its ending to hold records rather than a text.
fn is_structured(path: &Path) -> bool {
    let name = path.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
    let stem = name.strip_suffix(".gz").unwrap_or(&name);
    path.is_file() && [".jsonl", ".ndjson", ".json", ".parquet"].iter().any(|end| stem.ends_with(end))
}

fn read(path: &Path) -> Result<String> {
    let bytes =
        std::fs::read(path).map_err(|e| Error::io(format!("cannot read --data {}", path.display()), e))?;
    String::from_utf8(bytes).map_err(|e| {
        let offset = e.utf8_error().valid_up_to();
        Error::new(Kind::Invalid, format!("--data {} is not UTF-8 at byte {offset}", path.display()))
            .hint("Convert the file to UTF-8.")
    })
}
