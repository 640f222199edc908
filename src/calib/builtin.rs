//! The text that calibration uses where no other is given.
//!
//! It was put together for this project; `builtin/README.md` names its sources. Its bytes are part of how a model was
//! made: whoever changes them changes every quantization that used them.

/// The parts by name, in the order in which they are read.
pub const TEXTS: [(&str, &str); 8] = [
    ("prose", include_str!("builtin/prose.txt")),
    ("code", include_str!("builtin/code.txt")),
    ("dialogue", include_str!("builtin/dialogue.txt")),
    ("languages", include_str!("builtin/languages.txt")),
    ("science", include_str!("builtin/science.txt")),
    ("lists", include_str!("builtin/lists.txt")),
    ("classics", include_str!("builtin/classics.txt")),
    ("data", include_str!("builtin/data.txt")),
];

/// Bytes of all parts together.
pub fn size() -> usize {
    TEXTS.iter().map(|(_, text)| text.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn there_is_enough_of_it() {
        assert!((220_000..400_000).contains(&size()), "{}", size());
        for (name, text) in TEXTS {
            assert!(text.len() > 10_000, "{name} has {} bytes", text.len());
            assert!(text.ends_with('\n') && !text.contains('\r') && !text.contains('\u{feff}'), "{name}");
        }
    }

    #[test]
    fn nothing_is_repeated() {
        let mut lines: HashMap<&str, usize> = HashMap::new();
        let all = TEXTS.iter().flat_map(|(_, text)| text.lines());
        for line in all.map(str::trim).filter(|line| line.chars().count() > 16) {
            *lines.entry(line).or_default() += 1;
        }
        let often: Vec<_> = lines.iter().filter(|(_, n)| **n > 3).collect();
        assert!(often.is_empty(), "{often:?}");
        let repeated: usize =
            lines.iter().filter(|(_, n)| **n > 1).map(|(line, n)| line.len() * (n - 1)).sum();
        assert!(repeated * 100 < size(), "{repeated} bytes are repeated lines");
    }

    #[test]
    fn many_scripts_are_in_it() {
        let text: String = TEXTS.iter().map(|(_, text)| *text).collect();
        let count =
            |range: std::ops::RangeInclusive<char>| text.chars().filter(|c| range.contains(c)).count();
        for (script, range) in [
            ("Cyrillic", 'а'..='я'),
            ("Han", '一'..='鿿'),
            ("Hiragana", 'ぁ'..='ゖ'),
            ("Arabic", 'ء'..='ي'),
            ("Devanagari", 'अ'..='ह'),
            ("Greek", 'α'..='ω'),
            ("Hangul", '가'..='힣'),
        ] {
            assert!(count(range) > 200, "{script}");
        }
        for letter in "äßéçñõì€≤∑→".chars() {
            assert!(text.contains(letter), "{letter}");
        }
    }
}
