//! The names that tensors have in a checkpoint.

use std::collections::BTreeMap;

use crate::arch::Model;
use crate::arch::spec::TensorRule;
use crate::source::dense::Dense;

/// The names of a checkpoint's tensors by the names that the family's rules have for them.
#[derive(Debug)]
pub(in crate::pipeline) struct Names<'a> {
    model: &'a Model,
    canonical: BTreeMap<String, &'a str>,
}

impl<'a> Names<'a> {
    pub(in crate::pipeline) fn new(model: &'a Model, weights: &'a dyn Dense) -> Names<'a> {
        let names = weights.names().into_iter();
        let canonical = names.filter_map(|name| Some((model.spec.canonical(name)?, name))).collect();
        Names { model, canonical }
    }

    /// The name of a rule's tensor, or what it would be if the checkpoint had it.
    pub(in crate::pipeline) fn of(
        &self,
        rule: &TensorRule,
        layer: usize,
        expert: usize,
    ) -> Result<&'a str, String> {
        let name = rule.hf.replace("{}", &layer.to_string()).replace("{e}", &expert.to_string());
        self.canonical.get(&name).copied().ok_or(name)
    }

    /// The name of the tensor that is `gguf` there, with `{}` for the layer; none if the family or the checkpoint has none.
    pub(in crate::pipeline) fn find(&self, gguf: &str, layer: usize, expert: usize) -> Option<&'a str> {
        self.of(self.model.spec.rule(gguf)?, layer, expert).ok()
    }
}
