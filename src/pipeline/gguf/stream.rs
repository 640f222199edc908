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
use crate::cancel::Cancel;
use crate::error::{Error, Result};
use crate::format::gguf::blocks::{self, Simd};
use crate::format::gguf::writer::{Layout, Writer};
use crate::pipeline::memory;
use crate::progress::Progress;

thread_local! {
    /// A chunk's weights in float32. Each thread keeps its own: allocating one per chunk costs more than encoding it.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Encodes all `targets` into `file`. Returns the most memory that the program had allocated at any time, in bytes.
pub(super) fn write_all(
    file: &mut File,
    layout: Layout,
    targets: &[Target<'_>],
    simd: Simd,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<u64> {
    let slabs = slabs(targets);
    let mut peak = 0;
    let (full_in, full_out) = sync_channel::<(usize, Vec<u8>)>(1);
    let (empty_in, empty_out) = sync_channel::<Vec<u8>>(3);
    let whole = &slabs;
    std::thread::scope(|scope| {
        let writer = scope.spawn(move || write_slabs(file, layout, whole, targets, full_out, &empty_in));
        let encoded = encode_slabs(&slabs, targets, simd, progress, cancel, &full_in, &empty_out, &mut peak);
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
    targets: &[Target<'_>],
    simd: Simd,
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
            targets[piece[0].tensor].source.will_need(rows);
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
        // `try_for_each` stops at any failure; looking for the first in order makes the message the same every time.
        let failed = work.into_par_iter().map(|(chunk, out)| {
            let target = &targets[chunk.tensor];
            // Taken, not borrowed: a thread that waits for others to decode may begin another chunk.
            let mut scratch = SCRATCH.take();
            let done = encode_chunk(target, chunk, out, &mut scratch, simd);
            SCRATCH.set(scratch);
            progress.advance(chunk.weights as u64);
            done
        });
        let failed = failed.filter_map(Result::err).reduce_with(|first, _| first);
        *peak = memory::anonymous().unwrap_or(0).max(*peak);
        if let Some(e) = failed {
            return Err(e);
        }
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

fn encode_chunk(
    target: &Target<'_>,
    chunk: &Chunk,
    out: &mut [u8],
    scratch: &mut Vec<f32>,
    simd: Simd,
) -> Result<()> {
    let source = &target.source;
    if source.is_direct(target.ty) {
        return source.check_finite(chunk.rows.clone());
    }
    if source.is_copy(target.ty) {
        return source.copy(chunk.rows.clone(), out);
    }
    let row_len = source.row_len();
    scratch.resize(chunk.weights, 0.0);
    source.load(chunk.rows.clone(), scratch, simd)?;
    let weights = target.importance.map(|all| {
        let expert = source.matrix_of(chunk.rows.start);
        &all[expert * row_len..(expert + 1) * row_len]
    });
    blocks::encode(target.ty, scratch, row_len, weights, out, simd);
    Ok(())
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
