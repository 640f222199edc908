//! What a model or a quantized file is, without reading its weights.

mod quantization;

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use crate::cancel::Cancel;
use crate::error::{Error, Kind, Result};
use crate::format::gguf::level::Level;
use crate::format::gguf::reader::{MAGIC, Reader};
use crate::progress::Progress;
use crate::source::config::Config;
use crate::source::safetensors::Tensors;
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

/// What only a GGUF file has.
#[derive(Clone, Debug, Serialize)]
pub struct Gguf {
    /// Version of the container.
    pub version: u32,
    /// Level by `general.file_type`.
    pub level: Option<&'static str>,
    /// Bits per weight over all tensors.
    pub bits_per_weight: f64,
    /// Number of tensors.
    pub tensors: usize,
    /// Per type the number of tensors and their bytes.
    pub types: BTreeMap<&'static str, (usize, u64)>,
    /// `tokenizer.ggml.model` and `.pre`.
    pub tokenizer: Option<String>,
    /// Trained context length.
    pub context_length: Option<u64>,
    /// Number of experts of a mixture.
    pub expert_count: Option<u64>,
    /// The importance matrix that was used.
    pub imatrix: Option<String>,
}

/// Looks at a directory, a name on the Hub or a `.gguf` file.
pub fn inspect(model: &str, cancel: &Cancel, progress: &dyn Progress) -> Result<Inspection> {
    let path = Path::new(model);
    if path.is_file() {
        return inspect_file(path);
    }
    let source = SourceModel::open(model, Need::Description, cancel, progress)?;
    inspect_checkpoint(&source)
}

fn inspect_checkpoint(source: &SourceModel) -> Result<Inspection> {
    let config = source.config()?;
    let class = config.architecture().unwrap_or("Unknown").to_owned();
    let spec = crate::arch::find(&class);
    let config = match spec {
        Some(spec) => config.with_defaults((spec.defaults)()),
        None => config,
    };
    let number = |config: &Config, key: &str| config.opt_usize(key).map(|n| n.map(|n| n as u64));
    let quantization = quantization::inspect(source, &config)?;
    // A Hub model is looked at without its weights.
    let plain = source.has_weights() && quantization.is_none();
    let tensors = if plain { Some(Tensors::open(source.dir())?) } else { None };
    let packed = quantization.as_ref().and_then(|q| q.weights.as_ref());
    let stated = ["dtype", "torch_dtype"].iter().find_map(|key| config.opt_str(key).ok().flatten());
    let dtype = match (&tensors, stated) {
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
        quantization,
        gguf: None,
    })
}

fn inspect_file(path: &Path) -> Result<Inspection> {
    let mut magic = [0; 4];
    let read = std::fs::File::open(path).and_then(|mut f| std::io::Read::read_exact(&mut f, &mut magic));
    if read.is_err() || &magic != MAGIC {
        return Err(Error::new(Kind::Invalid, format!("{} is not a GGUF file", path.display()))
            .hint("info takes a .gguf file, the directory of a Hugging Face model, or org/name."));
    }
    let reader = Reader::open(path)?;
    let meta = reader.metadata();
    let text = |key: &str| meta.get(key).and_then(|v| v.as_str()).map(str::to_owned);
    let arch = text("general.architecture").unwrap_or_else(|| "Unknown".into());
    let number = |key: &str| meta.get(&format!("{arch}.{key}")).and_then(|v| v.as_u64());
    let mut types: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    let (mut weights, mut bytes) = (0u64, 0u64);
    for t in reader.tensors() {
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
        file_size: reader.file_bytes(),
        supported: None,
        quantization: None,
        gguf: Some(Gguf {
            version: reader.header().version,
            level: meta
                .get("general.file_type")
                .and_then(|v| v.as_u64())
                .and_then(|n| Level::from_file_type(u32::try_from(n).ok()?))
                .map(|l| l.name),
            bits_per_weight: if weights == 0 { 0.0 } else { bytes as f64 * 8.0 / weights as f64 },
            tensors: reader.tensors().len(),
            types,
            tokenizer: text("tokenizer.ggml.model").map(|model| match text("tokenizer.ggml.pre") {
                Some(pre) => format!("{model} ({pre})"),
                None => model,
            }),
            context_length: number("context_length"),
            expert_count: number("expert_count"),
            imatrix: text("quantize.imatrix.file"),
        }),
        architecture: arch,
    })
}
