//! A GPTQ or AWQ directory: its `config.json`, a NUL, and its weights.

use llm_quantize::cancel::Cancel;
use llm_quantize::format::packed::config::Stated;
use llm_quantize::format::packed::{PackedModel, Scheme};
use llm_quantize::pipeline::inspect::inspect;
use llm_quantize::progress::Silent;
use llm_quantize::source::config::Config;

use super::place::{Place, split};
use super::safetensors::read_all;

pub(super) fn packed(input: &[u8]) {
    let (config, weights) = split(input);
    let place = Place::with(&[("config.json", config), ("model.safetensors", weights)]);
    let _ = inspect(&place.text(), &Cancel::new(), &Silent);
    let Ok(config) = Config::load(place.path()) else { return };
    let Ok(Some(stated)) = Stated::find(place.path(), config.raw()) else { return };
    let Ok(scheme) = Scheme::read(&stated) else { return };
    let Ok(model) = PackedModel::open(place.path(), scheme) else { return };
    let _ = model.has_act_order();
    read_all(&model);
}
