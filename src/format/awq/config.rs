//! `quantization_config` of AWQ checkpoints.

use serde_json::{Value, json};

use super::layout::AwqLayout;
use crate::error::Result;
use crate::format::packed::config::{CHECKPOINT_FORMAT, Stated};
use crate::format::packed::layers::Layers;
use crate::format::packed::scheme::{Scheme, StatedGrid};

/// What an AWQ checkpoint says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AwqConfig {
    /// Inputs per group; none is a whole row.
    pub group_size: Option<usize>,
}

impl AwqConfig {
    /// The layout of the layers.
    pub fn layout(&self) -> AwqLayout {
        AwqLayout
    }

    /// The configuration in JSON. Symmetric layers too have zero points: loaders know no other.
    pub fn to_json(&self, layers: &Layers) -> Value {
        let left_out = layers.left_out();
        let mut config = json!({
            "quant_method": "awq",
            "bits": 4,
            "group_size": self.group_size.map_or(-1, |n| n as i64),
            "zero_point": true,
            "version": "gemm",
            "modules_to_not_convert": if left_out.is_empty() { Value::Null } else { json!(left_out) },
            "meta": {"quantizer": [crate::format::packed::QUANTIZER]},
        });
        if !left_out.is_empty() {
            // GPTQModel does not read `modules_to_not_convert`, and would leave such layers at random weights.
            let patterns = layers.left_out_patterns().into_iter();
            config["dynamic"] = patterns.map(|pattern| (format!("-:{pattern}"), json!({}))).collect();
        }
        config
    }
}

/// Understands the configuration of an AWQ checkpoint.
pub(crate) fn read(stated: &Stated) -> Result<Scheme> {
    // AutoRound's own format does not name the version; it is this one.
    match stated.opt_str(CHECKPOINT_FORMAT)?.map(str::to_lowercase).as_deref() {
        None | Some("gemm") => {}
        Some(other) => {
            return Err(stated
                .unsupported(format!("AWQ's version {other} is not supported"))
                .hint("Supported is gemm."));
        }
    }
    if stated.opt_str(&["backend"])? == Some("llm-awq") {
        return Err(stated.unsupported("the layout of llm-awq is not supported; that of AutoAWQ is"));
    }
    let base = StatedGrid::read(stated)?;
    if base.bits != 4 {
        return Err(stated.unsupported(format!("AWQ of {} bits; 4 can be read", base.bits)));
    }
    // Without `zero_point`, as GPTQModel has it by default, the file holds zero points all the same: those of the middle.
    Ok(Scheme {
        method: "awq",
        layout: Box::new(AwqLayout),
        base,
        desc_act: false,
        checkpoint_format: "gemm",
        quantizer: stated.quantizer(),
        rules: Vec::new(),
    })
}
