//! Looks at the pages of a Parquet file before the library reads them: it makes room for whatever size a page claims to have
//! unpacked, and unpacks gzip to wherever it ends.
//!
//! A page is a header, in Thrift's compact protocol, and as many bytes as that says
//! (<https://parquet.apache.org/docs/file-format/data-pages/>).

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use flate2::read::MultiGzDecoder;
use parquet::basic::Compression;
use parquet::file::metadata::ColumnChunkMetaData;

use super::super::unpacked::{Allowance, TOO_MUCH};

/// The longest header: it may hold the smallest and largest value of the page.
const MAX_HEADER: u64 = 1 << 20;

/// Structures within each other; a header has three.
const MAX_DEPTH: usize = 8;

/// Checks the pages of a column chunk: that none claims to be much larger than it is, and none is larger than it claims.
///
/// # Errors
/// What is wrong with a page.
pub(super) fn check(file: &File, chunk: &ColumnChunkMetaData) -> Result<(), String> {
    let start = chunk.dictionary_page_offset().unwrap_or_else(|| chunk.data_page_offset());
    let (Ok(start), Ok(len)) = (u64::try_from(start), u64::try_from(chunk.compressed_size())) else {
        return Err("a column begins before the file".into());
    };
    let end = start.checked_add(len).ok_or("a column is too long")?;
    let mut at = start;
    while at < end {
        let header = Header::read(file, at, end).map_err(|e| format!("the page at byte {at}: {e}"))?;
        let wrong = |what: &str| format!("the page at byte {at}: {what}");
        let packed = u64::from(header.packed);
        let body = at + header.bytes;
        if packed > end - body {
            return Err(wrong("it reaches beyond its column"));
        }
        if !Allowance::of(packed).take(header.unpacked.into()) {
            return Err(wrong(TOO_MUCH));
        }
        if matches!(chunk.compression(), Compression::GZIP(_)) && header.is_packed {
            // Levels of a page of version 2 come before what is packed.
            let skip = u64::from(header.levels).min(packed);
            let mut input = file;
            input.seek(SeekFrom::Start(body + skip)).map_err(|e| e.to_string())?;
            let allowed = u64::from(header.unpacked.saturating_sub(header.levels));
            let unpacked = MultiGzDecoder::new(io::BufReader::new(input.take(packed - skip)));
            // Damage is for the library to say.
            let found = io::copy(&mut unpacked.take(allowed + 1), &mut io::sink()).unwrap_or(0);
            if found > allowed {
                return Err(wrong("it is larger than it says"));
            }
        }
        at = body + packed;
    }
    Ok(())
}

/// What is read of a page's header.
#[derive(Debug, Default, PartialEq)]
struct Header {
    /// Its own length.
    bytes: u64,
    /// Bytes of the page, as it is and unpacked.
    packed: u32,
    unpacked: u32,
    /// Whether any of it is packed, and how many bytes before that are not.
    is_packed: bool,
    levels: u32,
}

impl Header {
    fn read(mut file: &File, at: u64, end: u64) -> Result<Header, String> {
        file.seek(SeekFrom::Start(at)).map_err(|e| e.to_string())?;
        Header::parse(io::BufReader::with_capacity(256, file.take((end - at).min(MAX_HEADER))))
    }

    fn parse(input: impl Read) -> Result<Header, String> {
        let mut thrift = Thrift { input, bytes: 0 };
        let mut header = Header { is_packed: true, ..Header::default() };
        let (mut packed, mut unpacked) = (None, None);
        let size = |n: i64| u32::try_from(n).ok().filter(|n| i32::try_from(*n).is_ok());
        let mut last = 0;
        while let Some((id, kind)) = thrift.field(&mut last)? {
            match (id, kind) {
                (2, I32) => unpacked = size(thrift.number()?),
                (3, I32) => packed = size(thrift.number()?),
                (8, STRUCT) => {
                    let mut last = 0;
                    let mut levels = 0u32;
                    while let Some((id, kind)) = thrift.field(&mut last)? {
                        match (id, kind) {
                            (5 | 6, I32) => {
                                let n = size(thrift.number()?).ok_or("a negative length")?;
                                levels = levels.saturating_add(n);
                            }
                            (7, TRUE | FALSE) => header.is_packed = kind == TRUE,
                            _ => thrift.skip(kind, 1)?,
                        }
                    }
                    header.levels = levels;
                }
                _ => thrift.skip(kind, 1)?,
            }
        }
        let (Some(packed), Some(unpacked)) = (packed, unpacked) else { return Err("it has no size".into()) };
        Ok(Header { bytes: thrift.bytes, packed, unpacked, ..header })
    }
}

const TRUE: u8 = 1;
const FALSE: u8 = 2;
const BYTE: u8 = 3;
const I16: u8 = 4;
const I32: u8 = 5;
const I64: u8 = 6;
const DOUBLE: u8 = 7;
const BINARY: u8 = 8;
const LIST: u8 = 9;
const SET: u8 = 10;
const STRUCT: u8 = 12;

/// Values in Thrift's compact protocol.
struct Thrift<R> {
    input: R,
    /// Read so far.
    bytes: u64,
}

impl<R: Read> Thrift<R> {
    fn byte(&mut self) -> Result<u8, String> {
        let mut byte = [0];
        self.input.read_exact(&mut byte).map_err(|_| "its header does not end")?;
        self.bytes += 1;
        Ok(byte[0])
    }

    fn unsigned(&mut self) -> Result<u64, String> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("a number in its header is too long".into())
    }

    /// A number in zigzag code.
    fn number(&mut self) -> Result<i64, String> {
        let value = self.unsigned()?;
        Ok((value >> 1).cast_signed() ^ -((value & 1).cast_signed()))
    }

    /// The next field's number and type; none at the end of a structure. `last` is the number of the one before.
    fn field(&mut self, last: &mut i64) -> Result<Option<(i64, u8)>, String> {
        let byte = self.byte()?;
        if byte == 0 {
            return Ok(None);
        }
        *last = match byte >> 4 {
            0 => self.number()?,
            delta => last.checked_add(delta.into()).ok_or("a field's number is too large")?,
        };
        Ok(Some((*last, byte & 15)))
    }

    /// Reads over a value.
    fn skip(&mut self, kind: u8, depth: usize) -> Result<(), String> {
        if depth > MAX_DEPTH {
            return Err("its header is nested too deeply".into());
        }
        match kind {
            TRUE | FALSE => {}
            BYTE => drop(self.byte()?),
            I16 | I32 | I64 => drop(self.unsigned()?),
            DOUBLE => (0..8).try_for_each(|_| self.byte().map(drop))?,
            BINARY => {
                let len = self.unsigned()?;
                let skipped = io::copy(&mut (&mut self.input).take(len), &mut io::sink());
                if skipped.map_err(|e| e.to_string())? != len {
                    return Err("its header does not end".into());
                }
                self.bytes += len;
            }
            LIST | SET => {
                let head = self.byte()?;
                let (len, kind) = (head >> 4, head & 15);
                let len = if len == 15 { self.unsigned()? } else { len.into() };
                for _ in 0..len {
                    match kind {
                        // A list holds each of them in a byte.
                        TRUE | FALSE => drop(self.byte()?),
                        _ => self.skip(kind, depth + 1)?,
                    }
                }
            }
            STRUCT => {
                let mut last = 0;
                while let Some((_, kind)) = self.field(&mut last)? {
                    self.skip(kind, depth + 1)?;
                }
            }
            other => return Err(format!("its header has a field of type {other}")),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_of_either_version_is_read() {
        // Type 0, 300 bytes unpacked, 20 packed; a structure 5 with a number and a list of two bytes.
        let one = [0x15, 0, 0x15, 0xd8, 0x04, 0x15, 40, 0x2c, 0x15, 2, 0x19, 0x23, 7, 7, 0, 0];
        let header = Header { bytes: 16, packed: 20, unpacked: 300, is_packed: true, levels: 0 };
        assert_eq!(Header::parse(&one[..]).unwrap(), header);
        // The same in version 2, with 3 and 4 bytes of levels, and not packed.
        let two = [0x15, 6, 0x15, 0xd8, 0x04, 0x15, 40, 0x5c, 0x55, 6, 0x15, 8, 0x12, 0, 0];
        let header = Header { bytes: 15, packed: 20, unpacked: 300, is_packed: false, levels: 7 };
        assert_eq!(Header::parse(&two[..]).unwrap(), header);
        for end in 0..one.len() {
            assert!(Header::parse(&one[..end]).is_err(), "{end}");
        }
        // Sizes below 0.
        assert!(Header::parse(&[0x25, 1, 0x15, 1, 0][..]).is_err());
        assert!(Header::parse(&[0x1c; 100][..]).is_err());
    }
}
