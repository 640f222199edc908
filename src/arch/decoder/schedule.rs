//! Which layer does what: where there is a sliding window, and where rope.

use serde_json::Value;

use crate::arch::Model;
use crate::arch::spec::Layers;
use crate::error::Result;
use crate::source::config::Config;

/// What sets a layer apart from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LayerKind {
    /// How many tokens a query sees, if not all.
    pub(super) window: Option<usize>,
    /// How queries and keys are rotated, if they are.
    pub(super) rope: Option<RopeKind>,
}

/// The two ropes that a model may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RopeKind {
    /// That of layers which see the whole context.
    Global,
    /// That of layers with a window.
    Window,
}

/// The kinds of all layers.
///
/// # Errors
/// `Invalid` if a list in the configuration does not fit the number of layers.
pub(super) fn read(model: &Model) -> Result<Vec<LayerKind>> {
    let (config, hyper, arithmetic) = (&model.config, &model.hyper, &model.spec.arithmetic);
    let window = &arithmetic.window;
    let on = window.switch.map_or(Ok(true), |key| config.flag(key))?;
    let size = hyper.sliding_window.filter(|_| on);
    let listed = if window.listed { read_list(config, hyper.layers)? } else { None };
    (0..hyper.layers)
        .map(|layer| {
            let slides = match &listed {
                Some(list) => list[layer],
                None => contains(window.layers, layer, config)?,
            };
            let rope = if slides { RopeKind::Window } else { RopeKind::Global };
            Ok(LayerKind {
                window: size.filter(|_| slides),
                rope: contains(arithmetic.rope, layer, config)?.then_some(rope),
            })
        })
        .collect()
}

/// For each layer whether `layer_types` gives it a window.
fn read_list(config: &Config, layers: usize) -> Result<Option<Vec<bool>>> {
    const KEY: &str = "layer_types";
    let Some(value) = config.get(KEY) else { return Ok(None) };
    let kind = |v: &Value| match v.as_str() {
        Some("sliding_attention") => Some(true),
        Some("full_attention") => Some(false),
        _ => None,
    };
    match value.as_array().and_then(|list| list.iter().map(kind).collect::<Option<Vec<bool>>>()) {
        Some(list) if list.len() == layers => Ok(Some(list)),
        _ => Err(config
            .wrong(KEY, &format!("a list of `full_attention` and `sliding_attention` for {layers} layers"))),
    }
}

fn contains(layers: Layers, layer: usize, config: &Config) -> Result<bool> {
    Ok(match layers {
        Layers::None => false,
        Layers::All => true,
        Layers::Every(n) => (layer + 1).is_multiple_of(n),
        Layers::AllButEvery(n) => !(layer + 1).is_multiple_of(n),
        Layers::From(key) => layer >= config.opt_usize(key)?.unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schedule(class: &str, layers: usize, more: Value) -> Result<Vec<LayerKind>> {
        let mut config = json!({"architectures": [class], "hidden_size": 64, "num_hidden_layers": layers,
            "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16, "vocab_size": 100,
            "query_pre_attn_scalar": 16});
        let object = config.as_object_mut().unwrap();
        object.extend(more.as_object().unwrap().clone());
        if !class.starts_with("Gemma") {
            object.remove("query_pre_attn_scalar");
        }
        read(&Model::read(Config::from_json(config).unwrap(), &[])?)
    }

    fn windows(class: &str, layers: usize, more: Value) -> Vec<usize> {
        let kinds = schedule(class, layers, more).unwrap();
        kinds.iter().map(|kind| kind.window.unwrap_or(0)).collect()
    }

    #[test]
    fn families_differ_in_the_layers_with_a_window() {
        let window = json!({"sliding_window": 8});
        assert_eq!(windows("LlamaForCausalLM", 2, window.clone()), [0, 0]);
        assert_eq!(windows("MistralForCausalLM", 2, window.clone()), [8, 8]);
        assert_eq!(windows("MistralForCausalLM", 2, json!({"sliding_window": null})), [0, 0]);
        assert_eq!(windows("Gemma2ForCausalLM", 3, window.clone()), [8, 0, 8]);
        assert_eq!(windows("Gemma3ForCausalLM", 7, window.clone()), [8, 8, 8, 8, 8, 0, 8]);
        assert_eq!(windows("Qwen2ForCausalLM", 2, window), [0, 0]);
    }

    #[test]
    fn qwen_has_a_window_if_it_is_switched_on_where_it_is_listed() {
        let on = json!({"sliding_window": 8, "use_sliding_window": true, "max_window_layers": 2});
        assert_eq!(windows("Qwen2ForCausalLM", 3, on.clone()), [0, 0, 8]);
        let mut listed = on;
        listed["layer_types"] = json!(["sliding_attention", "full_attention", "full_attention"]);
        assert_eq!(windows("Qwen3ForCausalLM", 3, listed.clone()), [8, 0, 0]);
        listed["layer_types"] = json!(["sliding_attention"]);
        assert!(schedule("Qwen3ForCausalLM", 3, listed).is_err());
    }

    #[test]
    fn every_fourth_layer_of_smollm3_has_no_rope_and_windows_have_their_own() {
        let ropes = |class, layers| {
            let kinds = schedule(class, layers, json!({})).unwrap();
            kinds.iter().map(|kind| kind.rope).collect::<Vec<_>>()
        };
        let (global, window) = (Some(RopeKind::Global), Some(RopeKind::Window));
        assert_eq!(ropes("SmolLM3ForCausalLM", 5), [global, global, global, None, global]);
        assert_eq!(ropes("Gemma3ForCausalLM", 6), [window, window, window, window, window, global]);
    }
}
