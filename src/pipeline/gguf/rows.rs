//! Rows of a planned tensor, read from the mapped checkpoint in any order and converted to float32.

use std::ops::Range;

use super::plan::{Planned, RowOrder, Rows};
use crate::error::{Error, Kind, Result};
use crate::format::gguf::GgmlType;
use crate::format::gguf::blocks::{self, Simd, is_finite};
use crate::source::dense::Dense;
use crate::source::safetensors::{FloatType, TensorInfo, Tensors};

/// A planned tensor together with its bytes.
#[derive(Clone, Debug)]
pub(crate) struct RowSource<'a> {
    planned: &'a Planned,
    weights: &'a dyn Dense,
    /// The source tensors, if they are to be had as they are.
    parts: Vec<(&'a TensorInfo, &'a [u8])>,
}

impl<'a> RowSource<'a> {
    pub(crate) fn new(planned: &'a Planned, weights: &'a dyn Dense) -> Self {
        let part = |tensors: &'a Tensors, name: &String| {
            let info = tensors.get(name).expect("planned tensors are in the checkpoint");
            (info, tensors.bytes(info))
        };
        let parts = match (&planned.rows, weights.mapped()) {
            (Rows::Source { names, .. }, Some(tensors)) => {
                names.iter().map(|name| part(tensors, name)).collect()
            }
            _ => vec![],
        };
        RowSource { planned, weights, parts }
    }

    /// Weights in a row as they are addressed here. For a bias that is reordered this is 1.
    pub(crate) fn row_len(&self) -> usize {
        match &self.planned.rows {
            Rows::Constant(values) => values.len(),
            Rows::Source { row_len, .. } => *row_len,
        }
    }

    /// Number of such rows.
    pub(crate) fn row_count(&self) -> usize {
        match &self.planned.rows {
            Rows::Constant(_) => 1,
            Rows::Source { names, rows_each, .. } => names.len() * rows_each,
        }
    }

    /// The source matrix (expert) that a row belongs to.
    pub(crate) fn matrix_of(&self, row: usize) -> usize {
        match &self.planned.rows {
            Rows::Constant(_) => 0,
            Rows::Source { rows_each, .. } => row / rows_each,
        }
    }

    /// Rows per source matrix.
    pub(crate) fn rows_each(&self) -> usize {
        match &self.planned.rows {
            Rows::Constant(_) => 1,
            Rows::Source { rows_each, .. } => *rows_each,
        }
    }

    /// Asks the kernel to read these rows ahead.
    pub(crate) fn will_need(&self, rows: Range<usize>) {
        let Rows::Source { rows_each, dtype: Some(dtype), row_len, .. } = &self.planned.rows else { return };
        let Some(tensors) = self.weights.mapped() else { return };
        let row_bytes = row_len * dtype.bytes();
        for (i, (info, _)) in self.parts.iter().enumerate() {
            let start = rows.start.max(i * rows_each);
            let end = rows.end.min((i + 1) * rows_each);
            if start < end {
                // Reordering stays within a head, so the same range of rows is a good guess.
                tensors
                    .will_need(info, (start - i * rows_each) * row_bytes..(end - i * rows_each) * row_bytes);
            }
        }
    }

    /// Whether rows can be copied as they are when the target type is `ty`.
    pub(crate) fn is_copy(&self, ty: GgmlType) -> bool {
        matches!(&self.planned.rows, Rows::Source { dtype: Some(dtype), offset, .. } if dtype.ggml() == ty && *offset == 0.0)
    }

    /// Whether rows are stored in another way than weight by weight.
    pub(crate) fn is_decoded(&self) -> bool {
        matches!(&self.planned.rows, Rows::Source { dtype: None, .. })
    }

    /// Whether the rows lie in the checkpoint just as they go into a file of type `ty`, so that they need not pass through
    /// a buffer.
    pub(crate) fn is_direct(&self, ty: GgmlType) -> bool {
        self.is_copy(ty) && matches!(&self.planned.rows, Rows::Source { order: RowOrder::AsIs, .. })
    }

    /// Looks for weights that are not finite in rows that are written directly.
    ///
    /// # Errors
    /// `Invalid` if a weight is NaN or infinite.
    pub(crate) fn check_finite(&self, rows: Range<usize>) -> Result<()> {
        let Rows::Source { dtype: Some(dtype), .. } = &self.planned.rows else { return Ok(()) };
        let mut row = rows.start;
        let mut result = Ok(());
        self.for_pieces(rows, |bytes| {
            if result.is_ok() && !is_finite(dtype.ggml(), bytes) {
                result = Err(self.not_finite(row, bytes, *dtype));
            }
            row += bytes.len() / (self.row_len() * dtype.bytes());
        });
        result
    }

    /// Copies rows byte for byte.
    ///
    /// # Errors
    /// `Invalid` if a weight is NaN or infinite.
    pub(crate) fn copy(&self, rows: Range<usize>, out: &mut [u8]) -> Result<()> {
        let Rows::Source { dtype: Some(dtype), .. } = &self.planned.rows else {
            unreachable!("what is computed or decoded is never copied");
        };
        let mut at = 0;
        let first = rows.start;
        self.for_pieces(rows, |bytes| {
            out[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        });
        if !is_finite(dtype.ggml(), out) {
            return Err(self.not_finite(first, out, *dtype));
        }
        Ok(())
    }

    /// Calls `each` with the bytes of consecutive rows, in as large pieces as their order allows.
    pub(crate) fn for_pieces(&self, rows: Range<usize>, mut each: impl FnMut(&'a [u8])) {
        let Rows::Source { rows_each, dtype: Some(dtype), order, row_len, .. } = &self.planned.rows else {
            return;
        };
        let row_bytes = row_len * dtype.bytes();
        match order {
            RowOrder::AsIs => {
                let mut row = rows.start;
                while row < rows.end {
                    let (part, within) = (row / rows_each, row % rows_each);
                    let n = (rows_each - within).min(rows.end - row);
                    each(&self.parts[part].1[within * row_bytes..(within + n) * row_bytes]);
                    row += n;
                }
            }
            RowOrder::Interleave { .. } => {
                for row in rows {
                    let (part, within) = (row / rows_each, order.source_row(row % rows_each));
                    each(&self.parts[part].1[within * row_bytes..(within + 1) * row_bytes]);
                }
            }
        }
    }

    /// Reads rows as float32.
    ///
    /// # Errors
    /// `Invalid` if a weight is NaN or infinite.
    pub(crate) fn load(&self, rows: Range<usize>, out: &mut [f32], simd: Simd) -> Result<()> {
        let (dtype, offset) = match &self.planned.rows {
            Rows::Constant(values) => {
                out.copy_from_slice(values);
                return Ok(());
            }
            Rows::Source { dtype, offset, .. } => (dtype, offset),
        };
        match dtype {
            Some(dtype) => self.widen(*dtype, rows, out, simd)?,
            None => self.decode(rows, out)?,
        }
        if *offset != 0.0 {
            out.iter_mut().for_each(|w| *w += offset);
        }
        Ok(())
    }

    /// Reads rows that are stored as floats.
    fn widen(&self, dtype: FloatType, rows: Range<usize>, out: &mut [f32], simd: Simd) -> Result<()> {
        let mut at = 0;
        let mut finite = true;
        let first = rows.start;
        self.for_pieces(rows.clone(), |bytes| {
            let piece = &mut out[at..at + bytes.len() / dtype.bytes()];
            at += piece.len();
            finite &= match dtype {
                FloatType::F32 => blocks::f32_from_le(bytes, piece, simd),
                FloatType::F16 => blocks::f16_to_f32(bytes, piece, simd),
                FloatType::BF16 => blocks::bf16_to_f32(bytes, piece, simd),
            };
        });
        match finite {
            true => Ok(()),
            false => Err(self.not_finite(first, bytemuck::cast_slice(out), FloatType::F32)),
        }
    }

    /// Reads rows that are stored in another way, in as few pieces as their order allows.
    fn decode(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let Rows::Source { names, rows_each, order, row_len, .. } = &self.planned.rows else { return Ok(()) };
        let mut row = rows.start;
        while row < rows.end {
            let (part, within) = (row / rows_each, row % rows_each);
            let at = (row - rows.start) * row_len;
            let RowOrder::Interleave { half } = *order else {
                let n = (rows_each - within).min(rows.end - row);
                self.weights.read(&names[part], within..within + n, &mut out[at..at + n * row_len])?;
                row += n;
                continue;
            };
            // Within a head, every second row is one of a run.
            let n = (2 * half - within % (2 * half)).min(rows.end - row);
            for lead in 0..n.min(2) {
                let (first, count) = (order.source_row(within + lead), (n - lead).div_ceil(2));
                let mut run = vec![0.0; count * row_len];
                self.weights.read(&names[part], first..first + count, &mut run)?;
                for (i, values) in run.chunks_exact(*row_len).enumerate() {
                    out[at + (lead + 2 * i) * row_len..][..*row_len].copy_from_slice(values);
                }
            }
            row += n;
        }
        Ok(())
    }

    fn not_finite(&self, first_row: usize, bytes: &[u8], dtype: FloatType) -> Error {
        let size = dtype.bytes();
        let at = bytes.chunks_exact(size).position(|w| !is_finite(dtype.ggml(), w)).unwrap_or(0);
        let (row, column) = (first_row + at / self.row_len(), at % self.row_len());
        let source = match &self.planned.rows {
            Rows::Source { names, .. } => names[self.matrix_of(row)].as_str(),
            Rows::Constant(_) => "",
        };
        Error::new(
            Kind::Invalid,
            format!(
                "tensor {source} ({}) holds NaN or infinity at row {}, column {column}",
                self.planned.name,
                row % self.rows_each()
            ),
        )
        .hint("The checkpoint is damaged or training diverged; a quantized copy would be useless.")
    }
}
