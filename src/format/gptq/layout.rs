//! The tensors of a linear layer in GPTQ checkpoints, as AutoGPTQ made them and GPTQModel, AutoRound, vLLM and
//! transformers read them. With K inputs, N outputs, G groups and b bits:
//!
//! | tensor | type | shape | |
//! |---|---|---|---|
//! | `qweight` | I32 | `[ceil(K*b/32), N]` | fields along the inputs |
//! | `qzeros` | I32 | `[G, ceil(N*b/32)]` | fields along the outputs |
//! | `scales` | F16 | `[G, N]` | |
//! | `g_idx` | I32 | `[K]` | the group of each input |

use std::ops::Range;

use rayon::prelude::*;

use super::fields::{self, UNIT};
use crate::format::packed::layout::{
    Layout, PackError, Part, Stored, Words, grid_of, read_g_idx, read_scales, write_scales,
};
use crate::quant::{Grid, QuantizedLinear};

/// How zero points are stored, `checkpoint_format` in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// `gptq`: less one, so that there is none of 0.
    V1,
    /// `gptq_v2`: as they are.
    V2,
}

impl Version {
    /// Its name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Version::V1 => "gptq",
            Version::V2 => "gptq_v2",
        }
    }
}

/// What a stored zero point of version 1 that has all bits set stands for; not defined by the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overflow {
    /// 0, and its neighbours are what they say: AutoGPTQ's kernel.
    Wrap,
    /// 0, and one was borrowed from the next field: GPTQModel adds and subtracts whole words, but for 3 bits.
    Borrow,
}

/// GPTQ's layout of a linear layer.
#[derive(Clone, Copy, Debug)]
pub struct GptqLayout {
    /// How zero points are stored.
    pub version: Version,
    /// How to read those of version 1 that overflow.
    pub overflow: Overflow,
}

impl GptqLayout {
    /// The layout to write.
    pub fn new(version: Version) -> GptqLayout {
        GptqLayout { version, overflow: Overflow::Wrap }
    }

    /// Zero points as stored to zero points as they are, 32 outputs of one group.
    fn stored_to_zeros(&self, words: &mut [u32; 8], bits: u32) -> [u8; UNIT] {
        if self.version == Version::V2 {
            return fields::unpack(words, bits);
        }
        if self.overflow == Overflow::Borrow && bits != 3 {
            // One in each field of a word.
            let mut ones = [0; 8];
            fields::pack(&[1; UNIT], bits, &mut ones[..bits as usize]);
            words.iter_mut().zip(ones).for_each(|(word, one)| *word = word.wrapping_add(one));
            return fields::unpack(words, bits);
        }
        let max = ((1u32 << bits) - 1) as u8;
        fields::unpack(words, bits).map(|field| field.wrapping_add(1) & max)
    }
}

impl Layout for GptqLayout {
    fn refuses(&self, [out_features, in_features]: [usize; 2], grid: Grid) -> Option<String> {
        if ![2, 3, 4, 8].contains(&grid.bits) {
            return Some(format!("GPTQ holds 2, 3, 4 or 8 bits, not {}", grid.bits));
        }
        let odd = |n: usize| !n.is_multiple_of(UNIT);
        (odd(out_features) || odd(in_features)).then(|| {
            format!(
                "{out_features} outputs and {in_features} inputs; loaders want multiples of {UNIT} of both"
            )
        })
    }

    fn parts(&self, [out_features, in_features]: [usize; 2], grid: Grid) -> Vec<Part> {
        let groups = grid.groups(in_features);
        vec![
            Part::integers("qweight", &[fields::words(in_features, grid.bits), out_features]),
            Part::integers("qzeros", &[groups, fields::words(out_features, grid.bits)]),
            Part::scales([groups, out_features]),
            Part::integers("g_idx", &[in_features]),
        ]
    }

    fn pack(&self, linear: &QuantizedLinear) -> Result<Vec<Vec<u8>>, PackError> {
        let g_idx = (0..linear.in_features()).flat_map(|i| (linear.group_of(i) as u32).to_le_bytes());
        Ok(vec![pack_codes(linear), self.pack_zeros(linear)?, write_scales(linear), g_idx.collect()])
    }

    fn shape(&self, stored: &Stored<'_>, bits: u32) -> [usize; 2] {
        let fields =
            |words: Words<'_>| words.shape.first().map_or(0, |n| n.saturating_mul(32)) / bits as usize;
        let in_features = match stored.g_idx {
            Some(g_idx) => g_idx.data.len(),
            None => fields(stored.qweight),
        };
        [stored.scales.shape.last().copied().unwrap_or(0), in_features]
    }

    fn unpack(
        &self,
        stored: &Stored<'_>,
        [out_features, in_features]: [usize; 2],
        grid: Grid,
        outputs: Range<usize>,
    ) -> Result<QuantizedLinear, PackError> {
        let groups = grid.groups(in_features);
        let codes = unpack_codes(stored.qweight, in_features, grid.bits, outputs.clone());
        let scales = read_scales(stored.scales, out_features, groups, outputs.clone())?;
        let zeros = self.unpack_zeros(stored.qzeros, groups, grid.bits, outputs.clone());
        let g_idx = stored.g_idx.map(|g_idx| read_g_idx(g_idx, groups)).transpose()?.flatten();
        let grid = grid_of(&zeros, grid);
        Ok(QuantizedLinear::new([outputs.len(), in_features], grid, codes, scales, zeros, g_idx)?)
    }
}

impl GptqLayout {
    fn pack_zeros(&self, linear: &QuantizedLinear) -> Result<Vec<u8>, PackError> {
        let (bits, groups, zeros) = (linear.bits(), linear.groups(), linear.zeros());
        let less = match self.version {
            Version::V1 => 1,
            Version::V2 => 0,
        };
        if let Some(i) = zeros.iter().position(|zero| *zero < less) {
            return Err(PackError::ZeroPoint { output: i / groups, group: i % groups });
        }
        let mut bytes = Vec::new();
        let mut words = [0; 8];
        for group in 0..groups {
            let of_group: Vec<u8> = zeros[group..].iter().step_by(groups).map(|zero| zero - less).collect();
            for unit in of_group.chunks(UNIT) {
                let words = &mut words[..fields::words(UNIT, bits)];
                fields::pack(unit, bits, words);
                let used = fields::words(unit.len(), bits);
                bytes.extend(words[..used].iter().flat_map(|word| word.to_le_bytes()));
            }
        }
        Ok(bytes)
    }

    /// `[outputs, groups]`.
    fn unpack_zeros(&self, qzeros: Words<'_>, groups: usize, bits: u32, outputs: Range<usize>) -> Vec<u8> {
        let mut zeros = vec![0; outputs.len() * groups];
        let width = qzeros.shape[1];
        for group in 0..groups {
            for unit in outputs.start / UNIT..outputs.end.div_ceil(UNIT) {
                let mut words = [0; 8];
                let first = unit * bits as usize;
                for (word, column) in words.iter_mut().zip(first..width.min(first + bits as usize)) {
                    *word = qzeros.get(group * width + column);
                }
                let unpacked = self.stored_to_zeros(&mut words, bits);
                for (output, zero) in (unit * UNIT..).zip(unpacked) {
                    if outputs.contains(&output) {
                        zeros[(output - outputs.start) * groups + group] = zero;
                    }
                }
            }
        }
        zeros
    }
}

fn pack_codes(linear: &QuantizedLinear) -> Vec<u8> {
    let [n, k] = [linear.out_features(), linear.in_features()];
    let bits = linear.bits();
    let mut bytes = vec![0; fields::words(k, bits) * n * 4];
    // Words of 32 inputs, of all outputs.
    bytes.par_chunks_mut(bits as usize * n * 4).enumerate().for_each(|(unit, bytes)| {
        let mut words = [0; 8];
        for output in 0..n {
            let codes = &linear.codes()[output * k..][..k];
            let codes = &codes[unit * UNIT..k.min((unit + 1) * UNIT)];
            fields::pack(codes, bits, &mut words[..bits as usize]);
            for (row, word) in bytes.chunks_exact_mut(n * 4).zip(words) {
                row[output * 4..][..4].copy_from_slice(&word.to_le_bytes());
            }
        }
    });
    bytes
}

/// `[outputs, in_features]`.
fn unpack_codes(qweight: Words<'_>, in_features: usize, bits: u32, outputs: Range<usize>) -> Vec<u8> {
    let mut codes = vec![0; outputs.len() * in_features];
    let (rows, n) = (qweight.shape[0], qweight.shape[1]);
    let mut words = [0; 8];
    for unit in 0..in_features.div_ceil(UNIT) {
        let first = unit * bits as usize;
        let inputs = unit * UNIT..in_features.min((unit + 1) * UNIT);
        for (codes, output) in codes.chunks_exact_mut(in_features).zip(outputs.clone()) {
            for (word, row) in words.iter_mut().zip(first..rows.min(first + bits as usize)) {
                *word = qweight.get(row * n + output);
            }
            let unpacked = fields::unpack(&words, bits);
            codes[inputs.clone()].copy_from_slice(&unpacked[..inputs.len()]);
        }
    }
    codes
}
