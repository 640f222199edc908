//! GPTQ and AWQ checkpoints that the tests make of the test models, rounding each weight to the nearest code.

use std::path::Path;

use half::f16;
use llm_quantize::format::gptq::{GptqConfig, Version};
use llm_quantize::format::packed::{Container, Entry, PackedWriter, Target};
use llm_quantize::quant::{Grid, QuantizedLinear};
use llm_quantize::source::dense::Dense;
use llm_quantize::source::safetensors::{FloatType, Tensors};
use serde_json::Value;

use crate::checkpoint::Case;
use crate::support::model;

/// A GPTQ configuration that says no more than it must.
pub(crate) fn gptq(grid: Grid, version: Version) -> Container {
    Container::Gptq(GptqConfig {
        grid,
        version,
        desc_act: false,
        static_groups: false,
        true_sequential: true,
        damp_percent: 0.05,
        meta: serde_json::Map::new(),
    })
}

/// Weights rounded to the grid. A zero point is never 0.
pub(crate) fn round(weights: &[f32], [n, k]: [usize; 2], grid: Grid) -> QuantizedLinear {
    let group_size = grid.group_size.min(k);
    let (mut codes, mut scales, mut zeros) = (Vec::new(), Vec::new(), Vec::new());
    let max = f32::from(grid.max_code());
    for row in weights.chunks(k) {
        for group in row.chunks(group_size) {
            let low = group.iter().fold(0.0f32, |a, b| a.min(*b));
            let high = group.iter().fold(0.0f32, |a, b| a.max(*b));
            let range = if grid.symmetric { 2.0 * high.max(-low) } else { high - low };
            let scale = f16::from_f32((range / max).max(1e-4));
            let zero = match grid.symmetric {
                true => grid.middle(),
                false => (-low / scale.to_f32()).round().clamp(1.0, max) as u8,
            };
            let code = |w: &f32| (w / scale.to_f32() + f32::from(zero)).round().clamp(0.0, max) as u8;
            codes.extend(group.iter().map(code));
            scales.push(scale);
            zeros.push(zero);
        }
    }
    QuantizedLinear::new([n, k], grid, codes, scales, zeros, None).unwrap()
}

/// A test model whose linear layers, but for the head, are packed.
pub(crate) fn checkpoint(name: &str, container: &Container, grid: Grid) -> Case {
    checkpoint_with(name, container, grid, |_| true, u64::MAX)
}

/// The same with the layers that `wanted` names and files of at most `shard_bytes`.
pub(crate) fn checkpoint_with(
    name: &str,
    container: &Container,
    grid: Grid,
    wanted: impl Fn(&str) -> bool,
    shard_bytes: u64,
) -> Case {
    checkpoint_of(name, container, |layer| wanted(layer).then_some(grid), shard_bytes)
}

/// The same with a grid for each layer; none leaves it as it is.
pub(crate) fn checkpoint_of(
    name: &str,
    container: &Container,
    grid_of: impl Fn(&str) -> Option<Grid>,
    shard_bytes: u64,
) -> Case {
    checkpoint_from(&model(name), container, grid_of, shard_bytes)
}

/// The same of any model.
pub(crate) fn checkpoint_from(
    source: &Path,
    container: &Container,
    grid_of: impl Fn(&str) -> Option<Grid>,
    shard_bytes: u64,
) -> Case {
    let tensors = Tensors::open(source).unwrap();
    let is_linear = |name: &str| name.ends_with("_proj.weight") || name.ends_with(".mlp.gate.weight");
    let layer = |weight: &str| weight.strip_suffix(".weight").unwrap().to_owned();
    let mut entries = Vec::new();
    for (name, info) in tensors.iter() {
        let bias_of = name.strip_suffix(".bias").filter(|layer| is_linear(&format!("{layer}.weight")));
        if bias_of.is_some_and(|layer| grid_of(layer).is_some()) {
            continue;
        }
        let grid = is_linear(name).then(|| grid_of(&layer(name))).flatten();
        entries.push(match grid {
            Some(grid) => Entry::Linear {
                name: layer(name),
                shape: [info.shape[0], info.shape[1]],
                grid,
                bias: tensors.get(&format!("{}.bias", layer(name))).is_some(),
            },
            None => Entry::Dense {
                name: name.into(),
                dtype: FloatType::F16,
                shape: info.shape.clone(),
                left_out: is_linear(name),
            },
        });
    }
    let case = Case::empty("packed");
    let config: Value = serde_json::from_slice(&std::fs::read(source.join("config.json")).unwrap()).unwrap();
    let model = case.model();
    let target = Target { shard_bytes, ..Target::new(&model, Some(source), &config) };
    let mut writer = PackedWriter::create(target, container, &entries).unwrap();
    let read = |name: &str| {
        let shape = tensors.shape(name).unwrap();
        let mut values = vec![0.0; shape.iter().product()];
        tensors.read(name, 0..shape[0], &mut values).unwrap();
        values
    };
    for entry in &entries {
        match entry {
            Entry::Linear { name, shape, grid, bias } => {
                let rounded = round(&read(&format!("{name}.weight")), *shape, *grid);
                let bias = bias.then(|| read(&format!("{name}.bias")));
                writer.linear(name, &rounded, bias.as_deref()).unwrap();
            }
            Entry::Dense { name, .. } => writer.dense(name, &read(name)).unwrap(),
        }
    }
    writer.finish().unwrap();
    case
}
