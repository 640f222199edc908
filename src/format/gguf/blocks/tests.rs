use super::corpus::{FNV_START, Part, Random, fnv, hash_floats, parts};
use super::*;

/// Hashes of the corpus as llama.cpp's `ggml_quantize_chunk` (ggml 0.25.3, baseline x86-64) encodes it: the bytes of the
/// parts without importance, of those with importance, and what `to_float` makes of all of them.
#[rustfmt::skip]
const GOLDEN: [(GgmlType, u64, u64, u64); 17] = [
    (GgmlType::F32, 0xb4cc_8c3a_1091_ee9d, 0x3c98_9ced_b21b_93d6, 0xd550_bae3_28c2_bd32),
    (GgmlType::F16, 0x0318_575a_0a9e_edf1, 0x2830_05b0_c079_344d, 0xeac7_3831_72a9_aadf),
    (GgmlType::BF16, 0xebfe_6b50_8a73_d912, 0x59bf_2b96_75d8_5058, 0x0eff_58b5_583d_95f3),
    (GgmlType::Q8_0, 0x9c70_899c_9879_b595, 0x73aa_d21e_ad62_ba8f, 0xde24_fdb9_a1dd_2faa),
    (GgmlType::Q4_0, 0x2b24_391c_56b9_ca00, 0x8555_84b9_8a35_ab09, 0xf5c0_484e_ba5a_2740),
    (GgmlType::Q4_1, 0x86fa_be5b_83f9_dd88, 0xb057_15d0_ace4_4410, 0x88e4_3c39_87a6_f16e),
    (GgmlType::Q5_0, 0xe77a_99c4_2675_8288, 0x0f11_2fe3_2817_9917, 0x2161_55eb_8042_2acb),
    (GgmlType::Q5_1, 0x95e9_c721_3b03_f18e, 0x32f7_b44f_74a2_12bb, 0x7b64_238c_edab_3f98),
    (GgmlType::Q2_K, 0x2cf9_cef0_9635_913e, 0x67cf_4ecf_3bbb_4ed6, 0xf0f8_70f8_4d2e_e1c6),
    (GgmlType::Q3_K, 0xcd0c_e376_1a43_980a, 0x7339_ecac_9466_b937, 0xe76b_bed2_61b5_68d9),
    (GgmlType::Q4_K, 0x0251_b0c5_489f_221f, 0xbb9a_8a59_f3b2_6b72, 0xe310_15d1_2695_b05a),
    (GgmlType::Q5_K, 0xbd9b_abb0_69da_dcaf, 0x7c9e_365f_a924_f479, 0xa855_90a9_c39c_9b45),
    (GgmlType::Q6_K, 0x40de_2b13_ecee_4900, 0x0a3e_7c73_288a_1080, 0x5484_2835_3aea_dfee),
    (GgmlType::IQ4_NL, 0x5409_5fc9_ed01_c1cc, 0x4983_a5b0_7968_7bab, 0x53a4_e4e7_f71e_fae3),
    (GgmlType::IQ4_XS, 0xb346_ca88_0af9_8287, 0xfd29_0eb2_b8cf_7727, 0x2db2_c932_9488_e5b1),
    (GgmlType::TQ1_0, 0x9bce_e3a1_ca0b_306f, 0xbe1c_399c_20b9_f770, 0x7b3b_6eee_dcd4_d93a),
    (GgmlType::TQ2_0, 0x049a_7ebf_fe90_fe6f, 0x63d6_02c3_77ce_e93e, 0x7b3b_6eee_dcd4_d93a),
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
    let mut r = Random::new(1);
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
    let mut r = Random::new(3);
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

/// Eight random blocks of each type that is only read, and what llama.cpp (ggml 0.25.3) decodes them to.
#[test]
fn types_that_are_only_read_decode_as_llama_cpp_does() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden/blocks");
    let only_read = GgmlType::all().filter(|ty| ty.is_readable() && !ty.is_writable());
    let mut count = 0;
    for ty in only_read {
        let bytes = std::fs::read(dir.join(format!("{ty}.bin"))).unwrap();
        let (blocks, expected) = bytes.split_at(8 * ty.block_bytes());
        let mut decoded = vec![0.0f32; 8 * ty.block_len()];
        decode(ty, blocks, &mut decoded);
        let expected: Vec<u32> = expected.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
        let found: Vec<u32> = decoded.iter().map(|w| w.to_bits()).collect();
        assert_eq!(found, expected, "{ty}");
        count += 1;
    }
    assert_eq!(count, 8);
}
