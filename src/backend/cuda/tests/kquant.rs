//! GGML blocks.

use super::gpu;
use crate::backend::cuda::{Cuda, kernels};
use crate::backend::{Backend, BlockRows};
use crate::format::gguf::GgmlType;
use crate::format::gguf::blocks::corpus::parts;
use crate::format::gguf::blocks::{self, Simd};

fn both(gpu: &Cuda, rows: BlockRows<'_>) -> [Vec<u8>; 2] {
    let bytes = rows.weights.len() / rows.ty.block_len() * rows.ty.block_bytes();
    let (mut of_cpu, mut of_gpu) = (vec![0; bytes], vec![0; bytes]);
    blocks::encode(rows.ty, rows.weights, rows.columns, rows.importance, &mut of_cpu, Simd::best());
    gpu.encode_blocks(rows, &mut of_gpu).unwrap();
    [of_cpu, of_gpu]
}

#[track_caller]
fn assert_same_bytes(types: &[GgmlType]) {
    let Some((gpu, _one)) = gpu() else { return };
    for &ty in types {
        for part in parts() {
            let rows = BlockRows {
                ty,
                weights: &part.src,
                columns: part.n_per_row,
                importance: part.importance.as_deref(),
            };
            let [of_cpu, of_gpu] = both(&gpu, rows);
            let at = of_cpu.iter().zip(&of_gpu).position(|(a, b)| a != b);
            assert_eq!(
                at.map(|at| at / ty.block_bytes()),
                None,
                "first block that differs: {ty} of {}",
                part.name
            );
        }
    }
}

#[test]
fn blocks_with_one_scale_are_those_of_the_cpu() {
    assert_same_bytes(&[GgmlType::Q4_0, GgmlType::Q5_0, GgmlType::Q8_0]);
}

#[test]
fn blocks_with_a_minimum_are_those_of_the_cpu() {
    assert_same_bytes(&[GgmlType::Q4_1, GgmlType::Q5_1]);
}

#[test]
fn blocks_of_256_with_a_minimum_are_those_of_the_cpu() {
    assert_same_bytes(&[GgmlType::Q2_K, GgmlType::Q4_K, GgmlType::Q5_K]);
}

#[test]
fn blocks_of_256_without_a_minimum_are_those_of_the_cpu() {
    assert_same_bytes(&[GgmlType::Q3_K, GgmlType::Q6_K]);
}

#[test]
fn blocks_of_uneven_values_are_those_of_the_cpu() {
    assert_same_bytes(&[GgmlType::IQ4_NL, GgmlType::IQ4_XS]);
}

#[test]
fn every_type_with_an_encoder_is_compared() {
    let compared = "Q4_0 Q5_0 Q8_0 Q4_1 Q5_1 Q2_K Q4_K Q5_K Q3_K Q6_K IQ4_NL IQ4_XS";
    let encoders: Vec<&str> =
        GgmlType::all().filter(|ty| kernels::encoder(*ty).is_some()).map(GgmlType::name).collect();
    assert_eq!(encoders.len(), compared.split(' ').count());
    for name in encoders {
        assert!(compared.split(' ').any(|c| c == name), "{name}");
    }
}

/// Numbers of blocks around those that fill a thread block, and rows of one block.
#[test]
fn any_number_of_blocks_is_encoded() {
    let Some((gpu, _one)) = gpu() else { return };
    let parts = parts();
    let importance: Vec<f32> = (0..256).map(|i| 1.0 + i as f32).collect();
    for ty in GgmlType::all().filter(|ty| kernels::encoder(*ty).is_some()) {
        let per_launch = 128 * 16 / ty.block_len().min(128 * 16);
        for count in
            [1, 2, per_launch.saturating_sub(1).max(1), per_launch, per_launch + 1, 2 * per_launch + 1]
        {
            let weights: Vec<f32> =
                parts[0].src.iter().copied().cycle().take(count * ty.block_len()).collect();
            for importance in [None, Some(&importance[..ty.block_len()])] {
                let [of_cpu, of_gpu] =
                    both(&gpu, BlockRows { ty, weights: &weights, columns: ty.block_len(), importance });
                assert!(of_cpu == of_gpu, "{count} blocks of {ty}");
            }
        }
    }
}
