//! Conversations to text, as the model's own chat template writes them.
//!
//! Templates are Jinja programs from strangers. They run with a bounded number of steps and a bounded output, see no file
//! and no clock, and what transformers offers them is here: Python's methods, `raise_exception`, `tojson`, and
//! `strftime_now`, which always tells the same date, so that the same data give the same tokens every day.

use std::io::{self, Write};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value, ValueKind};
use minijinja::{Environment, ErrorKind, context};
use serde::Serialize;
use serde_json::Serializer;
use serde_json::Value as Json;
use serde_json::ser::{Formatter, PrettyFormatter};

use crate::error::{Error, Kind, Result};
use crate::source::tokenizer::encoder::Encoder;

/// Steps that one conversation may take. Long ones with the largest templates take some ten thousands. A step pays for 64
/// bytes too, of all that is written and of all values on the way.
const FUEL: u64 = 400_000;
/// The longest text of one conversation, in bytes.
const MAX_LEN: usize = 16 << 20;
/// The longest JSON of a value, in bytes.
const MAX_JSON: usize = 2 << 20;
/// Spaces for each level of it.
const MAX_INDENT: usize = 32;
/// A template may nest a value in another with each step, and what is nested is dropped level by level.
const STACK: usize = 64 << 20;
const NAME: &str = "chat template";

/// A compiled template.
pub(in crate::calib) struct ChatTemplate {
    environment: Environment<'static>,
    bos: Option<String>,
    eos: Option<String>,
}

impl ChatTemplate {
    /// The template of the model.
    ///
    /// # Errors
    /// `Unsupported` if it has none, or one that cannot be compiled.
    pub(in crate::calib) fn of(encoder: &Encoder) -> Result<ChatTemplate> {
        let source = encoder.chat_template().ok_or_else(|| {
            Error::new(Kind::Unsupported, "the data are conversations, but the model has no chat template")
                .hint(
                    "Use a model that was tuned for chat, or name a column of plain text with --text-column.",
                )
        })?;
        let text = |id: Option<u32>| id.and_then(|id| encoder.token_text(id));
        ChatTemplate::new(source, text(encoder.bos()), text(encoder.eos()))
    }

    fn new(source: &str, bos: Option<String>, eos: Option<String>) -> Result<ChatTemplate> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.expect("the usual delimiters are valid"));
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", to_json);
        // In Python None cannot be walked through.
        environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
        environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", strftime);
        environment.add_template_owned(NAME, without_generation(source)).map_err(|e| {
            Error::new(Kind::Unsupported, format!("the model's chat template cannot be read: {}", words(&e)))
                .hint("Name a column of plain text with --text-column.")
        })?;
        Ok(ChatTemplate { environment, bos, eos })
    }

    /// The text of a conversation, which is a list of objects with `role` and `content`.
    ///
    /// # Errors
    /// Why the template refuses it, or that it takes too long.
    pub(in crate::calib) fn render(&self, messages: &Json) -> Result<String, String> {
        let template = self.environment.get_template(NAME).expect("it was added");
        let variables = context! {
            messages => Serde(messages),
            bos_token => self.bos.as_deref().unwrap_or_default(),
            eos_token => self.eos.as_deref().unwrap_or_default(),
            add_generation_prompt => false,
            tools => (),
            documents => (),
        };
        let render = || {
            let mut out = Bounded { bytes: Vec::new(), limit: MAX_LEN };
            let refused = |e| format!("the chat template refuses it: {}", words(&e));
            template.render_captured_to(variables, &mut out).map_err(refused)?;
            String::from_utf8(out.bytes).map_err(|_| "the chat template's output is not UTF-8".into())
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, render);
            let thread =
                thread.map_err(|e| format!("no thread can be started for the chat template: {e}"))?;
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

/// Output that may not grow without end.
struct Bounded {
    bytes: Vec<u8>,
    limit: usize,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.limit {
            return Err(io::Error::other(format!("more than {} MiB of text", self.limit >> 20)));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What went wrong, on one line.
fn words(e: &minijinja::Error) -> String {
    let reason = match e.kind() {
        ErrorKind::OutOfFuel => "it does not come to an end".into(),
        kind => e.detail().map_or_else(|| kind.to_string(), String::from),
    };
    let line = e.line().map(|line| format!(" (line {line} of the template)")).unwrap_or_default();
    let reason: String = reason.chars().filter(|c| !c.is_control()).take(300).collect();
    reason + &line
}

/// The template without the marks of what the assistant says, which matter to training only.
fn without_generation(source: &str) -> String {
    let marks =
        regex::Regex::new(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})").expect("the pattern is valid");
    marks
        .replace_all(source, |found: &regex::Captures<'_>| {
            let word = if found.get(2).is_some() { "endif" } else { "if true" };
            format!("{}{word}{}", &found[1], &found[3])
        })
        .into_owned()
}

/// JSON as Python's `json.dumps` writes it with `ensure_ascii=False`, which transformers offers as a filter.
fn to_json(value: Value, options: Kwargs) -> Result<Value, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Accepted and without effect: text is never escaped, and keys keep their order.
    let _: Option<bool> = options.get("ensure_ascii")?;
    let _: Option<bool> = options.get("sort_keys")?;
    options.assert_all_used()?;
    if indent.is_some_and(|indent| indent > MAX_INDENT) {
        let what = format!("tojson indents by {MAX_INDENT} spaces at most");
        return Err(minijinja::Error::new(ErrorKind::InvalidOperation, what));
    }
    let mut out = Bounded { bytes: Vec::new(), limit: MAX_JSON };
    let written = match indent {
        None => value.serialize(&mut Serializer::with_formatter(&mut out, Spaced)),
        Some(n) => {
            let spaces = [b' '; MAX_INDENT];
            let pretty = PrettyFormatter::with_indent(&spaces[..n]);
            value.serialize(&mut Serializer::with_formatter(&mut out, pretty))
        }
    };
    written.map_err(|e| {
        let what = format!("a value has no JSON form: {e}");
        minijinja::Error::new(ErrorKind::BadSerialization, what)
    })?;
    Ok(Value::from_safe_string(String::from_utf8_lossy(&out.bytes).into_owned()))
}

/// A space after each comma and colon, as in Python.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}

/// The date that templates are told is today: the one that Llama 3's fall back to, 26 July 2024, at midnight.
fn strftime(format: Value) -> Result<String, minijinja::Error> {
    let wrong = |what: String| minijinja::Error::new(ErrorKind::InvalidOperation, what);
    let format = match format.kind() {
        ValueKind::String => format.as_str().unwrap_or_default().to_owned(),
        other => return Err(wrong(format!("strftime_now takes a string, not {other}"))),
    };
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let code = chars.next();
        let code = if code == Some('-') { chars.next() } else { code };
        out.push_str(match code {
            Some('d' | 'e') => "26",
            Some('m') if format.contains("%-m") => "7",
            Some('m') => "07",
            Some('b' | 'h') => "Jul",
            Some('B') => "July",
            Some('Y') => "2024",
            Some('y') => "24",
            Some('a') => "Fri",
            Some('A') => "Friday",
            Some('j') => "208",
            Some('H' | 'M' | 'S') => "00",
            Some('I') => "12",
            Some('p') => "AM",
            Some('F') => "2024-07-26",
            Some('T') => "00:00:00",
            Some('Z') => "UTC",
            Some('z') => "+0000",
            Some('%') => "%",
            other => {
                return Err(wrong(format!("strftime_now does not know %{}", other.unwrap_or(' '))));
            }
        });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn render(source: &str, messages: Json) -> Result<String, String> {
        ChatTemplate::new(source, Some("<s>".into()), Some("</s>".into())).unwrap().render(&messages)
    }

    fn chat() -> Json {
        json!([{"role": "user", "content": " Who? "}, {"role": "assistant", "content": "You <&'>."}])
    }

    #[test]
    fn a_template_in_the_style_of_llama_2() {
        let source = "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}\
            {{ raise_exception('Roles must alternate') }}{% endif %}{% if m['role'] == 'user' %}\
            {{ '[INST] ' + m['content'].strip() + ' [/INST]' }}{% else %}{{ ' ' + m.content + eos_token }}{% endif %}\
            {% endfor %}";
        assert_eq!(render(source, chat()).unwrap(), "<s>[INST] Who? [/INST] You <&'>.</s>");
        let e = render(source, json!([{"role": "assistant", "content": "x"}])).unwrap_err();
        assert!(e.contains("refuses it: Roles must alternate"), "{e}");
    }

    #[test]
    fn blocks_leave_no_line_ends_as_in_transformers() {
        let source = "{% for m in messages %}\n  {% if true %}\n<|{{ m.role }}|>\n{{ m.content | trim }}\n  {% endif %}\n{% endfor %}";
        assert_eq!(render(source, chat()).unwrap(), "<|user|>\nWho?\n<|assistant|>\nYou <&'>.\n");
    }

    #[test]
    fn what_transformers_offers_is_there() {
        for (source, expected) in [
            ("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024"),
            ("{{ strftime_now('%Y-%m-%d, %A %-d %B') }}", "2024-07-26, Friday 26 July"),
            ("{{ messages[0] | tojson }}", r#"{"role": "user", "content": " Who? "}"#),
            ("{{ messages[1].content | tojson }}", r#""You <&'>.""#),
            ("{{ [1, {}] | tojson(indent=2) }}", "[\n  1,\n  {}\n]"),
            ("{{ messages[1:] | length }}{{ messages[::-1][0].role }}", "1assistant"),
            (
                "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
                "2",
            ),
            (
                "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% break %}{% endfor %}",
                "assistant",
            ),
            ("{% if not tools is defined or tools is none %}none{% endif %}", "none"),
            ("{{ 'a<b>c'.split('<b>')[-1] }}{{ ' x '.lstrip() }}{{ 'ab'.startswith('a') }}", "cx True"),
            ("{% generation %}x{%- endgeneration -%} y", "xy"),
            ("{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f('a') }}", "[a]"),
            ("{{ messages[0].get('name', 'nobody') }}{{ messages[0].items() | list | length }}", "nobody2"),
            (
                "{{ tools is iterable }}{{ messages is iterable }}{{ 'a' is iterable }}{{ 1 is iterable }}",
                "FalseTrueTrueFalse",
            ),
            ("{{ undefined_thing }}", ""),
        ] {
            assert_eq!(render(source, chat()).unwrap(), expected, "{source}");
        }
    }

    #[test]
    fn hostile_templates_come_to_an_end() {
        for (source, word) in [
            (
                "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
                "come to an end",
            ),
            (
                "{% for a in range(9999) %}{% for b in range(99) %}{{ 'x' * 9999 }}{% endfor %}{% endfor %}",
                "",
            ),
            ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", ""),
            (
                "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
                "come to an end",
            ),
            (
                "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}",
                "come to an end",
            ),
            ("{{ ([1] * 99999999) | tojson }}", ""),
            ("{{ [[1]] | tojson(indent=9999999999) }}", "at most"),
            ("{{ strftime_now('%Q') }}", "%Q"),
        ] {
            let e = render(source, chat()).unwrap_err();
            assert!(e.contains(word), "{source}: {e}");
        }
        for source in ["{% if %}", "{% include '/etc/hostname' %}"] {
            let e = ChatTemplate::new(source, None, None).map(drop).unwrap_err();
            assert_eq!(e.kind(), Kind::Unsupported, "{source}");
        }
    }
}
