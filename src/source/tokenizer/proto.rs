//! SentencePiece's `.model` file: the few fields of its protocol buffer that a vocabulary needs, read and written.
//!
//! Message and field numbers: `sentencepiece_model.proto` of the SentencePiece project. Unknown fields are
//! skipped, as protocol buffers ask.

use std::path::Path;

use super::json::invalid;
use crate::error::Result;

/// What a piece is, with SentencePiece's own numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PieceKind {
    Normal = 1,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

/// One entry of the vocabulary.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Piece {
    pub(crate) text: Vec<u8>,
    pub(crate) score: f32,
    pub(crate) kind: PieceKind,
}

/// The pieces of the model in `bytes`; `path` is for messages.
pub(crate) fn pieces(bytes: &[u8], path: &Path) -> Result<Vec<Piece>> {
    let mut reader = Reader { bytes, at: 0, base: 0, path };
    let mut pieces = Vec::new();
    while let Some((field, value)) = reader.field()? {
        // ModelProto: 1 pieces, 2 trainer_spec, 3 normalizer_spec, 4 self_test_data, 5 denormalizer_spec.
        if field == 1 {
            let Field::Bytes(inner, base) = value else {
                return Err(reader.broken("piece is no message"));
            };
            pieces.push(piece(Reader { bytes: inner, at: 0, base, path }, pieces.len())?);
        }
    }
    if pieces.is_empty() {
        return Err(invalid(path, "no pieces: not a SentencePiece model"));
    }
    Ok(pieces)
}

fn piece(mut reader: Reader<'_>, index: usize) -> Result<Piece> {
    let mut piece = Piece { text: Vec::new(), score: 0.0, kind: PieceKind::Normal };
    while let Some((field, value)) = reader.field()? {
        match (field, value) {
            (1, Field::Bytes(text, _)) => piece.text = text.to_vec(),
            (2, Field::Fixed32(bits)) => piece.score = f32::from_bits(bits),
            (3, Field::Varint(kind)) => {
                piece.kind = match kind {
                    1 => PieceKind::Normal,
                    2 => PieceKind::Unknown,
                    3 => PieceKind::Control,
                    4 => PieceKind::UserDefined,
                    5 => PieceKind::Unused,
                    6 => PieceKind::Byte,
                    // A closed enum: parsers of proto2 keep the default for a number they don't know.
                    _ => piece.kind,
                }
            }
            (1..=3, _) => return Err(reader.broken("field of a piece has the wrong type")),
            _ => {}
        }
    }
    if piece.text.is_empty() {
        return Err(reader.broken(format!("piece {index} is empty")));
    }
    Ok(piece)
}

/// The file of a BPE model with byte fallback.
///
/// `special` are the ids of the unknown token, of those that begin and end a text, and of padding; -1 is none. `dummy_prefix` says
/// whether a space is put before a text.
pub(crate) fn write(pieces: &[Piece], special: [i32; 4], dummy_prefix: bool) -> Vec<u8> {
    let mut out = Writer::default();
    for piece in pieces {
        let mut inner = Writer::default();
        inner.bytes(1, &piece.text);
        inner.fixed32(2, piece.score.to_bits());
        inner.varint(3, piece.kind as u64);
        out.bytes(1, &inner.0);
    }
    let mut trainer = Writer::default();
    // TrainerSpec: 3 model_type (2 is BPE), 4 vocab_size, 35 byte_fallback, 40 to 43 ids of unk, bos, eos and pad.
    trainer.varint(3, 2);
    trainer.varint(4, pieces.len() as u64);
    trainer.varint(35, 1);
    for (field, id) in (40..).zip(special) {
        // A negative int32 is written as the int64 of its value.
        trainer.varint(field, i64::from(id).cast_unsigned());
    }
    out.bytes(2, &trainer.0);
    let mut normalizer = Writer::default();
    // NormalizerSpec: 1 name, 3 add_dummy_prefix, 4 remove_extra_whitespaces, 5 escape_whitespaces.
    normalizer.bytes(1, b"identity");
    normalizer.varint(3, dummy_prefix.into());
    normalizer.varint(4, 0);
    normalizer.varint(5, 1);
    out.bytes(3, &normalizer.0);
    out.0
}

/// A message in the wire format.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn number(&mut self, mut value: u64) {
        while value > 0x7f {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn varint(&mut self, field: u64, value: u64) {
        self.number(field << 3);
        self.number(value);
    }

    fn fixed32(&mut self, field: u64, bits: u32) {
        self.number(field << 3 | 5);
        self.0.extend(bits.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.number(field << 3 | 2);
        self.number(bytes.len() as u64);
        self.0.extend(bytes);
    }
}

/// A value as the wire format tells it.
enum Field<'a> {
    Varint(u64),
    Fixed64,
    /// The content and where it starts in the file.
    Bytes(&'a [u8], usize),
    Fixed32(u32),
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Where `bytes` starts in the file.
    base: usize,
    path: &'a Path,
}

impl<'a> Reader<'a> {
    fn broken(&self, what: impl std::fmt::Display) -> crate::error::Error {
        invalid(self.path, format!("{what}, at byte {}", self.base + self.at))
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        match self.at.checked_add(n).and_then(|end| self.bytes.get(self.at..end)) {
            Some(part) => {
                self.at += n;
                Ok(part)
            }
            None => Err(self.broken("ends early")),
        }
    }

    fn varint(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = self.take(1)?[0];
            // The tenth byte holds the top bit only; what is above it falls away.
            if shift < 64 {
                value |= u64::from(byte & 0x7f).wrapping_shl(shift);
            }
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.broken("number is too long"))
    }

    /// The next field's number and value, or nothing at the end.
    fn field(&mut self) -> Result<Option<(u64, Field<'a>)>> {
        if self.at == self.bytes.len() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Field::Varint(self.varint()?),
            1 => {
                self.take(8)?;
                Field::Fixed64
            }
            2 => {
                let n = usize::try_from(self.varint()?).map_err(|_| self.broken("length is too large"))?;
                let base = self.base + self.at;
                Field::Bytes(self.take(n)?, base)
            }
            5 => {
                let b = self.take(4)?;
                Field::Fixed32(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            }
            kind => {
                return Err(self.broken(format!("field type {kind} is unknown: not a SentencePiece model")));
            }
        };
        match tag >> 3 {
            0 => Err(self.broken("field number 0: not a SentencePiece model")),
            field => Ok(Some((field, value))),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::error::Kind;

    /// A model with these pieces: text, score, SentencePiece's type number.
    pub(crate) fn model(pieces: &[(&str, f32, u8)]) -> Vec<u8> {
        let mut out = Vec::new();
        for (text, score, kind) in pieces {
            let mut inner = vec![0x0a, text.len() as u8];
            inner.extend(text.as_bytes());
            inner.push(0x15);
            inner.extend(score.to_le_bytes());
            inner.extend([0x18, *kind]);
            out.push(0x0a);
            out.push(inner.len() as u8);
            out.extend(inner);
        }
        // trainer_spec { model_type: BPE }
        out.extend([0x12, 2, 0x18, 2]);
        out
    }

    #[test]
    fn reads_pieces_and_skips_the_rest() {
        let bytes =
            model(&[("<unk>", 0.0, 2), ("▁a", -1.5, 1), ("<0x0A>", -2.0, 6), ("u", 0.0, 4), ("x", 0.0, 5)]);
        let got = pieces(&bytes, Path::new("tokenizer.model")).unwrap();
        assert_eq!(got.len(), 5);
        assert_eq!(got[1], Piece { text: "▁a".into(), score: -1.5, kind: PieceKind::Normal });
        let kinds: Vec<_> = got.iter().map(|p| p.kind).collect();
        assert_eq!(kinds[2..], [PieceKind::Byte, PieceKind::UserDefined, PieceKind::Unused]);
    }

    #[test]
    fn what_is_written_is_read_again() {
        let long = "▁".repeat(100);
        let kinds =
            [PieceKind::Unknown, PieceKind::Control, PieceKind::Normal, PieceKind::Byte, PieceKind::Unused];
        let made: Vec<Piece> = kinds
            .into_iter()
            .zip(["<unk>", "<s>", &long, "<0x0A>", "[PAD4]"])
            .map(|(kind, text)| Piece { text: text.into(), score: -1.5, kind })
            .collect();
        let bytes = write(&made, [0, 1, -1, -1], false);
        assert_eq!(pieces(&bytes, Path::new("tokenizer.model")).unwrap(), made);
    }

    #[test]
    fn every_cut_and_every_changed_byte_is_survived() {
        let bytes = model(&[("<unk>", 0.0, 2), ("abc", -1.5, 1)]);
        let path = Path::new("tokenizer.model");
        for n in 0..bytes.len() {
            let _ = pieces(&bytes[..n], path);
            for v in [0, 0x7f, 0x80, 0xff] {
                let mut changed = bytes.clone();
                changed[n] = v;
                let _ = pieces(&changed, path);
            }
        }
        let e =
            pieces(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01], path).unwrap_err();
        assert_eq!(e.kind(), Kind::Invalid);
        assert!(e.to_string().contains("tokenizer.model") && e.to_string().contains("byte"), "{e}");
        assert!(pieces(b"", path).is_err());
        assert!(pieces(b"version https://git-lfs.github.com/spec/v1\n", path).is_err());
    }
}
