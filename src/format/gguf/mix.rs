//! Which type each tensor gets at a level: llama.cpp's mixes, byte for byte.
//!
//! The rules are those of `llama_tensor_get_type_impl`, `tensor_type_fallback` and `tensor_allows_quantization` in
//! `src/llama-quant.cpp`, for the levels and architectures that are supported here. They depend on nothing but names,
//! shapes and a few facts of the model, and on the order of the tensors.

use regex::Regex;

use super::level::Level;
use super::types::GgmlType;
use crate::error::{Error, Kind, Result};

/// Facts of the model that the rules ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Number of decoder layers.
    pub layers: usize,
    /// Number of experts; 0 for a dense model.
    pub experts: usize,
    /// Query heads per key-value head.
    pub gqa: usize,
    /// Whether llama.cpp takes the model for its "70B": 80 layers of `llama` with grouped queries, or of `qwen2`.
    pub is_70b: bool,
    /// Whether the tensor `output.weight` is absent.
    pub tied: bool,
}

impl Facts {
    /// The facts of a model of architecture `gguf`.
    pub fn new(
        gguf: &str,
        layers: usize,
        heads: usize,
        kv_heads: usize,
        experts: usize,
        tied: bool,
    ) -> Facts {
        let is_70b = layers == 80 && (gguf == "qwen2" || gguf == "llama" && heads != kv_heads);
        Facts { layers, experts, gqa: heads / kv_heads, is_70b, tied }
    }
}

/// What the user asked for beside the level.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// Patterns (regular expressions, searched in the tensor's name) and the type of what they match; first wins.
    pub tensor_types: Vec<(Regex, GgmlType)>,
    /// The type of `output.weight` (and of a tied embedding).
    pub output: Option<GgmlType>,
    /// The type of the token embedding.
    pub embedding: Option<GgmlType>,
    /// The level's base type everywhere.
    pub pure: bool,
}

/// One tensor before its type is chosen.
#[derive(Clone, Debug)]
pub struct Candidate<'a> {
    /// Name in GGUF.
    pub name: &'a str,
    /// Row length first.
    pub shape: &'a [u64],
    /// The type it has if it is left alone.
    pub source: GgmlType,
}

/// The type that a tensor gets, and why, if the level's own choice did not fit its shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The type.
    pub ty: GgmlType,
    /// The type that would have been taken if the row length were a multiple of its block.
    pub instead_of: Option<GgmlType>,
    /// llama.cpp refuses this type here without an importance matrix.
    pub needs_imatrix: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Category {
    Output,
    Embedding,
    AttnQkv,
    AttnV,
    AttnK,
    AttnOutput,
    FfnDown,
    Other,
}

impl Category {
    fn of(name: &str) -> Category {
        match name {
            "output.weight" => Category::Output,
            "token_embd.weight" => Category::Embedding,
            _ if name.contains("attn_qkv.weight") => Category::AttnQkv,
            _ if name.contains("attn_v.weight") => Category::AttnV,
            _ if name.contains("attn_k.weight") => Category::AttnK,
            _ if name.contains("attn_output.weight") => Category::AttnOutput,
            _ if name.contains("ffn_down") => Category::FfnDown,
            _ => Category::Other,
        }
    }

    /// Tensors that the mixes treat as a value projection.
    fn is_attn_v(self) -> bool {
        matches!(self, Category::AttnV | Category::AttnQkv)
    }
}

/// Whether a tensor may be quantized at all.
fn allows_quantization(name: &str, shape: &[u64]) -> bool {
    shape.len() >= 2
        && name.ends_with("weight")
        && !name.contains("_norm.weight")
        && !name.contains("ffn_gate_inp.weight")
}

/// The first eighth and the last eighth of the layers, and every third between.
fn use_more_bits(layer: usize, layers: usize) -> bool {
    layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2
}

/// Chooses all types. `tensors` come in the file's order.
///
/// # Errors
/// `Unsupported` if a type that was asked for cannot be written, `Invalid` for a tensor outside the model's layers.
pub fn choose(
    level: Level,
    facts: &Facts,
    overrides: &Overrides,
    has_imatrix: bool,
    tensors: &[Candidate<'_>],
) -> Result<Vec<Choice>> {
    let count_v = tensors.iter().filter(|t| Category::of(t.name).is_attn_v()).count();
    let mut state = State { level, facts, has_imatrix, count_v, seen_v: 0, seen_down: 0 };
    tensors
        .iter()
        .map(|t| {
            if !allows_quantization(t.name, t.shape) {
                return Ok(Choice { ty: t.source, instead_of: None, needs_imatrix: false });
            }
            let wanted = state.wanted(overrides, t)?;
            let ty = if level.base.is_quantized() { fit(wanted, t.shape[0]) } else { wanted };
            if !t.shape[0].is_multiple_of(ty.block_len() as u64) {
                let message =
                    format!("rows of {} have {} weights, which type {ty} cannot hold", t.name, t.shape[0]);
                return Err(
                    Error::new(Kind::Unsupported, message).hint("Choose another type for this tensor.")
                );
            }
            let low = ty == GgmlType::Q2_K && level.name == "Q2_K_S";
            let needs_imatrix = low && !matches!(t.name, "output.weight" | "token_embd.weight");
            Ok(Choice { ty, instead_of: (ty != wanted).then_some(wanted), needs_imatrix })
        })
        .collect()
}

/// The type itself if its blocks divide the row, else one with smaller blocks, else F16.
fn fit(wanted: GgmlType, row: u64) -> GgmlType {
    use GgmlType::*;
    let fits = |t: GgmlType| row.is_multiple_of(t.block_len() as u64);
    if fits(wanted) {
        return wanted;
    }
    let smaller = match wanted {
        IQ4_XS => IQ4_NL,
        Q2_K | Q3_K | TQ1_0 | TQ2_0 => Q4_0,
        Q4_K => Q5_0,
        Q5_K => Q5_1,
        Q6_K => Q8_0,
        other => other,
    };
    if fits(smaller) { smaller } else { F16 }
}

struct State<'a> {
    level: Level,
    facts: &'a Facts,
    has_imatrix: bool,
    count_v: usize,
    seen_v: usize,
    seen_down: usize,
}

impl State<'_> {
    fn wanted(&mut self, overrides: &Overrides, t: &Candidate<'_>) -> Result<GgmlType> {
        let category = Category::of(t.name);
        if let (Some(ty), Category::Embedding) = (overrides.embedding, category) {
            return Ok(ty);
        }
        if let (Some(ty), Category::Output) = (overrides.output, category) {
            return Ok(ty);
        }
        if !self.level.base.is_quantized() {
            return Ok(self.level.base);
        }
        if let Some((_, ty)) = overrides.tensor_types.iter().find(|(pattern, _)| pattern.is_match(t.name)) {
            return Ok(*ty);
        }
        if overrides.pure {
            return Ok(self.level.base);
        }
        self.mixed(category, overrides, t)
    }

    /// The layer of a feed-forward tensor: counted, or read from the name in a mixture of experts.
    fn down_layer(&self, name: &str) -> Result<usize> {
        if self.facts.experts <= 1 {
            return Ok(self.seen_down);
        }
        name.strip_prefix("blk.")
            .and_then(|rest| rest.split('.').next())
            .and_then(|digits| digits.parse().ok())
            .filter(|layer| *layer < self.facts.layers)
            .ok_or_else(|| {
                Error::new(Kind::Invalid, format!("tensor {name} belongs to no layer of the model"))
            })
    }

    fn mixed(&mut self, category: Category, overrides: &Overrides, t: &Candidate<'_>) -> Result<GgmlType> {
        use GgmlType::*;
        let (level, facts) = (self.level.name, self.facts);
        let base = self.level.base;
        let eight_experts = facts.experts == 8;
        if category == Category::Output || facts.tied && category == Category::Embedding {
            return Ok(match overrides.output {
                Some(ty) => ty,
                None if !t.shape[0].is_multiple_of(base.block_len() as u64) => Q8_0,
                None if base != Q8_0 => Q6_K,
                None => base,
            });
        }
        if category == Category::Embedding {
            return Ok(if matches!(level, "TQ1_0" | "TQ2_0") { Q4_K } else { base });
        }
        if category.is_attn_v() {
            let i = self.seen_v;
            self.seen_v += 1;
            let mut ty = match level {
                "Q2_K" => {
                    if facts.gqa >= 4 {
                        Q4_K
                    } else {
                        Q3_K
                    }
                }
                "Q2_K_S" if facts.gqa >= 4 => Q4_K,
                "Q3_K_M" => {
                    if i < 2 {
                        Q5_K
                    } else {
                        Q4_K
                    }
                }
                "Q3_K_L" => Q5_K,
                "IQ4_NL" | "IQ4_XS" if facts.gqa >= 4 => Q5_K,
                "Q4_K_M" | "Q5_K_M" if use_more_bits(i, self.count_v) => Q6_K,
                "Q4_K_S" if i < 4 => Q5_K,
                _ => base,
            };
            if facts.is_70b && matches!(ty, Q3_K | Q4_K) {
                ty = Q5_K;
            }
            return Ok(if eight_experts { Q8_0 } else { ty });
        }
        Ok(match category {
            Category::AttnK if eight_experts => Q8_0,
            Category::FfnDown => {
                let (i, n) = (self.down_layer(t.name)?, facts.layers);
                self.seen_down += 1;
                match level {
                    "Q2_K" => Q3_K,
                    "Q2_K_S" if i < n / 8 => Q4_K,
                    "Q3_K_M" => {
                        if i < n / 16 {
                            Q5_K
                        } else {
                            Q4_K
                        }
                    }
                    "Q3_K_L" => Q5_K,
                    "Q4_K_M" | "Q5_K_M" if use_more_bits(i, n) => Q6_K,
                    "IQ4_NL" | "IQ4_XS" if i < n / 8 && !self.has_imatrix => Q5_K,
                    "Q4_K_S" if i < n / 8 => Q5_K,
                    "Q4_0" if self.has_imatrix && i < n / 8 => Q4_1,
                    "Q5_0" if self.has_imatrix && i < n / 8 => Q5_1,
                    _ => base,
                }
            }
            Category::AttnOutput if eight_experts => match level {
                "Q2_K" | "Q3_K_S" | "Q3_K_M" | "IQ4_NL" | "Q4_K_S" | "Q4_K_M" | "IQ4_XS" => Q5_K,
                _ => base,
            },
            Category::AttnOutput => match level {
                "Q2_K" => Q3_K,
                "Q3_K_M" => Q4_K,
                "Q3_K_L" => Q5_K,
                _ => base,
            },
            _ => base,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn types(
        level: &str,
        facts: Facts,
        overrides: &Overrides,
        names: &[(&str, [u64; 2])],
    ) -> Vec<&'static str> {
        let list: Vec<Candidate<'_>> =
            names.iter().map(|(name, shape)| Candidate { name, shape, source: GgmlType::BF16 }).collect();
        let level = Level::from_name(level).unwrap();
        choose(level, &facts, overrides, false, &list).unwrap().iter().map(|c| c.ty.name()).collect()
    }

    const DENSE: Facts = Facts { layers: 32, experts: 0, gqa: 4, is_70b: false, tied: false };

    #[test]
    fn rows_that_no_super_block_divides_fall_back() {
        let names = [
            ("blk.0.attn_q.weight", [576, 8]),
            ("blk.0.attn_q.weight", [48, 8]),
            ("output.weight", [576, 8]),
        ];
        assert_eq!(types("Q4_K_M", DENSE, &Overrides::default(), &names), ["Q5_0", "F16", "Q8_0"]);
        assert_eq!(types("Q2_K", DENSE, &Overrides::default(), &names), ["Q4_0", "F16", "Q8_0"]);
        assert_eq!(types("IQ4_XS", DENSE, &Overrides::default(), &names), ["IQ4_NL", "F16", "Q8_0"]);
        assert_eq!(types("Q5_1", DENSE, &Overrides::default(), &names[1..2]), ["F16"]);
    }

    #[test]
    fn a_tied_embedding_gets_the_type_of_the_head() {
        let names = [("token_embd.weight", [256, 8])];
        assert_eq!(types("Q4_K_M", Facts { tied: true, ..DENSE }, &Overrides::default(), &names), ["Q6_K"]);
        assert_eq!(types("Q4_K_M", DENSE, &Overrides::default(), &names), ["Q4_K"]);
        assert_eq!(types("TQ1_0", DENSE, &Overrides::default(), &names), ["Q4_K"]);
    }

    #[test]
    fn eight_experts_and_the_70b_have_rules_of_their_own() {
        let names = [
            ("blk.0.attn_v.weight", [256, 8]),
            ("blk.0.attn_k.weight", [256, 8]),
            ("blk.0.attn_output.weight", [256, 8]),
        ];
        assert_eq!(
            types("Q4_K_M", Facts { experts: 8, ..DENSE }, &Overrides::default(), &names),
            ["Q8_0", "Q8_0", "Q5_K"]
        );
        assert_eq!(
            types("Q3_K_S", Facts { is_70b: true, ..DENSE }, &Overrides::default(), &names),
            ["Q5_K", "Q3_K", "Q3_K"]
        );
    }

    #[test]
    fn overrides_come_first_and_still_fit_the_shape() {
        let overrides = Overrides {
            tensor_types: vec![
                (Regex::new("ffn_down").unwrap(), GgmlType::Q8_0),
                (Regex::new("attn").unwrap(), GgmlType::Q6_K),
            ],
            ..Overrides::default()
        };
        let names = [
            ("blk.0.ffn_down.weight", [256, 8]),
            ("blk.0.attn_q.weight", [96, 8]),
            ("blk.0.ffn_up.weight", [256, 8]),
        ];
        assert_eq!(types("Q4_0", DENSE, &overrides, &names), ["Q8_0", "Q8_0", "Q4_0"]);
        let pure = Overrides { pure: true, output: Some(GgmlType::F16), ..Overrides::default() };
        assert_eq!(
            types("Q4_K_M", DENSE, &pure, &[("output.weight", [256, 8]), ("blk.0.attn_v.weight", [256, 8])]),
            ["F16", "Q4_K"]
        );
    }

    #[test]
    fn norms_and_routers_are_left_alone() {
        let names = [
            ("blk.0.ffn_gate_inp.weight", [256, 8]),
            ("output_norm.weight", [256, 8]),
            ("blk.0.attn_q.bias", [256, 1]),
        ];
        assert_eq!(types("Q4_0", DENSE, &Overrides::default(), &names), ["BF16"; 3]);
    }
}
