//! What was done, for people and for machines.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{LeftOut, Matrix, Plan};
use crate::arch::decoder::Input;
use crate::calib::rows::DataRecord;
use crate::format::packed::Entry;
use crate::format::packed::layout::Part;
use crate::pipeline::memory;
use crate::pipeline::tune::report::Curve;
use crate::quant::QuantizedLinear;
use crate::quant::gptq::Loss;
use crate::quant::gram::Gram;

/// Weights so many times as large as the matrix's root mean square count as outliers.
const OUTLIER: f64 = 6.0;

/// An expert that sees fewer tokens than this share of its inputs is quantized without what depends on correlations: what its
/// few tokens have in common would be taken for what all inputs have.
const EXPERT_TOKENS_PER_INPUT: f64 = 0.25;

/// One matrix.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Linear<H> {
    /// Name of the linear layer in the checkpoint.
    pub name: String,
    /// Outputs and inputs.
    pub shape: [usize; 2],
    /// How it was quantized.
    #[serde(flatten)]
    pub how: H,
    /// Squared error of its outputs over the calibration data per their energy, before tuning.
    pub relative_error: f64,
    /// Its part of the squared errors of all matrices.
    pub share: f64,
    /// Tokens that it was calibrated with.
    pub tokens: usize,
    /// Inputs that were always 0.
    pub dead_inputs: usize,
    /// Weights of more than six times the root mean square.
    pub outliers: usize,
    /// Preparing, quantizing and dequantizing; what matrices share is divided among them.
    pub seconds: f64,
    /// Squared error of its weights per their energy, both as they are stored.
    pub weight_nmse: f64,
    #[serde(skip)]
    pub(super) error: f64,
}

/// What went into a matrix.
#[derive(Clone, Copy, Debug)]
pub(in crate::pipeline) struct Seen {
    pub(in crate::pipeline) tokens: usize,
    pub(in crate::pipeline) dead_inputs: usize,
}

impl Seen {
    pub(in crate::pipeline) fn of(gram: &Gram) -> Seen {
        let dead_inputs = gram.diagonal().iter().filter(|d| **d == 0.0).count();
        Seen { tokens: gram.tokens(), dead_inputs }
    }

    /// Whether too few tokens went into an expert of so many inputs to say how all of its inputs are correlated.
    pub(in crate::pipeline) fn are_few(self, input: Input, inputs: usize) -> bool {
        let is_expert = matches!(input, Input::Expert(_) | Input::ExpertDown(_));
        is_expert && (self.tokens as f64) < EXPERT_TOKENS_PER_INPUT * inputs as f64
    }
}

impl<H> Linear<H> {
    /// Of a matrix and what it was quantized to, both as they are stored.
    pub(in crate::pipeline) fn new(
        matrix: &Matrix,
        how: H,
        loss: Loss,
        seen: Seen,
        weights: &[f32],
        quantized: &[f32],
        seconds: f64,
    ) -> Linear<H> {
        let square = weights.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>() / weights.len() as f64;
        let limit = square * OUTLIER.powi(2);
        Linear {
            name: matrix.name.clone(),
            shape: matrix.shape,
            how,
            relative_error: loss.relative(),
            share: 0.0,
            tokens: seen.tokens,
            dead_inputs: seen.dead_inputs,
            outliers: weights.iter().filter(|w| f64::from(**w).powi(2) > limit).count(),
            seconds,
            weight_nmse: weight_nmse(weights, quantized),
            error: loss.error,
        }
    }

    /// The matrix was tuned to something else.
    pub(super) fn retuned(&mut self, weights: &[f32], linear: &QuantizedLinear) {
        self.weight_nmse = weight_nmse(weights, &linear.dequantize());
    }
}

/// Squared error of quantized weights per the energy of the original ones.
pub(super) fn weight_nmse(weights: &[f32], quantized: &[f32]) -> f64 {
    let energy: f64 = weights.iter().map(|w| f64::from(*w).powi(2)).sum();
    let error: f64 =
        weights.iter().zip(quantized).map(|(w, q)| (f64::from(*w) - f64::from(*q)).powi(2)).sum();
    if energy > 0.0 { error / energy } else { error }
}

/// Says of each matrix which part of all errors is its own.
pub(super) fn share_errors<H>(linears: &mut [Linear<H>]) {
    let all: f64 = linears.iter().map(|l| l.error).sum();
    if all > 0.0 {
        linears.iter_mut().for_each(|l| l.share = l.error / all);
    }
}

/// The matrices of one grid.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GridSummary {
    /// Bits per code.
    pub bits: u32,
    /// Inputs per group; -1 is a whole row.
    pub group_size: i64,
    /// How many.
    pub matrices: usize,
    /// Their weights.
    pub weights: u64,
}

/// Sizes of the output, known before any work.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Summary<O> {
    /// The model's class.
    pub architecture: String,
    /// Decoder layers.
    pub layers: usize,
    /// Number of weights.
    pub parameters: u64,
    /// Number of quantized weights.
    pub quantized_parameters: u64,
    /// Bytes of the source's files.
    pub original_size: u64,
    /// Bytes of the output's tensors.
    pub file_size: u64,
    /// Bits per weight, of all weights.
    pub bits_per_weight: f64,
    /// Bits per quantized weight, with scales and zero points.
    pub quantized_bits_per_weight: f64,
    /// Bits per code of matrices that nothing else was said of.
    pub bits: u32,
    /// Inputs per group of these; -1 is a whole row.
    pub group_size: i64,
    /// The grids, if there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grids: Vec<GridSummary>,
    /// Options that only this method has.
    #[serde(flatten)]
    pub options: O,
    /// Number of quantized matrices.
    pub matrices: usize,
    /// Matrices that stay in 16 bits.
    pub left_out: Vec<LeftOut>,
}

impl<O> Summary<O> {
    pub(in crate::pipeline) fn new(plan: &Plan, options: O) -> Summary<O> {
        let (model, layout, grid) = (plan.model(), plan.layout(), plan.options().grids.base);
        let [mut quantized, mut dense, mut bytes, mut dense_bytes] = [0u64; 4];
        let mut matrices = 0;
        let mut grids: BTreeMap<(u32, usize), (usize, u64)> = BTreeMap::new();
        for entry in plan.entries() {
            match entry {
                Entry::Linear { shape, grid, bias, .. } => {
                    quantized += (shape[0] * shape[1]) as u64;
                    matrices += 1;
                    let of_grid = grids.entry((grid.bits, grid.group_size)).or_default();
                    *of_grid = (of_grid.0 + 1, of_grid.1 + (shape[0] * shape[1]) as u64);
                    let cost = layout.cost(*shape, *grid);
                    bytes += cost;
                    dense_bytes += layout.parts(*shape, *grid).iter().map(Part::size).sum::<u64>() - cost;
                    if *bias {
                        dense += shape[0] as u64;
                        dense_bytes += 2 * shape[0] as u64;
                    }
                }
                Entry::Dense { shape, dtype, .. } => {
                    let values = shape.iter().product::<usize>() as u64;
                    dense += values;
                    dense_bytes += values * dtype.bytes() as u64;
                }
            }
        }
        let parameters = quantized + dense;
        let group_size = |size: usize| i64::try_from(size).unwrap_or(-1);
        let summed = grids.into_iter().map(|((bits, size), (matrices, weights))| GridSummary {
            bits,
            group_size: group_size(size),
            matrices,
            weights,
        });
        let grids: Vec<GridSummary> = summed.collect();
        let per = |bytes: u64, weights: u64| bytes as f64 * 8.0 / weights.max(1) as f64;
        Summary {
            architecture: model.config.architecture().unwrap_or_default().into(),
            layers: model.hyper.layers,
            parameters,
            quantized_parameters: quantized,
            original_size: plan.original_size(),
            file_size: bytes + dense_bytes,
            bits_per_weight: per(bytes + dense_bytes, parameters),
            quantized_bits_per_weight: per(bytes, quantized),
            bits: grid.bits,
            group_size: group_size(grid.group_size),
            grids: if plan.options().grids.is_uniform() { Vec::new() } else { grids },
            options,
            matrices,
            left_out: plan.left_out().to_vec(),
        }
    }
}

/// How long the parts of the work took.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Times {
    pub(super) quantize: Duration,
    pub(super) validate: Duration,
    pub(super) flush: Duration,
}

/// The result of a finished job.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report<O, H> {
    /// Always `success`; a failure has no report.
    pub status: String,
    /// The directory that was written.
    pub output_path: String,
    /// The container.
    pub format: String,
    /// The level.
    pub quantization_level: String,
    /// Bytes of its tensors' files.
    pub file_size: u64,
    /// Output bytes per byte of a 16-bit model.
    pub compression_ratio: f64,
    /// All of the work: the three times that follow.
    pub duration_seconds: f64,
    /// Calibrating, quantizing and writing.
    pub quantize_seconds: f64,
    /// Opening the output again and comparing it with the source.
    pub validation_seconds: f64,
    /// Waiting until the files are on the disk.
    pub flush_seconds: f64,
    /// Peak resident memory, mapped model files included.
    pub peak_memory_bytes: Option<u64>,
    /// Always `valid`; an output that is not is never kept.
    pub validation_status: String,
    /// What it was calibrated with.
    pub calibration: DataRecord,
    /// Sizes.
    pub metadata: Summary<O>,
    /// Every quantized matrix, in the order in which they were computed.
    pub linears: Vec<Linear<H>>,
    /// The loss while layers, or the model, were tuned.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tuning: Vec<Curve>,
}

impl<O, H> Report<O, H> {
    #[allow(clippy::too_many_arguments, reason = "what was asked for, what came of it, and what it cost")]
    pub(super) fn new(
        format: &str,
        plan: &Plan,
        options: O,
        calibration: DataRecord,
        linears: Vec<Linear<H>>,
        tuning: Vec<Curve>,
        file_size: u64,
        times: Times,
    ) -> Report<O, H> {
        let summary = Summary::new(plan, options);
        Report {
            status: "success".into(),
            output_path: plan.options().output.display().to_string(),
            format: format.into(),
            quantization_level: format!("{}bit", summary.bits),
            file_size,
            compression_ratio: file_size as f64 / (summary.parameters as f64 * 2.0),
            duration_seconds: (times.quantize + times.validate + times.flush).as_secs_f64(),
            quantize_seconds: times.quantize.as_secs_f64(),
            validation_seconds: times.validate.as_secs_f64(),
            flush_seconds: times.flush.as_secs_f64(),
            peak_memory_bytes: memory::peak_resident(),
            validation_status: "valid".into(),
            calibration,
            metadata: summary,
            linears,
            tuning,
        }
    }
}
