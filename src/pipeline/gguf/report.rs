//! What was done, for people and for machines.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Job;
use super::plan::{Planned, Rows};
use crate::arch::Model;
use crate::format::gguf::mix::Choice;
use crate::pipeline::memory;
use crate::source::safetensors::FloatType;

/// Sizes and types of the output, known before any work.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Summary {
    /// The model's class.
    pub architecture: String,
    /// Decoder layers.
    pub layers: usize,
    /// Number of weights.
    pub parameters: u64,
    /// The type of most source weights.
    pub original_dtype: String,
    /// Bytes of the source's files.
    pub original_size: u64,
    /// Bytes of the output.
    pub file_size: u64,
    /// Bits per weight of the tensors, without the header.
    pub bits_per_weight: f64,
    /// Per type the number of tensors and their bytes.
    pub types: BTreeMap<String, TypeSummary>,
    /// Every tensor, in the file's order.
    pub tensors: Vec<TensorSummary>,
}

/// The tensors of one type.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct TypeSummary {
    /// How many.
    pub tensors: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Error of all of them together, after the work.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nmse: Option<f64>,
}

/// One tensor.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TensorSummary {
    /// Name in GGUF.
    pub name: String,
    /// Row length first.
    pub shape: Vec<u64>,
    /// Its type.
    #[serde(rename = "type")]
    pub ty: String,
    /// Its bytes.
    pub bytes: u64,
    /// The type that its shape ruled out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instead_of: Option<String>,
    /// Normalised mean squared error against the source, after the work.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nmse: Option<f64>,
}

impl Summary {
    pub(super) fn new(
        model: &Model,
        original_size: u64,
        planned: &[Planned],
        choices: &[Choice],
        file_size: u64,
    ) -> Summary {
        let mut types: BTreeMap<String, TypeSummary> = BTreeMap::new();
        let mut list = Vec::with_capacity(planned.len());
        let mut by_dtype: BTreeMap<&str, u64> = BTreeMap::new();
        let (mut bytes_of_tensors, mut parameters) = (0, 0);
        for (p, choice) in planned.iter().zip(choices) {
            let bytes = choice.ty.bytes_for(p.len()).expect("the type was chosen to fit");
            let entry = types.entry(choice.ty.name().into()).or_default();
            entry.tensors += 1;
            entry.bytes += bytes;
            bytes_of_tensors += bytes;
            parameters += p.len();
            if let Rows::Source { dtype, .. } = &p.rows {
                *by_dtype.entry(dtype.map_or("quantized", FloatType::name)).or_default() += p.len();
            }
            list.push(TensorSummary {
                name: p.name.clone(),
                shape: p.shape.clone(),
                ty: choice.ty.name().into(),
                bytes,
                instead_of: choice.instead_of.map(|t| t.name().into()),
                nmse: None,
            });
        }
        let original = by_dtype.into_iter().max_by_key(|(_, n)| *n).map_or("none", |(name, _)| name);
        Summary {
            architecture: model.config.architecture().unwrap_or_default().into(),
            layers: model.hyper.layers,
            parameters,
            original_dtype: original.into(),
            original_size,
            file_size,
            bits_per_weight: bytes_of_tensors as f64 * 8.0 / parameters as f64,
            types,
            tensors: list,
        }
    }
}

/// How long the parts of the work took.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Times {
    pub(super) encode: Duration,
    pub(super) flush: Duration,
    pub(super) validate: Duration,
}

/// The result of a finished job.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Always `success`; a failure has no report.
    pub status: String,
    /// The file that was written.
    pub output_path: String,
    /// The container.
    pub format: String,
    /// The level.
    pub quantization_level: String,
    /// Its size.
    pub file_size: u64,
    /// Output bytes per byte of a 16-bit model.
    pub compression_ratio: f64,
    /// All of the work: the three times that follow.
    pub duration_seconds: f64,
    /// Reading, encoding and writing.
    pub encode_seconds: f64,
    /// Waiting until the file is on the disk.
    pub flush_seconds: f64,
    /// Opening the file again and comparing it with the source.
    pub validation_seconds: f64,
    /// Peak resident memory, mapped model files included.
    pub peak_memory_bytes: Option<u64>,
    /// Peak of the memory that the program itself had allocated while encoding.
    pub anonymous_memory_bytes: u64,
    /// Always `valid`; an output that is not is never kept.
    pub validation_status: String,
    /// Sizes, types and errors.
    pub metadata: Summary,
}

impl Report {
    /// `losses` are (squared error, energy, NMSE) of each tensor.
    pub(super) fn new(
        mut summary: Summary,
        job: &Job,
        losses: Vec<(f64, f64, f64)>,
        times: Times,
        anonymous: u64,
    ) -> Report {
        let mut by_type: BTreeMap<String, (f64, f64)> = BTreeMap::new();
        for (tensor, (error, energy, nmse)) in summary.tensors.iter_mut().zip(losses) {
            tensor.nmse = Some(nmse);
            let sums = by_type.entry(tensor.ty.clone()).or_default();
            sums.0 += error;
            sums.1 += energy;
        }
        for (ty, (error, energy)) in by_type {
            if let Some(entry) = summary.types.get_mut(&ty) {
                entry.nmse = Some(if error == 0.0 { 0.0 } else { error / energy });
            }
        }
        Report {
            status: "success".into(),
            output_path: job.config.output.display().to_string(),
            format: "gguf".into(),
            quantization_level: job.config.level.name.into(),
            file_size: summary.file_size,
            compression_ratio: summary.file_size as f64 / (summary.parameters as f64 * 2.0),
            duration_seconds: (times.encode + times.flush + times.validate).as_secs_f64(),
            encode_seconds: times.encode.as_secs_f64(),
            flush_seconds: times.flush.as_secs_f64(),
            validation_seconds: times.validate.as_secs_f64(),
            peak_memory_bytes: memory::peak_resident(),
            anonymous_memory_bytes: anonymous,
            validation_status: "valid".into(),
            metadata: summary,
        }
    }
}
