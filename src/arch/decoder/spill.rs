//! Hidden states that are on the disk instead of in memory.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use candle_core::{Device, Tensor};

use crate::atomic;
use crate::error::{Error, Result};

/// A file without a name: nothing is left of it however the process ends.
#[derive(Debug)]
pub struct Spill {
    file: File,
}

impl Spill {
    /// A place for `bytes` bytes on the disk of `dir`, which is made if it is not there.
    ///
    /// # Errors
    /// `Resources` if there is no room.
    pub fn create(dir: &Path, bytes: u64) -> Result<Spill> {
        let failed = |e| {
            Error::output(format!("cannot keep hidden states in {}", dir.display()), e)
                .hint("Do without --offload, or choose another disk with --checkpoint-dir.")
        };
        std::fs::create_dir_all(dir).map_err(failed)?;
        atomic::check_space(dir, bytes)?;
        let file = tempfile::tempfile_in(dir).map_err(failed)?;
        atomic::reserve(&file, bytes)?;
        Ok(Spill { file })
    }

    /// Writes a tensor of float32 at this byte.
    pub(super) fn store(&self, states: &Tensor, at: u64) -> Result<()> {
        let values = states.flatten_all()?.to_vec1::<f32>()?;
        self.file
            .write_all_at(bytemuck::cast_slice(&values), at)
            .map_err(|e| Error::output("cannot write hidden states to the disk", e))
    }

    /// Reads a tensor of float32 from this byte.
    pub(super) fn load(&self, shape: [usize; 3], at: u64) -> Result<Tensor> {
        let mut values = vec![0f32; shape.iter().product()];
        self.file
            .read_exact_at(bytemuck::cast_slice_mut(&mut values), at)
            .map_err(|e| Error::output("cannot read hidden states from the disk", e))?;
        Ok(Tensor::from_vec(values, (shape[0], shape[1], shape[2]), &Device::Cpu)?)
    }
}
