//! `quantization_config` of GPTQ checkpoints, which `quantize_config.json` repeats.

use serde_json::{Map, Value, json};

use super::layout::{GptqLayout, Overflow, Version};
use crate::error::Result;
use crate::format::packed::config::{CHECKPOINT_FORMAT, Stated};
use crate::format::packed::layers::Layers;
use crate::format::packed::scheme::{Rule, Scheme, StatedGrid};
use crate::quant::Grid;

/// The version of GPTQModel whose zero points asymmetric files of version 1 have. It loads no others: older writers let
/// zero points of 0 run over when they subtracted 1. Ours are 1 or more.
const KEEPS_ZERO_POINTS: &str = "gptqmodel:0.9.0";

/// What a GPTQ checkpoint says of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct GptqConfig {
    /// The grid of most layers; others are listed as exceptions.
    pub grid: Grid,
    /// How zero points are stored.
    pub version: Version,
    /// Whether groups follow the order of importance and not that of the inputs, so that `g_idx` matters.
    pub desc_act: bool,
    /// Whether groups were chosen before the order.
    pub static_groups: bool,
    /// Whether the linear layers of a block were calibrated on the already quantized ones before them.
    pub true_sequential: bool,
    /// The share of the Hessian's mean diagonal that was added to it, between 0 and 1.
    pub damp_percent: f64,
    /// More about the making, kept in `meta`.
    pub meta: Map<String, Value>,
}

impl GptqConfig {
    /// The layout of the layers.
    pub fn layout(&self) -> GptqLayout {
        GptqLayout::new(self.version)
    }

    /// The configuration in JSON: the keys of GPTQModel, with what AutoGPTQ, optimum and vLLM look for.
    pub fn to_json(&self, layers: &Layers) -> Value {
        let mut quantizers = vec![crate::format::packed::QUANTIZER];
        if self.version == Version::V1 && !self.grid.symmetric {
            quantizers.push(KEEPS_ZERO_POINTS);
        }
        let mut meta = json!({"quantizer": quantizers});
        let more = meta.as_object_mut().expect("it is an object");
        more.insert("damp_percent".into(), self.damp_percent.into());
        more.insert("static_groups".into(), self.static_groups.into());
        more.insert("true_sequential".into(), self.true_sequential.into());
        more.extend(self.meta.clone());
        let mut config = json!({
            "quant_method": "gptq",
            "bits": self.grid.bits,
            "group_size": group_size(self.grid),
            "desc_act": self.desc_act,
            "sym": self.grid.symmetric,
            "lm_head": layers.quantizes("lm_head"),
            "checkpoint_format": self.version.name(),
            "pack_dtype": "int32",
            "static_groups": self.static_groups,
            "true_sequential": self.true_sequential,
            "damp_percent": self.damp_percent,
            "meta": meta,
        });
        let config_map = config.as_object_mut().expect("it is an object");
        let mut dynamic = Map::new();
        for pattern in layers.left_out_patterns() {
            dynamic.insert(format!("-:{pattern}"), json!({}));
        }
        for (grid, patterns) in layers.exceptions(self.grid) {
            for pattern in patterns {
                let over = json!({
                    "bits": grid.bits,
                    "group_size": group_size(grid),
                    "sym": grid.symmetric,
                });
                dynamic.insert(format!("+:{pattern}"), over);
            }
        }
        if !dynamic.is_empty() {
            config_map.insert("dynamic".into(), dynamic.into());
        }
        if layers.has_left_out() {
            // transformers does not read `dynamic`.
            config_map.insert("modules_in_block_to_quantize".into(), json!([layers.quantized_modules()]));
        }
        config
    }
}

fn group_size(grid: Grid) -> i64 {
    i64::try_from(grid.group_size).unwrap_or(-1)
}

/// Understands the configuration of a GPTQ checkpoint.
pub(crate) fn read(stated: &Stated) -> Result<Scheme> {
    let version = match stated.opt_str(CHECKPOINT_FORMAT)?.map(str::to_lowercase).as_deref() {
        None | Some("gptq") => Version::V1,
        Some("gptq_v2") => Version::V2,
        Some(other) => {
            return Err(stated
                .unsupported(format!("the checkpoint format {other} is not supported"))
                .hint("Supported are gptq and gptq_v2."));
        }
    };
    if stated.opt_flag(&["is_marlin_format"])? == Some(true) {
        return Err(stated.unsupported("weights in Marlin's own order are not supported"));
    }
    require_int32(stated)?;
    let quantizer = stated.quantizer();
    let overflow = match quantizer.as_deref() {
        Some(name) if name.starts_with("gptqmodel") => Overflow::Borrow,
        _ => Overflow::Wrap,
    };
    let mut rules = Vec::new();
    for (pattern, over) in stated.object("dynamic")? {
        if let Some(pattern) = pattern.strip_prefix("-:") {
            rules.push(Rule::new(stated, pattern, None)?);
            continue;
        }
        let Value::Object(over) = over else {
            return Err(stated.wrong("dynamic", "an object of objects", &over));
        };
        let over = stated.with(&over, &pattern);
        require_int32(&over)?;
        let pattern = pattern.strip_prefix("+:").unwrap_or(&pattern);
        rules.push(Rule::new(stated, pattern, Some(StatedGrid::read(&over)?))?);
    }
    Ok(Scheme {
        method: "gptq",
        layout: Box::new(GptqLayout { version, overflow }),
        base: StatedGrid::read(stated)?,
        desc_act: stated.opt_flag(&["desc_act"])?.unwrap_or(false),
        checkpoint_format: version.name(),
        quantizer,
        rules,
    })
}

fn require_int32(stated: &Stated) -> Result<()> {
    match stated.opt_str(&["pack_dtype"])? {
        None | Some("int32" | "torch.int32") => Ok(()),
        Some(other) => Err(stated.unsupported(format!("codes packed in {other}; int32 can be read"))),
    }
}
