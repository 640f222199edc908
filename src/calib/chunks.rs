//! Texts as llama.cpp's tools take them: tokenized as a whole and cut into chunks of one length.

use std::ops::ControlFlow;

use super::dataset::chat::ChatTemplate;
use super::dataset::{Dataset, Sample};
use super::rows::spread;
use crate::cancel::Cancel;
use crate::error::{Error, Kind, Result};
use crate::progress::Progress;
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

/// Cuts a data set into chunks as `llama-imatrix` cuts a text file: it is tokenized as a whole, without the line break at its
/// end, with BOS before it if the model wants one; BOS also takes the place of each chunk's first token; what is left at the
/// end is not used. Several samples follow one another with an empty line between them, conversations as the model's chat
/// template has them. Of the built-in text, whose parts differ in kind, a limit takes chunks at equal distances; else the
/// first ones are taken.
///
/// # Errors
/// `Invalid` if the data cannot be read as promised or are shorter than a chunk; what downloads fail with.
pub fn chunks(
    data: &Dataset,
    encoder: &Encoder,
    chunking: &Chunking,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<Vec<Vec<u32>>> {
    let Chunking { length, limit, parse_special } = *chunking;
    let first = limit.filter(|_| !data.is_built_in());
    let wanted = first.map_or(usize::MAX, |limit| limit.saturating_mul(length));
    let bos = encoder.bos().filter(|_| encoder.add_bos());
    let mut tokens: Vec<u32> = bos.into_iter().collect();
    let (mut template, mut samples) = (None, 0);
    for index in data.order(None) {
        let flow = data.read(index, cancel, progress, &mut |sample| {
            cancel.check()?;
            samples += 1;
            tokens.append(&mut match &sample {
                Sample::Text(text) => {
                    let text = text.strip_suffix('\n').unwrap_or(text);
                    let text = if samples > 1 { format!("\n\n{text}") } else { text.to_owned() };
                    match parse_special {
                        true => encoder.encode_with_special(&text)?,
                        false => encoder.encode(&text)?,
                    }
                }
                Sample::Chat(messages) => {
                    if template.is_none() {
                        template = Some(ChatTemplate::of(encoder)?);
                    }
                    let rendered = template.as_ref().map(|template| template.render(messages));
                    let text = rendered.unwrap_or_else(|| Ok(String::new())).map_err(|what| {
                        Error::new(Kind::Invalid, format!("sample {samples}: {what}"))
                            .hint("Check the roles and their order, or name a column of plain text with --text-column.")
                    })?;
                    encoder.encode_with_special(&text)?
                }
            });
            Ok(if tokens.len() < wanted { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })?;
        if flow.is_break() {
            break;
        }
    }
    let mut chunks: Vec<Vec<u32>> =
        tokens.chunks_exact(length.max(1)).take(first.unwrap_or(usize::MAX)).map(<[u32]>::to_vec).collect();
    if let Some(bos) = bos {
        chunks.iter_mut().for_each(|chunk| chunk[0] = bos);
    }
    if chunks.is_empty() {
        return Err(Error::new(
            Kind::Invalid,
            format!("{} has {} tokens, less than one chunk of {length}", data.source(), tokens.len()),
        )
        .hint("Take a longer text, or shorter chunks with --ctx."));
    }
    Ok(match limit.filter(|_| data.is_built_in()) {
        Some(limit) => spread(chunks, limit),
        None => chunks,
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::calib::dataset::Selection;
    use crate::progress::Silent;
    use crate::source::tokenizer::encoder::SpecialTokens;

    fn encoder(add_bos: bool) -> Encoder {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models/tiny-llama");
        let tokenizer = Encoder::open(&dir).unwrap().tokenizer().clone();
        Encoder::new(tokenizer, SpecialTokens { bos: Some(0), add_bos, ..SpecialTokens::default() })
    }

    const TEXT: &str =
        "Call me Ishmael. Some years ago - never mind how long precisely - having little or no money";

    /// Cuts a file of this name.
    fn cut(file: &str, text: &str, add_bos: bool, chunking: &Chunking) -> Result<Vec<Vec<u32>>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(file);
        std::fs::write(&path, text).unwrap();
        let cancel = Cancel::new();
        let data = Dataset::open(path.to_str().unwrap(), Selection::default(), &cancel, &Silent)?;
        chunks(&data, &encoder(add_bos), chunking, &cancel, &Silent)
    }

    fn of(length: usize) -> Chunking {
        Chunking { length, limit: None, parse_special: false }
    }

    #[test]
    fn chunks_are_whole_and_in_order() {
        let tokens = encoder(false).encode(TEXT).unwrap();
        let length = 7;
        assert!(!tokens.len().is_multiple_of(length) && tokens.len() > 2 * length);
        let found = cut("a.txt", &format!("{TEXT}\n"), false, &of(length)).unwrap();
        assert_eq!(found.concat(), tokens[..tokens.len() / length * length]);
        assert!(found.iter().all(|chunk| chunk.len() == length));
        let two = Chunking { limit: Some(2), ..of(length) };
        assert_eq!(cut("a.txt", TEXT, false, &two).unwrap(), found[..2]);
    }

    #[test]
    fn one_line_break_at_the_end_does_not_count() {
        let count = |text: &str| cut("a.txt", text, false, &of(1)).unwrap().len();
        assert_eq!(count("one\n"), count("one"));
        assert!(count("one\n\n") > count("one"));
    }

    #[test]
    fn bos_takes_the_place_of_each_first_token() {
        let tokens = encoder(true).encode(TEXT).unwrap();
        let found = cut("a.txt", TEXT, true, &of(5)).unwrap();
        assert_eq!(found[0], [&[0], &tokens[..4]].concat());
        assert_eq!(found[1], [&[0], &tokens[5..9]].concat());
    }

    #[test]
    fn samples_follow_one_another() {
        let lines = "{\"text\": \"One fish\"}\n{\"text\": \"two fish\"}\n";
        let encoder = encoder(false);
        let expected =
            [encoder.encode("One fish").unwrap(), encoder.encode("\n\ntwo fish").unwrap()].concat();
        assert_eq!(cut("a.jsonl", lines, false, &of(1)).unwrap().concat(), expected);
    }

    #[test]
    fn a_text_shorter_than_a_chunk_is_refused() {
        let e = cut("a.txt", TEXT, false, &of(1000)).unwrap_err();
        assert_eq!(e.kind(), Kind::Invalid, "{e}");
        assert!(e.to_string().contains("1000") && e.to_string().contains("a.txt"), "{e}");
    }

    #[test]
    fn special_tokens_mean_something_only_if_asked_for() {
        let text = TEXT.replace("Ishmael", "<|eos|>");
        let has_eos = |parse_special| {
            cut("a.txt", &text, false, &Chunking { parse_special, ..of(8) }).unwrap().concat().contains(&1)
        };
        assert!(!has_eos(false) && has_eos(true));
    }

    #[test]
    fn few_chunks_of_the_built_in_text_are_from_all_of_it() {
        let (cancel, encoder) = (Cancel::new(), encoder(false));
        let some = |limit| {
            let chunking = Chunking { limit, ..of(64) };
            chunks(&Dataset::built_in(), &encoder, &chunking, &cancel, &Silent).unwrap()
        };
        let (all, few) = (some(None), some(Some(4)));
        assert_eq!(few.len(), 4);
        let place = |chunk: &Vec<u32>| all.iter().position(|other| other == chunk).unwrap();
        assert!(few.windows(2).all(|pair| place(&pair[1]) - place(&pair[0]) > all.len() / 8));
    }
}
