//! The operations of a decoder's layers in the memory of a device.

use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;

use crate::arch::spec::Activation;
use crate::error::{Error, Kind, Result};

/// A float32 matrix in the memory of a device, row-major without gaps. It never changes; copies share it.
#[derive(Clone, Debug)]
pub struct DeviceMatrix {
    rows: usize,
    columns: usize,
    values: Arc<dyn Any + Send + Sync>,
}

impl DeviceMatrix {
    /// That whose values are `values`, of whatever type the device has for them.
    pub fn new(rows: usize, columns: usize, values: impl Any + Send + Sync) -> DeviceMatrix {
        DeviceMatrix { rows, columns, values: Arc::new(values) }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values of a row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The values, as the device has them.
    ///
    /// # Errors
    /// `Other` if they are those of a device of another kind.
    pub fn values<T: Any>(&self) -> Result<&T> {
        self.values
            .downcast_ref()
            .ok_or_else(|| Error::new(Kind::Other, "a matrix is in the memory of a device of another kind"))
    }
}

/// What attention does with queries, keys and values, besides their products.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// Tokens of a sequence; matrices hold whole sequences, one after the other.
    pub sequence: usize,
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values, of which `heads` is a multiple.
    pub kv_heads: usize,
    /// Values of a head.
    pub head_dim: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// Scores go through `cap * tanh(score / cap)`.
    pub soft_cap: Option<f32>,
    /// A query sees this many tokens, itself included.
    pub window: Option<usize>,
}

/// Cosine and sine of every position's angles, `[positions, half]`.
#[derive(Clone, Copy, Debug)]
pub struct Angles<'a> {
    /// Angles of a position: half of the dimensions that are rotated.
    pub half: usize,
    /// Their cosines.
    pub cos: &'a [f32],
    /// Their sines.
    pub sin: &'a [f32],
}

/// What one of several experts has made of the rows that it got.
#[derive(Clone, Copy, Debug)]
pub struct ExpertRows<'a> {
    /// Its result for each.
    pub values: &'a DeviceMatrix,
    /// Which rows they were, each at most once, and how much the expert counts for each.
    pub routed: &'a [(u32, f32)],
}

/// A device that computes the layers of a decoder. Each operation gives the bits that the processor gives
/// (`arch::decoder`), but for those of NaN.
///
/// # Errors
/// Every operation may fail: `Resources` if there is not enough memory, `Other` if the device fails.
///
/// # Panics
/// Every operation does if sizes do not fit each other.
pub trait Accelerator: Debug + Send + Sync {
    /// What it is called in messages.
    fn name(&self) -> &str;

    /// Bytes of its memory that are free.
    fn free_bytes(&self) -> Result<u64>;

    /// Copies whole rows of `columns` values there.
    fn upload(&self, values: &[f32], columns: usize) -> Result<DeviceMatrix>;

    /// Copies a matrix back.
    fn fetch(&self, x: &DeviceMatrix) -> Result<Vec<f32>>;

    /// The norm by the root of the mean square of each piece of a row that is as long as `weight`.
    fn norm(&self, x: &DeviceMatrix, weight: &DeviceMatrix, epsilon: f32) -> Result<DeviceMatrix>;

    /// `x * weight^T + bias`: `[rows, in]`, `[out, in]` and `[1, out]` to `[rows, out]`.
    fn linear(
        &self,
        x: &DeviceMatrix,
        weight: &DeviceMatrix,
        bias: Option<&DeviceMatrix>,
    ) -> Result<DeviceMatrix>;

    /// Rotates heads of `head_dim` values: the first half of the rotated dimensions pairs with the second, the rest stays.
    /// The positions of rows go round in the order of the angles.
    fn rotate(&self, x: &DeviceMatrix, head_dim: usize, angles: Angles<'_>) -> Result<DeviceMatrix>;

    /// Causal attention within each sequence: queries `[rows, heads * head_dim]`, keys and values
    /// `[rows, kv_heads * head_dim]`, to `[rows, heads * head_dim]`.
    fn attend(
        &self,
        attention: &Attention,
        query: &DeviceMatrix,
        key: &DeviceMatrix,
        value: &DeviceMatrix,
    ) -> Result<DeviceMatrix>;

    /// `activation(gate) * up`.
    fn gate(&self, activation: Activation, gate: &DeviceMatrix, up: &DeviceMatrix) -> Result<DeviceMatrix>;

    /// `a + b`.
    fn add(&self, a: &DeviceMatrix, b: &DeviceMatrix) -> Result<DeviceMatrix>;

    /// Some of the rows, in this order.
    fn select(&self, x: &DeviceMatrix, rows: &[u32]) -> Result<DeviceMatrix>;

    /// The sum of what experts have made, in their order: `[rows, columns]`.
    fn combine(&self, rows: usize, columns: usize, experts: &[ExpertRows<'_>]) -> Result<DeviceMatrix>;

    /// For each row whether all of its values are finite.
    fn finite_rows(&self, x: &DeviceMatrix) -> Result<Vec<bool>>;
}
