//! Texts as llama.cpp's tools take them: tokenized as a whole and cut into chunks of one length.

use std::path::Path;

use crate::error::{Error, Kind, Result};
use crate::source::tokenizer::encoder::Encoder;

/// How a text is cut.
#[derive(Clone, Copy, Debug)]
pub struct Chunking {
    /// Tokens in a chunk.
    pub length: usize,
    /// Chunks at most.
    pub limit: Option<usize>,
    /// Whether special tokens that the text spells out are taken for what they mean.
    pub parse_special: bool,
}

/// Reads a text file as llama.cpp does: one line break at its end does not count.
///
/// # Errors
/// `NotFound`, or `Invalid` if it is empty or not UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path)
        .map_err(|e| Error::io(format!("cannot read the calibration data {}", path.display()), e))?;
    let invalid =
        |why: &str| Error::new(Kind::Invalid, format!("the calibration data {} {why}", path.display()));
    let mut text = String::from_utf8(bytes).map_err(|e| {
        invalid(&format!("is not UTF-8 (byte {})", e.utf8_error().valid_up_to())).hint("Convert it to UTF-8.")
    })?;
    if text.ends_with('\n') {
        text.pop();
    }
    if text.trim().is_empty() {
        return Err(invalid("holds no text"));
    }
    Ok(text)
}

/// Cuts a text into chunks as `llama-imatrix` and `llama-perplexity` do: it is tokenized as a whole, with BOS before it if
/// the model wants one; BOS also takes the place of each chunk's first token; what is left at the end is not used.
///
/// # Errors
/// `Invalid` if the text is shorter than a chunk.
pub fn chunks(encoder: &Encoder, text: &str, chunking: &Chunking) -> Result<Vec<Vec<u32>>> {
    let bos = encoder.bos().filter(|_| encoder.add_bos());
    let encoded =
        if chunking.parse_special { encoder.encode_with_special(text) } else { encoder.encode(text) }?;
    let tokens: Vec<u32> = bos.into_iter().chain(encoded).collect();
    let whole = tokens.chunks_exact(chunking.length.max(1)).take(chunking.limit.unwrap_or(usize::MAX));
    let mut chunks: Vec<Vec<u32>> = whole.map(<[u32]>::to_vec).collect();
    if let Some(bos) = bos {
        chunks.iter_mut().for_each(|chunk| chunk[0] = bos);
    }
    if chunks.is_empty() {
        return Err(Error::new(
            Kind::Invalid,
            format!("the text has {} tokens, less than one chunk of {}", tokens.len(), chunking.length),
        )
        .hint("Take a longer text, or shorter chunks with --ctx."));
    }
    Ok(chunks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::tokenizer::encoder::SpecialTokens;

    fn encoder(add_bos: bool) -> Encoder {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models/tiny-llama");
        let tokenizer = Encoder::open(&dir).unwrap().tokenizer().clone();
        Encoder::new(tokenizer, SpecialTokens { bos: Some(0), add_bos, ..SpecialTokens::default() })
    }

    const TEXT: &str =
        "Call me Ishmael. Some years ago - never mind how long precisely - having little or no money";

    fn cut(add_bos: bool, length: usize, limit: Option<usize>) -> Result<Vec<Vec<u32>>> {
        chunks(&encoder(add_bos), TEXT, &Chunking { length, limit, parse_special: false })
    }

    #[test]
    fn chunks_are_whole_and_in_order() {
        let tokens = encoder(false).encode(TEXT).unwrap();
        let length = 7;
        assert!(!tokens.len().is_multiple_of(length) && tokens.len() > 2 * length);
        let found = cut(false, length, None).unwrap();
        assert_eq!(found.concat(), tokens[..tokens.len() / length * length]);
        assert!(found.iter().all(|chunk| chunk.len() == length));
        assert_eq!(cut(false, length, Some(2)).unwrap(), found[..2]);
    }

    #[test]
    fn bos_takes_the_place_of_each_first_token() {
        let tokens = encoder(true).encode(TEXT).unwrap();
        let found = cut(true, 5, None).unwrap();
        assert_eq!(found[0], [&[0], &tokens[..4]].concat());
        assert_eq!(found[1], [&[0], &tokens[5..9]].concat());
    }

    #[test]
    fn a_text_shorter_than_a_chunk_is_refused() {
        let e = cut(false, 1000, None).unwrap_err();
        assert_eq!(e.kind(), Kind::Invalid, "{e}");
        assert!(e.to_string().contains("1000"), "{e}");
    }

    #[test]
    fn special_tokens_mean_something_only_if_asked_for() {
        let text = TEXT.replace("Ishmael", "<|eos|>");
        let has_eos = |parse_special| {
            let chunking = Chunking { length: 8, limit: None, parse_special };
            chunks(&encoder(false), &text, &chunking).unwrap().concat().contains(&1)
        };
        assert!(!has_eos(false) && has_eos(true));
    }

    #[test]
    fn texts_are_read_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        let read = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            read_text(&path)
        };
        assert_eq!(read(b"a\n\nb\n\n").unwrap(), "a\n\nb\n");
        for bytes in [&b""[..], b" \n\n", b"a\xff"] {
            let e = read(bytes).unwrap_err();
            assert!(e.kind() == Kind::Invalid && e.to_string().contains("a.txt"), "{e}");
        }
        assert_eq!(read_text(&dir.path().join("none")).unwrap_err().kind(), Kind::NotFound);
    }
}
