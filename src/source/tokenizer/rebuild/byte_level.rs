//! Byte-level BPE.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::{Parts, patterns};
use crate::error::{Error, Kind, Result};

/// The parts of a tokenizer whose text is cut by the patterns called `pre` and merged by `merges`, `left right` each.
///
/// # Errors
/// `Unsupported` if the patterns are not known.
pub(super) fn parts(
    pre: &str,
    merges: &[String],
    ids: &HashMap<&str, u32>,
    warnings: &mut Vec<String>,
) -> Result<Parts> {
    let Some(pre) = patterns::find(pre) else {
        return Err(Error::new(
            Kind::Unsupported,
            format!("how the pre-tokenizer '{pre}' (tokenizer.ggml.pre) cuts text is not known here"),
        ));
    };
    let splits = pre.patterns.iter().map(|pattern| {
        json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
    });
    let bytes = |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
    let mut steps: Vec<Value> = splits.collect();
    steps.push(bytes(false));

    // Neither the library nor llama.cpp can end in what the vocabulary lacks.
    let known: Vec<Value> = merges.iter().filter_map(|merge| halves(merge, ids)).collect();
    if known.len() < merges.len() {
        warnings.push(format!(
            "{} of {} merge rules name tokens that the vocabulary does not have and are left out",
            merges.len() - known.len(),
            merges.len()
        ));
    }
    Ok(Parts {
        normalizer: Value::Null,
        pre_tokenizer: json!({"type": "Sequence", "pretokenizers": steps}),
        post_processor: bytes(true),
        decoder: bytes(true),
        unk_token: Value::Null,
        fuse_unk: false,
        byte_fallback: false,
        ignore_merges: pre.ignore_merges,
        merges: known,
    })
}

/// Both halves of a rule. The first character may be a space, so the one that separates is looked for after it.
fn halves(merge: &str, ids: &HashMap<&str, u32>) -> Option<Value> {
    let first = merge.chars().next()?.len_utf8();
    let at = first + merge[first..].find(' ')?;
    let (left, right) = (&merge[..at], &merge[at + 1..]);
    let all = [left, right, &[left, right].concat()].iter().all(|token| ids.contains_key(*token));
    all.then(|| json!([left, right]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_cut_at_the_first_space_that_can_separate() {
        let ids = HashMap::from([("a", 0), ("b", 1), ("ab", 2), (" ", 3), (" b", 4)]);
        assert_eq!(halves("a b", &ids), Some(json!(["a", "b"])));
        assert_eq!(halves("  b", &ids), Some(json!([" ", "b"])));
        for unknown in ["b a", "ab", "", "a c"] {
            assert_eq!(halves(unknown, &ids), None, "{unknown}");
        }
    }
}
