//! `kernels/decoder.cu`: what a decoder's layer does between its products.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DeviceRepr, DriverError, LaunchConfig, PushKernelArg};

use super::{Kernels, grid, number};
use crate::arch::spec::Activation;

const NORM: &str = "decoder_norm";
const ROTATE: &str = "decoder_rotate";
const SOFTMAX: &str = "decoder_softmax";
const GATE_SILU: &str = "decoder_gate_silu";
const GATE_GELU: &str = "decoder_gate_gelu";
const ADD: &str = "decoder_add";
const SELECT: &str = "decoder_select";
const ADD_ROWS: &str = "decoder_add_rows";
const FINITE_ROWS: &str = "decoder_finite_rows";
pub(super) const NAMES: [&str; 9] =
    [NORM, ROTATE, SOFTMAX, GATE_SILU, GATE_GELU, ADD, SELECT, ADD_ROWS, FINITE_ROWS];

/// Threads of a block, and how many share a row.
const THREADS: usize = 128;
const SIDE: usize = 16;

/// `Softmax` in `decoder.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(in crate::backend::cuda) struct Softmax {
    /// Factor of the scores.
    pub(in crate::backend::cuda) scale: f32,
    /// The cap, if it is `capped`.
    pub(in crate::backend::cuda) soft_cap: f32,
    /// 1 if there is a cap.
    pub(in crate::backend::cuda) capped: u32,
    /// Queries and keys of a head.
    pub(in crate::backend::cuda) sequence: u32,
    /// Keys that a query sees; 0 for all before it.
    pub(in crate::backend::cuda) window: u32,
}

// SAFETY: plain numbers, laid out as the kernel's structure is.
unsafe impl DeviceRepr for Softmax {}

/// Sixteen threads for each row.
fn by_rows(rows: usize) -> LaunchConfig {
    grid(rows * SIDE, THREADS)
}

impl Kernels {
    /// The norm of rows as long as `weight`: `decoder_norm`. Like all operations here, it allocates its result.
    pub(in crate::backend::cuda) fn norm(
        &self,
        stream: &Arc<CudaStream>,
        x: &CudaSlice<f32>,
        weight: &CudaSlice<f32>,
        epsilon: f32,
    ) -> Result<CudaSlice<f32>, DriverError> {
        let width = weight.len();
        assert!(width > 0 && x.len().is_multiple_of(width), "{} values in rows of {width}", x.len());
        let rows = x.len() / width;
        // SAFETY: the kernel below writes every element before any is read.
        let mut out = unsafe { stream.alloc::<f32>(x.len())? };
        let (count, columns) = (number(rows), number(width));
        let mut launch = stream.launch_builder(self.named(NORM));
        launch.arg(x).arg(weight).arg(&epsilon).arg(&count).arg(&columns).arg(&mut out);
        // SAFETY: the arguments are the kernel's, in its order; sizes were asserted.
        unsafe { launch.launch(by_rows(rows))? };
        Ok(out)
    }

    /// Rotates heads of `head_dim` in rows of `columns` by `[positions, half]` angles: `decoder_rotate`.
    pub(in crate::backend::cuda) fn rotate(
        &self,
        stream: &Arc<CudaStream>,
        x: &CudaSlice<f32>,
        [columns, head_dim, half]: [usize; 3],
        [cos, sin]: [&CudaSlice<f32>; 2],
    ) -> Result<CudaSlice<f32>, DriverError> {
        assert!(
            half > 0
                && 2 * half <= head_dim
                && columns.is_multiple_of(head_dim)
                && x.len().is_multiple_of(columns)
                && !cos.is_empty()
                && cos.len().is_multiple_of(half)
                && sin.len() == cos.len(),
            "{} values in rows of {columns}, heads of {head_dim}, {half} angles",
            x.len()
        );
        // SAFETY: the kernel below writes every element before any is read.
        let mut out = unsafe { stream.alloc::<f32>(x.len())? };
        let (positions, half, values) = (number(cos.len() / half), number(half), x.len());
        let (head_dim, columns) = (number(head_dim), number(columns));
        let mut launch = stream.launch_builder(self.named(ROTATE));
        launch.arg(x).arg(cos).arg(sin).arg(&positions).arg(&half).arg(&head_dim).arg(&columns).arg(&values);
        launch.arg(&mut out);
        // SAFETY: the arguments are the kernel's, in its order; sizes were asserted, so that pairs lie within a head.
        unsafe { launch.launch(grid(values, THREADS))? };
        Ok(out)
    }

    /// From scores to weights, in place: `decoder_softmax`.
    pub(in crate::backend::cuda) fn softmax(
        &self,
        stream: &Arc<CudaStream>,
        scores: &mut CudaSlice<f32>,
        softmax: Softmax,
    ) -> Result<(), DriverError> {
        let length = softmax.sequence as usize;
        assert!(length > 0 && scores.len().is_multiple_of(length * length), "square matrices of scores");
        let rows = scores.len() / length;
        let count = number(rows);
        let mut launch = stream.launch_builder(self.named(SOFTMAX));
        launch.arg(scores).arg(&count).arg(&softmax);
        // SAFETY: the arguments are the kernel's, in its order; rows are as long as it is told.
        unsafe { launch.launch(by_rows(rows))? };
        Ok(())
    }

    /// `activation(gate) * up`: `decoder_gate_silu`, `decoder_gate_gelu`.
    pub(in crate::backend::cuda) fn gate(
        &self,
        stream: &Arc<CudaStream>,
        activation: Activation,
        gate: &CudaSlice<f32>,
        up: &CudaSlice<f32>,
    ) -> Result<CudaSlice<f32>, DriverError> {
        let name = match activation {
            Activation::Silu => GATE_SILU,
            Activation::GeluTanh => GATE_GELU,
        };
        self.of_pairs(stream, name, gate, up)
    }

    /// `a + b`: `decoder_add`.
    pub(in crate::backend::cuda) fn add(
        &self,
        stream: &Arc<CudaStream>,
        a: &CudaSlice<f32>,
        b: &CudaSlice<f32>,
    ) -> Result<CudaSlice<f32>, DriverError> {
        self.of_pairs(stream, ADD, a, b)
    }

    /// An operation on values that belong together.
    fn of_pairs(
        &self,
        stream: &Arc<CudaStream>,
        name: &str,
        a: &CudaSlice<f32>,
        b: &CudaSlice<f32>,
    ) -> Result<CudaSlice<f32>, DriverError> {
        assert_eq!(a.len(), b.len(), "as many values");
        let values = a.len();
        // SAFETY: the kernel below writes every element before any is read.
        let mut out = unsafe { stream.alloc::<f32>(values)? };
        let mut launch = stream.launch_builder(self.named(name));
        launch.arg(a).arg(b).arg(&values).arg(&mut out);
        // SAFETY: the arguments are those of the kernels that are called like this, in their order; sizes were asserted.
        unsafe { launch.launch(grid(values, THREADS))? };
        Ok(out)
    }

    /// Some rows of so many columns: `decoder_select`.
    pub(in crate::backend::cuda) fn select(
        &self,
        stream: &Arc<CudaStream>,
        x: &CudaSlice<f32>,
        columns: usize,
        rows: &[u32],
    ) -> Result<CudaSlice<f32>, DriverError> {
        let there = x.len() / columns;
        assert!(!rows.is_empty() && rows.iter().all(|row| (*row as usize) < there), "rows that are there");
        let values = rows.len() * columns;
        let rows = stream.clone_htod(rows)?;
        // SAFETY: the kernel below writes every element before any is read.
        let mut out = unsafe { stream.alloc::<f32>(values)? };
        let columns = number(columns);
        let mut launch = stream.launch_builder(self.named(SELECT));
        launch.arg(x).arg(&rows).arg(&columns).arg(&values).arg(&mut out);
        // SAFETY: the arguments are the kernel's, in its order; rows are those of the matrix, as was asserted.
        unsafe { launch.launch(grid(values, THREADS))? };
        Ok(out)
    }

    /// Adds rows to some of those of `sum`, each times its weight: `decoder_add_rows`.
    pub(in crate::backend::cuda) fn add_rows(
        &self,
        stream: &Arc<CudaStream>,
        x: &CudaSlice<f32>,
        columns: usize,
        routed: &[(u32, f32)],
        sum: &mut CudaSlice<f32>,
    ) -> Result<(), DriverError> {
        let there = sum.len() / columns;
        let mut once = vec![false; there];
        let new =
            |(row, _): &(u32, f32)| once.get_mut(*row as usize).is_some_and(|o| !std::mem::replace(o, true));
        assert!(
            x.len() == routed.len() * columns && !routed.is_empty() && routed.iter().all(new),
            "rows that are there, each once"
        );
        let rows: Vec<u32> = routed.iter().map(|(row, _)| *row).collect();
        let weights: Vec<f32> = routed.iter().map(|(_, weight)| *weight).collect();
        let (rows, weights) = (stream.clone_htod(&rows)?, stream.clone_htod(&weights)?);
        let (columns, values) = (number(columns), x.len());
        let mut launch = stream.launch_builder(self.named(ADD_ROWS));
        launch.arg(x).arg(&rows).arg(&weights).arg(&columns).arg(&values).arg(sum);
        // SAFETY: the arguments are the kernel's, in its order; rows are those of the sum, and no two threads have the same.
        unsafe { launch.launch(grid(values, THREADS))? };
        Ok(())
    }

    /// For each row of so many columns whether it is finite, fetched: `decoder_finite_rows`.
    pub(in crate::backend::cuda) fn finite_rows(
        &self,
        stream: &Arc<CudaStream>,
        x: &CudaSlice<f32>,
        columns: usize,
    ) -> Result<Vec<bool>, DriverError> {
        assert!(columns > 0 && x.len().is_multiple_of(columns), "{} values in rows of {columns}", x.len());
        let rows = x.len() / columns;
        // SAFETY: the kernel below writes every element before any is read.
        let mut finite = unsafe { stream.alloc::<u8>(rows)? };
        let (count, columns) = (number(rows), number(columns));
        let mut launch = stream.launch_builder(self.named(FINITE_ROWS));
        launch.arg(x).arg(&count).arg(&columns).arg(&mut finite);
        // SAFETY: the arguments are the kernel's, in its order; sizes were asserted.
        unsafe { launch.launch(by_rows(rows))? };
        Ok(stream.clone_dtoh(&finite)?.into_iter().map(|finite| finite != 0).collect())
    }
}
