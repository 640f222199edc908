//! The layers of a decoder on the GPU: each operation is one launch, or a few.

use std::sync::{Arc, Mutex, MutexGuard};

use cudarc::driver::{CudaSlice, CudaStream, DriverError};

use super::kernels::{Kernels, Matrices, Products, Softmax};
use super::staging::Staging;
use super::{failed, failed_to_hold, is_out_of_memory};
use crate::arch::spec::Activation;
use crate::backend::{Accelerator, Angles, Attention, DeviceMatrix, ExpertRows};
use crate::error::Result;

/// A GPU that computes layers.
#[derive(Debug)]
pub(super) struct OnGpu {
    pub(super) name: String,
    pub(super) stream: Arc<CudaStream>,
    pub(super) kernels: Arc<Kernels>,
    pub(super) staging: Mutex<Staging>,
}

/// The values of a matrix.
pub(super) fn values(x: &DeviceMatrix) -> Result<&CudaSlice<f32>> {
    x.values()
}

impl OnGpu {
    fn staging(&self) -> MutexGuard<'_, Staging> {
        self.staging.lock().expect("no thread panics while it copies")
    }

    /// The result of an operation, which needs so many values for itself.
    fn made(
        &self,
        [rows, columns]: [usize; 2],
        made: Result<CudaSlice<f32>, DriverError>,
    ) -> Result<DeviceMatrix> {
        let made = made.map_err(|e| {
            let what = format!("a matrix of {rows} x {columns} values");
            failed_to_hold(&self.name, &self.stream, &what, 4 * rows * columns, "compute a layer", &e)
        })?;
        Ok(DeviceMatrix::new(rows, columns, made))
    }

    /// The weights of all heads for one sequence, some heads at a time if the scores of all do not fit, times the values.
    fn attend_within(
        &self,
        attention: &Attention,
        at: usize,
        [query, key, value]: [&CudaSlice<f32>; 3],
        out: &mut CudaSlice<f32>,
    ) -> Result<(), DriverError> {
        let Attention { heads, kv_heads, .. } = *attention;
        let share = heads / kv_heads;
        // Heads that share their keys stay together.
        let mut together = kv_heads;
        let mut first = 0;
        while first < kv_heads {
            let some = together.min(kv_heads - first);
            let done =
                self.attend_heads(attention, at, [first * share, some * share], [query, key, value], out);
            match done {
                Err(e) if is_out_of_memory(&e) && some > 1 => together = some / 2,
                done => {
                    done?;
                    first += some;
                }
            }
        }
        Ok(())
    }

    /// The same for `count` heads from `first` on.
    fn attend_heads(
        &self,
        attention: &Attention,
        at: usize,
        [first, count]: [usize; 2],
        [query, key, value]: [&CudaSlice<f32>; 3],
        out: &mut CudaSlice<f32>,
    ) -> Result<(), DriverError> {
        let Attention { sequence, heads, kv_heads, head_dim, .. } = *attention;
        let share = heads / kv_heads;
        let (wide, narrow) = (heads * head_dim, kv_heads * head_dim);
        let start = |columns: usize, head: usize| at * sequence * columns + head * head_dim;
        let of = |values, columns, head| Matrices {
            values,
            start: start(columns, head),
            step: head_dim,
            stride: columns,
        };
        // SAFETY: the first product writes every element before any is read.
        let mut scores = unsafe { self.stream.alloc::<f32>(count * sequence * sequence)? };
        let square = sequence * sequence;
        let products = Products {
            count,
            shape: [sequence, sequence, head_dim],
            a: of(query, wide, first),
            b: of(key, narrow, first / share),
            share,
            transposed: true,
            bias: None,
        };
        self.kernels.products(&self.stream, &products, &mut scores, [0, square, sequence])?;
        let softmax = Softmax {
            scale: attention.scale,
            soft_cap: attention.soft_cap.unwrap_or(0.0),
            capped: attention.soft_cap.is_some().into(),
            sequence: sequence as u32,
            // A window as long as the sequence hides nothing.
            window: attention.window.map_or(0, |window| window.min(sequence) as u32),
        };
        self.kernels.softmax(&self.stream, &mut scores, softmax)?;
        let products = Products {
            shape: [sequence, head_dim, sequence],
            a: Matrices { values: &scores, start: 0, step: square, stride: sequence },
            b: of(value, narrow, first / share),
            transposed: false,
            ..products
        };
        self.kernels.products(&self.stream, &products, out, [start(wide, first), head_dim, wide])
    }
}

impl Accelerator for OnGpu {
    fn name(&self) -> &str {
        &self.name
    }

    fn free_bytes(&self) -> Result<u64> {
        let info = self.stream.context().mem_get_info();
        info.map(|(free, _)| free as u64).map_err(|e| failed("say how much memory is free", &e))
    }

    fn upload(&self, values: &[f32], columns: usize) -> Result<DeviceMatrix> {
        assert!(
            columns > 0 && values.len().is_multiple_of(columns),
            "{} values in rows of {columns}",
            values.len()
        );
        // SAFETY: every element is copied there before any is read.
        let made = unsafe { self.stream.alloc::<f32>(values.len()) }.and_then(|mut made| {
            self.staging().upload(&self.stream, values, &mut made)?;
            Ok(made)
        });
        self.made([values.len() / columns, columns], made)
    }

    fn fetch(&self, x: &DeviceMatrix) -> Result<Vec<f32>> {
        self.staging().fetch(&self.stream, values(x)?).map_err(|e| failed("fetch a matrix", &e))
    }

    fn norm(&self, x: &DeviceMatrix, weight: &DeviceMatrix, epsilon: f32) -> Result<DeviceMatrix> {
        let made = self.kernels.norm(&self.stream, values(x)?, values(weight)?, epsilon);
        self.made([x.rows(), x.columns()], made)
    }

    fn linear(
        &self,
        x: &DeviceMatrix,
        weight: &DeviceMatrix,
        bias: Option<&DeviceMatrix>,
    ) -> Result<DeviceMatrix> {
        let (m, n, k) = (x.rows(), weight.rows(), x.columns());
        assert_eq!(weight.columns(), k, "as many inputs as the matrix has");
        let products = Products {
            count: 1,
            shape: [m, n, k],
            a: Matrices::one(values(x)?, k),
            b: Matrices::one(values(weight)?, k),
            share: 1,
            transposed: true,
            bias: bias.map(values).transpose()?,
        };
        // SAFETY: the product writes every element before any is read.
        let made = unsafe { self.stream.alloc::<f32>(m * n) }.and_then(|mut out| {
            self.kernels.products(&self.stream, &products, &mut out, [0, 0, n])?;
            Ok(out)
        });
        self.made([m, n], made)
    }

    fn rotate(&self, x: &DeviceMatrix, head_dim: usize, angles: Angles<'_>) -> Result<DeviceMatrix> {
        let Angles { half, cos, sin } = angles;
        let input = values(x)?;
        let rotate = || {
            let (cos, sin) = (self.stream.clone_htod(cos)?, self.stream.clone_htod(sin)?);
            self.kernels.rotate(&self.stream, input, [x.columns(), head_dim, half], [&cos, &sin])
        };
        self.made([x.rows(), x.columns()], rotate())
    }

    fn attend(
        &self,
        attention: &Attention,
        query: &DeviceMatrix,
        key: &DeviceMatrix,
        value: &DeviceMatrix,
    ) -> Result<DeviceMatrix> {
        let Attention { sequence, heads, kv_heads, head_dim, .. } = *attention;
        let (rows, wide, narrow) = (query.rows(), heads * head_dim, kv_heads * head_dim);
        assert!(
            rows.is_multiple_of(sequence)
                && heads.is_multiple_of(kv_heads)
                && attention.window != Some(0)
                && [query.columns(), key.columns(), value.columns()] == [wide, narrow, narrow]
                && [key.rows(), value.rows()] == [rows; 2],
            "{attention:?} of {rows} rows"
        );
        let parts = [values(query)?, values(key)?, values(value)?];
        // SAFETY: products write every element, as each is of one sequence and one head, before any is read.
        let made = unsafe { self.stream.alloc::<f32>(rows * wide) }.and_then(|mut out| {
            (0..rows / sequence).try_for_each(|at| self.attend_within(attention, at, parts, &mut out))?;
            Ok(out)
        });
        made.map(|made| DeviceMatrix::new(rows, wide, made)).map_err(|e| {
            let scores = heads / kv_heads * sequence * sequence;
            let what = format!("the attention of {rows} tokens in sequences of {sequence}");
            let bytes = 4 * (rows * wide + scores);
            failed_to_hold(&self.name, &self.stream, &what, bytes, "compute attention", &e)
        })
    }

    fn gate(&self, activation: Activation, gate: &DeviceMatrix, up: &DeviceMatrix) -> Result<DeviceMatrix> {
        let made = self.kernels.gate(&self.stream, activation, values(gate)?, values(up)?);
        self.made([gate.rows(), gate.columns()], made)
    }

    fn add(&self, a: &DeviceMatrix, b: &DeviceMatrix) -> Result<DeviceMatrix> {
        self.made([a.rows(), a.columns()], self.kernels.add(&self.stream, values(a)?, values(b)?))
    }

    fn select(&self, x: &DeviceMatrix, rows: &[u32]) -> Result<DeviceMatrix> {
        let made = self.kernels.select(&self.stream, values(x)?, x.columns(), rows);
        self.made([rows.len(), x.columns()], made)
    }

    fn combine(&self, rows: usize, columns: usize, experts: &[ExpertRows<'_>]) -> Result<DeviceMatrix> {
        let parts = experts.iter().map(|expert| Ok((values(expert.values)?, expert.routed)));
        let parts = parts.collect::<Result<Vec<_>>>()?;
        let combine = || {
            let mut sum = self.stream.alloc_zeros::<f32>(rows * columns)?;
            for (values, routed) in parts {
                self.kernels.add_rows(&self.stream, values, columns, routed, &mut sum)?;
            }
            Ok(sum)
        };
        self.made([rows, columns], combine())
    }

    fn finite_rows(&self, x: &DeviceMatrix) -> Result<Vec<bool>> {
        let finite = self.kernels.finite_rows(&self.stream, values(x)?, x.columns());
        finite.map_err(|e| {
            let what = format!("a note for each of {} rows", x.rows());
            failed_to_hold(&self.name, &self.stream, &what, x.rows(), "look for what is not finite", &e)
        })
    }
}
