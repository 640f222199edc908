//! The Gram matrices of the inputs at which a layer stops.

use std::collections::BTreeMap;

use super::Matrix;
use super::placement::Placement;
use crate::arch::decoder::{Activations, Input, LinearId};
use crate::backend::{Backend, GramSum};
use crate::calib::guard::Statistic;
use crate::error::{Kind, Result};
use crate::progress::Progress;
use crate::quant::gram::Gram;

/// Sums up the inputs of some matrices.
pub(in crate::pipeline) struct Grams<'a>(BTreeMap<Input, Box<dyn GramSum + 'a>>);

impl<'a> Grams<'a> {
    /// Begins those of some matrices. A device's memory may be too small for all of them, such as those of many experts; the
    /// rest are summed up in the machine's.
    pub(in crate::pipeline) fn new(
        matrices: &[&Matrix],
        backend: &'a dyn Backend,
        placement: &Placement<'_>,
        progress: &dyn Progress,
    ) -> Result<Grams<'a>> {
        let sizes: BTreeMap<Input, usize> = matrices.iter().map(|m| (m.input, m.shape[1])).collect();
        let begin = |(input, size): (Input, usize)| {
            let bytes = (size * size * size_of::<f32>()) as u64;
            let why = if placement.has_room(bytes)? {
                match backend.gram(size) {
                    Err(e) if e.kind() == Kind::Resources => e.to_string(),
                    sum => return Ok((input, sum?)),
                }
            } else {
                let name = backend.name();
                format!("{name}: the Gram matrix of {size} inputs would take the room that a batch needs")
            };
            progress.warn(&format!("{why}; it is summed up on the CPU, with the same result"));
            Ok((input, Box::new(Gram::new(size)) as Box<dyn GramSum>))
        };
        Ok(Grams(sizes.into_iter().map(begin).collect::<Result<_>>()?))
    }

    pub(in crate::pipeline) fn finish(self) -> Result<BTreeMap<Input, Gram>> {
        self.0.into_iter().map(|(input, sum)| Ok((input, sum.finish()?))).collect()
    }
}

impl Statistic for Grams<'_> {
    fn add(&mut self, linear: LinearId, rows: &Activations) -> Result<()> {
        let Some(gram) = self.0.get_mut(&linear.input) else { return Ok(()) };
        match rows {
            Activations::Memory(_) => rows.with_values(|values| gram.add(values))?,
            Activations::Device(device, rows) => gram.add_from(&**device, rows),
        }
    }
}
