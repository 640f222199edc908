//! The checkpoint of a job that makes tensors one after another and never looks back: the bytes of each layer's tensors are
//! kept as they are written.

use std::io::Write;

use serde_json::Value;

use super::{Checkpoint, PartFile, elsewhere};
use crate::error::{Error, Result};
use crate::progress::Progress;

/// The kind of its files.
const TENSORS: &str = "tensors";

/// Bytes that are read at a time.
const PIECE: usize = 1 << 20;

/// What is written, as it is kept in a checkpoint. Without a checkpoint nothing is kept.
#[derive(Debug)]
pub struct Stream {
    checkpoint: Option<Checkpoint>,
    steps: Vec<Step>,
    /// The step that is being written, and how many of its bytes are still to come.
    current: usize,
    left: u64,
    part: Option<PartFile>,
}

/// Consecutive tensors of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    tensors: usize,
    bytes: u64,
}

/// The steps of a job that makes tensors of these names and sizes in this order: a layer each, and what lies between them.
pub fn steps<'a>(tensors: impl IntoIterator<Item = (&'a str, u64)>) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut last = None;
    for (name, bytes) in tensors {
        let layer = layer(name);
        match steps.last_mut() {
            // What has no bytes is never written, and cannot end a step.
            Some(step) if last == Some(layer) || bytes == 0 || step.bytes == 0 => {
                step.tensors += 1;
                step.bytes += bytes;
            }
            _ => steps.push(Step { tensors: 1, bytes }),
        }
        last = Some(layer);
    }
    steps
}

/// The number of a tensor's layer in either of the two ways of naming.
fn layer(name: &str) -> Option<&str> {
    let (_, rest) = name.split_once("blk.").or_else(|| name.split_once("layers."))?;
    let (number, _) = rest.split_once('.')?;
    number.bytes().all(|b| b.is_ascii_digit()).then_some(number)
}

impl Stream {
    /// The stream of a job of these steps, as many of which are done as `checkpoint` says.
    pub fn new(checkpoint: Option<Checkpoint>, steps: Vec<Step>) -> Stream {
        let current = checkpoint.as_ref().map_or(0, Checkpoint::done);
        let left = steps.get(current).map_or(0, |step| step.bytes);
        Stream { checkpoint, steps, current, left, part: None }
    }

    /// How many tensors are there already.
    pub fn done(&self) -> usize {
        let done = self.checkpoint.as_ref().map_or(0, Checkpoint::done);
        self.steps.iter().take(done).map(|step| step.tensors).sum()
    }

    /// Gives the bytes of the tensors that are there already to `write`, in order and in pieces of at most `sizes`, which
    /// are those of the tensors.
    ///
    /// # Errors
    /// `Checkpoint` if they are damaged; what `write` returns.
    pub fn replay(
        &self,
        sizes: impl IntoIterator<Item = u64>,
        mut write: impl FnMut(usize, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let Some(checkpoint) = &self.checkpoint else { return Ok(()) };
        let mut tensors = sizes.into_iter().enumerate();
        let mut buffer = vec![0; PIECE];
        for (i, step) in self.steps.iter().enumerate().take(checkpoint.done()) {
            checkpoint.get(&Checkpoint::name(TENSORS, i), |input| {
                for (tensor, mut left) in tensors.by_ref().take(step.tensors) {
                    while left > 0 {
                        let piece = &mut buffer[..left.min(PIECE as u64) as usize];
                        input
                            .read_exact(piece)
                            .map_err(|e| Error::io("cannot read a layer of the checkpoint", e))?;
                        write(tensor, piece)?;
                        left -= piece.len() as u64;
                    }
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Keeps the next bytes that were written. They are never of two steps.
    ///
    /// # Errors
    /// `Resources` if the disk is full.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(checkpoint) = &mut self.checkpoint else { return Ok(()) };
        if bytes.is_empty() {
            return Ok(());
        }
        let part = match &mut self.part {
            Some(part) => part,
            None => self.part.insert(checkpoint.begin(&Checkpoint::name(TENSORS, self.current), self.left)?),
        };
        part.write_all(bytes).map_err(|e| {
            elsewhere(Error::output("cannot write a layer of the checkpoint", e).missing(self.left))
        })?;
        self.left -= bytes.len() as u64;
        if self.left == 0 {
            checkpoint.end(self.part.take().expect("it was just written"))?;
            self.current += 1;
            checkpoint.commit(self.current, Value::Null)?;
            self.left = self.steps.get(self.current).map_or(0, |step| step.bytes);
        }
        Ok(())
    }

    /// Refuses to go on if there is no room for what is still to be kept.
    ///
    /// # Errors
    /// `Resources`, saying how much is missing.
    pub fn check_space(&self) -> Result<()> {
        let Some(checkpoint) = &self.checkpoint else { return Ok(()) };
        checkpoint.check_space(self.steps.iter().skip(checkpoint.done()).map(|step| step.bytes).sum())
    }

    /// The job ends early: see [`Checkpoint::end_early`].
    pub fn end_early(self, e: Error, progress: &dyn Progress) -> Error {
        match self.checkpoint {
            Some(checkpoint) => checkpoint.end_early(e, progress),
            None => e,
        }
    }

    /// The checkpoint, if there is one.
    pub fn into_checkpoint(self) -> Option<Checkpoint> {
        self.checkpoint
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::checkpoint::{Identity, Settings};
    use crate::progress::Silent;

    #[test]
    fn a_step_is_a_layer() {
        let tensors = [("token_embd.weight", 4), ("blk.0.a", 3), ("blk.0.b", 2), ("blk.1.a", 3), ("x", 0)];
        let found = steps(tensors);
        assert_eq!(found.iter().map(|s| (s.tensors, s.bytes)).collect::<Vec<_>>(), [(1, 4), (2, 5), (2, 3)]);
        let tensors = [("lm_head.weight", 1), ("model.layers.0.a", 1), ("model.layers.10.a", 1)];
        assert_eq!(steps(tensors).len(), 3);
        assert_eq!(steps([("a", 0), ("model.layers.0.a", 1)]).len(), 1);
    }

    #[test]
    fn what_was_written_is_replayed() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("out.checkpoint");
        let settings = Settings { dir: Some(place), ..Settings::default() };
        let tensors = [("a", 3), ("blk.0.a", 2), ("blk.0.b", 2), ("blk.1.a", 4)];
        let open = || {
            let steps = steps(tensors);
            let identity = Identity::new("test");
            Stream::new(Checkpoint::open(&settings, identity, steps.len(), &Silent).unwrap(), steps)
        };
        let replayed = |stream: &Stream| {
            let mut all = Vec::new();
            let sizes = tensors.map(|(_, bytes)| bytes);
            let take = |tensor, bytes: &[u8]| {
                all.push((tensor, bytes.to_vec()));
                Ok(())
            };
            stream.replay(sizes, take).unwrap();
            all
        };
        let mut stream = open();
        assert_eq!((stream.done(), replayed(&stream)), (0, vec![]));
        for bytes in [&[1, 2][..], &[3], &[4, 5], &[6]] {
            stream.write(bytes).unwrap();
        }
        drop(stream);
        let mut stream = open();
        assert_eq!((stream.done(), replayed(&stream)), (1, vec![(0, vec![1, 2, 3])]));
        for bytes in [&[4, 5][..], &[6, 7], &[8]] {
            stream.write(bytes).unwrap();
        }
        drop(stream);
        let stream = open();
        assert_eq!(stream.done(), 3);
        assert_eq!(replayed(&stream), [(0, vec![1, 2, 3]), (1, vec![4, 5]), (2, vec![6, 7])]);
        stream.into_checkpoint().unwrap().remove(&Silent);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
