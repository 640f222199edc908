//! Text that goes into markup.

/// `text` as it may stand between tags and within quotes.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() && c != '\n' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// A number as short as it can be read.
pub(super) fn number(v: f64) -> String {
    match v.abs() {
        0.0 => "0".into(),
        0.001..10_000.0 => {
            let text = format!("{v:.4}");
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        }
        _ => format!("{v:.2e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_in_text_is_text() {
        assert_eq!(escape("<a href='x'>\"&\u{7}"), "&lt;a href=&#39;x&#39;&gt;&quot;&amp;\u{fffd}");
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            [0.0, 4.5, 16.0, 0.00123, 1.5e-7, 123456.0].map(number).join(" "),
            "0 4.5 16 0.0012 1.50e-7 1.23e5"
        );
    }
}
