//! What flows through a layer: in memory, or in that of a device.

use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::rows;
use crate::backend::{Accelerator, DeviceMatrix};
use crate::error::{Error, Kind, Result};

/// Rows of float32. Operations are the same wherever they are, to the bit.
#[derive(Clone, Debug)]
pub enum Activations {
    /// In memory: the rows of the last dimension.
    Memory(Tensor),
    /// In a device's memory.
    Device(Arc<dyn Accelerator>, DeviceMatrix),
}

impl Activations {
    /// Number of rows and their length.
    ///
    /// # Errors
    /// `Other` for a single value.
    pub fn shape(&self) -> Result<[usize; 2]> {
        match self {
            Activations::Memory(x) => {
                let columns = x.dim(candle_core::D::Minus1)?;
                Ok([x.elem_count() / columns.max(1), columns])
            }
            Activations::Device(_, x) => Ok([x.rows(), x.columns()]),
        }
    }

    /// The values in memory, copied from the device if they are there: `[rows, columns]`.
    ///
    /// # Errors
    /// `Other` if the device fails.
    pub fn tensor(&self) -> Result<Tensor> {
        match self {
            Activations::Memory(x) => Ok(x.clone()),
            Activations::Device(device, x) => {
                Ok(Tensor::from_vec(device.fetch(x)?, (x.rows(), x.columns()), &Device::Cpu)?)
            }
        }
    }

    /// Looks at the values, row after row, copied from the device if they are there.
    ///
    /// # Errors
    /// As [`Activations::tensor`].
    pub fn with_values<T>(&self, look: impl FnOnce(&[f32]) -> T) -> Result<T> {
        Ok(rows::with_slice(&self.tensor()?.contiguous()?, look)?)
    }

    /// The same in memory.
    ///
    /// # Errors
    /// As [`Activations::tensor`].
    pub(super) fn into_memory(self) -> Result<Activations> {
        self.tensor().map(Activations::Memory)
    }

    /// The same in the memory of a device, or in that of the machine without one. Nothing is copied if it is there already.
    ///
    /// # Errors
    /// `Resources` if it does not fit there.
    pub(super) fn moved_to(self, device: Option<&Arc<dyn Accelerator>>) -> Result<Activations> {
        match (device, self) {
            (Some(device), Activations::Memory(x)) => {
                let columns = x.dim(candle_core::D::Minus1)?;
                let x = rows::with_slice(&x.contiguous()?, |values| device.upload(values, columns))??;
                Ok(Activations::Device(device.clone(), x))
            }
            (None, x @ Activations::Device(..)) => x.into_memory(),
            (_, x) => Ok(x),
        }
    }

    /// Some of the rows, in this order.
    ///
    /// # Errors
    /// `Other` if the device fails.
    pub fn select(&self, rows: &[u32]) -> Result<Activations> {
        Ok(match self {
            Activations::Memory(x) => {
                let rows = Tensor::from_slice(rows, rows.len(), &Device::Cpu)?;
                Activations::Memory(x.index_select(&rows, 0)?)
            }
            Activations::Device(device, x) => Activations::Device(device.clone(), device.select(x, rows)?),
        })
    }

    /// The sum of both.
    pub(super) fn plus(&self, other: &Activations) -> Result<Activations> {
        match (self, other) {
            (Activations::Memory(a), Activations::Memory(b)) => Ok(Activations::Memory((a + b)?)),
            (Activations::Device(device, a), Activations::Device(_, b)) => {
                Ok(Activations::Device(device.clone(), device.add(a, b)?))
            }
            _ => Err(elsewhere()),
        }
    }
}

/// Operands are never in different places: a layer moves with all that it has.
pub(super) fn elsewhere() -> Error {
    Error::new(Kind::Other, "the operands of a layer's operation are not in the same memory")
}
