//! Codes that are carried over from one container to the other: where both have the same grid, nothing is quantized again.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, json};

use super::Work;
use crate::arch::Model;
use crate::arch::spec::Use;
use crate::cancel::Cancel;
use crate::error::Result;
use crate::format::awq::AwqConfig;
use crate::format::gptq::{GptqConfig, Version};
use crate::format::packed::layers::Layers;
use crate::format::packed::{Container, Entry, PackedModel, PackedWriter, Target};
use crate::pipeline::checkpoint::stream::{Stream, steps};
use crate::pipeline::checkpoint::{Checkpoint, Identity, Settings};
use crate::pipeline::model::OpenModel;
use crate::progress::{Progress, Unit};
use crate::quant::Grid;
use crate::source::dense::Dense;
use crate::source::folded::Moved;

/// AutoGPTQ's default, which its configuration cannot do without; nothing was damped here.
const DAMP_PERCENT: f64 = 0.01;

/// What the user asks of the result; none where anything will do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Bits per code.
    pub bits: Option<u32>,
    /// Inputs per group.
    pub group_size: Option<usize>,
    /// Whether zero points are in the middle of the grid.
    pub symmetric: Option<bool>,
    /// How zero points are stored.
    pub version: Option<Version>,
    /// An option that says how to quantize, by its name.
    pub other: Option<&'static str>,
}

/// A container that codes are carried over to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum To {
    Gptq,
    Awq,
}

/// A checkpoint whose codes fit another container.
#[derive(Debug)]
pub(super) struct CarryOver<'a> {
    packed: &'a PackedModel,
    container: Container,
    entries: Vec<Entry>,
}

impl<'a> CarryOver<'a> {
    /// Looks whether all codes of `packed` can be stored as they are; if not, says why. All zero points and groups are read.
    ///
    /// # Errors
    /// `Invalid` if a layer is damaged.
    pub(super) fn plan(
        model: &Model,
        packed: &'a PackedModel,
        to: To,
        wanted: Wanted,
        cancel: &Cancel,
    ) -> Result<Result<CarryOver<'a>, String>> {
        let group_size = packed.scheme().base.grid().group_size;
        if let Some(option) = wanted.other {
            return Ok(Err(format!("{option} asks for weights that are quantized again")));
        }
        for (name, linear) in packed.linears() {
            if let Some(why) = differs(name, linear.grid, group_size, to, wanted) {
                return Ok(Err(why));
            }
        }
        let mut symmetric = true;
        for (name, _) in packed.linears() {
            cancel.check()?;
            let read = packed.linear(name)?;
            if read.g_idx().is_some() {
                return Ok(Err(format!(
                    "the groups of {name} are in another order than its inputs (act-order)"
                )));
            }
            symmetric &= read.symmetric();
        }
        if wanted.symmetric == Some(true) && !symmetric {
            return Ok(Err("the grid is asymmetric and --sym asks for another".into()));
        }
        let symmetric = symmetric && wanted.symmetric != Some(false);
        let container = match to {
            To::Awq => {
                Container::Awq(AwqConfig { group_size: Some(group_size).filter(|n| *n != Grid::WHOLE_ROW) })
            }
            To::Gptq => Container::Gptq(gptq(group_size, symmetric, wanted.version)),
        };
        let layout = container.layout();
        let grid = Grid { bits: 4, group_size, symmetric: symmetric && to == To::Gptq };
        for (_, linear) in packed.linears() {
            if let Some(why) = layout.refuses(linear.shape, grid) {
                return Ok(Err(format!("{}: {why}", linear.name)));
            }
        }
        let entries = entries(model, packed, grid);
        Ok(match check_joined(&entries) {
            Ok(()) => Ok(CarryOver { packed, container, entries }),
            Err(e) => Err(e.to_string()),
        })
    }

    /// Writes the checkpoint: codes, scales and zero points packed anew, all other tensors byte for byte.
    ///
    /// # Errors
    /// `Resources` if the disk is full, `Invalid` if the container cannot hold a value, `Checkpoint` for a checkpoint of
    /// another job.
    pub(super) fn write(
        &self,
        opened: &OpenModel,
        output: &Path,
        settings: &Settings,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Work> {
        let config = opened.model.config.unquantized();
        let target = Target::new(output, opened.origin.dir(), &config);
        let mut writer = PackedWriter::create(target, &self.container, &self.entries)?;
        let tensors: Vec<(String, u64)> =
            self.entries.iter().flat_map(|entry| stored(entry, &writer)).collect();
        let sizes = || tensors.iter().map(|(_, bytes)| *bytes);
        let steps = steps(tensors.iter().map(|(name, bytes)| (name.as_str(), *bytes)));
        let identity = Identity::new(&settings.command)
            .with("container", format!("{:?}", self.container))
            .with_model(&opened.model, &*opened.weights)?;
        let checkpoint = match Checkpoint::open(settings, identity, steps.len(), progress)? {
            Some(made) if made.has_made() => return Ok(Work::Before(made)),
            other => other,
        };
        let mut kept = Stream::new(checkpoint, steps);
        kept.check_space()?;
        let total = self.packed.linears().map(|(_, l)| (l.shape[0] * l.shape[1]) as u64).sum();
        progress.begin("Carrying codes over", total, Unit::Weights);
        let written = kept.replay(sizes(), |i, bytes| writer.bytes(&tensors[i].0, bytes)).and_then(|()| {
            let mut seen = 0;
            self.entries.iter().try_for_each(|entry| {
                cancel.check()?;
                let first = seen;
                seen += stored(entry, &writer).len();
                if let Entry::Linear { name, shape, .. } = entry {
                    progress.item(name);
                    progress.advance((shape[0] * shape[1]) as u64);
                }
                if first < kept.done() { Ok(()) } else { self.entry(entry, &mut writer, &mut kept) }
            })
        });
        progress.end();
        let written = written.and_then(|()| cancel.check()).and_then(|()| writer.finish());
        match written {
            Ok(_) => Ok(Work::Done { moved: Moved::default(), checkpoint: kept.into_checkpoint() }),
            Err(e) => Err(kept.end_early(e, progress)),
        }
    }

    fn entry(&self, entry: &Entry, writer: &mut PackedWriter, kept: &mut Stream) -> Result<()> {
        match entry {
            Entry::Linear { name, .. } => {
                let linear = self.packed.linear(&format!("{name}.weight"))?;
                writer.pack(name, &linear, None)?.iter().try_for_each(|tensor| {
                    writer.bytes(&tensor.name, &tensor.bytes)?;
                    kept.write(&tensor.bytes)
                })
            }
            Entry::Dense { name, .. } => {
                let tensors = self.packed.tensors();
                let info = tensors.get(name).expect("entries are made of these tensors");
                let bytes = tensors.bytes(info);
                writer.bytes(name, bytes)?;
                kept.write(bytes)
            }
        }
    }
}

/// The tensors that are stored of an entry, and their bytes.
fn stored(entry: &Entry, writer: &PackedWriter) -> Vec<(String, u64)> {
    match entry {
        Entry::Linear { name, .. } => {
            writer.specs(name).into_iter().map(|tensor| (tensor.name.clone(), tensor.size())).collect()
        }
        Entry::Dense { name, dtype, shape, .. } => {
            vec![(name.clone(), (shape.iter().product::<usize>() * dtype.bytes()) as u64)]
        }
    }
}

/// Why a layer's grid is not one that both containers have, or not the one that is asked for.
fn differs(name: &str, grid: Grid, group_size: usize, to: To, wanted: Wanted) -> Option<String> {
    let group =
        |size: usize| if size == Grid::WHOLE_ROW { "whole rows".into() } else { format!("groups of {size}") };
    if grid.bits != 4 {
        return Some(format!("{name} has codes of {} bits; AWQ has 4", grid.bits));
    }
    if wanted.bits.is_some_and(|bits| bits != grid.bits) {
        return Some(format!("codes have {} bits and others are asked for", grid.bits));
    }
    if grid.group_size != group_size {
        return Some(format!("{name} has {}, other layers {}", group(grid.group_size), group(group_size)));
    }
    if wanted.group_size.is_some_and(|size| size != group_size) {
        return Some(format!("the model has {} and --group-size asks for others", group(group_size)));
    }
    let is_head = name.ends_with("lm_head.weight") || name == "lm_head.weight";
    (to == To::Awq && is_head).then(|| "AWQ's loaders do not take a quantized lm_head".to_owned())
}

fn gptq(group_size: usize, symmetric: bool, version: Option<Version>) -> GptqConfig {
    let mut meta = Map::new();
    meta.insert("carried_over_from".into(), json!("awq"));
    GptqConfig {
        grid: Grid { bits: 4, group_size, symmetric },
        version: version.unwrap_or(if symmetric { Version::V1 } else { Version::V2 }),
        desc_act: false,
        static_groups: false,
        true_sequential: false,
        damp_percent: DAMP_PERCENT,
        meta,
    }
}

/// Every tensor of the checkpoint, in the order of names. Biases and all else keep the type that they have.
fn entries(model: &Model, packed: &PackedModel, grid: Grid) -> Vec<Entry> {
    let linear = linear_names(model);
    packed
        .names()
        .into_iter()
        .map(|name| match packed.get(name) {
            Some(found) => Entry::Linear { name: found.name.clone(), shape: found.shape, grid, bias: false },
            None => {
                let info = packed.tensors().get(name).expect("it is one of the tensors");
                let left_out = model.spec.canonical(name).is_some_and(|name| linear.contains(&name));
                Entry::Dense { name: name.to_owned(), dtype: info.dtype, shape: info.shape.clone(), left_out }
            }
        })
        .collect()
}

/// The weights of all linear layers of a model's blocks, by the names that its rules have for them.
fn linear_names(model: &Model) -> BTreeSet<String> {
    let is_matrix = |usage: Use| matches!(usage, Use::Linear | Use::Rope(_) | Use::Expert | Use::Router);
    let rules = model.spec.tensors.iter().copied().flatten();
    let rules = rules.filter(|rule| rule.per_layer() && rule.shape.len() == 2 && is_matrix(rule.usage));
    let mut names = BTreeSet::new();
    for rule in rules {
        for layer in 0..model.hyper.layers {
            let name = rule.hf.replace("{}", &layer.to_string());
            match rule.usage {
                Use::Expert => {
                    names.extend((0..model.hyper.experts).map(|e| name.replace("{e}", &e.to_string())));
                }
                _ => drop(names.insert(name)),
            }
        }
    }
    names
}

/// Loaders join layers, which some makers of checkpoints do not heed.
fn check_joined(entries: &[Entry]) -> Result<()> {
    let grids = entries.iter().filter_map(|entry| match entry {
        Entry::Linear { name, grid, .. } => Some((name.clone(), *grid)),
        Entry::Dense { .. } => None,
    });
    let left_out = entries.iter().filter_map(|entry| match entry {
        Entry::Dense { name, left_out: true, .. } => name.strip_suffix(".weight").map(str::to_owned),
        _ => None,
    });
    Layers::new(grids, left_out).map(|_| ())
}
