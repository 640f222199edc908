//! Finds what is no number among stored weights.

use rayon::prelude::*;

use crate::format::gguf::{GgmlType, blocks};

/// Weights that one thread decodes at a time.
const PIECE: usize = 1 << 16;

/// The first weight that decodes to NaN or infinity: its number, and the byte of `data` at which its block begins.
pub(super) fn first_not_finite(ty: GgmlType, data: &[u8]) -> Option<(u64, u64)> {
    let per_piece = PIECE / ty.block_len();
    data.par_chunks(per_piece * ty.block_bytes())
        .enumerate()
        .map_init(Vec::new, |weights: &mut Vec<f32>, (piece, data)| {
            weights.resize(data.len() / ty.block_bytes() * ty.block_len(), 0.0);
            blocks::decode(ty, data, weights);
            let bad = weights.iter().position(|weight| !weight.is_finite())?;
            let block = piece * per_piece + bad / ty.block_len();
            Some(((piece * PIECE + bad) as u64, (block * ty.block_bytes()) as u64))
        })
        .find_map_first(|found| found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_several_is_found() {
        let mut data = vec![0u8; 3 * (PIECE / 32) * 34];
        assert_eq!(first_not_finite(GgmlType::Q8_0, &data), None);
        for block in [5000, 4000] {
            // The scale is NaN.
            data[block * 34..][..2].copy_from_slice(&[0xff, 0x7f]);
            assert_eq!(first_not_finite(GgmlType::Q8_0, &data), Some((block as u64 * 32, block as u64 * 34)));
        }
        let halves = [half::f16::ONE, half::f16::INFINITY].map(|h| h.to_bits().to_le_bytes()).concat();
        assert_eq!(first_not_finite(GgmlType::F16, &halves), Some((1, 2)));
    }
}
