//! The tensors of a linear layer in AWQ checkpoints of the `gemm` version, as AutoAWQ made them and all loaders read them.
//! With K inputs, N outputs and G groups:
//!
//! | tensor | type | shape | |
//! |---|---|---|---|
//! | `qweight` | I32 | `[K, N/8]` | eight outputs per word |
//! | `qzeros` | I32 | `[G, N/8]` | eight outputs per word |
//! | `scales` | F16 | `[G, N]` | |

use std::ops::Range;

use rayon::prelude::*;

use crate::format::packed::layout::{
    Layout, PackError, Part, Stored, Words, grid_of, read_scales, write_scales,
};
use crate::quant::{Grid, QuantizedLinear};

/// Outputs per word.
const PER_WORD: usize = 8;

/// The output, of the eight of a word, that each nibble holds, lowest nibble first.
const ORDER: [usize; PER_WORD] = [0, 2, 4, 6, 1, 3, 5, 7];

/// How far to shift for each of the eight outputs.
const SHIFT: [u32; PER_WORD] = {
    let mut shift = [0; PER_WORD];
    let mut nibble = 0;
    while nibble < PER_WORD {
        shift[ORDER[nibble]] = 4 * nibble as u32;
        nibble += 1;
    }
    shift
};

/// AWQ's layout of a linear layer.
#[derive(Clone, Copy, Debug)]
pub struct AwqLayout;

impl Layout for AwqLayout {
    fn refuses(&self, [out_features, in_features]: [usize; 2], grid: Grid) -> Option<String> {
        let group = if grid.group_size == Grid::WHOLE_ROW { in_features } else { grid.group_size }.max(1);
        if grid.bits != 4 {
            Some(format!("AWQ holds 4 bits, not {}", grid.bits))
        } else if !out_features.is_multiple_of(PER_WORD) {
            Some(format!("{out_features} outputs; AWQ needs a multiple of {PER_WORD}"))
        } else if !in_features.is_multiple_of(group) {
            Some(format!("{in_features} inputs; AWQ needs a multiple of the group size {group}"))
        } else {
            None
        }
    }

    fn parts(&self, [out_features, in_features]: [usize; 2], grid: Grid) -> Vec<Part> {
        let groups = grid.groups(in_features);
        let words = out_features.div_ceil(PER_WORD);
        vec![
            Part::integers("qweight", &[in_features, words]),
            Part::integers("qzeros", &[groups, words]),
            Part::scales([groups, out_features]),
        ]
    }

    fn pack(&self, linear: &QuantizedLinear) -> Result<Vec<Vec<u8>>, PackError> {
        let shape = [linear.out_features(), linear.in_features()];
        if let Some(why) = self.refuses(shape, linear.grid()) {
            return Err(PackError::Grid(why));
        }
        if linear.g_idx().is_some() {
            return Err(PackError::Grid("AWQ has no place for groups in another order".into()));
        }
        let codes = pack(linear.codes(), linear.in_features());
        let zeros = pack(linear.zeros(), linear.groups());
        Ok(vec![codes, zeros, write_scales(linear)])
    }

    fn shape(&self, stored: &Stored<'_>, _: u32) -> [usize; 2] {
        let size = |shape: &[usize], i: usize| shape.get(i).copied().unwrap_or(0);
        [size(stored.scales.shape, 1), size(stored.qweight.shape, 0)]
    }

    fn unpack(
        &self,
        stored: &Stored<'_>,
        [out_features, in_features]: [usize; 2],
        grid: Grid,
        outputs: Range<usize>,
    ) -> Result<QuantizedLinear, PackError> {
        let groups = grid.groups(in_features);
        let codes = unpack(stored.qweight, in_features, outputs.clone());
        let zeros = unpack(stored.qzeros, groups, outputs.clone());
        let scales = read_scales(stored.scales, out_features, groups, outputs.clone())?;
        let grid = grid_of(&zeros, grid);
        Ok(QuantizedLinear::new([outputs.len(), in_features], grid, codes, scales, zeros, None)?)
    }
}

/// From `[outputs, columns]` to the words of `[columns, outputs / 8]`.
fn pack(values: &[u8], columns: usize) -> Vec<u8> {
    let outputs = values.len() / columns;
    let mut bytes = vec![0; values.len() / 2];
    bytes.par_chunks_mut(outputs / 2).enumerate().for_each(|(column, bytes)| {
        for (word, bytes) in bytes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let nibbles = SHIFT
                .iter()
                .enumerate()
                .map(|(i, shift)| u32::from(values[(word * PER_WORD + i) * columns + column]) << shift);
            *bytes = nibbles.fold(0, |a, b| a | b).to_le_bytes();
        }
    });
    bytes
}

/// From the words of `[columns, ..]` to `[outputs, columns]`.
fn unpack(words: Words<'_>, columns: usize, outputs: Range<usize>) -> Vec<u8> {
    let mut values = vec![0; outputs.len() * columns];
    let width = words.shape[1];
    for column in 0..columns {
        for (i, output) in outputs.clone().enumerate() {
            let word = words.get(column * width + output / PER_WORD);
            values[i * columns + column] = ((word >> SHIFT[output % PER_WORD]) & 15) as u8;
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nibbles_lie_in_the_order_of_the_kernel() {
        // One column whose eight outputs are 0 to 7.
        let bytes = pack(&[0, 1, 2, 3, 4, 5, 6, 7], 1);
        assert_eq!(u32::from_le_bytes(bytes.try_into().unwrap()), 0x7531_6420);
    }
}
