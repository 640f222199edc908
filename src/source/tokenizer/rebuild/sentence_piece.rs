//! SentencePiece as llama.cpp computes it (`llm_tokenizer_spm`): neighbours are merged if they make a token, the one with
//! the highest score first, and what is no token in the end becomes bytes.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use super::super::proto::{self, Piece, PieceKind};
use super::Parts;
use crate::error::{Error, Kind, Result};
use crate::source::vocab::{TokenType, Vocab};

/// SentencePiece's mark for a space.
const MARK: char = '\u{2581}';

/// The longest token, in bytes: the ways to make one grow with the square of its length. SentencePiece's own limit is 16
/// characters unless the trainer asks for more.
const LONGEST: usize = 512;

/// The parts of a tokenizer with these scores.
///
/// # Errors
/// `Unsupported` if a token is too long, or scores do not tell the tokens apart: the library ranks pairs and has no way to
/// take the leftmost of equals.
pub(super) fn parts(
    vocab: &Vocab,
    scores: &[f32],
    ids: &HashMap<&str, u32>,
    warnings: &mut Vec<String>,
) -> Result<Parts> {
    let mut pairs: Vec<(f32, u32, &str, &str)> = Vec::new();
    let mut merged = HashSet::new();
    for (text, id) in ids {
        if text.len() > LONGEST {
            return Err(Error::new(
                Kind::Unsupported,
                format!("token {id} is {} bytes long; at most {LONGEST} are supported", text.len()),
            ));
        }
        for (at, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(at);
            if ids.contains_key(left) && ids.contains_key(right) {
                pairs.push((scores[*id as usize], *id, left, right));
                if vocab.types[*id as usize] == TokenType::Normal {
                    merged.insert(*id);
                }
            }
        }
    }
    check_scores(&merged, scores, warnings)?;
    // The best score first; of the ways to make one token, the one whose left half is longest.
    pairs.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(b.2.len().cmp(&a.2.len())));

    let prefix = vocab.add_space_prefix == Some(true);
    let mark = json!({"type": "Replace", "pattern": {"String": " "}, "content": MARK});
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": MARK}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    let normalizer = if prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": MARK}, mark]})
    } else {
        mark
    };
    let unk = vocab.special.iter().find(|(role, _)| role == "unk");
    Ok(Parts {
        normalizer,
        pre_tokenizer: Value::Null,
        post_processor: Value::Null,
        decoder: json!({"type": "Sequence", "decoders": decoders}),
        unk_token: match unk {
            Some((_, id)) => json!(super::text(vocab, *id as usize)?),
            None => Value::Null,
        },
        fuse_unk: true,
        byte_fallback: true,
        ignore_merges: false,
        merges: pairs.into_iter().map(|(_, _, left, right)| json!([left, right])).collect(),
    })
}

/// The score that llama.cpp's converter gives to tokens that were added to a model.
const ADDED: f32 = -1000.0;

/// Whether a token was added to the model and is none of its pieces.
fn is_added(vocab: &Vocab, scores: &[f32], id: usize) -> bool {
    match vocab.types[id] {
        TokenType::UserDefined => true,
        TokenType::Control | TokenType::Unknown => scores[id] == ADDED,
        _ => false,
    }
}

/// `tokenizer.model`: all tokens up to the last one that is a piece of the model.
pub(super) fn model(vocab: &Vocab, scores: &[f32]) -> Vec<u8> {
    let is_piece = |id: &usize| !is_added(vocab, scores, *id) && !super::is_filler(vocab, *id);
    let end = (0..vocab.tokens.len()).rev().find(is_piece).map_or(0, |last| last + 1);
    let piece = |id: usize| Piece {
        text: vocab.tokens[id].clone(),
        score: scores[id],
        kind: match vocab.types[id] {
            TokenType::Normal => PieceKind::Normal,
            TokenType::Unknown => PieceKind::Unknown,
            TokenType::Control => PieceKind::Control,
            TokenType::UserDefined => PieceKind::UserDefined,
            TokenType::Unused => PieceKind::Unused,
            TokenType::Byte => PieceKind::Byte,
        },
    };
    let pieces: Vec<Piece> = (0..end).map(piece).collect();
    let id = |role: &str| super::role(vocab, role).map_or(-1, |id| id as i32);
    proto::write(&pieces, ["unk", "bos", "eos", "pad"].map(id), vocab.add_space_prefix == Some(true))
}

/// `added_tokens_decoder` of `tokenizer_config.json`: the tokens that were added to the model, by id.
pub(super) fn added(vocab: &Vocab, scores: &[f32]) -> Result<Value> {
    let mut added = serde_json::Map::new();
    for id in (0..vocab.tokens.len()).filter(|id| is_added(vocab, scores, *id)) {
        let special = vocab.types[id] != TokenType::UserDefined;
        let strips = vocab.strip_after.contains(&(id as u32));
        let entry = json!({"content": super::text(vocab, id)?, "single_word": false, "lstrip": false, "rstrip": strips,
            "normalized": false, "special": special});
        added.insert(id.to_string(), entry);
    }
    Ok(Value::Object(added))
}

/// Looks for tokens of equal score.
fn check_scores(merged: &HashSet<u32>, scores: &[f32], warnings: &mut Vec<String>) -> Result<()> {
    let distinct: HashSet<u32> = merged.iter().map(|id| scores[*id as usize].to_bits()).collect();
    let alike = merged.len() - distinct.len();
    if 2 * alike > merged.len() {
        return Err(Error::new(
            Kind::Unsupported,
            format!(
                "of {} tokens that merge from others, {alike} share their score with another: the order in which they \
                 were merged is lost",
                merged.len()
            ),
        )
        .hint("The file was converted without the model's tokenizer.model. Use the original model's tokenizer."));
    }
    if alike > 0 {
        warnings.push(format!(
            "{alike} tokens share their score with another; texts that could use either may be cut differently than by \
             llama.cpp"
        ));
    }
    Ok(())
}
