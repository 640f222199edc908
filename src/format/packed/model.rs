//! Reads GPTQ and AWQ checkpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

use rayon::prelude::*;
use safetensors::Dtype;

use super::layout::{PackError, Part, Scales, Stored, Words, read_g_idx};
use super::scheme::Scheme;
use crate::error::{Error, Kind, Result};
use crate::quant::{Grid, QuantizedLinear};
use crate::source::dense::Dense;
use crate::source::safetensors::{FloatType, Tensors};

/// What follows the names of quantized layers.
const SUFFIXES: [&str; 4] = ["qweight", "qzeros", "scales", "g_idx"];

/// Outputs that one thread unpacks at a time; a multiple of what a word can hold.
const OUTPUTS: usize = 64;

/// A quantized linear layer of a checkpoint.
#[derive(Clone, Debug)]
pub struct Linear {
    /// Its name, without `.weight`.
    pub name: String,
    /// `[out_features, in_features]`.
    pub shape: [usize; 2],
    /// Its grid. Whether it is symmetric is known once its zero points are read.
    pub grid: Grid,
    /// What the configuration says of its symmetry.
    symmetric: Option<bool>,
}

/// A checkpoint with quantized linear layers. As [`Dense`] it has the tensors of the unquantized checkpoint.
#[derive(Debug)]
pub struct PackedModel {
    tensors: Tensors,
    scheme: Scheme,
    /// By the name of the weight that they stand for.
    linears: BTreeMap<String, Linear>,
}

impl PackedModel {
    /// Opens the checkpoint in `dir`, whose configuration was read as `scheme`, and checks the type and shape of every
    /// tensor of a quantized layer.
    ///
    /// # Errors
    /// `Invalid`, with the tensor's name, if one is missing or is not what the configuration says.
    pub fn open(dir: &Path, scheme: Scheme) -> Result<PackedModel> {
        let tensors = Tensors::open_packed(dir)?;
        let mut found: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
        let names = tensors.iter().map(|(name, _)| name).chain(tensors.integers().map(|(name, _)| name));
        for name in names {
            if let Some((layer, suffix)) = name.rsplit_once('.')
                && let Some(suffix) = SUFFIXES.iter().find(|s| **s == suffix)
            {
                found.entry(layer.to_owned()).or_default().insert(suffix);
            }
        }
        if found.is_empty() {
            return Err(Error::new(
                Kind::Invalid,
                format!("the configuration says {}, but no tensor of a quantized layer is there", scheme.method),
            )
            .hint("Download the model again, or remove the quantization_config if the weights are not quantized."));
        }
        let mut model = PackedModel { tensors, scheme, linears: BTreeMap::new() };
        for (name, suffixes) in found {
            let linear = model.check(&name, &suffixes)?;
            model.linears.insert(format!("{name}.weight"), linear);
        }
        let stray = model
            .tensors
            .integers()
            .find(|(name, _)| !name.rsplit_once('.').is_some_and(|(_, suffix)| SUFFIXES.contains(&suffix)));
        if let Some((name, _)) = stray {
            return Err(Error::new(
                Kind::Unsupported,
                format!("tensor {name} has type I32 and belongs to no quantized layer"),
            ));
        }
        Ok(model)
    }

    /// Checks the tensors of one layer against its configuration.
    fn check(&self, name: &str, suffixes: &BTreeSet<&str>) -> Result<Linear> {
        let invalid = |what: String| Error::new(Kind::Invalid, what);
        let stated = self.scheme.grid(name)?.ok_or_else(|| {
            invalid(format!("the configuration leaves {name} out, but {name}.{} is there", first(suffixes)))
        })?;
        for suffix in ["qweight", "qzeros", "scales"] {
            if !suffixes.contains(suffix) {
                return Err(invalid(format!(
                    "tensor {name}.{suffix} is missing, but {name}.{} is there",
                    first(suffixes)
                )));
            }
        }
        if self.tensors.get(&format!("{name}.weight")).is_some() {
            return Err(invalid(format!("{name} is there twice, as weight and as qweight")));
        }
        let stored = self.stored(name)?;
        let shape = self.scheme.layout.shape(&stored, stated.bits);
        if shape.contains(&0) {
            return Err(invalid(format!("{name} is empty: its scales or codes have no elements")));
        }
        let grid = stated.grid();
        let parts = self.scheme.layout.parts(shape, grid);
        for part in &parts {
            self.check_part(name, part, &stored, grid)?;
        }
        if let Some(suffix) = suffixes.iter().find(|suffix| !parts.iter().any(|part| part.suffix == **suffix))
        {
            return Err(invalid(format!("tensor {name}.{suffix} does not belong in {}", self.scheme.method)));
        }
        let out_of_bounds = shape.iter().any(|n| *n > i32::MAX as usize);
        if out_of_bounds {
            return Err(invalid(format!("{name} has the shape {shape:?}")));
        }
        Ok(Linear { name: name.to_owned(), shape, grid, symmetric: stated.symmetric })
    }

    fn check_part(&self, name: &str, part: &Part, stored: &Stored<'_>, grid: Grid) -> Result<()> {
        let shape = match part.suffix {
            "qweight" => stored.qweight.shape,
            "qzeros" => stored.qzeros.shape,
            "scales" => stored.scales.shape,
            _ => match stored.g_idx {
                Some(g_idx) => g_idx.shape,
                // Old checkpoints leave it out where it says nothing.
                None => return Ok(()),
            },
        };
        if shape == part.shape {
            return Ok(());
        }
        let group = match grid.group_size {
            Grid::WHOLE_ROW => "one group per row".to_owned(),
            n => format!("groups of {n}"),
        };
        Err(Error::new(
            Kind::Invalid,
            format!(
                "tensor {name}.{} has the shape {shape:?}, but {} bits in {group} make it {:?}",
                part.suffix, grid.bits, part.shape
            ),
        )
        .hint("The quantization_config does not belong to these weights, or the file is damaged."))
    }

    /// The tensors of a layer. All but `g_idx` must be there.
    fn stored(&self, name: &str) -> Result<Stored<'_>> {
        let words = |suffix: &str| -> Result<Words<'_>> {
            let tensor = format!("{name}.{suffix}");
            let info =
                self.tensors.get_integers(&tensor).ok_or_else(|| self.wrong_type(&tensor, Dtype::I32))?;
            Ok(Words { shape: &info.shape, data: self.tensors.words(info) })
        };
        let tensor = format!("{name}.scales");
        let info = self.tensors.get(&tensor).ok_or_else(|| self.wrong_type(&tensor, Dtype::F16))?;
        let scales = Scales { shape: &info.shape, dtype: info.dtype, data: self.tensors.bytes(info) };
        let g_idx = format!("{name}.g_idx");
        let has_g_idx = self.tensors.get_integers(&g_idx).is_some() || self.tensors.get(&g_idx).is_some();
        let g_idx = has_g_idx.then(|| words("g_idx")).transpose()?;
        Ok(Stored { qweight: words("qweight")?, qzeros: words("qzeros")?, scales, g_idx })
    }

    fn wrong_type(&self, tensor: &str, expected: Dtype) -> Error {
        let found = self.tensors.get(tensor).map_or("I32".into(), |info| format!("{:?}", info.dtype));
        Error::new(Kind::Invalid, format!("tensor {tensor} has type {found}, not {expected:?}"))
    }

    /// What the configuration says.
    pub fn scheme(&self) -> &Scheme {
        &self.scheme
    }

    /// The quantized layers, by the names of their weights.
    pub fn linears(&self) -> impl ExactSizeIterator<Item = (&str, &Linear)> {
        self.linears.iter().map(|(name, linear)| (name.as_str(), linear))
    }

    /// The quantized layer behind a weight.
    pub fn get(&self, weight: &str) -> Option<&Linear> {
        self.linears.get(weight)
    }

    /// Bytes of all tensors of a quantized layer.
    pub fn stored_bytes(&self, linear: &Linear) -> u64 {
        let parts = SUFFIXES.map(|suffix| format!("{}.{suffix}", linear.name));
        let integers = parts.iter().filter_map(|name| self.tensors.get_integers(name));
        let scales = parts.iter().filter_map(|name| self.tensors.get(name));
        integers.map(|info| size_of_val(self.tensors.words(info)) as u64).sum::<u64>()
            + scales.map(|info| self.tensors.bytes(info).len() as u64).sum::<u64>()
    }

    /// The stored tensors, packed ones included.
    pub fn tensors(&self) -> &Tensors {
        &self.tensors
    }

    /// Whether the groups of any layer are in another order than its inputs.
    ///
    /// # Errors
    /// `Invalid`, with the layer's name, if there is no such group.
    pub fn has_act_order(&self) -> Result<bool> {
        let mut found = false;
        for linear in self.linears.values() {
            if let Some(g_idx) = self.stored(&linear.name)?.g_idx {
                let read = read_g_idx(g_idx, linear.grid.groups(linear.shape[1]));
                let read = read.map_err(|e| damaged(linear, e))?.unwrap_or_default();
                found |=
                    read.iter().enumerate().any(|(i, group)| *group as usize != i / linear.grid.group_size);
            }
        }
        Ok(found)
    }

    /// Reads a quantized layer.
    ///
    /// # Errors
    /// `Invalid`, with the layer's name, if a group index, zero point or scale is impossible.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn linear(&self, weight: &str) -> Result<QuantizedLinear> {
        let linear = self.linears.get(weight).expect("the caller knows that there is this layer");
        self.outputs(linear, 0..linear.shape[0])
    }

    fn outputs(&self, linear: &Linear, outputs: Range<usize>) -> Result<QuantizedLinear> {
        let stored = self.stored(&linear.name)?;
        let first = outputs.start;
        let read = self.scheme.layout.unpack(&stored, linear.shape, linear.grid, outputs);
        let read = read.map_err(|e| damaged(linear, e.counted_from(first)))?;
        self.check_middle(linear, &read)?;
        Ok(read)
    }

    /// Loaders disagree about a layer that is said to be symmetric and has other zero points: some use them, some do not.
    fn check_middle(&self, linear: &Linear, read: &QuantizedLinear) -> Result<()> {
        if linear.symmetric != Some(true) || read.symmetric() {
            return Ok(());
        }
        let middle = read.grid().middle();
        let other = read.zeros().iter().find(|zero| **zero != middle).copied().unwrap_or(middle);
        let error = Error::new(
            Kind::Invalid,
            format!(
                "layer {} is said to be symmetric, but has zero points of {other} and not only {middle}",
                linear.name
            ),
        );
        let off_by_one = read.zeros().iter().all(|zero| *zero == other) && other.abs_diff(middle) == 1;
        Err(error.hint(match off_by_one {
            true => format!(
                "The checkpoint format is probably not {} as the configuration says, but the other of gptq and gptq_v2.",
                self.scheme.checkpoint_format
            ),
            false => {
                "If they are right, correct the configuration: `sym` to false, or `zero_point` to true.".into()
            }
        }))
    }
}

fn damaged(linear: &Linear, e: PackError) -> Error {
    Error::new(Kind::Invalid, format!("layer {} is damaged", linear.name)).because(e)
}

fn first<'a>(suffixes: &BTreeSet<&'a str>) -> &'a str {
    suffixes.first().expect("the layer was found by a suffix")
}

impl Dense for PackedModel {
    fn names(&self) -> Vec<&str> {
        let plain = self.tensors.iter().map(|(name, _)| name);
        let plain = plain.filter(|name| !name.strip_suffix(".scales").is_some_and(|layer| self.packs(layer)));
        let mut names: Vec<&str> = plain.chain(self.linears.keys().map(String::as_str)).collect();
        names.sort_unstable();
        names
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        match self.linears.get(name) {
            Some(linear) => Some(&linear.shape),
            None => self.tensors.shape(name),
        }
    }

    fn float_type(&self, name: &str) -> Option<FloatType> {
        match self.linears.contains_key(name) {
            true => None,
            false => self.tensors.float_type(name),
        }
    }

    fn bits(&self, name: &str) -> Option<f64> {
        match self.linears.get(name) {
            Some(linear) => {
                let [n, k] = linear.shape;
                Some(self.stored_bytes(linear) as f64 * 8.0 / (n as f64 * k as f64))
            }
            None => self.tensors.bits(name),
        }
    }

    fn read(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let Some(linear) = self.linears.get(name) else { return self.tensors.read(name, rows, out) };
        let in_features = linear.shape[1];
        assert_eq!(out.len(), rows.len() * in_features, "{name}: rows {rows:?}");
        let failures: Vec<Error> = out
            .par_chunks_mut(OUTPUTS * in_features)
            .enumerate()
            .filter_map(|(i, out)| {
                let first = rows.start + i * OUTPUTS;
                let outputs = first..first + out.len() / in_features;
                let read = match self.outputs(linear, outputs) {
                    Ok(read) => read,
                    Err(e) => return Some(e),
                };
                out.chunks_exact_mut(in_features)
                    .enumerate()
                    .for_each(|(output, row)| read.dequantize_row(output, row));
                None
            })
            .collect();
        failures.into_iter().next().map_or(Ok(()), Err)
    }
}

impl PackedModel {
    fn packs(&self, layer: &str) -> bool {
        self.linears.contains_key(&format!("{layer}.weight"))
    }
}
