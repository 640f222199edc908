//! A second reader of GPTQ and AWQ layers, bit by bit as the formats are described, sharing nothing with the program.

use std::collections::BTreeMap;
use std::path::Path;

use half::f16;

use crate::checkpoint::{Weights, read_weights};

/// A layer as its tensors say, outputs first.
#[derive(Debug, PartialEq)]
pub(crate) struct Layer {
    pub(crate) codes: Vec<Vec<u8>>,
    pub(crate) zeros: Vec<Vec<u8>>,
    pub(crate) scales: Vec<Vec<f16>>,
    pub(crate) groups: Vec<u32>,
}

impl Layer {
    /// The weights, outputs first.
    pub(crate) fn weights(&self) -> Vec<f32> {
        let mut weights = Vec::new();
        for ((codes, zeros), scales) in self.codes.iter().zip(&self.zeros).zip(&self.scales) {
            for (code, group) in codes.iter().zip(&self.groups) {
                let group = *group as usize;
                weights.push(scales[group].to_f32() * (f32::from(*code) - f32::from(zeros[group])));
            }
        }
        weights
    }
}

/// The tensors of one safetensors file by name.
pub(crate) struct PackedFile(BTreeMap<String, Weights>);

impl PackedFile {
    pub(crate) fn open(path: &Path) -> PackedFile {
        PackedFile(read_weights(path).into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect())
    }

    pub(crate) fn tensor(&self, name: &str) -> &Weights {
        self.0.get(name).unwrap_or_else(|| panic!("{name} is not in the file"))
    }

    /// A matrix of words by rows.
    fn words(&self, name: &str) -> Vec<Vec<u32>> {
        let tensor = self.tensor(name);
        assert_eq!((tensor.dtype.as_str(), tensor.shape.len()), ("I32", 2), "{name}");
        let words: Vec<u32> = tensor.data.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
        words.chunks(tensor.shape[1]).map(<[u32]>::to_vec).collect()
    }

    /// `scales[output][group]`.
    fn scales(&self, name: &str) -> Vec<Vec<f16>> {
        let tensor = self.tensor(name);
        assert_eq!((tensor.dtype.as_str(), tensor.shape.len()), ("F16", 2), "{name}");
        let values: Vec<f16> = tensor.data.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b)).collect();
        (0..tensor.shape[1])
            .map(|output| {
                (0..tensor.shape[0]).map(|group| values[group * tensor.shape[1] + output]).collect()
            })
            .collect()
    }

    /// A GPTQ layer of `shape`, outputs first. `less` is what was taken off the zero points.
    pub(crate) fn gptq(&self, name: &str, [n, k]: [usize; 2], bits: usize, less: u8) -> Layer {
        let qweight = self.words(&format!("{name}.qweight"));
        let qzeros = self.words(&format!("{name}.qzeros"));
        let scales = self.scales(&format!("{name}.scales"));
        let g_idx = self.tensor(&format!("{name}.g_idx"));
        assert_eq!((g_idx.dtype.as_str(), g_idx.shape.as_slice()), ("I32", &[k][..]));
        let column = |output: usize| -> Vec<u32> { qweight.iter().map(|row| row[output]).collect() };
        let zeros: Vec<Vec<u8>> = qzeros.iter().map(|row| fields(row, n, bits)).collect();
        Layer {
            codes: (0..n).map(|output| fields(&column(output), k, bits)).collect(),
            zeros: (0..n).map(|output| zeros.iter().map(|row| row[output] + less).collect()).collect(),
            scales,
            groups: g_idx.data.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect(),
        }
    }

    /// An AWQ layer of `shape`, outputs first.
    pub(crate) fn awq(&self, name: &str, [n, k]: [usize; 2], group_size: usize) -> Layer {
        let qweight = self.words(&format!("{name}.qweight"));
        let qzeros = self.words(&format!("{name}.qzeros"));
        let nibble = |row: &[u32], output: usize| {
            // Of eight outputs, the even ones come first.
            let place = match output % 8 {
                even if even % 2 == 0 => even / 2,
                odd => 4 + odd / 2,
            };
            ((row[output / 8] >> (4 * place)) & 15) as u8
        };
        let transposed = |rows: &[Vec<u32>]| -> Vec<Vec<u8>> {
            (0..n).map(|output| rows.iter().map(|row| nibble(row, output)).collect()).collect()
        };
        assert_eq!(qweight.len(), k);
        Layer {
            codes: transposed(&qweight),
            zeros: transposed(&qzeros),
            scales: self.scales(&format!("{name}.scales")),
            groups: (0..k).map(|i| (i / group_size) as u32).collect(),
        }
    }
}

/// The first `count` fields of `bits` bits.
fn fields(words: &[u32], count: usize, bits: usize) -> Vec<u8> {
    let bit = |word: u32, i: usize| (word >> i & 1) as u8;
    if bits == 3 {
        return (0..count).map(|i| three_bits(&words[i / 32 * 3..], i % 32)).collect();
    }
    let per_word = 32 / bits;
    (0..count)
        .map(|i| (0..bits).map(|b| bit(words[i / per_word], i % per_word * bits + b) << b).sum())
        .collect()
}

/// Field `i` of 32 in three words, where 10 and 21 lie across two of them.
fn three_bits(words: &[u32], i: usize) -> u8 {
    let low = |word: u32, shift: usize, count: u32| (word >> shift & ((1 << count) - 1)) as u8;
    match i {
        0..=9 => low(words[0], 3 * i, 3),
        10 => low(words[0], 30, 2) | low(words[1], 0, 1) << 2,
        11..=20 => low(words[1], 3 * (i - 11) + 1, 3),
        21 => low(words[1], 31, 1) | low(words[2], 0, 2) << 1,
        _ => low(words[2], 3 * (i - 22) + 2, 3),
    }
}
