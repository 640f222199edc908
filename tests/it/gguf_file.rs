//! A parser of GGUF that shares nothing with the program's: it panics at the first thing that is not as it should be.

use std::path::Path;

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Int(i128),
    F32(f32),
    F64(f64),
    Bool(bool),
    Str(Vec<u8>),
    List(Vec<Value>),
}

/// A tensor with its bytes.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    /// Row length first.
    pub(crate) shape: Vec<u64>,
    pub(crate) ty: &'static str,
    pub(crate) data: Vec<u8>,
}

/// A whole file.
#[derive(Clone, Debug)]
pub(crate) struct File {
    pub(crate) version: u32,
    /// With the id of each value's type.
    pub(crate) metadata: Vec<(String, u32, Value)>,
    pub(crate) tensors: Vec<Tensor>,
}

/// Id, name, weights and bytes of a block; from `ggml.h` and gguf-py's `GGML_QUANT_SIZES`.
const TYPES: &[(u32, &str, u64, u64)] = &[
    (0, "F32", 1, 4),
    (1, "F16", 1, 2),
    (2, "Q4_0", 32, 2 + 16),
    (3, "Q4_1", 32, 2 + 2 + 16),
    (6, "Q5_0", 32, 2 + 4 + 16),
    (7, "Q5_1", 32, 2 + 2 + 4 + 16),
    (8, "Q8_0", 32, 2 + 32),
    (10, "Q2_K", 256, 2 + 2 + 256 / 16 + 256 / 4),
    (11, "Q3_K", 256, 2 + 256 / 4 + 256 / 8 + 12),
    (12, "Q4_K", 256, 2 + 2 + 256 / 2 + 12),
    (13, "Q5_K", 256, 2 + 2 + 256 / 2 + 256 / 8 + 12),
    (14, "Q6_K", 256, 2 + 256 / 2 + 256 / 4 + 256 / 16),
    (20, "IQ4_NL", 32, 2 + 16),
    (23, "IQ4_XS", 256, 2 + 2 + 256 / 2 + 256 / 64),
    (30, "BF16", 1, 2),
    (34, "TQ1_0", 256, 2 + 4 * 13),
    (35, "TQ2_0", 256, 2 + 64),
];

/// Bits that one weight of the type takes.
pub(crate) fn bits(ty: &str) -> f64 {
    let (_, _, weights, bytes) = TYPES.iter().find(|t| t.1 == ty).expect("a type of the table");
    (bytes * 8) as f64 / *weights as f64
}

impl File {
    pub(crate) fn open(path: &Path) -> File {
        File::parse(&std::fs::read(path).unwrap())
    }

    pub(crate) fn parse(bytes: &[u8]) -> File {
        let mut c = Cursor { bytes, at: 0 };
        assert_eq!(c.take(4), b"GGUF");
        let version = c.u32();
        let (tensor_count, key_count) = (c.u64(), c.u64());
        let mut metadata: Vec<(String, u32, Value)> = Vec::new();
        for _ in 0..key_count {
            let key = String::from_utf8(c.string()).unwrap();
            let kind = c.u32();
            let value = c.value(kind);
            assert!(!metadata.iter().any(|(k, ..)| *k == key), "{key} appears twice");
            metadata.push((key, kind, value));
        }
        let infos: Vec<_> = (0..tensor_count)
            .map(|_| {
                let name = String::from_utf8(c.string()).unwrap();
                let dims = c.u32();
                let shape: Vec<u64> = (0..dims).map(|_| c.u64()).collect();
                (name, shape, c.u32(), c.u64())
            })
            .collect();
        c.align();
        let data_start = c.at;
        let mut tensors = Vec::new();
        for (name, shape, id, offset) in infos {
            assert_eq!(data_start as u64 + offset, c.at as u64, "{name} follows the tensor before");
            let (_, ty, block, bytes) = *TYPES.iter().find(|t| t.0 == id).expect("a known type");
            assert_eq!(shape[0] % block, 0, "rows of {name} are whole blocks");
            let len = shape.iter().product::<u64>() / block * bytes;
            let data = c.take(len as usize).to_vec();
            c.align();
            tensors.push(Tensor { name, shape, ty, data });
        }
        assert_eq!(c.at, bytes.len(), "the file ends with the padding of its last tensor");
        File { version, metadata, tensors }
    }

    #[track_caller]
    pub(crate) fn tensor(&self, name: &str) -> &Tensor {
        self.tensors.iter().find(|t| t.name == name).unwrap_or_else(|| panic!("there is no tensor {name}"))
    }

    /// The type of a tensor.
    #[track_caller]
    pub(crate) fn ty(&self, name: &str) -> &'static str {
        self.tensor(name).ty
    }

    /// The type and the value of a key.
    pub(crate) fn key(&self, key: &str) -> Option<(u32, &Value)> {
        self.metadata.iter().find(|(k, ..)| k == key).map(|(_, kind, value)| (*kind, value))
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> &'a [u8] {
        let taken = &self.bytes[self.at..self.at + n];
        self.at += n;
        taken
    }

    /// Goes to the next multiple of the default alignment, over zeros.
    fn align(&mut self) {
        while !self.at.is_multiple_of(32) {
            assert_eq!(self.take(1), [0], "padding is zero");
        }
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        self.take(N).try_into().unwrap()
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    fn string(&mut self) -> Vec<u8> {
        let n = self.u64();
        self.take(n as usize).to_vec()
    }

    fn value(&mut self, kind: u32) -> Value {
        match kind {
            0 => Value::Int(u8::from_le_bytes(self.array()).into()),
            1 => Value::Int(i8::from_le_bytes(self.array()).into()),
            2 => Value::Int(u16::from_le_bytes(self.array()).into()),
            3 => Value::Int(i16::from_le_bytes(self.array()).into()),
            4 => Value::Int(self.u32().into()),
            5 => Value::Int(i32::from_le_bytes(self.array()).into()),
            6 => Value::F32(f32::from_le_bytes(self.array())),
            7 => Value::Bool(match self.array::<1>()[0] {
                0 => false,
                1 => true,
                n => panic!("the boolean {n}"),
            }),
            8 => Value::Str(self.string()),
            9 => {
                let (kind, n) = (self.u32(), self.u64());
                Value::List((0..n).map(|_| self.value(kind)).collect())
            }
            10 => Value::Int(self.u64().into()),
            11 => Value::Int(i64::from_le_bytes(self.array()).into()),
            12 => Value::F64(f64::from_le_bytes(self.array())),
            other => panic!("value type {other}"),
        }
    }
}

impl Value {
    /// The text that Python's `json.dumps` gives.
    pub(crate) fn json(&self) -> String {
        match self {
            Value::Int(n) => n.to_string(),
            Value::F32(f) => python_float(f64::from(*f)),
            Value::F64(f) => python_float(*f),
            Value::Bool(b) => b.to_string(),
            Value::Str(bytes) => python_string(&String::from_utf8_lossy(bytes)),
            Value::List(list) => {
                let items: Vec<String> = list.iter().map(Value::json).collect();
                format!("[{}]", items.join(", "))
            }
        }
    }
}

/// Python's `repr` of a float: the shortest digits, with an exponent below 1e-4 and from 1e16.
fn python_float(f: f64) -> String {
    let scientific = format!("{f:e}");
    let (digits, exponent) = scientific.split_once('e').expect("a finite number");
    let exponent: i32 = exponent.parse().unwrap();
    if (-4..16).contains(&exponent) {
        return format!("{f:?}");
    }
    format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

/// A string in ASCII, other characters as UTF-16 escapes.
fn python_string(s: &str) -> String {
    let mut out = String::from('"');
    for c in s.chars() {
        match c {
            '"' => out += "\\\"",
            '\\' => out += "\\\\",
            '\n' => out += "\\n",
            '\r' => out += "\\r",
            '\t' => out += "\\t",
            '\u{8}' => out += "\\b",
            '\u{c}' => out += "\\f",
            ' '..='~' => out.push(c),
            _ => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out += &format!("\\u{unit:04x}")),
        }
    }
    out + "\""
}

#[test]
fn lists_are_written_as_python_does() {
    let floats = [1.0, -0.0, 1e-5, 1.5e-4, 1e15, 1e16, 1.25e22, 0.1];
    let list = Value::List(floats.map(Value::F64).to_vec());
    assert_eq!(list.json(), "[1.0, -0.0, 1e-05, 0.00015, 1000000000000000.0, 1e+16, 1.25e+22, 0.1]");
    assert_eq!(Value::F32(1e-5).json(), "9.999999747378752e-06");
    let text = Value::Str("a\"\\\n\u{7f}\u{120}\u{1f600}/".into());
    assert_eq!(text.json(), r#""a\"\\\n\u007f\u0120\ud83d\ude00/""#);
}
