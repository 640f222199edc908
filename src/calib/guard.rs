//! What stands between the inputs of linear layers and statistics of them: rows that are not finite are left out.
//!
//! A row is one token's input. There is no padding: windows of different lengths are never put into one batch, so every
//! row is a token's.

use std::collections::BTreeMap;

use rayon::prelude::*;

use crate::arch::ArchSpec;
use crate::arch::decoder::{Activations, LinearId, Tap};
use crate::error::{Error, Kind, Result};
use crate::progress::Progress;

/// One of so many rows of an input may be dropped, not more.
const TOLERATED: u64 = 100;

/// Values that one thread looks at, at a time.
const PIECE: usize = 1 << 16;

/// Something that is computed from the inputs of linear layers.
pub trait Statistic {
    /// Takes in `rows` (`[tokens, in]`, float32, finite, at least one) of the matrices of `linear`. They come in the order
    /// of the windows, in pieces.
    ///
    /// # Errors
    /// What stops the computation.
    fn add(&mut self, linear: LinearId, rows: &Activations) -> Result<()>;
}

/// Watches the inputs of one layer for a statistic. The only way to one: rows with NaN or infinity never get there.
#[derive(Debug)]
#[must_use = "dropped rows are reported by `finish`"]
pub struct Guard<'a, S: ?Sized> {
    statistic: &'a mut S,
    tallies: BTreeMap<LinearId, Tally>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    rows: u64,
    dropped: u64,
}

impl<'a, S: Statistic + ?Sized> Guard<'a, S> {
    /// A guard for one pass through one layer.
    pub fn new(statistic: &'a mut S) -> Self {
        Guard { statistic, tallies: BTreeMap::new() }
    }

    /// Warns of each input that lost rows, and returns how many all of them lost.
    ///
    /// # Errors
    /// `Invalid` if more than 1 % of an input's rows were dropped; it names layer and modules.
    pub fn finish(self, spec: &ArchSpec, progress: &dyn Progress) -> Result<u64> {
        let mut dropped = 0;
        for (linear, tally) in self.tallies.iter().filter(|(_, tally)| tally.dropped > 0) {
            let what = format!(
                "layer {}: {} of {} rows that go into {} are NaN or infinite",
                linear.layer,
                tally.dropped,
                tally.rows,
                linear.modules(spec).join(", "),
            );
            if tally.dropped * TOLERATED > tally.rows {
                return Err(Error::new(Kind::Invalid, what)
                    .hint("The weights are damaged, or the model does not compute this text in float32."));
            }
            progress.warn(&format!("{what} and are left out"));
            dropped += tally.dropped;
        }
        Ok(dropped)
    }
}

impl<S: Statistic + ?Sized> Tap for Guard<'_, S> {
    fn input(&mut self, linear: LinearId, x: &Activations) -> Result<()> {
        let [rows, _] = x.shape()?;
        let finite = finite_rows(x)?;
        let tally = self.tallies.entry(linear).or_default();
        tally.rows += rows as u64;
        match finite {
            None => self.statistic.add(linear, x),
            Some(kept) => {
                tally.dropped += (rows - kept.len()) as u64;
                if kept.is_empty() {
                    return Ok(());
                }
                self.statistic.add(linear, &x.select(&kept)?)
            }
        }
    }
}

/// The rows without NaN or infinity, or none if all are.
fn finite_rows(x: &Activations) -> Result<Option<Vec<u32>>> {
    let [_, width] = x.shape()?;
    if let Activations::Device(device, x) = x {
        let finite = device.finite_rows(x)?;
        let kept = || finite.iter().enumerate().filter(|(_, finite)| **finite).map(|(i, _)| i as u32);
        return Ok((!finite.iter().all(|finite| *finite)).then(|| kept().collect()));
    }
    x.with_values(|values| {
        let finite = |values: &[f32]| values.iter().fold(true, |all, v| all & v.is_finite());
        if values.par_chunks(PIECE).map(finite).reduce(|| true, |a, b| a & b) {
            return None;
        }
        let rows = values.chunks_exact(width).enumerate();
        Some(rows.filter(|(_, row)| finite(row)).map(|(i, _)| i as u32).collect())
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use candle_core::{Device, Tensor};

    use super::*;
    use crate::arch::decoder::Input;
    use crate::progress::Unit;

    /// Keeps all rows.
    #[derive(Default)]
    struct Rows(Vec<Vec<f32>>);

    impl Statistic for Rows {
        fn add(&mut self, _: LinearId, rows: &Activations) -> Result<()> {
            self.0.extend(rows.tensor()?.to_vec2::<f32>()?);
            Ok(())
        }
    }

    /// Keeps all warnings.
    #[derive(Default)]
    struct Warnings(Mutex<Vec<String>>);

    impl Progress for Warnings {
        fn begin(&self, _: &str, _: u64, _: Unit) {}
        fn advance(&self, _: u64) {}
        fn item(&self, _: &str) {}
        fn end(&self) {}
        fn warn(&self, message: &str) {
            self.0.lock().unwrap().push(message.to_owned());
        }
        fn info(&self, _: &str) {}
        fn detail(&self, _: &str) {}
    }

    const DOWN: LinearId = LinearId { layer: 7, input: Input::ExpertDown(3) };

    /// Rows `[i, 1]`, of which those of `bad` hold such a value, in two pieces.
    fn run(rows: usize, bad: &[(usize, f32)]) -> (Vec<Vec<f32>>, Vec<String>, Result<u64>) {
        let mut values: Vec<[f32; 2]> = (0..rows).map(|i| [i as f32, 1.0]).collect();
        bad.iter().for_each(|(i, value)| values[*i][1] = *value);
        let (mut statistic, warnings) = (Rows::default(), Warnings::default());
        let mut guard = Guard::new(&mut statistic);
        for piece in values.chunks(rows.div_ceil(2)) {
            let x = Tensor::from_vec(piece.concat(), (piece.len(), 2), &Device::Cpu).unwrap();
            guard.input(DOWN, &Activations::Memory(x)).unwrap();
        }
        let spec = crate::arch::find("MixtralForCausalLM").unwrap();
        let dropped = guard.finish(spec, &warnings);
        (statistic.0, warnings.0.into_inner().unwrap(), dropped)
    }

    #[test]
    fn finite_rows_go_through() {
        let (rows, warnings, dropped) = run(10, &[]);
        assert_eq!((rows.len(), warnings.len(), dropped.unwrap()), (10, 0, 0));
    }

    #[test]
    fn rows_that_are_not_finite_are_dropped_and_reported() {
        let (rows, warnings, dropped) = run(200, &[(5, f32::NAN), (150, f32::NEG_INFINITY)]);
        let kept: Vec<usize> = rows.iter().map(|row| row[0] as usize).collect();
        assert_eq!(kept, (0..200).filter(|i| ![5, 150].contains(i)).collect::<Vec<_>>());
        assert!(rows.iter().all(|row| row[1] == 1.0));
        assert_eq!(dropped.unwrap(), 2);
        let [warning] = warnings.as_slice() else { panic!("{warnings:?}") };
        let expected = "layer 7: 2 of 200 rows that go into block_sparse_moe.experts.3.w2";
        assert!(warning.starts_with(expected), "{warning}");
    }

    #[test]
    fn more_than_one_row_in_a_hundred_is_too_much() {
        let (_, _, dropped) = run(199, &[(0, f32::INFINITY), (1, f32::NAN)]);
        let e = dropped.unwrap_err();
        assert_eq!(e.kind(), Kind::Invalid);
        assert!(e.to_string().contains("layer 7") && e.to_string().contains("experts.3.w2"), "{e}");
        let all: Vec<(usize, f32)> = (0..4).map(|i| (i, f32::NAN)).collect();
        let (rows, _, dropped) = run(4, &all);
        assert!(rows.is_empty() && dropped.is_err());
    }
}
