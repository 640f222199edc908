//! PTX text as words and marks, with their lines.

/// A word (an opcode, a directive, a name, a number) or a mark of one character.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token<'a> {
    pub(crate) text: &'a str,
    /// Line, from 1.
    pub(crate) line: usize,
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '$' | '%' | '.')
}

/// All tokens of a text, without comments and without what is for debuggers only (`.file`, `.loc`).
pub(crate) fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut found: Vec<Token<'_>> = Vec::new();
    let mut rest = text;
    let mut line = 1;
    let mut skipped = 0;
    while let Some(first) = rest.chars().next() {
        let length = if first.is_whitespace() {
            line += usize::from(first == '\n');
            rest = &rest[first.len_utf8()..];
            continue;
        } else if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if first == '"' {
            rest[1..].find('"').map_or(rest.len(), |end| end + 2)
        } else if is_word(first) {
            word(rest)
        } else {
            first.len_utf8()
        };
        let (text, after) = rest.split_at(length);
        if matches!(text, ".file" | ".loc") {
            skipped = line;
        }
        if !text.starts_with("//") && !text.starts_with("/*") && skipped != line {
            found.push(Token { text, line });
        }
        line += text.matches('\n').count();
        rest = after;
    }
    found
}

/// Length of the word at the start of a text; `a::b` is one word.
fn word(text: &str) -> usize {
    let mut end = 0;
    loop {
        end += text[end..].find(|c| !is_word(c)).unwrap_or(text.len() - end);
        let goes_on = text[end..].starts_with("::") && text[end + 2..].starts_with(is_word);
        if !goes_on {
            return end;
        }
        end += 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_marks() {
        let text =
            "// a comment\n@%p1 ld.global.L2::128B.v2.f32 {%f1, %f2}, [%rd1+-4];\n.loc 1 2 3\n$L_1: ret;";
        let found: Vec<(&str, usize)> = tokens(text).iter().map(|t| (t.text, t.line)).collect();
        let expected = "@ %p1 ld.global.L2::128B.v2.f32 { %f1 , %f2 } , [ %rd1 + - 4 ] ;";
        let (second, fourth): (Vec<_>, Vec<_>) = found.into_iter().partition(|(_, line)| *line == 2);
        assert_eq!(second.iter().map(|t| t.0).collect::<Vec<_>>().join(" "), expected);
        assert_eq!(fourth, [("$L_1", 4), (":", 4), ("ret", 4), (";", 4)]);
    }
}
