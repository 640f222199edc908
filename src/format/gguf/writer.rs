//! Writes GGUF v3: the header first, then each tensor's bytes as they are made.

use std::io::{self, Write};

use super::metadata::{Array, Metadata, Value};
use super::reader::{DEFAULT_ALIGNMENT, MAGIC, TensorInfo};
use super::types::GgmlType;

/// What a file will hold: everything but the tensors' bytes. Sizes and offsets are known before any work is done.
#[derive(Clone, Debug)]
pub struct Layout {
    header: Vec<u8>,
    tensors: Vec<TensorInfo>,
    file_bytes: u64,
}

impl Layout {
    /// Lays out a file. `tensors` are name, shape (row length first) and type, in the file's order.
    ///
    /// # Panics
    /// If a tensor's row length is no multiple of its type's block length; the caller chooses types that fit.
    pub fn new(
        metadata: &Metadata,
        tensors: impl IntoIterator<Item = (String, Vec<u64>, GgmlType)>,
    ) -> Layout {
        let mut infos = Vec::new();
        let mut offset = 0u64;
        for (name, shape, ty) in tensors {
            let bytes = ty.bytes_for(shape.iter().product()).expect("a type that fits the shape");
            infos.push(TensorInfo { name, shape, ty, offset });
            offset += bytes.next_multiple_of(DEFAULT_ALIGNMENT);
        }
        let mut header = Vec::new();
        header.extend_from_slice(MAGIC);
        header.extend_from_slice(&3u32.to_le_bytes());
        header.extend_from_slice(&(infos.len() as u64).to_le_bytes());
        header.extend_from_slice(&(metadata.len() as u64).to_le_bytes());
        for (key, value) in metadata.iter() {
            put_bytes(&mut header, key.as_bytes());
            put_value(&mut header, value);
        }
        for t in &infos {
            put_bytes(&mut header, t.name.as_bytes());
            header.extend_from_slice(&(t.shape.len() as u32).to_le_bytes());
            for d in &t.shape {
                header.extend_from_slice(&d.to_le_bytes());
            }
            header.extend_from_slice(&(t.ty as u32).to_le_bytes());
            header.extend_from_slice(&t.offset.to_le_bytes());
        }
        header.resize(header.len().next_multiple_of(DEFAULT_ALIGNMENT as usize), 0);
        let file_bytes = header.len() as u64 + offset;
        Layout { header, tensors: infos, file_bytes }
    }

    /// The bytes before the tensors.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// The tensors with their offsets.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// Size of the finished file.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }
}

/// Writes one file in order: the header, then every tensor's bytes in as many pieces as the caller likes.
pub struct Writer<W: Write> {
    out: W,
    layout: Layout,
    current: usize,
    /// Bytes of the current tensor.
    written: u64,
    /// Bytes of the file.
    position: u64,
}

impl<W: Write> Writer<W> {
    /// Writes the header.
    pub fn new(mut out: W, layout: Layout) -> io::Result<Self> {
        out.write_all(&layout.header)?;
        let position = layout.header.len() as u64;
        Ok(Writer { out, layout, current: 0, written: 0, position })
    }

    /// Writes the next bytes of the current tensor. A piece never crosses into the next tensor.
    ///
    /// # Panics
    /// If more bytes come than the layout has room for.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let size = self.layout.tensors[self.current].bytes();
        self.written += bytes.len() as u64;
        assert!(self.written <= size, "piece crosses the end of {}", self.layout.tensors[self.current].name);
        self.out.write_all(bytes)?;
        self.position += bytes.len() as u64;
        if self.written == size {
            let padding = size.next_multiple_of(DEFAULT_ALIGNMENT) - size;
            self.out.write_all(&[0; DEFAULT_ALIGNMENT as usize][..padding as usize])?;
            self.position += padding;
            self.current += 1;
            self.written = 0;
        }
        Ok(())
    }

    /// Bytes of the file that are written.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The stream that is written to.
    pub fn get_ref(&self) -> &W {
        &self.out
    }

    /// Ends the file and gives the stream back.
    ///
    /// # Panics
    /// If a tensor's bytes are missing.
    pub fn finish(mut self) -> io::Result<W> {
        assert_eq!(self.current, self.layout.tensors.len(), "all tensors are written");
        self.out.flush()?;
        Ok(self.out)
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    macro_rules! number {
        ($id:expr, $v:expr) => {{
            out.extend_from_slice(&u32::to_le_bytes($id));
            out.extend_from_slice(&$v.to_le_bytes());
        }};
    }
    match value {
        Value::U8(v) => number!(0, v),
        Value::I8(v) => number!(1, v),
        Value::U16(v) => number!(2, v),
        Value::I16(v) => number!(3, v),
        Value::U32(v) => number!(4, v),
        Value::I32(v) => number!(5, v),
        Value::F32(v) => number!(6, v),
        Value::Bool(v) => number!(7, u8::from(*v)),
        Value::Str(v) => {
            out.extend_from_slice(&8u32.to_le_bytes());
            put_bytes(out, v);
        }
        Value::Array(v) => {
            out.extend_from_slice(&9u32.to_le_bytes());
            put_array(out, v);
        }
        Value::U64(v) => number!(10, v),
        Value::I64(v) => number!(11, v),
        Value::F64(v) => number!(12, v),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    macro_rules! numbers {
        ($id:expr, $list:expr) => {{
            out.extend_from_slice(&u32::to_le_bytes($id));
            out.extend_from_slice(&($list.len() as u64).to_le_bytes());
            for v in $list {
                out.extend_from_slice(&v.to_le_bytes());
            }
        }};
    }
    match array {
        Array::U8(v) => numbers!(0, v),
        Array::I8(v) => numbers!(1, v),
        Array::U16(v) => numbers!(2, v),
        Array::I16(v) => numbers!(3, v),
        Array::U32(v) => numbers!(4, v),
        Array::I32(v) => numbers!(5, v),
        Array::F32(v) => numbers!(6, v),
        Array::Bool(v) => {
            out.extend_from_slice(&7u32.to_le_bytes());
            out.extend_from_slice(&(v.len() as u64).to_le_bytes());
            out.extend(v.iter().map(|b| u8::from(*b)));
        }
        Array::Str(v) => {
            out.extend_from_slice(&8u32.to_le_bytes());
            out.extend_from_slice(&(v.len() as u64).to_le_bytes());
            for s in v {
                put_bytes(out, s);
            }
        }
        Array::U64(v) => numbers!(10, v),
        Array::I64(v) => numbers!(11, v),
        Array::F64(v) => numbers!(12, v),
    }
}

#[cfg(test)]
mod tests {
    use super::super::reader::Header;
    use super::*;
    use proptest::prelude::*;

    fn value() -> impl Strategy<Value = Value> {
        prop_oneof![
            any::<u8>().prop_map(Value::U8),
            any::<i64>().prop_map(Value::I64),
            (-1e30f32..1e30).prop_map(Value::F32),
            any::<bool>().prop_map(Value::Bool),
            prop::collection::vec(any::<u8>(), 0..40).prop_map(Value::Str),
            prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9), 0..20)
                .prop_map(|v| Value::Array(Array::Str(v))),
            prop::collection::vec(any::<i32>(), 0..20).prop_map(|v| Value::Array(Array::I32(v))),
            prop::collection::vec(any::<bool>(), 0..20).prop_map(|v| Value::Array(Array::Bool(v))),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(values in prop::collection::vec(value(), 0..20), rows in 1u64..9) {
            let mut metadata = Metadata::new();
            for (i, v) in values.into_iter().enumerate() {
                metadata.set(format!("key.{i}"), v);
            }
            let tensors = vec![
                ("a.weight".to_string(), vec![256, rows], GgmlType::Q4_K),
                ("b".to_string(), vec![rows], GgmlType::F32),
            ];
            let layout = Layout::new(&metadata, tensors);
            let total = layout.file_bytes();
            let infos = layout.tensors().to_vec();
            let mut writer = Writer::new(Vec::new(), layout).unwrap();
            for t in &infos {
                writer.write(&vec![7; t.bytes() as usize]).unwrap();
            }
            let bytes = writer.finish().unwrap();
            prop_assert_eq!(bytes.len() as u64, total);
            let header = Header::parse(&bytes).unwrap();
            prop_assert_eq!(&header.metadata, &metadata);
            prop_assert_eq!(&header.tensors, &infos);
        }

        #[test]
        fn no_prefix_and_no_flipped_byte_is_a_panic(cut in 0usize..400, at in 0usize..400, flip in 1u8..) {
            let mut metadata = Metadata::new();
            metadata.set("general.architecture", "llama");
            metadata.set("list", Value::Array(Array::Str(vec![b"x".to_vec(); 5])));
            let layout = Layout::new(&metadata, vec![("t.weight".to_string(), vec![32, 2], GgmlType::Q8_0)]);
            let mut writer = Writer::new(Vec::new(), layout).unwrap();
            writer.write(&[0; 68]).unwrap();
            let mut bytes = writer.finish().unwrap();
            let n = bytes.len();
            let _ = Header::parse(&bytes[..cut.min(n)]);
            bytes[at % n] ^= flip;
            let _ = Header::parse(&bytes);
        }
    }
}
