//! What a model's name tells: organization, base name, size, fine-tune and version.

use std::sync::LazyLock;

use regex::Regex;

/// The parts of a name such as `mistralai/Mixtral-8x7B-Instruct-v0.1`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct ModelId {
    pub(super) full_name: String,
    pub(super) organization: Option<String>,
    pub(super) basename: Option<String>,
    pub(super) finetune: Option<String>,
    pub(super) version: Option<String>,
    pub(super) size_label: Option<String>,
}

/// What a part of a name may be. One part may be several of them.
#[derive(Clone, Debug, Default)]
struct Part {
    text: String,
    basename: bool,
    size: bool,
    finetune: bool,
    version: bool,
    /// A type of quantization.
    kind: bool,
}

impl Part {
    fn count(&self) -> usize {
        [self.basename, self.size, self.finetune, self.version, self.kind].iter().filter(|b| **b).count()
    }
}

fn whole(pattern: &str) -> Regex {
    // The patterns are constants, and a test uses each.
    Regex::new(&format!("^(?i:{pattern})$")).unwrap()
}
static VERSION: LazyLock<Regex> = LazyLock::new(|| whole(r"(v|iter)?\d+([.]\d+)*"));
static KIND: LazyLock<Regex> = LazyLock::new(|| whole(r"i?q\d(_\w)*|b?fp?(16|32)"));
static SIZE: LazyLock<Regex> =
    LazyLock::new(|| whole(r"(([A]|\d+[x])?\d+([._]\d+)?[KMBT][\d]?|small|mini|medium|large|x?xl)"));
static FINETUNE: LazyLock<Regex> = LazyLock::new(|| whole("chat|instruct|vision|lora"));
static NUMBERED: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"^(v\d+(?:\.\d+)*|\d.*)$").unwrap());
static HUB: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"^https?://huggingface.co/([^/]+/[^/]+)$").unwrap());

/// The model's name in an address on the Hub.
pub(super) fn from_url(url: &str) -> Option<&str> {
    HUB.captures(url)?.get(1).map(|m| m.as_str())
}

impl ModelId {
    /// Takes `id` apart. `total` is the number of weights, by which a size is told from a context length; 0 if
    /// unknown.
    pub(super) fn parse(id: &str, total: u64) -> Self {
        if id.contains(' ') {
            // A name for people.
            return ModelId { full_name: id.to_owned(), ..ModelId::default() };
        }
        let (organization, full_name) = match id.split_once('/') {
            // `./` and `../` are no organizations.
            Some((org, name)) => (Some(org).filter(|o| !o.starts_with('.')), name),
            None => (None, id),
        };
        let mut parts: Vec<Part> = full_name
            .split('-')
            .filter(|p| !p.is_empty())
            .map(|p| Part { text: p.to_owned(), ..Part::default() })
            .collect();
        for (i, part) in parts.iter_mut().enumerate() {
            annotate(i, part, total);
        }
        // Sizes in words don't count beside one in numbers.
        if parts.iter().any(|p| p.size && p.text.chars().any(|c| c.is_ascii_digit())) {
            for part in parts.iter_mut().filter(|p| p.size && p.text.chars().all(char::is_alphabetic)) {
                part.size = false;
            }
        }
        find_basename(&mut parts);

        let join = |of: &dyn Fn(&&Part) -> bool| {
            let texts: Vec<&str> = parts.iter().filter(of).map(|p| p.text.as_str()).collect();
            Some(texts.join("-")).filter(|t| !t.is_empty())
        };
        let mut sizes: Vec<&str> = Vec::new();
        for part in parts.iter().filter(|p| p.size) {
            if !sizes.contains(&part.text.as_str()) {
                sizes.push(&part.text);
            }
        }
        let size_label = Some(sizes.join("-")).filter(|t| !t.is_empty());
        let finetune = join(&|p| p.finetune);
        let version = join(&|p| p.version && !p.basename);
        let basename = join(&|p| p.basename);
        // With a base name alone there is nothing to tell where it ends.
        let basename = basename.filter(|_| size_label.is_some() || finetune.is_some() || version.is_some());
        ModelId {
            full_name: full_name.to_owned(),
            organization: organization.map(str::to_owned),
            basename,
            finetune,
            version,
            size_label,
        }
    }
}

fn annotate(i: usize, part: &mut Part, total: u64) {
    if VERSION.is_match(&part.text) {
        part.version = true;
    } else if KIND.is_match(&part.text) {
        part.kind = true;
        part.text = part.text.to_uppercase();
    } else if i > 0 && SIZE.is_match(&part.text) {
        annotate_size(part, total);
    } else if i > 0 && FINETUNE.is_match(&part.text) {
        part.finetune = true;
    }
}

fn annotate_size(part: &mut Part, total: u64) {
    let mut text: Vec<char> = part.text.replace('_', ".").chars().collect();
    // 7b1, BLOOM's way of 7.1b.
    if let [.., unit, digit] = text[..]
        && digit.is_ascii_digit()
    {
        text.truncate(text.len() - 2);
        text.extend(['.', digit, unit]);
    }
    if let [.., before, unit] = &mut text[..]
        && before.is_ascii_digit()
        && "kmbt".contains(*unit)
    {
        *unit = unit.to_ascii_uppercase();
    }
    let mut text: String = text.into_iter().collect();
    if total != 0
        && let Some((at, unit)) = text.char_indices().last()
        && let Ok(number) = text[..at].parse::<f64>()
    {
        let label = match " KMBT".find(unit) {
            Some(power) => number * 1000f64.powi(power as i32),
            None => number * 0.001,
        };
        // Far from the model's size in either direction: likely a context length.
        if (label - total as f64).abs() > (7 * u128::from(total) / 8) as f64 {
            part.finetune = true;
            text = text[..at].to_owned() + &unit.to_lowercase().to_string();
        }
    }
    part.size = !part.finetune;
    part.text = text;
}

/// The base name: what comes first and is nothing else, with versions inside of it.
fn find_basename(parts: &mut [Part]) {
    let mut at_start = true;
    for part in parts.iter_mut() {
        let starts_alphabetic = part.text.chars().next().is_some_and(char::is_alphabetic);
        if at_start && ((part.count() == 0 && starts_alphabetic) || part.version) {
            part.basename = true;
        } else {
            at_start = false;
            if part.count() == 0 {
                part.finetune = true;
            }
        }
    }
    // A version at its end is no part of it.
    for part in parts.iter_mut().rev() {
        if !(part.basename && part.count() > 1) {
            break;
        }
        part.basename = false;
    }
}

/// A name with words capitalized, but for those that have capitals already and version numbers.
pub(super) fn title(name: &str) -> String {
    let is_space = |c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c);
    name.replace('-', " ")
        .split(is_space)
        .filter(|w| !w.is_empty())
        .map(|w| if is_lower(w) && !NUMBERED.is_match(w) { capitalize(w) } else { w.to_owned() })
        .collect::<Vec<_>>()
        .join(" ")
}

/// Whether a word has letters and no capital, as Python's `str.islower`.
fn is_lower(word: &str) -> bool {
    !word.chars().any(char::is_uppercase) && word.chars().any(char::is_lowercase)
}

/// Python's `str.title`: each letter that follows no letter becomes a capital.
fn capitalize(word: &str) -> String {
    let mut out = String::new();
    let mut after_letter = false;
    for c in word.chars() {
        if after_letter {
            out.extend(c.to_lowercase());
        } else {
            // The title form of a ligature is a capital and the rest in small letters.
            let mut upper = c.to_uppercase();
            out.extend(upper.next());
            out.extend(upper.flat_map(char::to_lowercase));
        }
        after_letter = c.is_lowercase() || c.is_uppercase();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Results of `Metadata.get_model_id_components`.
    #[test]
    fn names_are_taken_apart() {
        let cases = [
            (
                "Mistral/Mixtral-8x7B-Instruct-v0.1",
                0,
                (Some("Mistral"), Some("Mixtral"), Some("Instruct"), Some("v0.1"), Some("8x7B")),
            ),
            (
                "Mixtral-8x7B-Instruct-v0.1",
                0,
                (None, Some("Mixtral"), Some("Instruct"), Some("v0.1"), Some("8x7B")),
            ),
            ("Mixtral", 0, (None, None, None, None, None)),
            (
                "NousResearch/Hermes-2-Pro-Llama-3-8B",
                0,
                (Some("NousResearch"), Some("Hermes-2-Pro-Llama-3"), None, None, Some("8B")),
            ),
            (
                "crestf411/daybreak-kunoichi-2dpo-7b-v0.2",
                0,
                (Some("crestf411"), Some("daybreak-kunoichi"), Some("2dpo"), Some("v0.2"), Some("7B")),
            ),
            ("Qwen1.5-MoE-A2.7B-Chat", 0, (None, Some("Qwen1.5-MoE"), Some("Chat"), None, Some("A2.7B"))),
            (
                "NousResearch/Yarn-Solar-10b-64k",
                10_700_000_000,
                (Some("NousResearch"), Some("Yarn-Solar"), Some("64k"), None, Some("10B")),
            ),
            (
                "bigscience/bloom-7b1-petals",
                0,
                (Some("bigscience"), Some("bloom"), Some("petals"), None, Some("7.1B")),
            ),
            ("./llama", 0, (None, None, None, None, None)),
            ("Llama 3 8B", 0, (None, None, None, None, None)),
            ("", 0, (None, None, None, None, None)),
        ];
        for (id, total, (organization, basename, finetune, version, size)) in cases {
            let want = ModelId {
                full_name: id.rsplit('/').next().unwrap().into(),
                organization: organization.map(str::to_owned),
                basename: basename.map(str::to_owned),
                finetune: finetune.map(str::to_owned),
                version: version.map(str::to_owned),
                size_label: size.map(str::to_owned),
            };
            assert_eq!(ModelId::parse(id, total), want, "{id}");
        }
    }

    #[test]
    fn titles_are_pythons() {
        assert_eq!(title("mixtral-8x7B-instruct-v0.1"), "Mixtral 8x7B Instruct v0.1");
        assert_eq!(title("my_model-2b-v1"), "My_Model 2b v1");
        assert_eq!(title("  tiny--llama "), "Tiny Llama");
        assert_eq!(title("it's-LLaMA-éa"), "It'S LLaMA Éa");
        assert_eq!(from_url("https://huggingface.co/a/b"), Some("a/b"));
        assert_eq!(from_url("https://huggingface.co/a/b/c"), None);
    }
}
