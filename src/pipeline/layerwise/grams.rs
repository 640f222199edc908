//! The Gram matrices of the inputs at which a layer stops.

use std::collections::BTreeMap;

use candle_core::{CpuStorage, Storage, Tensor};

use super::Matrix;
use crate::arch::decoder::{Input, LinearId};
use crate::calib::guard::Statistic;
use crate::error::{Error, Kind, Result};
use crate::quant::gram::Gram;

/// Sums up the inputs of some matrices.
pub(super) struct Grams(pub(super) BTreeMap<Input, Gram>);

impl Grams {
    pub(super) fn new(matrices: &[&Matrix]) -> Grams {
        Grams(matrices.iter().map(|m| (m.input, Gram::new(m.shape[1]))).collect())
    }
}

impl Statistic for Grams {
    fn add(&mut self, linear: LinearId, rows: &Tensor) -> Result<()> {
        let Some(gram) = self.0.get_mut(&linear.input) else { return Ok(()) };
        let rows = rows.contiguous()?;
        let (storage, layout) = rows.storage_and_layout();
        let (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) =
            (&*storage, layout.contiguous_offsets())
        else {
            return Err(Error::new(Kind::Other, "the decoder's states are float32 in memory"));
        };
        gram.add(&values[start..end]);
        Ok(())
    }
}
