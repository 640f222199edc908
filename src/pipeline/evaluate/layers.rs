//! The way of two models through their layers, with the hidden states after each in the checkpoint.

use serde_json::Value;

use super::disk::{Disk, Pair};
use crate::arch::decoder::{Compute, Decoder, Hidden};
use crate::cancel::Cancel;
use crate::error::{Error, Result};
use crate::eval::score::Computed;
use crate::eval::windows::Windows;
use crate::pipeline::model::OpenModel;
use crate::progress::{Progress, Unit};

/// The kinds of files in the checkpoint: hidden states of the reference and of the model.
const REFERENCE: &str = "reference";
const MODEL: &str = "hidden";

/// The steps of the checkpoint: the layers of the reference, then those of the model.
pub(super) fn steps(pair: Pair<'_>) -> usize {
    first(pair) + pair.model.model.hyper.layers
}

/// The step with which the model itself begins.
fn first(pair: Pair<'_>) -> usize {
    pair.reference.map_or(0, |reference| reference.model.hyper.layers)
}

/// Takes both through all layers that are not done: the reference, if there is one, and the model.
///
/// # Errors
/// `Resources` if the disk is full, `Interrupted`; what the decoders return.
pub(super) fn all_layers<'a>(
    pair: Pair<'a>,
    disk: &mut Disk<'_>,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<(Option<Through<'a>>, Through<'a>)> {
    let reference = match pair.reference {
        Some(open) => {
            let way = Way { pair, open, kind: REFERENCE, first: 0 };
            Some(way.go(disk, cancel, progress)?)
        }
        None => None,
    };
    let way = Way { pair, open: pair.model, kind: MODEL, first: first(pair) };
    Ok((reference, way.go(disk, cancel, progress)?))
}

/// One model's layers among the steps of the checkpoint.
struct Way<'a, 'w> {
    pair: Pair<'w>,
    open: &'a OpenModel,
    kind: &'static str,
    first: usize,
}

impl<'a> Way<'a, '_> {
    fn go(&self, disk: &mut Disk<'_>, cancel: &Cancel, progress: &dyn Progress) -> Result<Through<'a>> {
        let decoder = self.open.decoder()?.compute_in(self.pair.compute);
        let windows = self.pair.windows.inputs();
        let layers = decoder.layers();
        let all = disk.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.done());
        let done = all.saturating_sub(self.first).min(layers);
        if let Some(checkpoint) = disk.checkpoint.as_ref().filter(|_| done < layers) {
            // Those after a layer are there before those that it began with go.
            checkpoint.check_space(2 * Hidden::bytes_of(&decoder, windows))?;
        }
        let mut hidden = disk.hidden(&decoder, windows, self.kind, done)?;
        progress.begin(&format!("Computing {}", self.open.name), (layers - done) as u64, Unit::Layers);
        let gone = (done..layers).try_for_each(|layer| {
            cancel.check()?;
            hidden.advance(&decoder.layer(layer)?, &mut (), cancel)?;
            disk.keep(self.kind, layer, &hidden)?;
            if let Some(checkpoint) = &mut disk.checkpoint {
                checkpoint.commit(self.first + layer + 1, Value::Null)?;
            }
            progress.advance(1);
            Ok::<(), Error>(())
        });
        progress.end();
        gone?;
        Ok(Through { decoder, hidden })
    }
}

/// A model, and what its last layer makes of all windows.
pub(super) struct Through<'a> {
    decoder: Decoder<'a>,
    hidden: Hidden,
}

impl<'a> Through<'a> {
    /// Takes a model through all of its layers, with nothing on the disk.
    ///
    /// # Errors
    /// What the decoder returns; `Interrupted`.
    pub(super) fn in_memory(
        open: &'a OpenModel,
        windows: &Windows,
        cancel: &Cancel,
        progress: &dyn Progress,
    ) -> Result<Through<'a>> {
        let pair = Pair { model: open, reference: None, windows, compute: Compute::F32 };
        let way = Way { pair, open, kind: MODEL, first: 0 };
        way.go(&mut Disk::none(), cancel, progress)
    }

    pub(super) fn computed(&self) -> Computed<'_> {
        Computed { decoder: &self.decoder, hidden: &self.hidden }
    }
}
