//! Reads, encodes and writes at the same time: while one slab is encoded by all threads, the one before is written and
//! the kernel reads the one after.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use rayon::prelude::*;

use super::Target;
use super::slab::{Chunk, Slab, slabs};
use crate::atomic::start_writeback;
use crate::backend::{Backend, Batch, BlockRows, Cpu};
use crate::cancel::Cancel;
use crate::error::{Error, Result};
use crate::format::gguf::blocks::Simd;
use crate::format::gguf::writer::{Layout, Writer};
use crate::pipeline::memory;
use crate::progress::Progress;
use crate::source::safetensors::Tensors;

thread_local! {
    /// A chunk's weights in float32. Each thread keeps its own: allocating one per chunk costs more than encoding it.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Encodes all `targets` into `file`. Returns the most memory that the program had allocated at any time, in bytes.
pub(super) fn write_all(
    file: &mut File,
    layout: Layout,
    tensors: &Tensors,
    targets: &[Target<'_>],
    (backend, simd): (&dyn Backend, Simd),
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<u64> {
    let slabs = slabs(targets);
    let encoder = SlabEncoder { targets, backend, simd, progress };
    let mut peak = 0;
    let (full_in, full_out) = sync_channel::<(usize, Vec<u8>)>(1);
    let (empty_in, empty_out) = sync_channel::<Vec<u8>>(3);
    let whole = &slabs;
    std::thread::scope(|scope| {
        let writer = scope.spawn(move || write_slabs(file, layout, whole, targets, full_out, &empty_in));
        let encoded = encode_slabs(
            &slabs, tensors, targets, encoder, progress, cancel, &full_in, &empty_out, &mut peak,
        );
        drop(full_in);
        let written = writer.join().expect("the writing thread does not panic");
        // A failure to write ends the encoder too, so it is the cause.
        written.map_err(|e| Error::output("cannot write the output", e))?;
        encoded
    })?;
    Ok(peak)
}

#[allow(clippy::too_many_arguments)]
fn encode_slabs(
    slabs: &[Slab],
    tensors: &Tensors,
    targets: &[Target<'_>],
    encoder: SlabEncoder<'_>,
    progress: &dyn Progress,
    cancel: &Cancel,
    full: &SyncSender<(usize, Vec<u8>)>,
    empty: &Receiver<Vec<u8>>,
    peak: &mut u64,
) -> Result<()> {
    let mut current = usize::MAX;
    for (i, slab) in slabs.iter().enumerate() {
        cancel.check()?;
        for piece in slabs.get(i + 1).into_iter().flat_map(|next| next.chunk_by(|a, b| a.tensor == b.tensor))
        {
            let rows = piece[0].rows.start..piece[piece.len() - 1].rows.end;
            targets[piece[0].tensor].source.will_need(tensors, rows);
        }
        if let Some(last) = slab.last().filter(|c| c.tensor != current) {
            current = last.tensor;
            progress.item(&targets[current].planned.name);
        }
        let mut buffer = empty.try_recv().unwrap_or_default();
        buffer.resize(slab.iter().map(|c| buffered(targets, c)).sum(), 0);
        let mut rest = buffer.as_mut_slice();
        let mut work: Vec<(&Chunk, &mut [u8])> = Vec::with_capacity(slab.len());
        for chunk in slab {
            let (piece, tail) = rest.split_at_mut(buffered(targets, chunk));
            work.push((chunk, piece));
            rest = tail;
        }
        let encoded = encoder.encode(work);
        *peak = memory::anonymous().unwrap_or(0).max(*peak);
        encoded?;
        if full.send((i, buffer)).is_err() {
            // The writer has stopped; it says why.
            return Ok(());
        }
    }
    Ok(())
}

/// Bytes of a chunk that pass through the slab's buffer.
fn buffered(targets: &[Target<'_>], chunk: &Chunk) -> usize {
    let target = &targets[chunk.tensor];
    if target.source.is_direct(target.ty) { 0 } else { chunk.bytes }
}

/// How the chunks of a slab are encoded.
#[derive(Clone, Copy)]
struct SlabEncoder<'a> {
    targets: &'a [Target<'a>],
    backend: &'a dyn Backend,
    simd: Simd,
    progress: &'a dyn Progress,
}

/// A chunk and where its bytes go.
type Work<'a> = (&'a Chunk, &'a mut [u8]);

impl SlabEncoder<'_> {
    fn encode(&self, work: Vec<Work<'_>>) -> Result<()> {
        let (mine, of_the_device) = match self.backend.batch() {
            Batch::Core => (work, Vec::new()),
            Batch::All => work.into_iter().partition(|(chunk, _)| !self.goes_to_device(chunk)),
        };
        self.encode_by_chunk(mine)?;
        self.encode_by_tensor(of_the_device)
    }

    /// Whether a chunk is encoded, by a device that can do it. The processor does the rest; the bytes are the same.
    fn goes_to_device(&self, chunk: &Chunk) -> bool {
        let target = &self.targets[chunk.tensor];
        !target.source.is_copy(target.ty) && self.backend.encodes(target.ty)
    }

    /// Each chunk for itself, on all threads.
    fn encode_by_chunk(&self, work: Vec<Work<'_>>) -> Result<()> {
        first_failure(work.into_par_iter().map(|(chunk, out)| {
            let done = SCRATCH.with_borrow_mut(|scratch| self.encode_chunk(chunk, out, scratch));
            self.progress.advance(chunk.weights as u64);
            done
        }))
    }

    /// The chunks of a matrix together, after all threads have read them.
    fn encode_by_tensor(&self, work: Vec<Work<'_>>) -> Result<()> {
        let mut scratch = vec![0f32; work.iter().map(|(chunk, _)| chunk.weights).sum()];
        let mut rest = scratch.as_mut_slice();
        let mut loads = Vec::with_capacity(work.len());
        for (chunk, _) in &work {
            let (weights, tail) = rest.split_at_mut(chunk.weights);
            loads.push((*chunk, weights));
            rest = tail;
        }
        first_failure(loads.into_par_iter().map(|(chunk, weights)| {
            self.targets[chunk.tensor].source.load(chunk.rows.clone(), weights, self.simd)
        }))?;

        let mut weights = scratch.as_slice();
        let matrix =
            |chunk: &Chunk| (chunk.tensor, self.targets[chunk.tensor].source.matrix_of(chunk.rows.start));
        for pieces in by(work, |(chunk, _)| matrix(chunk)) {
            let chunk = pieces[0].0;
            let count = pieces.iter().map(|(chunk, _)| chunk.weights).sum();
            let (piece, tail) = weights.split_at(count);
            weights = tail;
            // The places that the chunks' bytes go to lie side by side, but not as one slice any more.
            let mut bytes = vec![0; pieces.iter().map(|(_, out)| out.len()).sum()];
            self.backend.encode_blocks(self.rows(chunk, piece), &mut bytes)?;
            let mut bytes = bytes.as_slice();
            for (_, out) in pieces {
                let (own, tail) = bytes.split_at(out.len());
                out.copy_from_slice(own);
                bytes = tail;
            }
            self.progress.advance(count as u64);
        }
        Ok(())
    }

    fn encode_chunk(&self, chunk: &Chunk, out: &mut [u8], scratch: &mut Vec<f32>) -> Result<()> {
        let target = &self.targets[chunk.tensor];
        let source = &target.source;
        if source.is_direct(target.ty) {
            return source.check_finite(chunk.rows.clone());
        }
        if source.is_copy(target.ty) {
            return source.copy(chunk.rows.clone(), out);
        }
        scratch.resize(chunk.weights, 0.0);
        source.load(chunk.rows.clone(), scratch, self.simd)?;
        let rows = self.rows(chunk, scratch);
        match self.backend.batch() {
            Batch::Core => self.backend.encode_blocks(rows, out),
            Batch::All => Cpu { simd: self.simd }.encode_blocks(rows, out),
        }
    }

    /// Weights from a chunk on, all of its matrix.
    fn rows<'a>(&'a self, chunk: &Chunk, weights: &'a [f32]) -> BlockRows<'a> {
        let target = &self.targets[chunk.tensor];
        let columns = target.source.row_len();
        let importance = target.importance.map(|all| {
            let expert = target.source.matrix_of(chunk.rows.start);
            &all[expert * columns..(expert + 1) * columns]
        });
        BlockRows { ty: target.ty, weights, columns, importance }
    }
}

/// Does all work and gives the first failure in order. `try_for_each` stops at any failure; looking for the first makes
/// the message the same every time.
fn first_failure(work: impl IndexedParallelIterator<Item = Result<()>>) -> Result<()> {
    work.filter_map(Result::err).reduce_with(|first, _| first).map_or(Ok(()), Err)
}

/// Runs of neighbours with the same key.
fn by<T, K: PartialEq>(list: Vec<T>, key: impl Fn(&T) -> K) -> Vec<Vec<T>> {
    let mut runs: Vec<Vec<T>> = Vec::new();
    for item in list {
        match runs.last_mut() {
            Some(run) if key(&run[0]) == key(&item) => run.push(item),
            _ => runs.push(vec![item]),
        }
    }
    runs
}

fn write_slabs(
    file: &mut File,
    layout: Layout,
    slabs: &[Slab],
    targets: &[Target<'_>],
    full: Receiver<(usize, Vec<u8>)>,
    empty: &SyncSender<Vec<u8>>,
) -> io::Result<()> {
    let mut started = 0;
    let mut writer = Writer::new(&mut *file, layout)?;
    for (i, buffer) in full {
        // Chunks of one tensor lie side by side: one write for all of them.
        let mut start = 0;
        for piece in slabs[i].chunk_by(|a, b| a.tensor == b.tensor) {
            let target = &targets[piece[0].tensor];
            if target.source.is_direct(target.ty) {
                let rows = piece[0].rows.start..piece[piece.len() - 1].rows.end;
                let mut result = Ok(());
                target.source.for_pieces(rows, |bytes| {
                    if result.is_ok() {
                        result = writer.write(bytes);
                    }
                });
                result?;
            } else {
                let end = start + piece.iter().map(|c| c.bytes).sum::<usize>();
                writer.write(&buffer[start..end])?;
                start = end;
            }
        }
        let written = writer.position();
        start_writeback(writer.get_ref(), started, written - started);
        started = written;
        let _ = empty.try_send(buffer);
        if i + 1 == slabs.len() {
            return writer.finish().map(|_| ());
        }
    }
    // The encoder stopped early; the caller knows why and drops the file.
    Ok(())
}
