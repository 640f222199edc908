//! Reads GGUF v2 and v3. The file comes from a stranger: everything is bounds-checked before it is used, and nothing is
//! allocated for what the file does not hold.
//!
//! Layout: `docs/gguf.md` of ggml. Magic `GGUF`, u32 version, u64 tensor count, u64 key count, the keys, the tensor
//! infos (name, dimensions, type, offset), padding to `general.alignment`, the data. All numbers are little-endian.

use std::collections::HashSet;
use std::path::Path;

use super::metadata::{Array, Metadata, Value};
use super::types::GgmlType;
use crate::error::{Kind, Result};
use crate::source::mmap::Map;

/// The first four bytes.
pub const MAGIC: &[u8; 4] = b"GGUF";
/// Where tensors start unless `general.alignment` says otherwise, and what we write.
pub const DEFAULT_ALIGNMENT: u64 = 32;
/// ggml's `GGML_MAX_NAME`, with its terminating zero.
const MAX_NAME: usize = 64;
/// ggml's `GGML_MAX_DIMS`.
const MAX_DIMS: usize = 4;

/// Bytes that a header may take, in memory and in the file together; that of the largest vocabulary that is published takes
/// 50 MB. A file may be as long as it likes, and what it claims costs nothing.
const MAX_HEADER: usize = 64 << 20;
/// What a string or a tensor takes beside its text, and what a key does.
const PER_ENTRY: usize = 48;
const PER_KEY: usize = 1024;

/// One way in which a file fails to be GGUF; `at` is the byte offset.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error("not a GGUF file: it starts with {found:02x?} instead of 'GGUF'")]
    Magic { found: Vec<u8> },
    #[error("GGUF version {0} is not supported (2 and 3 are)")]
    Version(u32),
    #[error("the file is big-endian, which is not supported")]
    BigEndian,
    #[error("byte {at}: the file ends in the middle of {what}")]
    Truncated { at: usize, what: &'static str },
    #[error("byte {at}: {what} {count} cannot be, the file has {left} bytes left")]
    Count { at: usize, what: &'static str, count: u64, left: usize },
    #[error("byte {at}: the header takes more than {MAX_HEADER} bytes")]
    Header { at: usize },
    #[error("byte {at}: {what} is not valid UTF-8")]
    Text { at: usize, what: &'static str },
    #[error("byte {at}: key '{key}' appears twice")]
    DuplicateKey { at: usize, key: String },
    #[error("byte {at}: key '{key}' is {len} bytes long (1 to 65535 are allowed)")]
    KeyLength { at: usize, key: String, len: usize },
    #[error("byte {at}: key '{key}' has unknown value type {kind}")]
    ValueType { at: usize, key: String, kind: u32 },
    #[error("byte {at}: key '{key}' holds an array of arrays")]
    NestedArray { at: usize, key: String },
    #[error("byte {at}: key '{key}' holds the boolean {value}, which is neither 0 nor 1")]
    Bool { at: usize, key: String, value: u8 },
    #[error("general.alignment must be a power of two of type uint32 up to 65536, found {0}")]
    Alignment(String),
    #[error("byte {at}: tensor '{name}' appears twice")]
    DuplicateTensor { at: usize, name: String },
    #[error("byte {at}: tensor name of {len} bytes; ggml allows 1 to 63")]
    TensorName { at: usize, len: usize },
    #[error("byte {at}: tensor '{name}' has {dims} dimensions; 1 to 4 are allowed")]
    Dims { at: usize, name: String, dims: u32 },
    #[error("byte {at}: tensor '{name}' has a dimension of 0 or a size that overflows: {shape:?}")]
    Shape { at: usize, name: String, shape: Vec<u64> },
    #[error("byte {at}: tensor '{name}' has unknown type {kind}")]
    TensorType { at: usize, name: String, kind: u32 },
    #[error(
        "byte {at}: rows of tensor '{name}' have {cols} weights, which is no multiple of {block} (type {ty})"
    )]
    RowLength { at: usize, name: String, cols: u64, block: usize, ty: GgmlType },
    #[error("tensor '{name}' starts at byte {offset} of the data, where {expected} is due")]
    Offset { name: String, offset: u64, expected: u64 },
    #[error("tensor '{name}' reaches to byte {end}, the file has {file}")]
    PastEnd { name: String, end: u64, file: u64 },
    #[error("the file has {0} bytes after its last tensor")]
    Trailing(u64),
}

impl From<Error> for crate::error::Error {
    fn from(e: Error) -> Self {
        let kind = match e {
            Error::Version(_) | Error::BigEndian => Kind::Unsupported,
            _ => Kind::Invalid,
        };
        crate::error::Error::new(kind, e.to_string())
    }
}

/// Where one tensor lies and what it is.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Innermost dimension (a row's length) first, as in ggml.
    pub shape: Vec<u64>,
    /// How its weights are stored.
    pub ty: GgmlType,
    /// From the start of the data section.
    pub offset: u64,
}

impl TensorInfo {
    /// Number of weights.
    pub fn len(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Whether it holds no weights; never so in a validated file.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of its data.
    pub fn bytes(&self) -> u64 {
        self.ty.bytes_for(self.len()).expect("validated when the file was opened")
    }
}

/// A header that has been parsed and checked against itself.
#[derive(Debug)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// The key-value part.
    pub metadata: Metadata,
    /// The tensors in the file's order.
    pub tensors: Vec<TensorInfo>,
    /// Alignment of tensors.
    pub alignment: u64,
    /// Where the data starts.
    pub data_start: u64,
}

/// An open, validated GGUF file.
#[derive(Debug)]
pub struct Reader {
    map: Map,
    header: Header,
}

impl Reader {
    /// Opens and validates a file, its sizes and offsets included.
    pub fn open(path: &Path) -> Result<Reader> {
        let map = Map::open(path)?;
        let named = |e: Error| -> crate::error::Error {
            let plain = crate::error::Error::from(e);
            crate::error::Error::new(plain.kind(), format!("{}: {plain}", path.display()))
        };
        let header = Header::parse(&map).map_err(named)?;
        header.check_data(map.len() as u64).map_err(named)?;
        Ok(Reader { map, header })
    }

    /// The key-value part.
    pub fn metadata(&self) -> &Metadata {
        &self.header.metadata
    }

    /// The tensors in the file's order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.header.tensors
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.header.tensors.iter().find(|t| t.name == name)
    }

    /// The bytes of one of this file's tensors.
    pub fn data(&self, tensor: &TensorInfo) -> &[u8] {
        let start = (self.header.data_start + tensor.offset) as usize;
        &self.map[start..start + tensor.bytes() as usize]
    }

    /// Everything in the header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Size of the file.
    pub fn file_bytes(&self) -> u64 {
        self.map.len() as u64
    }
}

impl Header {
    /// Parses a header; `bytes` is the whole file or at least its header.
    pub fn parse(bytes: &[u8]) -> Result<Header, Error> {
        let mut c = Cursor { bytes, at: 0, taken: 0 };
        let magic = c
            .take(4, "the magic")
            .map_err(|_| Error::Magic { found: bytes[..bytes.len().min(4)].to_vec() })?;
        if magic != MAGIC {
            return Err(Error::Magic { found: magic.to_vec() });
        }
        let version = c.u32("the version")?;
        match version {
            2 | 3 => {}
            v if matches!(v.swap_bytes(), 2 | 3) => return Err(Error::BigEndian),
            v => return Err(Error::Version(v)),
        }
        let (tensor_count, key_count) = (c.u64("the tensor count")?, c.u64("the key count")?);
        // The smallest tensor info takes 8 + 1 + 4 + 8 + 4 + 8 bytes, the smallest key 8 + 1 + 4 + 1.
        let tensor_count = c.count(tensor_count, 33, "tensor count")?;
        let key_count = c.count(key_count, 14, "key count")?;

        let mut metadata = Metadata::new();
        let mut seen = HashSet::new();
        for _ in 0..key_count {
            let at = c.at;
            c.charge(1, PER_KEY / 2)?;
            let key = c.text("a key")?;
            if key.is_empty() || key.len() > 65535 {
                let len = key.len();
                return Err(Error::KeyLength { at, key: key.chars().take(40).collect(), len });
            }
            if !seen.insert(key.clone()) {
                return Err(Error::DuplicateKey { at, key });
            }
            let value = c.value(&key)?;
            metadata.push_unchecked(key, value);
        }
        let alignment = match metadata.get("general.alignment") {
            None => DEFAULT_ALIGNMENT,
            Some(Value::U32(a)) if a.is_power_of_two() && *a <= 65536 => u64::from(*a),
            Some(other) => return Err(Error::Alignment(format!("{other:?}"))),
        };

        // Not as many as are claimed: memory is taken for what is there.
        let mut tensors = Vec::new();
        let mut names = HashSet::new();
        for _ in 0..tensor_count {
            let tensor = c.tensor()?;
            if !names.insert(tensor.name.clone()) {
                return Err(Error::DuplicateTensor { at: c.at, name: tensor.name });
            }
            tensors.push(tensor);
        }
        let data_start = (c.at as u64).next_multiple_of(alignment);
        Ok(Header { version, metadata, tensors, alignment, data_start })
    }

    /// Checks that the tensors follow each other without gaps or overlaps and end where the file does, as
    /// `gguf_init_from_file` demands.
    fn check_data(&self, file: u64) -> Result<(), Error> {
        let mut expected = 0u64;
        let mut end = self.data_start;
        for t in &self.tensors {
            if t.offset != expected {
                return Err(Error::Offset { name: t.name.clone(), offset: t.offset, expected });
            }
            let past = || Error::PastEnd { name: t.name.clone(), end: u64::MAX, file };
            end = self
                .data_start
                .checked_add(t.offset)
                .and_then(|e| e.checked_add(t.bytes()))
                .ok_or_else(past)?;
            if end > file {
                return Err(Error::PastEnd { name: t.name.clone(), end, file });
            }
            expected = (t.offset + t.bytes()).checked_next_multiple_of(self.alignment).ok_or_else(past)?;
        }
        // llama.cpp pads the last tensor too; other writers do not.
        let padded = end.next_multiple_of(self.alignment);
        if file > padded.max(self.data_start) {
            return Err(Error::Trailing(file - end));
        }
        Ok(())
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Of [`MAX_HEADER`].
    taken: usize,
}

impl<'a> Cursor<'a> {
    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, n: usize, what: &'static str) -> Result<&'a [u8], Error> {
        if n > self.left() {
            return Err(Error::Truncated { at: self.at, what });
        }
        let slice = &self.bytes[self.at..self.at + n];
        self.at += n;
        Ok(slice)
    }

    /// Takes notice of `n` things of `size` bytes each, of which there is a copy in memory.
    fn charge(&mut self, n: usize, size: usize) -> Result<(), Error> {
        self.taken = n.saturating_mul(2 * size).saturating_add(self.taken);
        if self.taken > MAX_HEADER { Err(Error::Header { at: self.at }) } else { Ok(()) }
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Error> {
        Ok(self.take(N, what)?.try_into().expect("take gives N bytes"))
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, Error> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, Error> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// `n` things of at least `size` bytes each must fit in what is left.
    fn count(&self, n: u64, size: usize, what: &'static str) -> Result<usize, Error> {
        match usize::try_from(n) {
            Ok(count) if count <= self.left() / size => Ok(count),
            _ => Err(Error::Count { at: self.at, what, count: n, left: self.left() }),
        }
    }

    fn bytes_with_length(&mut self, what: &'static str) -> Result<&'a [u8], Error> {
        let n = self.u64(what)?;
        let n = self.count(n, 1, "string length")?;
        self.charge(1, n + PER_ENTRY / 2)?;
        self.take(n, what)
    }

    fn text(&mut self, what: &'static str) -> Result<String, Error> {
        let at = self.at;
        let bytes = self.bytes_with_length(what)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| Error::Text { at, what })
    }

    fn bool(&mut self, key: &str) -> Result<bool, Error> {
        let at = self.at;
        match self.take(1, "a value")?[0] {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(Error::Bool { at, key: key.into(), value }),
        }
    }

    fn value(&mut self, key: &str) -> Result<Value, Error> {
        const V: &str = "a value";
        let at = self.at;
        Ok(match self.u32("a value type")? {
            0 => Value::U8(u8::from_le_bytes(self.array(V)?)),
            1 => Value::I8(i8::from_le_bytes(self.array(V)?)),
            2 => Value::U16(u16::from_le_bytes(self.array(V)?)),
            3 => Value::I16(i16::from_le_bytes(self.array(V)?)),
            4 => Value::U32(u32::from_le_bytes(self.array(V)?)),
            5 => Value::I32(i32::from_le_bytes(self.array(V)?)),
            6 => Value::F32(f32::from_le_bytes(self.array(V)?)),
            7 => Value::Bool(self.bool(key)?),
            8 => Value::Str(self.bytes_with_length(V)?.to_vec()),
            9 => Value::Array(self.list(key)?),
            10 => Value::U64(u64::from_le_bytes(self.array(V)?)),
            11 => Value::I64(i64::from_le_bytes(self.array(V)?)),
            12 => Value::F64(f64::from_le_bytes(self.array(V)?)),
            kind => return Err(Error::ValueType { at, key: key.into(), kind }),
        })
    }

    fn list(&mut self, key: &str) -> Result<Array, Error> {
        let at = self.at;
        let kind = self.u32("an array's type")?;
        let n = self.u64("an array's length")?;
        macro_rules! numbers {
            ($variant:ident, $t:ty) => {{
                const SIZE: usize = size_of::<$t>();
                let n = self.count(n, SIZE, "array length")?;
                self.charge(n, SIZE)?;
                let bytes = self.take(n * SIZE, "an array")?;
                let parse = |c: &[u8]| <$t>::from_le_bytes(c.try_into().expect("chunks of SIZE"));
                Array::$variant(bytes.chunks_exact(SIZE).map(parse).collect())
            }};
        }
        Ok(match kind {
            0 => numbers!(U8, u8),
            1 => numbers!(I8, i8),
            2 => numbers!(U16, u16),
            3 => numbers!(I16, i16),
            4 => numbers!(U32, u32),
            5 => numbers!(I32, i32),
            6 => numbers!(F32, f32),
            7 => {
                let n = self.count(n, 1, "array length")?;
                self.charge(n, 1)?;
                Array::Bool((0..n).map(|_| self.bool(key)).collect::<Result<_, _>>()?)
            }
            8 => {
                let n = self.count(n, 8, "array length")?;
                // Of what is claimed, no more than may be there.
                let mut list = Vec::with_capacity(n.min((MAX_HEADER - self.taken) / PER_ENTRY));
                for _ in 0..n {
                    list.push(self.bytes_with_length("a string of an array")?.to_vec());
                }
                Array::Str(list)
            }
            9 => return Err(Error::NestedArray { at, key: key.into() }),
            10 => numbers!(U64, u64),
            11 => numbers!(I64, i64),
            12 => numbers!(F64, f64),
            kind => return Err(Error::ValueType { at, key: key.into(), kind }),
        })
    }

    fn tensor(&mut self) -> Result<TensorInfo, Error> {
        let at = self.at;
        let name = self.text("a tensor's name")?;
        if name.is_empty() || name.len() >= MAX_NAME {
            return Err(Error::TensorName { at, len: name.len() });
        }
        // Its name is kept twice.
        self.charge(2, PER_ENTRY + name.len())?;
        let dims = self.u32("a tensor's dimensions")?;
        if dims == 0 || dims as usize > MAX_DIMS {
            return Err(Error::Dims { at, name, dims });
        }
        let mut shape = Vec::with_capacity(dims as usize);
        for _ in 0..dims {
            shape.push(self.u64("a tensor's shape")?);
        }
        let kind = self.u32("a tensor's type")?;
        let offset = self.u64("a tensor's offset")?;
        let Some(ty) = GgmlType::from_id(kind) else { return Err(Error::TensorType { at, name, kind }) };
        // i64::MAX is ggml's own bound on the number of weights.
        let total =
            shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d)).filter(|n| *n > 0 && *n <= i64::MAX as u64);
        let Some(total) = total else { return Err(Error::Shape { at, name, shape }) };
        if !shape[0].is_multiple_of(ty.block_len() as u64) {
            return Err(Error::RowLength { at, name, cols: shape[0], block: ty.block_len(), ty });
        }
        if ty.bytes_for(total).is_none() {
            return Err(Error::Shape { at, name, shape });
        }
        Ok(TensorInfo { name, shape, ty, offset })
    }
}
