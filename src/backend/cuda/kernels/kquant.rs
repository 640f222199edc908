//! `kernels/kquant.cu`: GGML blocks.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DriverError, PushKernelArg};

use super::{Kernels, grid, number};
use crate::backend::BlockRows;
use crate::format::gguf::GgmlType;

/// An encoder of `kquant.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::backend::cuda) struct Encoder {
    /// Name of the kernel, without importance and with it.
    plain: &'static str,
    weighted: &'static str,
    /// Weights that one thread encodes.
    per_thread: usize,
    /// Whether importance goes with the mean square of the row.
    row_means: bool,
}

/// The encoder of a type, if there is one.
pub(in crate::backend::cuda) fn encoder(ty: GgmlType) -> Option<Encoder> {
    let of =
        |plain, weighted, per_thread, row_means| Some(Encoder { plain, weighted, per_thread, row_means });
    match ty {
        GgmlType::Q8_0 => of("kquant_q8_0", "kquant_q8_0", 32, false),
        GgmlType::Q4_0 => of("kquant_q4_0", "kquant_q4_0_imatrix", 32, true),
        GgmlType::Q5_0 => of("kquant_q5_0", "kquant_q5_0_imatrix", 32, true),
        GgmlType::Q4_1 => of("kquant_q4_1", "kquant_q4_1_imatrix", 32, true),
        GgmlType::Q5_1 => of("kquant_q5_1", "kquant_q5_1_imatrix", 32, true),
        GgmlType::Q2_K => of("kquant_q2_k", "kquant_q2_k_imatrix", 16, false),
        GgmlType::Q3_K => of("kquant_q3_k", "kquant_q3_k_imatrix", 16, false),
        GgmlType::Q4_K => of("kquant_q4_k", "kquant_q4_k_imatrix", 32, false),
        GgmlType::Q5_K => of("kquant_q5_k", "kquant_q5_k_imatrix", 32, false),
        GgmlType::Q6_K => of("kquant_q6_k", "kquant_q6_k_imatrix", 16, false),
        GgmlType::IQ4_NL => of("kquant_iq4_nl", "kquant_iq4_nl_imatrix", 32, false),
        GgmlType::IQ4_XS => of("kquant_iq4_xs", "kquant_iq4_xs_imatrix", 32, false),
        _ => None,
    }
}

/// Threads of a block.
const THREADS: usize = 128;

const MEAN_SQUARES: &str = "kquant_mean_squares";

/// Names of all kernels.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    GgmlType::all().filter_map(encoder).flat_map(|e| [e.plain, e.weighted]).chain([MEAN_SQUARES])
}

impl Kernels {
    /// Encodes rows and waits for the result.
    ///
    /// # Panics
    /// If sizes do not fit each other or the type has no encoder.
    pub(in crate::backend::cuda) fn encode_blocks(
        &self,
        stream: &Arc<CudaStream>,
        rows: BlockRows<'_>,
        out: &mut [u8],
    ) -> Result<(), DriverError> {
        let BlockRows { ty, weights, columns, importance } = rows;
        let encoder = encoder(ty).unwrap_or_else(|| panic!("{ty} has an encoder for GPUs"));
        assert!(
            importance.is_none_or(|w| w.len() == columns),
            "one importance for each of {columns} columns"
        );
        let x = stream.clone_htod(weights)?;
        let importance = importance.filter(|_| encoder.plain != encoder.weighted);
        let importance = importance.map(|w| stream.clone_htod(w)).transpose()?;
        let means = match &importance {
            Some(_) if encoder.row_means => Some(self.mean_squares(stream, &x, columns)?),
            _ => None,
        };
        let blocks =
            self.kquant(stream, (ty, encoder), (&x, columns), importance.as_ref(), means.as_ref())?;
        assert_eq!(blocks.len(), out.len(), "bytes for {} weights", weights.len());
        stream.memcpy_dtoh(&blocks, out)?;
        stream.synchronize()
    }

    /// The mean square of each row of `columns` weights: `kquant_mean_squares`.
    fn mean_squares(
        &self,
        stream: &Arc<CudaStream>,
        x: &CudaSlice<f32>,
        columns: usize,
    ) -> Result<CudaSlice<f32>, DriverError> {
        assert!(columns.is_multiple_of(32) && x.len().is_multiple_of(columns), "whole rows of whole blocks");
        let rows = x.len() / columns;
        let (columns, row_count) = (number(columns), number(rows));
        // SAFETY: the kernel below writes every element before any is read.
        let mut means = unsafe { stream.alloc::<f32>(rows)? };
        let mut launch = stream.launch_builder(self.named(MEAN_SQUARES));
        launch.arg(x).arg(&columns).arg(&row_count).arg(&mut means);
        // SAFETY: the arguments are the kernel's, in its order; it reads `rows * columns` weights, which there are, and
        // writes one mean for each row.
        unsafe { launch.launch(grid(rows, THREADS))? };
        Ok(means)
    }

    /// Blocks of one type: `kquant_*`.
    fn kquant(
        &self,
        stream: &Arc<CudaStream>,
        (ty, encoder): (GgmlType, Encoder),
        (x, columns): (&CudaSlice<f32>, usize),
        importance: Option<&CudaSlice<f32>>,
        means: Option<&CudaSlice<f32>>,
    ) -> Result<CudaSlice<u8>, DriverError> {
        assert!(
            columns.is_multiple_of(ty.block_len()) && x.len().is_multiple_of(columns),
            "whole rows of whole blocks"
        );
        assert!(importance.is_none_or(|w| w.len() == columns), "one importance per column");
        assert!(
            means.map_or(importance.is_none() || !encoder.row_means, |m| m.len() == x.len() / columns),
            "a mean for each row"
        );
        let blocks = x.len() / ty.block_len();
        let (column_count, block_count) = (number(columns), number(blocks));
        // SAFETY: the kernel below writes every byte before any is read.
        let mut out = unsafe { stream.alloc::<u8>(blocks * ty.block_bytes())? };
        let name = if importance.is_some() { encoder.weighted } else { encoder.plain };
        // What a kernel does not read is null.
        let null = 0u64;
        let mut launch = stream.launch_builder(self.named(name));
        launch.arg(x);
        match importance {
            Some(importance) => launch.arg(importance),
            None => launch.arg(&null),
        };
        match means {
            Some(means) => launch.arg(means),
            None => launch.arg(&null),
        };
        launch.arg(&column_count).arg(&block_count).arg(&mut out);
        // SAFETY: the arguments are the kernel's, in its order. It reads the weights of `blocks` blocks, one importance for
        // each column if it is the kernel with importance, and one mean for each row if it needs them; and writes the
        // bytes of `blocks` blocks. Allocations of the driver are aligned to 256 bytes.
        unsafe { launch.launch(grid(x.len() / encoder.per_thread, THREADS))? };
        Ok(out)
    }
}
