//! candle, which reads GGUF with code of its own, finds what we wrote.

use candle_core::Device;
use candle_core::quantized::gguf_file::Content;
use llm_quantize::format::gguf::{GgmlType, blocks};

use crate::gguf_file::File;
use crate::support::{model, quantized};

/// Opens a file of nothing but `level`'s type (and norms in float32) with candle and compares all weights.
#[track_caller]
fn assert_reads(level: &str) {
    let bytes = quantized(&model("tiny-llama"), level, &["--pure"]);
    let ours = File::parse(&bytes);
    let mut reader = std::io::Cursor::new(&bytes);
    let theirs = Content::read(&mut reader).unwrap();
    assert_eq!(theirs.tensor_infos.len(), ours.tensors.len());
    assert_eq!(theirs.metadata.len(), ours.metadata.len());
    assert_eq!(theirs.metadata["llama.block_count"].to_u32().unwrap(), 4);
    let mut quantized = 0;
    for tensor in &ours.tensors {
        let read = theirs.tensor(&mut reader, &tensor.name, &Device::Cpu).unwrap();
        let shape: Vec<u64> = read.shape().dims().iter().rev().map(|d| *d as u64).collect();
        assert_eq!(shape, tensor.shape, "{}", tensor.name);
        let read = read.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap();
        let read = read.to_dtype(candle_core::DType::F32).unwrap().to_vec1::<f32>().unwrap();
        let mut decoded = vec![0f32; read.len()];
        blocks::decode(GgmlType::from_name(tensor.ty).unwrap(), &tensor.data, &mut decoded);
        for (i, (a, b)) in decoded.iter().zip(&read).enumerate() {
            assert!(
                a.to_bits() == b.to_bits(),
                "{level}: weight {i} of {} is {a}, candle has {b}",
                tensor.name
            );
        }
        quantized += usize::from(!tensor.name.contains("norm"));
        let expected = if tensor.name.contains("norm") { "F32" } else { level.trim_end_matches("_S") };
        assert_eq!(tensor.ty, expected, "{}", tensor.name);
    }
    assert_eq!(quantized, 1 + 4 * 7);
}

#[test]
fn candle_reads_float_types() {
    ["F32", "F16", "BF16"].into_iter().for_each(assert_reads);
}

#[test]
fn candle_reads_blocks_of_32() {
    ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"].into_iter().for_each(assert_reads);
}

#[test]
fn candle_reads_blocks_of_256() {
    ["Q2_K", "Q3_K_S", "Q4_K_S", "Q5_K_S", "Q6_K"].into_iter().for_each(assert_reads);
}
