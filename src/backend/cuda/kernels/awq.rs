//! `kernels/awq.cu`: factors of channels scored, and ranges of groups chosen.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DriverError, PushKernelArg};

use super::teams::{PADDING, Teams};
use super::{Kernels, Rows, number};

const SCORE: &str = "awq_score";
const CLIP_GROUP: &str = "awq_clip_group";
pub(super) const NAMES: [&str; 2] = [SCORE, CLIP_GROUP];

/// Arrays of a row in shared memory, and candidates that are tried together.
const ARRAYS: usize = 6;
const BATCH: usize = 4;

/// The parts of Gram matrices, or Hessians, that belong to groups of channels.
#[derive(Debug)]
pub(in crate::backend::cuda) struct Grams {
    /// `[matrices, groups, group_size, stride]`, zeros beyond the columns of a group.
    values: CudaSlice<f32>,
    size: usize,
    group_size: usize,
    stride: usize,
}

impl Grams {
    /// Whether the kernels can work on groups of this length.
    pub(in crate::backend::cuda) fn fit(group_size: usize) -> bool {
        Teams::of(group_size, ARRAYS).is_some()
    }

    /// Copies the parts of the groups of each matrix, each square, to the GPU. The last group may be shorter.
    pub(in crate::backend::cuda) fn upload(
        stream: &Arc<CudaStream>,
        size: usize,
        group_size: usize,
        blocks: &[Vec<f32>],
    ) -> Result<Grams, DriverError> {
        assert!(blocks.len().is_multiple_of(size.div_ceil(group_size)), "a part for each group");
        let stride = group_size.next_multiple_of(4);
        let mut padded = vec![0.0; blocks.len() * group_size * stride];
        for (to, block) in padded.chunks_exact_mut(group_size * stride).zip(blocks) {
            let length = block.len().isqrt();
            assert!(length <= group_size && length * length == block.len(), "a square part");
            for (to, row) in to.chunks_exact_mut(stride).zip(block.chunks_exact(length)) {
                to[..length].copy_from_slice(row);
            }
        }
        Ok(Grams { values: stream.clone_htod(&padded)?, size, group_size, stride })
    }

    fn groups(&self) -> usize {
        self.size.div_ceil(self.group_size)
    }

    fn matrices(&self) -> usize {
        self.values.len() / (self.groups() * self.group_size * self.stride)
    }

    fn teams(&self) -> Teams {
        Teams::of(self.group_size, ARRAYS).expect("groups were found to fit")
    }
}

/// The errors of some rows.
#[derive(Debug)]
pub(in crate::backend::cuda) struct Scored {
    /// `[candidates, groups, padded]`.
    pub(in crate::backend::cuda) errors: Vec<f32>,
    /// Rows, with those that pad them.
    pub(in crate::backend::cuda) padded: usize,
}

impl Kernels {
    /// The error that each group of each row makes by itself with each candidate: `awq_score`. Weights are whole rows,
    /// `factors` is `[candidates, size]`, `grid` as in [`Rows::upload`].
    pub(in crate::backend::cuda) fn score(
        &self,
        stream: &Arc<CudaStream>,
        weights: &[f32],
        factors: &CudaSlice<f32>,
        grams: &Grams,
        grid: [u32; 4],
    ) -> Result<Scored, DriverError> {
        let size = grams.size;
        assert!(
            grams.matrices() == 1
                && weights.len().is_multiple_of(size)
                && factors.len().is_multiple_of(size)
                && grid[1] as usize == grams.group_size,
            "whole rows of {size}"
        );
        let padded = (weights.len() / size).next_multiple_of(PADDING);
        let candidates = factors.len() / size;
        let mut on_gpu = stream.alloc_zeros::<f32>(padded * size)?;
        stream.memcpy_htod(weights, &mut on_gpu.slice_mut(..weights.len()))?;
        // SAFETY: the kernel below writes every element before any is read.
        let mut out = unsafe { stream.alloc::<f32>(candidates * grams.groups() * padded)? };
        let teams = grams.teams();
        let (rows, columns, count) = (number(padded), number(size), number(candidates));
        let (stride, floats) = (number(grams.stride), number(teams.stride));
        let mut launch = stream.launch_builder(self.named(SCORE));
        launch.arg(&on_gpu).arg(factors).arg(&grams.values).arg(&rows).arg(&columns).arg(&count);
        launch.arg(&stride).arg(&floats).arg(&grid).arg(&mut out);
        let blocks = teams.launch(padded, [grams.groups(), candidates.div_ceil(BATCH)]);
        // SAFETY: the arguments are the kernel's, in its order; sizes were asserted, there is room for the errors of each
        // candidate, group and row, and `Teams` gives each row the shared memory that it needs.
        unsafe { launch.launch(blocks)? };
        Ok(Scored { errors: stream.clone_dtoh(&out)?, padded })
    }

    /// Gives each row the best range for one group: `awq_clip_group`. `product` is all errors times the Hessian,
    /// `[padded, columns of the group]`.
    pub(in crate::backend::cuda) fn clip_group(
        &self,
        stream: &Arc<CudaStream>,
        rows: &mut Rows,
        product: &CudaSlice<f32>,
        grams: &Grams,
        group: usize,
    ) -> Result<(), DriverError> {
        let start = group * grams.group_size;
        let columns = grams.group_size.min(rows.size.saturating_sub(start));
        assert!(
            rows.size == grams.size
                && rows.problems == grams.matrices()
                && rows.grid[1] as usize == grams.group_size
                && columns > 0
                && product.len() == rows.padded * columns,
            "a group of the matrix"
        );
        let teams = grams.teams();
        let (each, size, group) = (number(rows.each), number(rows.size), number(group));
        let (stride, floats) = (number(grams.stride), number(teams.stride));
        let blocks = teams.launch(rows.padded, [1, 1]);
        let mut launch = stream.launch_builder(self.named(CLIP_GROUP));
        launch
            .arg(&rows.weights)
            .arg(product)
            .arg(&grams.values)
            .arg(&each)
            .arg(&size)
            .arg(&group)
            .arg(&stride)
            .arg(&floats);
        launch
            .arg(&rows.grid)
            .arg(&mut rows.codes)
            .arg(&mut rows.errors)
            .arg(&mut rows.scales)
            .arg(&mut rows.zeros);
        // SAFETY: the arguments are the kernel's, in its order; matrices are as large as was asserted and as `Rows` has them,
        // and `Teams` gives each row the shared memory that it needs.
        unsafe { launch.launch(blocks)? };
        Ok(())
    }
}
