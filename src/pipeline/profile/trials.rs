//! What a format can make of a matrix: the precisions that it has for it, what they cost, and the weights that are left.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::precision::Precision;
use super::unit::Unit;
use crate::arch::decoder::Input;
use crate::backend::Backend;
use crate::calib::imatrix::Imatrix;
use crate::error::{Error, Kind, Result};
use crate::format::awq::AwqLayout;
use crate::format::gguf::GgmlType;
use crate::format::gguf::blocks;
use crate::format::gptq::{GptqLayout, Version};
use crate::format::packed::Layout;
use crate::pipeline::awq::report::Solver;
use crate::pipeline::layerwise::Matrix;
use crate::pipeline::layerwise::report::Seen;
use crate::quant::Grid;
use crate::quant::gptq::{Problem, Settings};
use crate::quant::gram::Gram;
use crate::source::dense::Dense;

/// Bits per code that GPTQ has.
const GPTQ_BITS: [u32; 4] = [2, 3, 4, 8];

/// The types that tensors of a GGUF file are given, smallest first; those whose rows are a multiple of 256, and others.
const TYPES: [GgmlType; 7] = [
    GgmlType::Q2_K,
    GgmlType::Q3_K,
    GgmlType::IQ4_XS,
    GgmlType::Q4_K,
    GgmlType::Q5_K,
    GgmlType::Q6_K,
    GgmlType::Q8_0,
];
const SHORT_TYPES: [GgmlType; 5] =
    [GgmlType::IQ4_NL, GgmlType::Q4_1, GgmlType::Q5_0, GgmlType::Q5_1, GgmlType::Q8_0];

/// Weights that one thread encodes at a time: about so many.
const PIECE: usize = 1 << 16;

/// A format, and how it is quantized to.
#[derive(Clone, Debug)]
pub enum Method {
    /// GPTQ.
    Gptq {
        /// All but the bits and the group size of the grid.
        settings: Settings,
        /// The group sizes that are tried.
        group_sizes: Vec<usize>,
    },
    /// AWQ, which has one precision.
    Awq {
        /// Inputs per group.
        group_size: usize,
        /// What finds the codes.
        solver: Solver,
    },
    /// GGUF.
    Gguf {
        /// Importance weights.
        imatrix: Option<Imatrix>,
    },
}

impl Method {
    /// The format's name.
    pub fn format(&self) -> &'static str {
        match self {
            Method::Gptq { .. } => "gptq",
            Method::Awq { .. } => "awq",
            Method::Gguf { .. } => "gguf",
        }
    }

    /// The precisions that all matrices of a unit can have, [`Precision::Whole`] last.
    pub(super) fn precisions(&self, unit: &Unit) -> Vec<Precision> {
        let fits =
            |precision: &Precision| unit.matrices.iter().all(|m| self.bytes(m.shape, *precision).is_some());
        let all: Vec<Precision> = match self {
            Method::Gptq { group_sizes, .. } => GPTQ_BITS
                .into_iter()
                .flat_map(|bits| {
                    group_sizes.iter().map(move |&group_size| Precision::Codes { bits, group_size })
                })
                .collect(),
            Method::Awq { group_size, .. } => vec![Precision::Codes { bits: 4, group_size: *group_size }],
            Method::Gguf { .. } => {
                let long = unit.matrices.iter().all(|m| m.shape[1].is_multiple_of(TYPES[0].block_len()));
                let types = if long { &TYPES[..] } else { &SHORT_TYPES };
                types.iter().map(|ty| Precision::Blocks(*ty)).collect()
            }
        };
        all.into_iter().filter(fits).chain([Precision::Whole]).collect()
    }

    /// Bytes of a matrix, or none if the format does not hold it so. `g_idx` of GPTQ, which says nothing that is not known,
    /// does not count.
    pub(super) fn bytes(&self, shape: [usize; 2], precision: Precision) -> Option<u64> {
        let weights = (shape[0] * shape[1]) as u64;
        let packed = |layout: &dyn Layout, grid: Grid| {
            layout.refuses(shape, grid).is_none().then(|| layout.cost(shape, grid))
        };
        match (self, precision) {
            (_, Precision::Whole) => Some(2 * weights),
            (Method::Gptq { settings, .. }, Precision::Codes { bits, group_size }) => {
                packed(&GptqLayout::new(Version::V1), Grid { bits, group_size, ..settings.grid })
            }
            (Method::Awq { .. }, Precision::Codes { bits, group_size }) => {
                packed(&AwqLayout, Grid { bits, group_size, symmetric: false })
            }
            (Method::Gguf { .. }, Precision::Blocks(ty)) => {
                let whole = shape[1].is_multiple_of(ty.block_len());
                whole.then(|| ty.bytes_for(weights)).flatten()
            }
            _ => None,
        }
    }

    /// What is left of the matrices of a unit, of each its weights `[out, in]`.
    ///
    /// # Errors
    /// `Unsupported` for a precision that the format does not have; what reading or the device fails with.
    pub(super) fn quantize(
        &self,
        unit: &Unit,
        precision: Precision,
        weights: &dyn Dense,
        grams: &BTreeMap<Input, Gram>,
        backend: &dyn Backend,
    ) -> Result<Vec<Vec<f32>>> {
        let read = |matrix: &Matrix| matrix.read(weights);
        let (settings, by_awq) = match (self, precision) {
            (_, Precision::Whole) => return unit.matrices.iter().map(read).collect(),
            (Method::Gguf { imatrix }, Precision::Blocks(ty)) => {
                return unit
                    .matrices
                    .iter()
                    .map(|m| encoded(m, unit, ty, imatrix.as_ref(), &read(m)?))
                    .collect();
            }
            (Method::Gptq { settings, .. }, Precision::Codes { bits, group_size }) => {
                (settings.with_grid(Grid { bits, group_size, ..settings.grid }), false)
            }
            (Method::Awq { solver, .. }, Precision::Codes { bits, group_size }) => {
                let settings = Settings::new(Grid { bits, group_size, symmetric: false });
                (settings, *solver == Solver::Awq)
            }
            _ => return Err(Error::new(Kind::Unsupported, format!("{} has no {precision}", self.format()))),
        };
        let mut quantized = vec![Vec::new(); unit.matrices.len()];
        for (input, gram) in grams {
            let here = || unit.matrices.iter().enumerate().filter(|(_, matrix)| matrix.input == *input);
            if here().next().is_none() {
                continue;
            }
            let rare = Seen::of(gram).are_few(*input, gram.size());
            let problem = Problem::new(gram.clone(), &settings, !rare);
            let solver = backend.solver(std::slice::from_ref(&problem))?;
            for (i, matrix) in here() {
                let weights = read(matrix)?;
                let found = if by_awq { solver.awq(&[&weights])? } else { solver.gptq(&[&weights])? };
                let (linear, _) = found.into_iter().next().expect("one matrix");
                quantized[i] = linear.dequantize();
            }
        }
        Ok(quantized)
    }
}

/// A matrix that was encoded, and decoded again.
fn encoded(
    matrix: &Matrix,
    unit: &Unit,
    ty: GgmlType,
    imatrix: Option<&Imatrix>,
    weights: &[f32],
) -> Result<Vec<f32>> {
    let columns = matrix.shape[1];
    let importance = imatrix
        .and_then(|imatrix| imatrix.get(&unit.name))
        .and_then(|all| all.get(matrix.expert * columns..(matrix.expert + 1) * columns));
    let piece = (PIECE / columns).max(1) * columns;
    let mut decoded = vec![0.0; weights.len()];
    weights.par_chunks(piece).zip(decoded.par_chunks_mut(piece)).for_each(|(rows, decoded)| {
        let bytes = ty.bytes_for(rows.len() as u64).expect("the type was chosen to fit");
        let mut encoded = vec![0; bytes as usize];
        blocks::encode(ty, rows, columns, importance, &mut encoded, blocks::Simd::best());
        blocks::decode(ty, &encoded, decoded);
    });
    Ok(decoded)
}
