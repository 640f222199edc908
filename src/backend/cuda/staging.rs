//! Copies to the GPU and back through pinned memory.
//!
//! The GPU can only read and write memory that the operating system does not move. The driver copies other memory through a
//! small buffer of its own, one piece after the other; here all cores copy a piece while the one before is on its way.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DriverError, PinnedHostSlice};
use rayon::prelude::*;

/// Values of a piece: 16 MB, which take longer on their way than the launch of a copy.
pub(super) const PIECE: usize = 1 << 22;

/// Values that one thread copies at a time.
const EACH: usize = 1 << 16;

/// Two pieces of pinned memory, which take turns.
#[derive(Debug)]
pub(super) struct Staging {
    context: Arc<CudaContext>,
    piece: usize,
    /// None until something large is copied.
    buffers: Option<[PinnedHostSlice<f32>; 2]>,
}

impl Staging {
    /// For pieces of so many values.
    pub(super) fn new(context: &Arc<CudaContext>, piece: usize) -> Staging {
        Staging { context: context.clone(), piece, buffers: None }
    }

    fn buffers(&mut self) -> Result<&mut [PinnedHostSlice<f32>; 2], DriverError> {
        let buffers = match self.buffers.take() {
            Some(buffers) => buffers,
            None => {
                // Both are read too, so that they are ordinary memory for the processor.
                // SAFETY: of each no more is read than was written: whole pieces that were copied there.
                let buffer = || unsafe { self.context.alloc_pinned_with_flags(self.piece, 0) };
                [buffer()?, buffer()?]
            }
        };
        Ok(self.buffers.insert(buffers))
    }

    /// Copies `values` to the GPU; when it returns, they may change.
    ///
    /// # Panics
    /// If there is not as much room.
    pub(super) fn upload(
        &mut self,
        stream: &Arc<CudaStream>,
        values: &[f32],
        to: &mut CudaSlice<f32>,
    ) -> Result<(), DriverError> {
        assert_eq!(values.len(), to.len(), "as many values");
        let pieces = values.chunks_exact(self.piece);
        let (rest, piece) = (pieces.remainder(), self.piece);
        for (i, values) in pieces.enumerate() {
            let buffer = &mut self.buffers()?[i % 2];
            // Waits until what was in it is on the GPU.
            copy(values, buffer.as_mut_slice()?);
            stream.memcpy_htod(buffer, &mut to.slice_mut(i * piece..(i + 1) * piece))?;
        }
        if rest.is_empty() {
            return Ok(());
        }
        stream.memcpy_htod(rest, &mut to.slice_mut(values.len() - rest.len()..))
    }

    /// Copies values from the GPU.
    pub(super) fn fetch(
        &mut self,
        stream: &Arc<CudaStream>,
        from: &CudaSlice<f32>,
    ) -> Result<Vec<f32>, DriverError> {
        let mut values = vec![0.0; from.len()];
        let piece = self.piece;
        let whole = values.len() / piece;
        // Two copies are on their way at a time.
        for i in 0..whole + 1 {
            if i < whole {
                stream.memcpy_dtoh(&from.slice(i * piece..(i + 1) * piece), &mut self.buffers()?[i % 2])?;
            }
            if i > 0 {
                let arrived = self.buffers()?[(i - 1) % 2].as_slice()?;
                copy(arrived, &mut values[(i - 1) * piece..i * piece]);
            }
        }
        if values.len() > whole * piece {
            stream.memcpy_dtoh(&from.slice(whole * piece..), &mut values[whole * piece..])?;
        }
        Ok(values)
    }
}

/// On all threads.
fn copy(from: &[f32], to: &mut [f32]) {
    to.par_chunks_mut(EACH).zip(from.par_chunks(EACH)).for_each(|(to, from)| to.copy_from_slice(from));
}
