//! What a model or a quantized file is, without reading its weights.

mod quantization;

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use crate::cancel::Cancel;
use crate::error::Result;
use crate::format::gguf::level::Level;
use crate::format::packed::config::Stated;
use crate::pipeline::detect::{Found, find};
use crate::pipeline::model::gguf::files::Files;
use crate::progress::Progress;
use crate::source::config::Config;
use crate::source::safetensors::Tensors;
use crate::source::tokenizer::load_vocab;
use crate::source::vocab::VocabModel;
use crate::source::{Need, SourceModel};
pub use quantization::{PackedWeights, Quantization};

/// What was found. Absent values are not known.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// Name of the model.
    pub model_name: String,
    /// Model class or GGUF architecture.
    pub architecture: String,
    /// Number of weights.
    pub parameter_count: Option<u64>,
    /// Width of the residual stream.
    pub hidden_size: Option<u64>,
    /// Decoder layers.
    pub num_layers: Option<u64>,
    /// Query heads.
    pub num_heads: Option<u64>,
    /// Tokens in the vocabulary.
    pub vocab_size: Option<u64>,
    /// Type of most weights.
    pub torch_dtype: String,
    /// `huggingface`, `gptq`, `awq` or `gguf`.
    pub format: &'static str,
    /// Bytes of the weight files.
    pub file_size: u64,
    /// The tokenizer's kind and pre-tokenizer, as GGUF calls them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<String>,
    /// More about an unquantized checkpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plain: Option<PlainWeights>,
    /// Whether `quantize` takes the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub supported: Option<bool>,
    /// More about a quantized checkpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantization: Option<Quantization>,
    /// More about a GGUF file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gguf: Option<Gguf>,
}

/// The weights of an unquantized checkpoint.
#[derive(Clone, Debug, Serialize)]
pub struct PlainWeights {
    /// Bits per weight over all tensors.
    pub bits_per_weight: f64,
    /// Per type the number of tensors and their bytes.
    pub types: BTreeMap<&'static str, (usize, u64)>,
}

impl PlainWeights {
    fn new(tensors: &Tensors) -> PlainWeights {
        let mut types: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
        let (mut weights, mut bytes) = (0u64, 0u64);
        for (_, info) in tensors.iter() {
            let size = (info.len() * info.dtype.bytes()) as u64;
            let entry = types.entry(info.dtype.name()).or_default();
            *entry = (entry.0 + 1, entry.1 + size);
            weights += info.len() as u64;
            bytes += size;
        }
        PlainWeights { bits_per_weight: bytes as f64 * 8.0 / weights.max(1) as f64, types }
    }
}

/// What only a GGUF file has.
#[derive(Clone, Debug, Serialize)]
pub struct Gguf {
    /// Version of the container.
    pub version: u32,
    /// Files that it is in.
    pub files: usize,
    /// Level by `general.file_type`.
    pub level: Option<&'static str>,
    /// Bits per weight over all tensors.
    pub bits_per_weight: f64,
    /// Number of tensors.
    pub tensors: usize,
    /// Per type the number of tensors and their bytes.
    pub types: BTreeMap<&'static str, (usize, u64)>,
    /// Trained context length.
    pub context_length: Option<u64>,
    /// Number of experts of a mixture.
    pub expert_count: Option<u64>,
    /// The importance matrix that was used.
    pub imatrix: Option<String>,
}

/// Looks at a directory, a name on the Hub or a `.gguf` file.
pub fn inspect(model: &str, cancel: &Cancel, progress: &dyn Progress) -> Result<Inspection> {
    match find(model, Need::Description, cancel, progress)? {
        Found::Gguf(path) => inspect_file(&path),
        Found::Directory(source, stated) => inspect_checkpoint(&source, stated.as_ref()),
    }
}

fn inspect_checkpoint(source: &SourceModel, stated: Option<&Stated>) -> Result<Inspection> {
    let config = source.config()?;
    let class = config.architecture().unwrap_or("Unknown").to_owned();
    let spec = crate::arch::find(&class);
    let config = match spec {
        Some(spec) => config.with_defaults((spec.defaults)()),
        None => config,
    };
    let number = |config: &Config, key: &str| config.opt_usize(key).map(|n| n.map(|n| n as u64));
    let quantization = stated.map(|stated| quantization::inspect(source, stated)).transpose()?;
    // A Hub model is looked at without its weights.
    let plain = source.has_weights() && quantization.is_none();
    let tensors = if plain { Some(Tensors::open(source.dir())?) } else { None };
    let packed = quantization.as_ref().and_then(|q| q.weights.as_ref());
    let stated_dtype = ["dtype", "torch_dtype"].iter().find_map(|key| config.opt_str(key).ok().flatten());
    let dtype = match (&tensors, stated_dtype) {
        (Some(tensors), _) => {
            let mut by_type: BTreeMap<&str, usize> = BTreeMap::new();
            tensors.iter().for_each(|(_, t)| *by_type.entry(t.dtype.name()).or_default() += t.len());
            by_type.into_iter().max_by_key(|(_, n)| *n).map_or("Unknown", |(name, _)| name)
        }
        (None, Some(name)) => name,
        (None, None) => "Unknown",
    };
    Ok(Inspection {
        model_name: source.id().map_or_else(|| source.name(), |id| Ok(id.to_owned()))?,
        architecture: class,
        parameter_count: match &tensors {
            Some(tensors) => Some(tensors.iter().map(|(_, info)| info.len() as u64).sum()),
            None => packed.map(|weights| weights.parameters),
        },
        hidden_size: number(&config, "hidden_size")?,
        num_layers: number(&config, "num_hidden_layers")?,
        num_heads: number(&config, "num_attention_heads")?,
        vocab_size: number(&config, "vocab_size")?,
        torch_dtype: dtype.into(),
        format: match quantization.as_ref().map(|q| q.method.as_str()) {
            Some("gptq") => "gptq",
            Some("awq") => "awq",
            _ => "huggingface",
        },
        file_size: match &tensors {
            Some(tensors) => tensors.file_bytes(),
            None => packed.map_or(0, |weights| weights.file_bytes),
        },
        supported: Some(spec.is_some() && quantization.is_none()),
        tokenizer: spec.and_then(|spec| tokenizer_of(source, spec)),
        plain: tensors.as_ref().map(PlainWeights::new),
        quantization,
        gguf: None,
    })
}

/// The tokenizer as GGUF would call it; none if its files are not there or not understood.
fn tokenizer_of(source: &SourceModel, spec: &crate::arch::ArchSpec) -> Option<String> {
    let vocab = load_vocab(source.dir(), spec.vocab, None).ok()?;
    let model = match vocab.model {
        VocabModel::ByteLevelBpe { .. } => "gpt2",
        VocabModel::SentencePiece { .. } => "llama",
    };
    Some(format!("{model} ({})", vocab.pre))
}

fn inspect_file(path: &Path) -> Result<Inspection> {
    let files = Files::open(path)?;
    let meta = files.metadata();
    let text = |key: &str| meta.get(key).and_then(|v| v.as_str()).map(str::to_owned);
    let arch = text("general.architecture").unwrap_or_else(|| "Unknown".into());
    let number = |key: &str| meta.get(&format!("{arch}.{key}")).and_then(|v| v.as_u64());
    let mut types: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    let (mut weights, mut bytes) = (0u64, 0u64);
    let mut tensors = 0;
    for t in files.tensors() {
        tensors += 1;
        let entry = types.entry(t.ty.name()).or_default();
        *entry = (entry.0 + 1, entry.1 + t.bytes());
        weights += t.len();
        bytes += t.bytes();
    }
    let most = types.iter().max_by_key(|(_, (_, bytes))| *bytes).map_or("Unknown", |(name, _)| *name);
    let vocab = match meta.get("tokenizer.ggml.tokens") {
        Some(crate::format::gguf::Value::Array(tokens)) => Some(tokens.len() as u64),
        _ => number("vocab_size"),
    };
    Ok(Inspection {
        model_name: text("general.name").unwrap_or_else(|| path.display().to_string()),
        parameter_count: Some(weights),
        hidden_size: number("embedding_length"),
        num_layers: number("block_count"),
        num_heads: number("attention.head_count"),
        vocab_size: vocab,
        torch_dtype: most.into(),
        format: "gguf",
        file_size: files.bytes(),
        supported: None,
        tokenizer: text("tokenizer.ggml.model").map(|model| match text("tokenizer.ggml.pre") {
            Some(pre) => format!("{model} ({pre})"),
            None => model,
        }),
        plain: None,
        quantization: None,
        gguf: Some(Gguf {
            version: files.version(),
            files: files.count(),
            level: meta
                .get("general.file_type")
                .and_then(|v| v.as_u64())
                .and_then(|n| Level::from_file_type(u32::try_from(n).ok()?))
                .map(|l| l.name),
            bits_per_weight: if weights == 0 { 0.0 } else { bytes as f64 * 8.0 / weights as f64 },
            tensors,
            types,
            context_length: number("context_length"),
            expert_count: number("expert_count"),
            imatrix: text("quantize.imatrix.file"),
        }),
        architecture: arch,
    })
}
