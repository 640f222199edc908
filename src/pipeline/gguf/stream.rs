//! Reads, encodes and writes at the same time. Every thread takes the next chunk as soon as it has done one; whoever
//! finishes the chunk whose turn it is writes it, and those after it that are ready, while the others go on. There is no
//! thread that only writes: waking one for each chunk costs more than the writing.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard};

use super::Target;
use super::chunk::{Chunk, chunks};
use crate::atomic::start_writeback;
use crate::backend::{Backend, Batch, BlockRows, Cpu};
use crate::cancel::Cancel;
use crate::error::{Error, Result};
use crate::format::gguf::blocks::Simd;
use crate::format::gguf::reader::TensorInfo;
use crate::format::gguf::writer::{Layout, Writer};
use crate::pipeline::checkpoint::stream::Stream;
use crate::pipeline::memory;
use crate::progress::Progress;

/// Encoded chunks, at least, that may wait for their turn to be written: enough to go on while the system holds up a
/// write for some milliseconds. At 4 bytes a weight they are 32 MB.
const BUFFERS: usize = 128;
/// Such chunks for each thread, where threads are many.
const BUFFERS_PER_THREAD: usize = 2;
/// Chunks by which the kernel reads ahead.
const READ_AHEAD: usize = 32;
/// Bytes after which the kernel is told to begin writing to the disk. Telling it takes a tenth of the time that encoding
/// takes; so a small file is written when a processor has nothing better to do, and of a large one little is left at the end.
const WRITEBACK: u64 = 256 << 20;
/// Bytes after which memory is measured.
const MEASURE: u64 = 8 << 20;

/// Weights that are encoded at once: as float32 they stay in a core's first-level cache in between.
const TILE: usize = 1 << 13;

thread_local! {
    /// A tile's weights in float32. Each thread keeps its own: allocating one per tile costs more than encoding it.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Where the tensors go.
pub(super) struct Destination<'a> {
    pub(super) file: &'a mut File,
    pub(super) layout: Layout,
    /// Tensors that it has are taken from there, and it gets all others.
    pub(super) kept: &'a mut Stream,
}

/// How many chunks may wait for their turn if memory is plenty.
pub(super) fn buffers(batch: Batch) -> usize {
    let threads = rayon::current_num_threads() * BUFFERS_PER_THREAD;
    match batch {
        Batch::Core => BUFFERS.max(threads),
        Batch::All => threads,
    }
}

/// Encodes all `targets`, with at most so many chunks waiting for their turn. Returns the most memory that the program had allocated at any time, in bytes.
pub(super) fn write_all(
    destination: Destination<'_>,
    targets: &[Target<'_>],
    backend: &dyn Backend,
    simd: Simd,
    most_buffers: usize,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<u64> {
    let Destination { file, layout, kept } = destination;
    let chunks = chunks(targets, backend.batch());
    let sizes: Vec<u64> = layout.tensors().iter().map(TensorInfo::bytes).collect();
    let size = layout.file_bytes();
    let mut writer = Writer::new(file, layout).map_err(cannot_write)?;
    kept.replay(sizes, |_, bytes| writer.write(bytes).map_err(cannot_write))?;
    let first = chunks.partition_point(|chunk| chunk.tensor < kept.done());
    let buffers = buffers(backend.batch()).min(most_buffers).max(1);
    let line = Line {
        next_to_take: first,
        next_to_write: first,
        early: BTreeMap::new(),
        empty: vec![Vec::new(); buffers],
        sink: Some(Sink { writer, kept, size, started: 0, measured: 0, peak: 0 }),
        failed: None,
    };
    let job = Job {
        chunks: &chunks,
        targets,
        backend,
        simd,
        progress,
        cancel,
        line: Mutex::new(line),
        moved: Condvar::new(),
    };
    rayon::broadcast(|_| job.run());
    let line = job.line.into_inner().expect("no thread panics in the line");
    match line.failed {
        Some(e) => Err(e),
        None => line.sink.expect("nobody writes any more").finish().map_err(cannot_write),
    }
}

fn cannot_write(e: io::Error) -> Error {
    Error::output("cannot write the output", e)
}

/// What the threads share.
struct Job<'a> {
    chunks: &'a [Chunk],
    targets: &'a [Target<'a>],
    backend: &'a dyn Backend,
    simd: Simd,
    progress: &'a dyn Progress,
    cancel: &'a Cancel,
    line: Mutex<Line<'a>>,
    /// Tells those who wait for a buffer that there is one, or that it is over.
    moved: Condvar,
}

/// Chunks on their way through.
struct Line<'a> {
    next_to_take: usize,
    next_to_write: usize,
    /// Encoded before their turn.
    early: BTreeMap<usize, Result<Vec<u8>>>,
    /// Buffers to encode into.
    empty: Vec<Vec<u8>>,
    /// The file; away while a thread writes.
    sink: Option<Sink<'a>>,
    /// The failure of the first chunk in order that failed: the same one every time.
    failed: Option<Error>,
}

impl<'a> Job<'a> {
    /// Encodes chunk after chunk, until there are no more or one has failed.
    fn run(&self) {
        while let Some((i, mut buffer)) = self.take() {
            let done = self.encode(i, &mut buffer).map(|()| buffer);
            self.hand_over(i, done);
        }
    }

    fn line(&self) -> MutexGuard<'_, Line<'a>> {
        self.line.lock().expect("no thread panics in the line")
    }

    /// The next chunk and a buffer for it. Both are taken at once, so whoever has the chunk whose turn it is can always
    /// finish it, and nobody waits for good.
    fn take(&self) -> Option<(usize, Vec<u8>)> {
        let mut line = self.line();
        loop {
            if line.failed.is_some() || line.next_to_take == self.chunks.len() {
                return None;
            }
            if let Some(buffer) = line.empty.pop() {
                line.next_to_take += 1;
                return Some((line.next_to_take - 1, buffer));
            }
            line = self.moved.wait(line).expect("no thread panics in the line");
        }
    }

    /// Puts chunk `i` in line, and writes all whose turn it is unless another thread is at it.
    fn hand_over(&self, i: usize, encoded: Result<Vec<u8>>) {
        let mut line = self.line();
        line.early.insert(i, encoded);
        let Some(mut sink) = line.sink.take() else { return };
        loop {
            let turn = line.next_to_write;
            let Some(encoded) = line.early.remove(&turn) else { break };
            drop(line);
            let written = encoded.and_then(|buffer| {
                let chunk = &self.chunks[turn];
                sink.write(&self.targets[chunk.tensor], chunk, &buffer)?;
                Ok(buffer)
            });
            line = self.line();
            match written {
                Ok(buffer) => {
                    line.next_to_write += 1;
                    line.empty.push(buffer);
                    self.moved.notify_one();
                }
                Err(e) => {
                    line.failed = Some(e);
                    self.moved.notify_all();
                    return;
                }
            }
        }
        line.sink = Some(sink);
    }

    fn encode(&self, i: usize, out: &mut Vec<u8>) -> Result<()> {
        self.cancel.check()?;
        let chunk = &self.chunks[i];
        let target = &self.targets[chunk.tensor];
        if i.is_multiple_of(READ_AHEAD) {
            self.read_ahead(i + READ_AHEAD);
        }
        if chunk.start == 0 {
            self.progress.item(&target.planned.name);
        }
        SCRATCH.with_borrow_mut(|scratch| self.encode_chunk(target, chunk, out, scratch))?;
        self.progress.advance(chunk.weights as u64);
        Ok(())
    }

    /// Asks the kernel to read the chunks from `first` on.
    fn read_ahead(&self, first: usize) {
        let ahead = &self.chunks[first.min(self.chunks.len())..];
        let ahead = &ahead[..READ_AHEAD.min(ahead.len())];
        for piece in ahead.chunk_by(|a, b| a.tensor == b.tensor) {
            let rows = piece[0].rows.start..piece[piece.len() - 1].rows.end;
            self.targets[piece[0].tensor].source.will_need(rows);
        }
    }

    fn encode_chunk(
        &self,
        target: &Target<'_>,
        chunk: &Chunk,
        out: &mut Vec<u8>,
        scratch: &mut Vec<f32>,
    ) -> Result<()> {
        let source = &target.source;
        if target.is_direct() {
            out.clear();
            return source.check_finite(chunk.rows.clone());
        }
        out.resize(chunk.bytes, 0);
        if source.is_copy(target.ty) {
            return source.copy(chunk.rows.clone(), out);
        }
        let columns = source.row_len();
        let importance = target.importance.map(|all| {
            let expert = source.matrix_of(chunk.rows.start);
            &all[expert * columns..(expert + 1) * columns]
        });
        // What a device cannot encode, the processor does; the bytes are the same.
        let cpu = Cpu { simd: self.simd };
        let of_device = self.backend.batch() == Batch::All && self.backend.encodes(target.ty);
        let backend = if of_device { self.backend } else { &cpu };
        let whole = of_device || source.is_decoded();
        let tile = if whole { chunk.rows.len() } else { (TILE / columns).max(1) };
        let row_bytes = chunk.bytes / chunk.rows.len();
        for (start, out) in chunk.rows.clone().step_by(tile).zip(out.chunks_mut(tile * row_bytes)) {
            let rows = start..(start + tile).min(chunk.rows.end);
            scratch.resize(rows.len() * columns, 0.0);
            source.load(rows, scratch, self.simd)?;
            backend.encode_blocks(BlockRows { ty: target.ty, weights: scratch, columns, importance }, out)?;
        }
        Ok(())
    }
}

/// The file that is written.
struct Sink<'a> {
    writer: Writer<&'a mut File>,
    kept: &'a mut Stream,
    /// Bytes of the whole file.
    size: u64,
    /// Bytes that the kernel has been told to write to the disk.
    started: u64,
    /// Bytes after which memory was measured last.
    measured: u64,
    /// The most memory that the program had allocated.
    peak: u64,
}

impl Sink<'_> {
    fn write(&mut self, target: &Target<'_>, chunk: &Chunk, bytes: &[u8]) -> Result<()> {
        if target.is_direct() {
            let mut result = Ok(());
            target.source.for_pieces(chunk.rows.clone(), |bytes| {
                if result.is_ok() {
                    result = self.put(bytes);
                }
            });
            result?;
        } else {
            self.put(bytes)?;
        }
        let written = self.writer.position();
        if written - self.started >= WRITEBACK {
            start_writeback(self.writer.get_ref(), self.started, written - self.started);
            self.started = written;
        }
        if written - self.measured >= MEASURE {
            self.measure();
            self.measured = written;
        }
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        let left = self.size.saturating_sub(self.writer.position());
        self.writer.write(bytes).map_err(|e| cannot_write(e).missing(left))?;
        self.kept.write(bytes)
    }

    fn measure(&mut self) {
        self.peak = memory::anonymous().unwrap_or(0).max(self.peak);
    }

    /// Returns the most memory that the program had allocated, in bytes.
    fn finish(mut self) -> io::Result<u64> {
        self.measure();
        self.writer.finish()?;
        Ok(self.peak)
    }
}
