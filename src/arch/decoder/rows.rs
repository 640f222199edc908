//! The floats behind candle's tensors, for operations that go row by row.

use candle_core::{CpuStorage, Layout, Result, Storage, Tensor, bail};

/// The values of a tensor that lies in memory without gaps.
pub(super) fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let CpuStorage::F32(values) = storage else { bail!("the decoder computes in float32") };
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&values[start..end]),
        None => bail!("the decoder's own operations need contiguous tensors"),
    }
}

/// The same, to be changed.
pub(super) fn slice_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    let CpuStorage::F32(values) = storage else { bail!("the decoder computes in float32") };
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&mut values[start..end]),
        None => bail!("the decoder's own operations need contiguous tensors"),
    }
}

/// Calls `each` with the values of a tensor.
pub(super) fn with_slice<T>(tensor: &Tensor, each: impl FnOnce(&[f32]) -> T) -> Result<T> {
    with_slices([tensor], |[values]| each(values))
}

/// Calls `each` with the values of several tensors.
pub(super) fn with_slices<T, const N: usize>(
    tensors: [&Tensor; N],
    each: impl FnOnce([&[f32]; N]) -> T,
) -> Result<T> {
    let locked = tensors.map(Tensor::storage_and_layout);
    let mut slices = [[].as_slice(); N];
    for (values, (storage, layout)) in slices.iter_mut().zip(&locked) {
        let Storage::Cpu(storage) = &**storage else { bail!("the decoder computes on the processor") };
        *values = slice(storage, layout)?;
    }
    Ok(each(slices))
}
