//! Fetches files into the cache: several at a time, going on where an earlier run stopped, and checks them.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::CONTENT_RANGE;
use sha2::{Digest, Sha256};

use super::cache::Cache;
use super::client::{ATTEMPTS, Client, Failure};
use super::listing::{Content, RemoteFile};
use super::refusal::root;
use crate::error::{Error, Kind, Result};
use crate::progress::{Progress, Unit};

/// Files that are fetched at the same time.
const WORKERS: usize = 4;
const BUFFER: usize = 1 << 20;

/// A file, the name of its content and where that belongs.
struct Job<'a> {
    file: &'a RemoteFile,
    etag: String,
    blob: PathBuf,
}

impl Job<'_> {
    fn partial_path(&self) -> PathBuf {
        self.blob.with_file_name(format!("{}.incomplete", self.etag))
    }

    fn is_there(&self) -> bool {
        fs::metadata(&self.blob).is_ok_and(|m| m.len() == self.file.size)
    }

    /// The sha256 to expect, where it is known.
    fn sha256(&self) -> Option<&str> {
        let is_sha256 = self.etag.len() == 64 && self.etag.bytes().all(|b| b.is_ascii_hexdigit());
        (self.file.content == Content::Large && is_sha256).then_some(self.etag.as_str())
    }
}

/// Brings `files` of `commit` into the cache.
pub(super) fn fetch(
    client: &Client<'_>,
    cache: &Cache,
    commit: &str,
    files: &[RemoteFile],
    progress: &dyn Progress,
) -> Result<()> {
    let jobs = in_parallel(files, |file, stop| {
        let etag = repeat(client, stop, progress, &file.path, || 0, || client.etag(commit, file))?;
        Ok(Job { file, blob: cache.blob(&etag)?, etag })
    })?;

    let lacking = |job: &Job<'_>| match job.is_there() {
        true => 0,
        false => job.file.size.saturating_sub(fs::metadata(job.partial_path()).map_or(0, |m| m.len())),
    };
    let needed = jobs.iter().map(lacking).fold(0, u64::saturating_add);
    if let Some(free) = cache.free_bytes()?.filter(|free| *free < needed) {
        let (needed, free, root) = (gigabytes(needed), gigabytes(free), cache.root().display());
        return Err(Error::new(
            Kind::Resources,
            format!("{} needs {needed} GB more in {root}, where {free} GB are free", client.id),
        )
        .hint("Free some space, or set HF_HOME to a directory on a larger disk."));
    }

    let total = files.iter().map(|f| f.size).fold(0, u64::saturating_add);
    progress.begin(&format!("Downloading {}", client.id), total, Unit::Bytes);
    let done = in_parallel(&jobs, |job, stop| {
        progress.item(&job.file.path);
        let lock = cache.lock(&job.etag, progress)?;
        if job.is_there() {
            progress.advance(job.file.size);
        } else {
            Transfer::open(client, commit, job, progress, stop)?.run()?;
        }
        cache.link(commit, &job.file.path, &job.etag)?;
        drop(lock);
        Ok(())
    });
    progress.end();
    done.map(drop)
}

/// One file on its way into the cache.
struct Transfer<'a> {
    client: &'a Client<'a>,
    commit: &'a str,
    job: &'a Job<'a>,
    progress: &'a dyn Progress,
    stop: &'a AtomicBool,
    path: PathBuf,
    partial: File,
    /// Bytes in `partial`, and their hash if there is one to compare with.
    len: u64,
    hash: Option<Sha256>,
    /// Whether it already arrived whole with another hash.
    damaged: bool,
    /// Bytes that progress knows of: the most that `len` has been.
    shown: u64,
    buffer: Vec<u8>,
}

impl<'a> Transfer<'a> {
    /// Takes up what an earlier run left, if it can be checked in the end.
    fn open(
        client: &'a Client<'a>,
        commit: &'a str,
        job: &'a Job<'a>,
        progress: &'a dyn Progress,
        stop: &'a AtomicBool,
    ) -> Result<Self> {
        let path = job.partial_path();
        let opened = File::options().create(true).truncate(false).read(true).write(true).open(&path);
        let partial = opened.map_err(|e| io(&path, e))?;
        let hash = job.sha256().map(|_| Sha256::new());
        let mut transfer = Transfer {
            client,
            commit,
            job,
            progress,
            stop,
            path,
            partial,
            len: 0,
            hash,
            damaged: false,
            shown: 0,
            buffer: vec![0; BUFFER],
        };
        let found = transfer.partial.metadata().map_err(|e| io(&transfer.path, e))?.len();
        if transfer.hash.is_none() || found > job.file.size {
            transfer.restart()?;
        }
        loop {
            let n = transfer.partial.read(&mut transfer.buffer).map_err(|e| io(&transfer.path, e))?;
            if n == 0 {
                break;
            }
            transfer.count(n);
        }
        if transfer.len > 0 {
            progress.detail(&format!("{} goes on at byte {}", job.file.path, transfer.len));
        }
        Ok(transfer)
    }

    /// Fetches what is missing, checks the whole and gives it its name.
    fn run(mut self) -> Result<()> {
        let (client, stop, progress, name) = (self.client, self.stop, self.progress, &self.job.file.path);
        let this = std::cell::RefCell::new(&mut self);
        repeat(client, stop, progress, name, || this.borrow().shown, || this.borrow_mut().attempt())?;
        self.partial.sync_all().map_err(|e| io(&self.path, e))?;
        fs::rename(&self.path, &self.job.blob).map_err(|e| io(&self.job.blob, e))
    }

    fn attempt(&mut self) -> Result<(), Failure> {
        if self.len < self.job.file.size {
            self.receive()?;
        }
        let (Some(expected), Some(hash)) = (self.job.sha256(), &self.hash) else { return Ok(()) };
        let found = hex(&hash.clone().finalize());
        if found.eq_ignore_ascii_case(expected) {
            return Ok(());
        }
        self.restart().map_err(Failure::Final)?;
        let message =
            format!("{} arrived damaged: its sha256 is {found}, not {expected}", self.job.file.path);
        let error =
            Error::new(Kind::Invalid, message).hint("Try again; if it stays so, ask the model's owner.");
        // What was left by an earlier run may be at fault, once.
        match std::mem::replace(&mut self.damaged, true) {
            true => Err(Failure::Final(error)),
            false => Err(Failure::Passing(error, None)),
        }
    }

    fn receive(&mut self) -> Result<(), Failure> {
        let mut answer = self.client.content(self.commit, &self.job.file.path, self.len)?;
        if self.len > 0 {
            let range = answer.headers().get(CONTENT_RANGE).and_then(|v| v.to_str().ok());
            let whole = answer.status() == StatusCode::OK;
            if whole || !range.is_some_and(|r| r.starts_with(&format!("bytes {}-", self.len))) {
                self.restart().map_err(Failure::Final)?;
            }
            if !whole && self.len == 0 {
                let error = self.client.asked().strange("another range than the one asked for");
                return Err(Failure::Passing(error, None));
            }
        }
        loop {
            go_on(self.client, self.stop).map_err(Failure::Final)?;
            let n = match answer.read(&mut self.buffer) {
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(self.cut(&root(&e))),
            };
            if n == 0 {
                break;
            }
            if self.len + n as u64 > self.job.file.size {
                self.restart().map_err(Failure::Final)?;
                let what = format!("{} is longer than announced", self.job.file.path);
                return Err(Failure::Final(self.client.asked().strange(&what)));
            }
            self.partial.write_all(&self.buffer[..n]).map_err(|e| Failure::Final(io(&self.path, e)))?;
            self.count(n);
        }
        if self.len < self.job.file.size { Err(self.cut("the connection was closed")) } else { Ok(()) }
    }

    /// The first `n` bytes of the buffer are in the file.
    fn count(&mut self, n: usize) {
        self.len += n as u64;
        if let Some(hash) = &mut self.hash {
            hash.update(&self.buffer[..n]);
        }
        if self.len > self.shown {
            self.progress.advance(self.len - self.shown);
            self.shown = self.len;
        }
    }

    fn restart(&mut self) -> Result<()> {
        self.partial.set_len(0).map_err(|e| io(&self.path, e))?;
        self.partial.seek(SeekFrom::Start(0)).map_err(|e| io(&self.path, e))?;
        self.len = 0;
        self.hash = self.hash.as_ref().map(|_| Sha256::new());
        Ok(())
    }

    fn cut(&self, why: &str) -> Failure {
        let RemoteFile { path, size, .. } = self.job.file;
        let message = format!("the download of {path} broke off after {} of {size} bytes: {why}", self.len);
        let error =
            Error::new(Kind::Other, message).hint("Run again: the download goes on where it stopped.");
        Failure::Passing(error, None)
    }
}

/// Repeats `attempt` while its failures may pass; `reached` growing means that the last attempt was not in vain.
fn repeat<T>(
    client: &Client<'_>,
    stop: &AtomicBool,
    progress: &dyn Progress,
    name: &str,
    reached: impl Fn() -> u64,
    mut attempt: impl FnMut() -> Result<T, Failure>,
) -> Result<T> {
    let (mut failures, mut best) = (0, reached());
    loop {
        go_on(client, stop)?;
        let (error, wait) = match attempt() {
            Ok(value) => return Ok(value),
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::Passing(error, wait)) => (error, wait),
        };
        failures = if reached() > best { 1 } else { failures + 1 };
        best = reached();
        if failures >= ATTEMPTS {
            return Err(error);
        }
        progress.detail(&format!("{name}: {error}; trying again"));
        sleep(client, wait.unwrap_or_else(|| client.wait(failures)), stop)?;
    }
}

/// An error when the user or another file's failure asks to stop.
fn go_on(client: &Client<'_>, stop: &AtomicBool) -> Result<()> {
    client.go_on()?;
    match stop.load(Ordering::Relaxed) {
        true => Err(Error::new(Kind::Other, "stopped because another file failed")),
        false => Ok(()),
    }
}

fn sleep(client: &Client<'_>, mut left: Duration, stop: &AtomicBool) -> Result<()> {
    while !left.is_zero() {
        go_on(client, stop)?;
        let nap = left.min(Duration::from_millis(100));
        std::thread::sleep(nap);
        left -= nap;
    }
    Ok(())
}

/// Does `work` on all items, a few at a time; the first error tells the others to stop and is the result.
fn in_parallel<'a, T: Sync, R: Send>(
    items: &'a [T],
    work: impl Fn(&'a T, &AtomicBool) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let failed = Mutex::new(None);
    let results: Vec<Mutex<Option<R>>> = items.iter().map(|_| Mutex::new(None)).collect();
    std::thread::scope(|scope| {
        for _ in 0..WORKERS.min(items.len()) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let (Some(item), Some(slot)) = (items.get(i), results.get(i)) else { break };
                    match work(item, &stop) {
                        Ok(result) => *locked(slot) = Some(result),
                        Err(e) => {
                            locked(&failed).get_or_insert(e);
                            stop.store(true, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    match failed.into_inner().unwrap_or_else(|e| e.into_inner()) {
        Some(e) => Err(e),
        None => Ok(results
            .into_iter()
            .filter_map(|r| r.into_inner().unwrap_or_else(|e| e.into_inner()))
            .collect()),
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

fn io(path: &Path, e: std::io::Error) -> Error {
    let error = Error::output(format!("cannot write {}", path.display()), e);
    match error.kind() {
        Kind::Resources => error.hint("Free some space, or set HF_HOME to a directory on a larger disk."),
        _ => error,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / 1e9)
}
