//! Random tensors of every shape, source type and kind of values through every format: quantized, written, read and dequantized
//! they are within what the type promises.

use half::{bf16, f16};
use llm_quantize::format::awq::AwqConfig;
use llm_quantize::format::gguf::blocks::{self, Simd};
use llm_quantize::format::gguf::reader::Reader;
use llm_quantize::format::gguf::writer::{Layout, Writer};
use llm_quantize::format::gguf::{GgmlType, Metadata};
use llm_quantize::format::gptq::Version;
use llm_quantize::format::hf::{self, HfWriter};
use llm_quantize::format::packed::config::Stated;
use llm_quantize::format::packed::{Container, Entry, PackedModel, PackedWriter, Scheme, Target};
use llm_quantize::format::shards::float_bytes;
use llm_quantize::quant::Grid;
use llm_quantize::source::dense::Dense;
use llm_quantize::source::safetensors::{FloatType, Tensors};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::packed;

/// How values are spread.
#[derive(Clone, Copy, Debug)]
enum Spread {
    Normal,
    Uniform,
    /// Far from zero on one side.
    Shifted,
    /// Tiny, but for one in fifty.
    Spikes,
    Constant,
    Zeros,
    /// Each row of another size.
    Rows,
}

/// A matrix of values that a checkpoint of the type can hold.
#[derive(Clone, Debug)]
struct Matrix {
    shape: [usize; 2],
    values: Vec<f32>,
}

/// Matrices whose sides are multiples of `units`.
fn matrices(units: [usize; 2]) -> impl Strategy<Value = Matrix> {
    use Spread::*;
    let spread = prop::sample::select(vec![Normal, Uniform, Shifted, Spikes, Constant, Zeros, Rows]);
    let dtype = prop::sample::select(vec![FloatType::F32, FloatType::F16, FloatType::BF16]);
    (1..5usize, 1..4usize, spread, dtype, -6..3i32, any::<u64>()).prop_map(
        move |(rows, columns, spread, dtype, exponent, seed)| {
            let shape = [rows * units[0], columns * units[1]];
            let mut state = seed | 1;
            let size = 10f32.powi(exponent);
            let values = (0..shape[0] * shape[1]).map(|i| {
                let row = 10f32.powi(-((i / shape[1] % 4) as i32));
                let value = size
                    * match spread {
                        Normal => normal(&mut state),
                        Uniform => uniform(&mut state),
                        Shifted => 5.0 + uniform(&mut state),
                        Spikes if i % 50 == 7 => 10.0 * normal(&mut state),
                        Spikes => 1e-3 * normal(&mut state),
                        Constant => 0.7,
                        Zeros => 0.0,
                        Rows => row * normal(&mut state),
                    };
                match dtype {
                    FloatType::F32 => value,
                    FloatType::F16 => f16::from_f32(value).to_f32(),
                    FloatType::BF16 => bf16::from_f32(value).to_f32(),
                }
            });
            Matrix { shape, values: values.collect() }
        },
    )
}

/// From -1 to 1, by xorshift64.
fn uniform(state: &mut u64) -> f32 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 40) as f32 / (1 << 23) as f32 - 1.0
}

fn normal(state: &mut u64) -> f32 {
    (0..4).map(|_| uniform(state)).sum::<f32>() * 0.866
}

/// Half of the distance from a float16 to the next, for a value of this size.
fn half_ulp_f16(value: f32) -> f32 {
    (value.abs() * 2f32.powi(-11)).max(2f32.powi(-25))
}

/// How far values of a block may be off where its scale (and minimum) follow from its extremes: half a step, a whole one where
/// a range of an even number of codes has no code for its other end; and what rounding the scale to float16 adds to the
/// largest code.
fn allowed(ty: GgmlType, block: &[f32]) -> Option<f32> {
    let largest = block.iter().fold(0f32, |a, b| a.max(b.abs()));
    let [low, high] = block.iter().fold([f32::MAX, f32::MIN], |[l, h], v| [l.min(*v), h.max(*v)]);
    let scaled =
        |step: f32, codes: f32, half_steps: f32| half_steps * step / 2.0 + codes * half_ulp_f16(step);
    Some(match ty {
        GgmlType::F32 => 0.0,
        GgmlType::F16 => half_ulp_f16(largest),
        GgmlType::BF16 => (largest * 2f32.powi(-8)).max(2f32.powi(-134)),
        GgmlType::Q8_0 => scaled(largest / 127.0, 127.0, 1.0),
        GgmlType::Q4_0 => scaled(largest / 8.0, 8.0, 2.0),
        GgmlType::Q5_0 => scaled(largest / 16.0, 16.0, 2.0),
        GgmlType::Q4_1 => scaled((high - low) / 15.0, 15.0, 1.0) + half_ulp_f16(low),
        GgmlType::Q5_1 => scaled((high - low) / 31.0, 31.0, 1.0) + half_ulp_f16(low),
        _ => return None,
    })
}

/// Types that search for their scales promise to be nearer to a tensor's weights than zeros are, but for what the smallest
/// float16 times the largest integers of a block (63 and 31 and 64 of 5-bit codes, 128 and 32 of 6-bit ones) makes of weights
/// that are all but zero.
const FLOOR: f64 = 4096.0 / (1u64 << 25) as f64;

fn check(ty: GgmlType, source: &[f32], read: &[f32]) -> Result<(), TestCaseError> {
    let len = if ty.is_quantized() { ty.block_len() } else { 1 };
    if allowed(ty, &source[..len]).is_some() {
        for (block, read) in source.chunks(len).zip(read.chunks(len)) {
            // Computing it takes some roundings of float32.
            let allowed = allowed(ty, block).unwrap_or_default() * 1.00001;
            for (a, b) in block.iter().zip(read) {
                prop_assert!(
                    (a - b).abs() <= allowed,
                    "{ty}: {a} became {b}, which is more than {allowed} away"
                );
            }
        }
        return Ok(());
    }
    let energy =
        |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    let error = energy(&mut source.iter().zip(read).map(|(a, b)| a - b));
    let weights = energy(&mut source.iter().copied());
    let floor = (source.len() as f64).sqrt() * FLOOR;
    prop_assert!(error <= weights + floor, "{ty}: an error of {error} for weights of {weights}");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn gguf(matrix in matrices([1, 256])) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("all.gguf");
        let types: Vec<GgmlType> = GgmlType::all().filter(|ty| ty.is_writable()).collect();
        let [rows, columns] = matrix.shape;
        let infos = types.iter().map(|ty| (ty.name().to_owned(), vec![columns as u64, rows as u64], *ty));
        let layout = Layout::new(&Metadata::new(), infos);
        let mut writer = Writer::new(std::fs::File::create(&path).unwrap(), layout).unwrap();
        for ty in &types {
            let mut bytes = vec![0; ty.bytes_for(matrix.values.len() as u64).unwrap() as usize];
            blocks::encode(*ty, &matrix.values, columns, None, &mut bytes, Simd::best());
            writer.write(&bytes).unwrap();
        }
        writer.finish().unwrap();
        let reader = Reader::open(&path).unwrap();
        prop_assert_eq!(reader.tensors().len(), types.len());
        for (ty, info) in types.into_iter().zip(reader.tensors()) {
            prop_assert_eq!((info.ty, info.shape.as_slice()), (ty, &[columns as u64, rows as u64][..info.shape.len()]));
            let mut read = vec![0.0; matrix.values.len()];
            blocks::decode(ty, reader.data(info), &mut read);
            check(ty, &matrix.values, &read)?;
        }
    }

    #[test]
    fn gptq_and_awq(
        matrix in matrices([32, 64]),
        bits in prop::sample::select(vec![2u32, 3, 4, 8]),
        group_size in prop::sample::select(vec![32usize, 64, Grid::WHOLE_ROW]),
        symmetric in any::<bool>(),
        version in prop::sample::select(vec![Version::V1, Version::V2]),
    ) {
        let grid = Grid { bits, group_size, symmetric };
        let rounded = packed::round(&matrix.values, matrix.shape, grid);
        let gptq = packed::gptq(grid, version);
        let awq = Container::Awq(AwqConfig { group_size: (group_size != Grid::WHOLE_ROW).then_some(group_size) });
        for container in [Some(gptq), (bits == 4).then_some(awq)].into_iter().flatten() {
            let dir = tempfile::tempdir().unwrap();
            let out = dir.path().join("model");
            let config = json!({"architectures": ["LlamaForCausalLM"]});
            let name = "model.layers.0.mlp.down_proj";
            let entry = Entry::Linear { name: name.into(), shape: matrix.shape, grid, bias: false };
            let mut writer = PackedWriter::create(Target::new(&out, None, &config), &container, &[entry]).unwrap();
            writer.linear(name, &rounded, None).unwrap();
            writer.finish().unwrap();

            let config: Value = serde_json::from_slice(&std::fs::read(out.join("config.json")).unwrap()).unwrap();
            let stated = Stated::find(&out, &config).unwrap().unwrap();
            let model = PackedModel::open(&out, Scheme::read(&stated).unwrap()).unwrap();
            let weight = format!("{name}.weight");
            let read = model.linear(&weight).unwrap();
            prop_assert_eq!(
                (read.codes(), read.scales(), read.zeros()),
                (rounded.codes(), rounded.scales(), rounded.zeros())
            );
            let mut values = vec![0.0; matrix.values.len()];
            model.read(&weight, 0..matrix.shape[0], &mut values).unwrap();
            let k = matrix.shape[1];
            for (i, (a, b)) in matrix.values.iter().zip(&values).enumerate() {
                let scale = read.scales()[i / k * read.groups() + read.group_of(i % k)].to_f32();
                // Half a step for the code, half a one for the zero point and a whole one where it may not be 0, and what
                // rounding the scale to float16 adds up to over all codes.
                let allowed = 2.0 * scale + f32::from(grid.max_code()) * half_ulp_f16(scale);
                prop_assert!((a - b).abs() <= allowed, "{a} became {b} with a step of {scale}");
            }
        }
    }

    #[test]
    fn plain_directories(matrix in matrices([1, 3])) {
        for dtype in [FloatType::F32, FloatType::F16, FloatType::BF16] {
            let dir = tempfile::tempdir().unwrap();
            let out = dir.path().join("model");
            let config = json!({"architectures": ["LlamaForCausalLM"]});
            let tensors = [("a.weight".to_owned(), matrix.shape.to_vec())];
            let mut writer = HfWriter::create(hf::Target::new(&out, None, &config, dtype), &tensors).unwrap();
            writer.bytes("a.weight", &float_bytes("a.weight", dtype, &matrix.values).unwrap()).unwrap();
            writer.finish().unwrap();
            let read = Tensors::open(&out).unwrap();
            let mut values = vec![0.0; matrix.values.len()];
            read.read("a.weight", 0..matrix.shape[0], &mut values).unwrap();
            check(dtype.ggml(), &matrix.values, &values)?;
        }
    }
}
