//! Layers read from the disk, one ahead of the work.

use std::sync::mpsc::{self, Receiver};

use rayon::Scope;

use crate::arch::decoder::{Decoder, Layer};
use crate::error::{Error, Kind, Result};

/// Reads layers in order, on a thread of its own if it is to be ahead.
pub(super) struct Loader<'scope, 'scoped> {
    decoder: &'scope Decoder<'scope>,
    scope: &'scoped Scope<'scope>,
    next: Option<(usize, Receiver<Result<Layer>>)>,
}

impl<'scope, 'scoped> Loader<'scope, 'scoped> {
    /// `scope` is that of the reader's threads.
    pub(super) fn new(
        decoder: &'scope Decoder<'scope>,
        scope: &'scoped Scope<'scope>,
    ) -> Loader<'scope, 'scoped> {
        Loader { decoder, scope, next: None }
    }

    /// A layer. With `ahead`, the one after it is read while the caller works on this one, and takes memory too.
    ///
    /// # Errors
    /// As [`Decoder::layer`].
    pub(super) fn load(&mut self, index: usize, ahead: bool) -> Result<Layer> {
        let layer = match self.next.take() {
            Some((next, layer)) if next == index => layer
                .recv()
                .map_err(|_| Error::new(Kind::Other, "the thread that reads layers has stopped"))?,
            _ => self.decoder.layer(index),
        }?;
        if ahead && index + 1 < self.decoder.layers() {
            let (send, receive) = mpsc::channel();
            let decoder = self.decoder;
            // Nobody may want it any more, if the work has failed.
            self.scope.spawn(move |_| drop(send.send(decoder.layer(index + 1))));
            self.next = Some((index + 1, receive));
        }
        Ok(layer)
    }
}
