//! Writes GPTQ and AWQ checkpoints: laid out first, then filled layer by layer.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde_json::Value;

use super::Layout;
use super::layers::Layers;
use super::layout::{Scales, Stored, Words};
use crate::atomic::AtomicDir;
use crate::error::{Error, Kind, Result};
use crate::format::awq::AwqConfig;
use crate::format::companions;
use crate::format::gptq::GptqConfig;
use crate::format::hf;
use crate::format::shards::{self, SHARD_BYTES, ShardWriter, TensorSpec};
use crate::quant::{Grid, QuantizedLinear};
use crate::source::safetensors::FloatType;

/// Which container a checkpoint is written in.
#[derive(Clone, Debug, PartialEq)]
pub enum Container {
    /// GPTQ.
    Gptq(GptqConfig),
    /// AWQ.
    Awq(AwqConfig),
}

impl Container {
    /// How its layers are stored. [`Layout::refuses`] says which ones cannot be.
    pub fn layout(&self) -> Box<dyn Layout> {
        match self {
            Container::Gptq(config) => Box::new(config.layout()),
            Container::Awq(config) => Box::new(config.layout()),
        }
    }

    /// The name of the method.
    pub fn name(&self) -> &'static str {
        match self {
            Container::Gptq(_) => "GPTQ",
            Container::Awq(_) => "AWQ",
        }
    }

    /// The name of the format in reports.
    pub fn format(&self) -> &'static str {
        match self {
            Container::Gptq(_) => "gptq",
            Container::Awq(_) => "awq",
        }
    }

    fn to_json(&self, layers: &Layers) -> Value {
        match self {
            Container::Gptq(config) => config.to_json(layers),
            Container::Awq(config) => config.to_json(layers),
        }
    }

    /// Whether a layer with such a grid can be stated.
    fn states(&self, grid: Grid) -> bool {
        match self {
            Container::Gptq(_) => true,
            Container::Awq(config) => {
                let group_size = config.group_size.unwrap_or(Grid::WHOLE_ROW);
                grid.bits == 4 && grid.group_size == group_size
            }
        }
    }

    fn act_order(&self) -> bool {
        matches!(self, Container::Gptq(config) if config.desc_act)
    }
}

/// Something that a checkpoint will hold.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// A quantized linear layer.
    Linear {
        /// Its name, for example `model.layers.0.self_attn.q_proj`.
        name: String,
        /// `[out_features, in_features]`.
        shape: [usize; 2],
        /// Its grid, with the group size that the configuration states.
        grid: Grid,
        /// Whether it has a bias, which is float16.
        bias: bool,
    },
    /// Any other tensor.
    Dense {
        /// Its name, for example `model.norm.weight`.
        name: String,
        /// How it is stored.
        dtype: FloatType,
        /// Outermost dimension first.
        shape: Vec<usize>,
        /// Whether it is the weight of a linear layer that loaders would take to be quantized if nobody told them.
        left_out: bool,
    },
}

/// Where a checkpoint goes, and what goes with it.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The directory to be.
    pub dir: &'a Path,
    /// Whether a model that is there may be replaced.
    pub force: bool,
    /// Most bytes of tensors per file; see [`SHARD_BYTES`].
    pub shard_bytes: u64,
    /// The directory of the original model: its tokenizer and other files go along. None for a model that has no directory.
    pub source: Option<&'a Path>,
    /// The original `config.json`.
    pub config: &'a Value,
}

impl<'a> Target<'a> {
    /// A directory that must not hold anything yet.
    pub fn new(dir: &'a Path, source: Option<&'a Path>, config: &'a Value) -> Target<'a> {
        Target { dir, force: false, shard_bytes: SHARD_BYTES, source, config }
    }
}

/// Writes a checkpoint. Layers may come in any order; the bytes are the same. Dropped without [`PackedWriter::finish`], it
/// leaves nothing behind.
#[derive(Debug)]
pub struct PackedWriter {
    dir: AtomicDir,
    shards: ShardWriter,
    layout: Box<dyn Layout>,
    act_order: bool,
    linears: BTreeMap<String, ([usize; 2], Grid, bool)>,
    dense: BTreeMap<String, FloatType>,
    file_bytes: u64,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The directory.
    pub dir: PathBuf,
    /// Bytes of the safetensors files and their index.
    pub weight_bytes: u64,
}

impl PackedWriter {
    /// Lays out a checkpoint and begins it: everything but the tensors is written at once. `entries` are in the order in which
    /// they fill the files.
    ///
    /// # Errors
    /// `Usage` if the directory exists and may not be replaced, `Resources` if the disk has no room, `Invalid` if layers that
    /// loaders join are not treated alike, `Unsupported` if the container cannot hold a layer.
    pub fn create(target: Target<'_>, container: &Container, entries: &[Entry]) -> Result<PackedWriter> {
        let layout = container.layout();
        let mut tensors = Vec::new();
        let (mut linears, mut dense) = (BTreeMap::new(), BTreeMap::new());
        let mut left_out = Vec::new();
        for entry in entries {
            match entry {
                Entry::Linear { name, shape, grid, bias } => {
                    let refusal = layout.refuses(*shape, *grid).or_else(|| {
                        (!container.states(*grid)).then(|| "its grid is not that of the others".to_owned())
                    });
                    if let Some(why) = refusal {
                        return Err(Error::new(
                            Kind::Unsupported,
                            format!("layer {name} cannot be stored: {why}"),
                        ));
                    }
                    for part in layout.parts(*shape, *grid) {
                        let name = format!("{name}.{}", part.suffix);
                        tensors.push(TensorSpec { name, dtype: part.dtype, shape: part.shape });
                    }
                    if *bias {
                        let shape = vec![shape[0]];
                        tensors.push(TensorSpec { name: format!("{name}.bias"), dtype: Dtype::F16, shape });
                    }
                    linears.insert(name.clone(), (*shape, *grid, *bias));
                }
                Entry::Dense { name, dtype, shape, left_out: is_left_out } => {
                    let spec = TensorSpec { name: name.clone(), dtype: dtype.stored(), shape: shape.clone() };
                    tensors.push(spec);
                    dense.insert(name.clone(), *dtype);
                    if *is_left_out {
                        left_out.push(name.strip_suffix(".weight").unwrap_or(name).to_owned());
                    }
                }
            }
        }
        let grids = linears.iter().map(|(name, (_, grid, _))| (name.clone(), *grid));
        let quantization = container.to_json(&Layers::new(grids, left_out)?);
        let shards = shards::Layout::new(&tensors, target.shard_bytes)?;
        if let Some(source) = target.source {
            companions::refuse_source(source, target.dir)?;
        }
        let file_bytes = shards.file_bytes();
        let dir = AtomicDir::create(target.dir, file_bytes, target.force)?;
        let write_json = |name: &str, value: &Value| dir.write(name, format!("{value:#}\n").as_bytes());
        write_json("config.json", &with_quantization(target.config, &quantization)?)?;
        if matches!(container, Container::Gptq(_)) {
            write_json("quantize_config.json", &quantization)?;
        }
        if let Some(source) = target.source {
            companions::copy(source, &dir)?;
        }
        let shards = ShardWriter::create(&dir, shards)?;
        let act_order = container.act_order();
        Ok(PackedWriter { dir, shards, layout, act_order, linears, dense, file_bytes })
    }

    /// Writes a quantized layer, with its bias if it has one.
    ///
    /// # Errors
    /// `Invalid` if the format cannot hold a value of it.
    ///
    /// # Panics
    /// If the layer is not what was laid out.
    pub fn linear(&mut self, name: &str, linear: &QuantizedLinear, bias: Option<&[f32]>) -> Result<()> {
        for tensor in self.pack(name, linear, bias)? {
            self.shards.write(&tensor.name, &tensor.bytes)?;
        }
        Ok(())
    }

    /// The tensors of a quantized layer, to be written by [`PackedWriter::bytes`].
    ///
    /// # Errors
    /// As [`PackedWriter::linear`].
    ///
    /// # Panics
    /// As [`PackedWriter::linear`].
    pub fn pack(&self, name: &str, linear: &QuantizedLinear, bias: Option<&[f32]>) -> Result<Vec<Packed>> {
        let (shape, grid, has_bias) = self.laid_out(name);
        assert_eq!([linear.out_features(), linear.in_features()], shape, "shape of {name}");
        assert_eq!(linear.bits(), grid.bits, "bits of {name}");
        assert_eq!(linear.group_size(), grid.group_size.min(shape[1]), "group size of {name}");
        assert!(linear.symmetric() || !grid.symmetric, "{name} is to be symmetric");
        assert!(self.act_order || linear.g_idx().is_none(), "{name} has groups in another order");
        assert_eq!(bias.is_some(), has_bias, "bias of {name}");
        let mut packed = self
            .layout
            .pack(linear)
            .map_err(|e| Error::new(Kind::Invalid, format!("layer {name} cannot be stored")).because(e))?;
        if let Some(bias) = bias {
            packed.push(shards::float_bytes(&format!("{name}.bias"), FloatType::F16, bias)?);
        }
        Ok(self.specs(name).into_iter().zip(packed).map(|(spec, bytes)| Packed { bytes, ..spec }).collect())
    }

    /// The quantized layer in tensors that [`PackedWriter::pack`] has made.
    ///
    /// # Errors
    /// `Invalid` if they hold what no layer has.
    ///
    /// # Panics
    /// If the layer is not laid out, or its tensors are not all there.
    pub fn unpack(&self, name: &str, tensors: &[Packed]) -> Result<QuantizedLinear> {
        let (shape, grid, _) = self.laid_out(name);
        let find = |suffix: &str| {
            let is_it = |tensor: &&Packed| {
                tensor.name.strip_prefix(name).and_then(|rest| rest.strip_prefix('.')) == Some(suffix)
            };
            tensors.iter().find(is_it)
        };
        let need = |suffix: &str| find(suffix).unwrap_or_else(|| panic!("{name}.{suffix} is packed"));
        let (scales, g_idx) = (need("scales"), find("g_idx"));
        let stored = Stored {
            qweight: need("qweight").words(),
            qzeros: need("qzeros").words(),
            scales: Scales { shape: &scales.shape, dtype: FloatType::F16, data: &scales.bytes },
            // Groups are those of neighbouring inputs unless the container says otherwise.
            g_idx: g_idx.filter(|_| self.act_order).map(Packed::words),
        };
        let found = self.layout.unpack(&stored, shape, grid, 0..shape[0]);
        found
            .map_err(|e| Error::new(Kind::Invalid, format!("layer {name} is not what was packed")).because(e))
    }

    /// Puts another quantized layer into tensors that [`PackedWriter::pack`] has made; a bias stays.
    ///
    /// # Errors
    /// As [`PackedWriter::linear`].
    ///
    /// # Panics
    /// As [`PackedWriter::linear`].
    pub fn repack(&self, name: &str, linear: &QuantizedLinear, tensors: &mut [Packed]) -> Result<()> {
        let bias = vec![0.0; linear.out_features()];
        let (_, _, has_bias) = self.laid_out(name);
        let codes = self.pack(name, linear, has_bias.then_some(bias.as_slice()))?;
        for packed in codes.into_iter().filter(|packed| !packed.name.ends_with(".bias")) {
            let place = tensors.iter_mut().find(|tensor| tensor.name == packed.name);
            place.unwrap_or_else(|| panic!("{} is packed", packed.name)).bytes = packed.bytes;
        }
        Ok(())
    }

    /// What [`PackedWriter::pack`] makes of a layer, without the bytes.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn specs(&self, name: &str) -> Vec<Packed> {
        let (shape, grid, has_bias) = self.laid_out(name);
        let parts = self.layout.parts(shape, grid).into_iter();
        let spec = |name: String, dtype, shape| Packed { name, dtype, shape, bytes: Vec::new() };
        let mut specs: Vec<Packed> =
            parts.map(|part| spec(format!("{name}.{}", part.suffix), part.dtype, part.shape)).collect();
        if has_bias {
            specs.push(spec(format!("{name}.bias"), Dtype::F16, vec![shape[0]]));
        }
        specs
    }

    fn laid_out(&self, name: &str) -> ([usize; 2], Grid, bool) {
        *self.linears.get(name).unwrap_or_else(|| panic!("{name} is not a quantized layer"))
    }

    /// Writes the next values of another tensor, rounded to the type that it is stored in.
    ///
    /// # Errors
    /// `Invalid` if a value is not finite, or beyond the range of float16.
    ///
    /// # Panics
    /// If there is no such tensor or no room for so many values.
    pub fn dense(&mut self, name: &str, values: &[f32]) -> Result<()> {
        let dtype = *self.dense.get(name).unwrap_or_else(|| panic!("{name} is not laid out"));
        self.shards.write_floats(name, dtype, values)
    }

    /// Writes the next bytes of any tensor as they are: little-endian, in the type that it is stored in.
    ///
    /// # Panics
    /// If there is no such tensor or no room for so many bytes.
    pub fn bytes(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.shards.write(name, bytes)
    }

    /// Where the files are until the checkpoint is finished.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Flushes everything to the disk. What is left is [`Flushed::commit`].
    ///
    /// # Panics
    /// If a tensor's values are missing.
    pub fn flush(self) -> Result<Flushed> {
        self.shards.finish();
        self.dir.sync()?;
        Ok(Flushed { dir: self.dir, weight_bytes: self.file_bytes })
    }

    /// Flushes everything to the disk and gives the directory its name.
    ///
    /// # Panics
    /// If a tensor's values are missing.
    pub fn finish(self) -> Result<Written> {
        let flushed = self.flush()?;
        let written = Written { dir: flushed.dir.target().to_owned(), weight_bytes: flushed.weight_bytes };
        flushed.commit()?;
        Ok(written)
    }
}

/// A tensor as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    /// Its name.
    pub name: String,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its elements, little-endian, row-major.
    pub bytes: Vec<u8>,
}

impl Packed {
    /// A tensor of 32-bit words.
    fn words(&self) -> Words<'_> {
        Words { shape: &self.shape, data: self.bytes.as_chunks().0 }
    }

    /// Bytes of all elements, whether they are there or not.
    pub fn size(&self) -> u64 {
        (self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8) as u64
    }
}

/// A checkpoint that is on the disk and has no name yet.
#[derive(Debug)]
pub struct Flushed {
    dir: AtomicDir,
    /// Bytes of the safetensors files and their index.
    pub weight_bytes: u64,
}

impl Flushed {
    /// Where it is until it has its name.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Gives the directory its name.
    ///
    /// # Errors
    /// `Usage` if something has appeared there that may not be replaced.
    pub fn commit(self) -> Result<()> {
        self.dir.commit()
    }
}

/// The original `config.json` with the quantization, and float16 as the type to compute in: scales are float16, and vLLM
/// would round them to the type that stands here.
fn with_quantization(config: &Value, quantization: &Value) -> Result<Value> {
    let mut config = hf::with_dtype(config, FloatType::F16)?;
    config["quantization_config"] = quantization.clone();
    Ok(config)
}
