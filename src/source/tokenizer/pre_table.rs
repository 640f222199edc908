//! Which definitions of a pre-tokenizer llama.cpp knows, and under which names.
//!
//! Patterns are those of published `tokenizer.json` files; llama.cpp's source quotes most of them beside its
//! own (`src/llama-vocab.cpp`, `llm_tokenizer_bpe`).

use super::pre::Step::{self, Bytes, Digit, Digits, Gpt2, Pattern, PatternStart, Punctuation};

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen2's pattern: Llama 3's with digits one by one.
pub(super) const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
const SPARK: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+"##;
const CJK: &str = "[一-龥\u{3040}-ゟ゠-ヿ]+";
const BLOOM: &str = r" ?[^(\s|";

/// Steps in order, and the name for them. A row applies if all of a tokenizer's steps match.
pub(super) const STRUCTURES: &[(&[Step], &str)] = &[
    (&[Gpt2], "gpt-2"),
    (&[Digit, Gpt2], "smollm"),
    (&[Pattern(LLAMA3), Bytes], "llama-bpe"),
    (&[Pattern(QWEN2), Bytes], "qwen2"),
    (&[Pattern(QWEN35), Bytes], "qwen35"),
    (&[Pattern(TEKKEN), Bytes], "tekken"),
    (&[Pattern(GPT4O), Bytes], "gpt-4o"),
    (&[Pattern(r"\d{1,3}(?=(?:\d{3})*\b)"), Pattern(GPT4O), Bytes], "tiny_aya"),
    (
        &[
            Pattern(r"[\r\n]"),
            PatternStart(r"\s?[A-Za-z"),
            PatternStart(r"\s?[!-/"),
            Pattern(r"\s+$"),
            PatternStart("[一-龥"),
            Digit,
            Bytes,
        ],
        "deepseek-llm",
    ),
    (
        &[
            Pattern(r"[\r\n]"),
            PatternStart(r"\s?[A-Za-z"),
            PatternStart(r"\s?[!-/"),
            Pattern(r"\s+$"),
            PatternStart("[一-龥"),
            Digits,
            Bytes,
        ],
        "deepseek-llm",
    ),
    (
        &[
            Pattern(r"[\r\n]"),
            Pattern(r"\s?\p{L}+"),
            Pattern(r"\s?\p{P}+"),
            PatternStart("[一-龥"),
            Digit,
            Bytes,
        ],
        "deepseek-coder",
    ),
    (&[Pattern(r"\p{N}{1,3}"), Pattern(CJK), Pattern(DEEPSEEK3), Bytes], "deepseek-v3"),
    (&[Pattern(r"\p{N}{1,3}"), Pattern(CJK), Pattern(SPARK), Digit, Bytes], "spark2_5"),
    (&[PatternStart("[가-힣"), PatternStart(r"[^\r\n\p{L}\p{N}]?[\p{Lu}"), Bytes], "youtu"),
    (&[Punctuation, Gpt2, Digits, Pattern("[0-9][0-9][0-9]")], "falcon"),
    (&[PatternStart(BLOOM), Bytes], "bloom"),
    (&[PatternStart(BLOOM), Digit, Bytes], "viking"),
    (
        &[
            PatternStart("<sentinel:"),
            PatternStart("(IMGIMG)"),
            PatternStart(r"([\t\n]"),
            Digit,
            Punctuation,
            Gpt2,
        ],
        "chameleon",
    ),
    (
        &[
            Pattern(r"\p{N}{1,3}"),
            Pattern(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            ),
            Bytes,
        ],
        "minicpm5",
    ),
    (
        &[
            Pattern(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",
            ),
            Bytes,
        ],
        "seed-coder",
    ),
    (
        &[
            Pattern(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
            ),
            Bytes,
        ],
        "exaone-moe",
    ),
    (
        &[
            Pattern(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"),
            Bytes,
        ],
        "ufakzeka",
    ),
    (&[Pattern(r"[^\n]+|[\n]+"), Pattern(QWEN2), Bytes], "laguna"),
    (
        &[
            Pattern(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}",
            ),
            Bytes,
        ],
        "jais-2",
    ),
    (&[PatternStart(r"[\p{Han}]+|"), Bytes], "kimi-k2"),
];

/// Names that share a structure: an added token that tells the model family apart.
///
/// Where llama.cpp treats both names alike the finer one is only chosen because its converter writes it.
pub(super) const FAMILIES: &[(&str, &str, &str)] = &[
    // (name by structure, token, name of the family)
    ("gpt-2", "<|padding|>", "olmo"),
    ("smollm", "<BOS_TOKEN>", "command-r"),
    ("smollm", "[|endofturn|]", "exaone"),
    ("smollm", "<file_sep>+<fim_prefix>", "starcoder"),
    ("smollm", "<fim_prefix>", "refact"),
    ("llama-bpe", ">>TITLE<<", "falcon3"),
    ("llama-bpe", "[gMASK]", "glm4"),
    ("dbrx", "[gMASK]", "chatglm-bpe"),
    ("qwen2", "<｜begin▁of▁sentence｜>", "deepseek-r1-qwen"),
    ("qwen2", "<|reg0|>", "stablelm2"),
    ("gpt-4o", "<|header_start|>", "llama4"),
];
