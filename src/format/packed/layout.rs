//! How a container stores one linear layer.

use std::fmt::Debug;
use std::ops::Range;

use half::{bf16, f16};
use safetensors::Dtype;

use crate::quant::{CodesError, Grid, QuantizedLinear};
use crate::source::safetensors::FloatType;

/// One tensor of a linear layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// What follows the layer's name: `qweight`, `qzeros`, `scales` or `g_idx`.
    pub suffix: &'static str,
    /// `I32`, or `F16` for scales.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
}

impl Part {
    /// Bytes of all elements.
    pub fn size(&self) -> u64 {
        (self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8) as u64
    }

    pub(crate) fn integers(suffix: &'static str, shape: &[usize]) -> Part {
        Part { suffix, dtype: Dtype::I32, shape: shape.to_vec() }
    }

    pub(crate) fn scales(shape: [usize; 2]) -> Part {
        Part { suffix: "scales", dtype: Dtype::F16, shape: shape.to_vec() }
    }
}

/// A tensor of 32-bit words.
#[derive(Clone, Copy, Debug)]
pub struct Words<'a> {
    /// Its shape.
    pub shape: &'a [usize],
    /// Its elements, little-endian, row-major.
    pub data: &'a [[u8; 4]],
}

impl Words<'_> {
    /// Element `i`.
    pub fn get(self, i: usize) -> u32 {
        u32::from_le_bytes(self.data[i])
    }
}

/// The scales of a layer, in any type that is exact in float16.
#[derive(Clone, Copy, Debug)]
pub struct Scales<'a> {
    /// Its shape.
    pub shape: &'a [usize],
    /// How it is stored.
    pub dtype: FloatType,
    /// Its elements, little-endian, row-major.
    pub data: &'a [u8],
}

impl Scales<'_> {
    /// Element `i`, if it is a float16.
    pub fn get(self, i: usize) -> Option<f16> {
        let size = self.dtype.bytes();
        let bytes = &self.data[i * size..][..size];
        let exact = |value: f32| Some(f16::from_f32(value)).filter(|half| f32::from(*half) == value);
        match self.dtype {
            FloatType::F16 => Some(f16::from_le_bytes([bytes[0], bytes[1]])),
            FloatType::BF16 => exact(bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32()),
            FloatType::F32 => exact(f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])),
        }
    }
}

/// The tensors of one linear layer in a file.
#[derive(Clone, Copy, Debug)]
pub struct Stored<'a> {
    /// The codes.
    pub qweight: Words<'a>,
    /// The zero points.
    pub qzeros: Words<'a>,
    /// The scales.
    pub scales: Scales<'a>,
    /// The group of each input.
    pub g_idx: Option<Words<'a>>,
}

/// Why a layer cannot be packed or unpacked.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[allow(missing_docs)]
pub enum PackError {
    #[error(transparent)]
    Codes(#[from] CodesError),
    #[error("scale [{0}, {1}] is not exact in float16")]
    Scale(usize, usize),
    #[error("the zero point of output {output}, group {group} is 0, which this format cannot hold")]
    ZeroPoint { output: usize, group: usize },
    #[error("input {input} has the group index {group}")]
    GroupIndex { input: usize, group: i32 },
    #[error("{0}")]
    Grid(String),
}

impl PackError {
    /// The same of a whole layer, where this was said of the outputs from `first` on.
    pub(super) fn counted_from(self, first: usize) -> PackError {
        match self {
            PackError::Codes(e) => PackError::Codes(e.counted_from(first)),
            other => other,
        }
    }
}

/// How a container stores linear layers.
pub trait Layout: Debug + Send + Sync {
    /// Why a layer of `[out_features, in_features]` cannot be stored, or not in a way that every loader reads.
    fn refuses(&self, shape: [usize; 2], grid: Grid) -> Option<String>;

    /// The tensors that it is stored as.
    fn parts(&self, shape: [usize; 2], grid: Grid) -> Vec<Part>;

    /// Bytes that a layer's weights cost: of all its tensors but `g_idx`, which says nothing that is not known.
    fn cost(&self, shape: [usize; 2], grid: Grid) -> u64 {
        self.parts(shape, grid).iter().filter(|part| part.suffix != "g_idx").map(Part::size).sum()
    }

    /// Their bytes, in the order of [`Layout::parts`].
    ///
    /// # Errors
    /// If the format has no room for a zero point, or none for an order of groups.
    fn pack(&self, linear: &QuantizedLinear) -> Result<Vec<Vec<u8>>, PackError>;

    /// `[out_features, in_features]`, as far as the stored shapes tell; what they tell is to be compared with
    /// [`Layout::parts`].
    fn shape(&self, stored: &Stored<'_>, bits: u32) -> [usize; 2];

    /// Reads some outputs of a layer. The shapes must be those of [`Layout::parts`].
    fn unpack(
        &self,
        stored: &Stored<'_>,
        shape: [usize; 2],
        grid: Grid,
        outputs: Range<usize>,
    ) -> Result<QuantizedLinear, PackError>;
}

/// Scales of `outputs` from `[groups, out_features]` to `[outputs, groups]`.
pub(crate) fn read_scales(
    scales: Scales<'_>,
    out_features: usize,
    groups: usize,
    outputs: Range<usize>,
) -> Result<Vec<f16>, PackError> {
    outputs
        .flat_map(|output| (0..groups).map(move |group| (output, group)))
        .map(|(output, group)| {
            scales.get(group * out_features + output).ok_or(PackError::Scale(group, output))
        })
        .collect()
}

/// Scales from `[out_features, groups]` to the bytes of `[groups, out_features]`.
pub(crate) fn write_scales(linear: &QuantizedLinear) -> Vec<u8> {
    let groups = linear.groups();
    let mut bytes = Vec::with_capacity(linear.scales().len() * 2);
    for group in 0..groups {
        for output in 0..linear.out_features() {
            bytes.extend_from_slice(&linear.scales()[output * groups + group].to_le_bytes());
        }
    }
    bytes
}

/// The grid that zero points have: symmetric if all of them are the middle.
pub(crate) fn grid_of(zeros: &[u8], grid: Grid) -> Grid {
    Grid { symmetric: zeros.iter().all(|zero| *zero == grid.middle()), ..grid }
}

/// The group of each input; none if all are zero, which old checkpoints have where there is no other order.
pub(crate) fn read_g_idx(g_idx: Words<'_>, groups: usize) -> Result<Option<Vec<u32>>, PackError> {
    let read = (0..g_idx.data.len()).map(|input| {
        let group = g_idx.get(input);
        match (group as usize) < groups {
            true => Ok(group),
            false => Err(PackError::GroupIndex { input, group: group.cast_signed() }),
        }
    });
    let read = read.collect::<Result<Vec<u32>, PackError>>()?;
    Ok(Some(read).filter(|read| read.iter().any(|group| *group != 0)))
}
