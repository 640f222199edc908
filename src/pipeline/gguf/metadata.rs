//! The file's metadata, in the order that `convert_hf_to_gguf.py` followed by `llama-quantize` gives.

use std::str::FromStr;

use super::plan::{Planned, Rows};
use super::{Config, params};
use crate::arch::Model;
use crate::error::{Error, Kind, Result};
use crate::format::gguf::{Metadata, Value, card, vocab};
use crate::progress::Progress;
use crate::source::card::{ParamCounts, load_card};
use crate::source::{SourceModel, tokenizer};

/// `GGML_QNT_VERSION` of ggml.
const QUANTIZATION_VERSION: u32 = 2;

/// Builds all metadata.
pub(super) fn build(
    model: &Model,
    source: &SourceModel,
    planned: &[Planned],
    config: &Config,
    settings: Vec<Setting>,
    progress: &dyn Progress,
) -> Result<Metadata> {
    let mut meta = Metadata::new();
    meta.set("general.architecture", model.spec.gguf);
    params::write_early(model, &mut meta);
    meta.set("general.type", "model");
    let (card, warnings) = load_card(source.dir(), model.config.raw(), &source.name()?, count(planned))?;
    warnings.iter().for_each(|w| progress.warn(w));
    card::write_card(&card, &mut meta);
    params::write(model, config.level.file_type, &mut meta)?;

    let vocabulary = tokenizer::load_vocab(source.dir(), model.spec.vocab, Some(model.hyper.vocab))?;
    vocabulary.warnings.iter().for_each(|w| progress.warn(w));
    vocab::write_vocab(&vocabulary, &mut meta);

    // llama-quantize sets these two anew, which puts them last; then come the user's settings and the imatrix.
    meta.move_to_end("general.quantization_version", QUANTIZATION_VERSION);
    meta.move_to_end("general.file_type", config.level.file_type);
    for setting in settings {
        let value = setting.typed(meta.get(&setting.key))?;
        meta.move_to_end(setting.key, value);
    }
    if let Some(imatrix) = &config.imatrix {
        // The name without its directory, so that the bytes do not depend on where files lie.
        meta.move_to_end("quantize.imatrix.file", shorten(&imatrix.file_name));
        if let Some(dataset) = imatrix.datasets.first() {
            meta.move_to_end("quantize.imatrix.dataset", shorten(dataset));
        }
        meta.move_to_end("quantize.imatrix.entries_count", imatrix.entries.len() as u32);
        if imatrix.chunks > 0 {
            meta.move_to_end("quantize.imatrix.chunks_count", imatrix.chunks);
        }
    }
    Ok(meta)
}

/// llama.cpp keeps at most 127 bytes of a string that overrides a key.
fn shorten(text: &str) -> Value {
    Value::Str(text.as_bytes()[..text.len().min(127)].to_vec())
}

/// Weights in all, outside of experts, in one expert of each kind, and the number of experts, as
/// `GGUFWriter.get_total_parameter_count` has them.
fn count(planned: &[Planned]) -> ParamCounts {
    let mut counts = ParamCounts::default();
    let (mut sum, mut stacked) = (0, 0);
    for p in planned {
        counts.total += p.len();
        match &p.rows {
            Rows::Source { names, .. } if p.name.contains("_exps.") => {
                let experts = names.len() as u64;
                counts.expert += p.len() / experts;
                sum += experts;
                stacked += 1;
            }
            _ => counts.shared += p.len(),
        }
    }
    if let Some(experts) = sum.checked_div(stacked) {
        counts.experts = experts;
    }
    counts
}

/// A metadata key that the user sets: `KEY=VALUE`, or `KEY=TYPE:VALUE` with a type of llama.cpp's `--override-kv`
/// (`int`, `float`, `bool`, `str`).
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Setting {
    key: String,
    kind: Option<&'static str>,
    text: String,
}

impl FromStr for Setting {
    type Err = Error;

    fn from_str(s: &str) -> Result<Setting> {
        let (key, value) = s.split_once('=').filter(|(key, _)| !key.is_empty()).ok_or_else(|| {
            Error::new(
                Kind::Usage,
                format!("--metadata '{s}' is not of the form KEY=VALUE or KEY=TYPE:VALUE"),
            )
        })?;
        if key == "general.alignment" {
            let message = "--metadata cannot set general.alignment: it says how the file is laid out";
            return Err(Error::new(Kind::Usage, message));
        }
        let kind = ["int", "float", "bool", "str"]
            .into_iter()
            .find(|k| value.strip_prefix(k).is_some_and(|rest| rest.starts_with(':')));
        let text = kind.map_or(value, |k| &value[k.len() + 1..]);
        Ok(Setting { key: key.into(), kind, text: text.into() })
    }
}

impl Setting {
    /// The value with the type that the user states, else that of the value it replaces, else the one it looks like.
    fn typed(&self, old: Option<&Value>) -> Result<Value> {
        let text = self.text.as_str();
        let looks = match (text.parse::<u32>(), text.parse::<f32>(), text.parse::<bool>()) {
            (Ok(_), _, _) => "int",
            (_, Ok(_), _) => "float",
            (_, _, Ok(_)) => "bool",
            _ => "str",
        };
        let replaced = match old {
            Some(Value::Str(_)) => Some("str"),
            Some(Value::Bool(_)) => Some("bool"),
            Some(Value::F32(_)) => Some("float"),
            Some(Value::U32(_)) => Some("int"),
            Some(Value::Array(_)) => {
                let message = format!("--metadata {} would replace a list, which is not supported", self.key);
                return Err(Error::new(Kind::Usage, message));
            }
            _ => None,
        };
        let kind = self.kind.or(replaced).unwrap_or(looks);
        let value = match kind {
            "int" => text.parse().ok().map(Value::U32),
            "float" => text.parse().ok().filter(|f: &f32| f.is_finite()).map(Value::F32),
            "bool" => text.parse().ok().map(Value::Bool),
            _ => Some(Value::from(text)),
        };
        value
            .ok_or_else(|| Error::new(Kind::Usage, format!("--metadata {}: '{text}' is no {kind}", self.key)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(s: &str, old: Option<Value>) -> Result<Value> {
        s.parse::<Setting>()?.typed(old.as_ref())
    }

    #[test]
    fn settings_take_the_type_they_are_given_replace_or_look_like() {
        assert_eq!(typed("a=7", None).unwrap(), Value::U32(7));
        assert_eq!(typed("a=7", Some(Value::F32(1.0))).unwrap(), Value::F32(7.0));
        assert_eq!(typed("a=str:7", Some(Value::F32(1.0))).unwrap(), Value::from("7"));
        assert_eq!(typed("a=b=c", None).unwrap(), Value::from("b=c"));
        assert_eq!(typed("a=true", None).unwrap(), Value::Bool(true));
        assert_eq!(typed("a=http://x", None).unwrap(), Value::from("http://x"));
        for bad in ["a", "=1", "a=int:x", "a=float:inf", "general.alignment=64"] {
            assert_eq!(typed(bad, None).unwrap_err().kind(), Kind::Usage, "{bad}");
        }
    }
}
