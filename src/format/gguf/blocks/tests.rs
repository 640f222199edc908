use super::corpus::{FNV_START, Part, Random, fnv, hash_floats, parts};
use super::*;

/// Hashes of the corpus as llama.cpp's `ggml_quantize_chunk` (ggml 0.25.3, baseline x86-64) encodes it: the bytes of the
/// parts without importance, of those with importance, and what `to_float` makes of all of them.
#[rustfmt::skip]
const GOLDEN: [(GgmlType, u64, u64, u64); 17] = [
    (GgmlType::F32, 0x21d5_4aa9_bac0_c41d, 0x9ad3_78b5_0b25_b40d, 0x66c9_60b6_1f98_89ad),
    (GgmlType::F16, 0x3bf7_cdea_dcd2_e459, 0xaa63_e1a7_6e6a_6b68, 0x96ec_842c_7ddb_c9d4),
    (GgmlType::BF16, 0xd03b_b473_7858_4143, 0x579f_5379_4b4f_71c4, 0xc0c8_c2ac_71a5_2abe),
    (GgmlType::Q8_0, 0x7273_6d15_7120_a02d, 0xf464_f856_4042_3ae9, 0x682e_605e_9bb6_d9b8),
    (GgmlType::Q4_0, 0x140f_154d_a71a_6324, 0x2829_76c4_6705_41f3, 0xb1db_780f_70b4_900e),
    (GgmlType::Q4_1, 0x640d_3238_18f4_09eb, 0x3d47_1326_39b9_302f, 0x7bd1_2388_bcb8_af18),
    (GgmlType::Q5_0, 0x2d7a_aa4b_d62b_939f, 0x7548_acca_a13a_ca87, 0x4efd_447a_834d_9634),
    (GgmlType::Q5_1, 0xac0b_730e_ffff_48f6, 0xe9ae_a987_cdde_d276, 0xde0f_74cf_5acd_aa8e),
    (GgmlType::Q2_K, 0x72c3_8359_9e15_f1bc, 0xe651_2240_f50b_fc9c, 0x2f88_4507_68ae_71b4),
    (GgmlType::Q3_K, 0x10e2_ca21_260b_7cb9, 0x1794_151f_0e75_3826, 0x3037_f0ae_6485_9c9a),
    (GgmlType::Q4_K, 0x3d31_18d0_d1bb_24f9, 0xccbb_8dc8_0e77_99f0, 0xa43c_9370_f2aa_4779),
    (GgmlType::Q5_K, 0x8f9c_8209_5fc6_8491, 0x56f2_a38d_de0a_193f, 0x44a0_5b5b_064a_fac6),
    (GgmlType::Q6_K, 0xd064_23ca_7da2_6f12, 0x64f0_eb7c_de55_7d0c, 0x9aaa_f411_2a02_fba7),
    (GgmlType::IQ4_NL, 0x1e1d_99b4_80a1_5038, 0x961a_3b7a_77c0_7833, 0x3808_5540_79f2_7c4a),
    (GgmlType::IQ4_XS, 0xe26f_a696_2838_6330, 0xfa7a_a848_7604_17b1, 0x3f8d_0b27_e8d5_b064),
    (GgmlType::TQ1_0, 0x2d35_9c00_b1c6_b487, 0xea43_ab88_1238_7c57, 0x29d7_3ae7_caf8_bfd8),
    (GgmlType::TQ2_0, 0x5b54_54f4_2858_ea4a, 0x1af9_ae93_d266_d7e4, 0x29d7_3ae7_caf8_bfd8),
];

fn encoded(ty: GgmlType, part: &Part, simd: Simd) -> Vec<u8> {
    let mut dst = vec![0; part.src.len() / ty.block_len() * ty.block_bytes()];
    encode(ty, &part.src, part.n_per_row, part.importance.as_deref(), &mut dst, simd);
    dst
}

#[test]
fn every_type_that_can_be_written_has_a_golden_hash() {
    let writable: Vec<_> = GgmlType::all().filter(|ty| ty.is_writable()).collect();
    assert!(writable.iter().all(|ty| GOLDEN.iter().any(|row| row.0 == *ty)));
}

#[test]
fn all_paths_write_the_bytes_of_llama_cpp() {
    let parts = parts();
    for (ty, plain, weighted, _) in GOLDEN {
        for simd in Simd::available() {
            let mut hashes = [FNV_START; 2];
            for part in &parts {
                let hash = &mut hashes[usize::from(part.importance.is_some())];
                *hash = fnv(*hash, &encoded(ty, part, simd));
            }
            assert_eq!(hashes, [plain, weighted], "{ty} by {}", simd.name());
        }
    }
}

#[test]
fn all_paths_agree_on_every_part_and_on_every_number_of_blocks() {
    for part in parts() {
        for (ty, ..) in GOLDEN {
            let expected = encoded(ty, &part, Simd::Portable);
            for simd in Simd::available() {
                assert_eq!(encoded(ty, &part, simd), expected, "{ty} of {} by {}", part.name, simd.name());
            }
        }
    }
    let part = &parts()[1];
    for (ty, ..) in GOLDEN {
        let n = ty.block_len().max(32);
        for blocks in 0..=part.src.len() / n {
            let part = Part {
                name: format!("{blocks} blocks in a row each"),
                n_per_row: n,
                src: part.src[..blocks * n].to_vec(),
                importance: part.importance.as_ref().map(|w| w[..n].to_vec()),
            };
            let expected = encoded(ty, &part, Simd::Portable);
            for simd in Simd::available() {
                assert_eq!(encoded(ty, &part, simd), expected, "{ty}, {} by {}", part.name, simd.name());
            }
        }
    }
}

#[test]
fn blocks_decode_as_in_llama_cpp() {
    let parts = parts();
    for (ty, _, _, golden) in GOLDEN {
        let mut hash = FNV_START;
        for part in &parts {
            let mut decoded = vec![0.0; part.src.len()];
            decode(ty, &encoded(ty, part, Simd::best()), &mut decoded);
            hash = hash_floats(hash, &decoded);
        }
        assert_eq!(hash, golden, "{ty}");
    }
}

/// With `b` bits a weight, uniform steps over the range of a block (some 4 to 5 standard deviations of normal weights)
/// leave an error of about `(range / 2^b)^2 / 12`: 0.01 at 4 bits, and four times less for each further bit. Searched
/// scales and smaller sub-blocks gain some, ternary types have one step for most weights, and 16-bit floats err in
/// the 9th or 12th bit.
#[test]
fn decoded_weights_are_near_the_encoded_ones() {
    let mut r = Random(1);
    let src: Vec<f32> = (0..256 * 64).map(|_| r.normal() * 0.02).collect();
    let energy: f64 = src.iter().map(|&v| f64::from(v).powi(2)).sum();
    let bounds = [
        (GgmlType::F32, 0.0),
        (GgmlType::F16, 1e-7),
        (GgmlType::BF16, 5e-6),
        (GgmlType::Q8_0, 5e-5),
        (GgmlType::Q6_K, 4e-4),
        (GgmlType::Q5_0, 2.5e-3),
        (GgmlType::Q5_1, 2e-3),
        (GgmlType::Q5_K, 1.5e-3),
        (GgmlType::Q4_0, 1e-2),
        (GgmlType::Q4_1, 8e-3),
        (GgmlType::Q4_K, 6.5e-3),
        (GgmlType::IQ4_NL, 7e-3),
        (GgmlType::IQ4_XS, 7e-3),
        (GgmlType::Q3_K, 3e-2),
        (GgmlType::Q2_K, 0.1),
        (GgmlType::TQ1_0, 1.0),
        (GgmlType::TQ2_0, 1.0),
    ];
    for (ty, bound) in bounds {
        let part = Part { name: String::new(), n_per_row: 256, src: src.clone(), importance: None };
        let mut decoded = vec![0.0; src.len()];
        decode(ty, &encoded(ty, &part, Simd::best()), &mut decoded);
        let error: f64 = src.iter().zip(&decoded).map(|(&a, &b)| f64::from(a - b).powi(2)).sum();
        let nmse = error / energy;
        assert!(nmse <= bound, "{ty}: {nmse}");
        assert!(nmse >= bound / 4.0, "{ty}: {nmse} is suspiciously good");
    }
}

#[test]
fn sources_are_widened_exactly() {
    let halves: Vec<u16> = (0..=u16::MAX).collect();
    let bytes: Vec<u8> = halves.iter().flat_map(|h| h.to_le_bytes()).collect();
    let floats: Vec<f32> = halves.iter().map(|&h| f32::from(h) * 1.5).collect();
    let float_bytes: Vec<u8> = floats.iter().flat_map(|v| v.to_le_bytes()).collect();
    for simd in Simd::available() {
        let mut out = vec![0.0; halves.len()];
        f16_to_f32(&bytes, &mut out, simd);
        for (&h, &v) in halves.iter().zip(&out) {
            let expected = half::f16::from_bits(h).to_f32();
            assert!(v.to_bits() == expected.to_bits() || v.is_nan() && expected.is_nan(), "half {h:#06x}");
        }
        bf16_to_f32(&bytes, &mut out, simd);
        for (&h, &v) in halves.iter().zip(&out) {
            assert_eq!(v.to_bits(), u32::from(h) << 16);
        }
        // Off the alignment of floats.
        let shifted: Vec<u8> = std::iter::once(0).chain(float_bytes.iter().copied()).collect();
        f32_from_le(&shifted[1..], &mut out, simd);
        assert_eq!(out, floats);
    }
}

#[test]
fn floats_round_to_half_precision_and_bfloat16() {
    let mut r = Random(3);
    let mut src: Vec<f32> =
        (0..=u16::MAX).map(|h| half::f16::from_bits(h).to_f32()).filter(|v| !v.is_nan()).collect();
    // Between neighbours: halfway, and a little to both sides of it.
    src.extend((0..0x7c00u16).flat_map(|h| {
        let (a, b) = (half::f16::from_bits(h).to_f32(), half::f16::from_bits(h + 1).to_f32());
        let halfway = if b.is_finite() { (a + b) / 2.0 } else { 65520.0 };
        [halfway, halfway.next_up(), -halfway.next_down()]
    }));
    src.extend((0..10_000).map(|_| r.normal() * 1e-6));
    src.extend([f32::MAX, f32::MIN, f32::INFINITY, f32::MIN_POSITIVE, f32::from_bits(1)]);
    for simd in Simd::available() {
        let mut out = vec![0; 2 * src.len()];
        encode(GgmlType::F16, &src, 1, None, &mut out, simd);
        for (v, h) in src.iter().zip(out.as_chunks().0) {
            assert_eq!(u16::from_le_bytes(*h), half::f16::from_f32(*v).to_bits(), "{v:e} to half precision");
        }
        encode(GgmlType::BF16, &src, 1, None, &mut out, simd);
        for (v, h) in src.iter().zip(out.as_chunks().0) {
            assert_eq!(u16::from_le_bytes(*h), half::bf16::from_f32(*v).to_bits(), "{v:e} to bfloat16");
        }
        let mut nan = [0; 4];
        encode(GgmlType::F16, &[f32::NAN, -f32::NAN], 2, None, &mut nan, simd);
        assert_eq!(nan, [0x00, 0x7e, 0x00, 0xfe]);
        encode(GgmlType::BF16, &[f32::from_bits(0x7f80_0001), -f32::NAN], 2, None, &mut nan, simd);
        assert_eq!(nan, [0xc0, 0x7f, 0xc0, 0xff]);
    }
}

#[test]
fn instruction_sets_are_found_by_their_names() {
    for simd in Simd::available() {
        assert_eq!(Simd::from_name(simd.name()), Some(simd));
    }
    assert_eq!(Simd::from_name("sse9"), None);
    assert_eq!(Simd::available().last(), Some(&Simd::Portable));
    assert_eq!(Simd::best(), Simd::available()[0]);
}

#[test]
#[should_panic(expected = "bytes for 32 weights")]
fn a_destination_of_the_wrong_size_is_refused() {
    encode(GgmlType::Q8_0, &[0.0; 32], 32, None, &mut [0; 33], Simd::Portable);
}

#[test]
#[should_panic(expected = "300 columns in Q4_K")]
fn rows_of_broken_blocks_are_refused() {
    encode(GgmlType::Q4_K, &[0.0; 600], 300, None, &mut [0; 288], Simd::Portable);
}

#[test]
#[should_panic(expected = "IQ2_XS is not a type that can be written")]
fn types_that_are_only_read_are_refused() {
    encode(GgmlType::IQ2_XS, &[0.0; 256], 256, None, &mut [0; 74], Simd::Portable);
}
