//! A module: the kernels and variables of a PTX text.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::decode::{Lists, decode};
use crate::instruction::{Instruction, NONE, Op};
use crate::memory::Memory;
use crate::operand::{Names, number};
use crate::tokens::{Token, tokens};
use crate::types::Type;

/// A PTX text that cannot be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// Line, from 1.
    pub line: usize,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PTX line {}: {}", self.line, self.message)
    }
}

impl std::error::Error for ParseError {}

/// A loaded module.
#[derive(Debug, Default)]
pub struct Module {
    kernels: HashMap<String, Arc<Kernel>>,
    globals: HashMap<String, (u64, u64)>,
}

/// One kernel, ready to run.
#[derive(Debug)]
pub struct Kernel {
    /// Its name.
    pub name: String,
    /// Offset and bytes of each parameter.
    pub parameters: Vec<(usize, usize)>,
    /// Bytes of shared memory that it always has.
    pub shared_bytes: usize,
    /// Bytes of local memory that each thread has.
    pub local_bytes: usize,
    /// The most threads that a block may have, where the kernel says so (`.maxntid`).
    pub max_threads: Option<u32>,
    pub(crate) instructions: Vec<Instruction>,
    pub(crate) lines: Vec<usize>,
    pub(crate) texts: Vec<String>,
    pub(crate) lists: Lists,
    pub(crate) initial: Vec<u64>,
}

/// A variable of a module or a kernel.
struct Variable<'a> {
    name: &'a str,
    align: u64,
    bytes: u64,
    values: Vec<u8>,
}

impl Module {
    /// Loads a text; its variables are allocated in `memory`.
    ///
    /// An instruction that is not known is no error here: it stops the kernel that comes to it.
    ///
    /// # Errors
    /// What in the text is not understood.
    pub fn load(text: &str, memory: &Memory) -> Result<Module, ParseError> {
        let tokens = tokens(text);
        let mut module = Module::default();
        let mut shared: Vec<Variable<'_>> = Vec::new();
        let mut rest = &tokens[..];
        while let Some(first) = rest.first() {
            let fail = |message: String| ParseError { line: first.line, message };
            rest = match first.text {
                ".version" | ".target" | ".address_size" => {
                    let end = rest.iter().position(|t| t.line != first.line).unwrap_or(rest.len());
                    &rest[end..]
                }
                ".visible" | ".extern" | ".weak" | ".common" => &rest[1..],
                ".entry" => module.entry(rest, &shared, text)?,
                ".func" => skip_function(rest),
                ".shared" | ".global" | ".const" => {
                    let (declaration, after) = statement(rest);
                    let variable = variable(&declaration[1..]).map_err(fail)?;
                    if first.text == ".shared" {
                        shared.push(variable);
                    } else {
                        let address = memory.allocate(variable.bytes).map_err(|e| fail(format!("{e:?}")))?;
                        memory.write(address, &variable.values).map_err(|e| fail(format!("{e:?}")))?;
                        module.globals.insert(variable.name.to_owned(), (address, variable.bytes));
                    }
                    after
                }
                _ => return Err(fail(format!("`{}` is not understood", first.text))),
            };
        }
        Ok(module)
    }

    /// A kernel by its name.
    pub fn kernel(&self, name: &str) -> Option<&Arc<Kernel>> {
        self.kernels.get(name)
    }

    /// The names of all kernels, sorted.
    pub fn kernel_names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.kernels.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// Address and bytes of a variable.
    pub fn global(&self, name: &str) -> Option<(u64, u64)> {
        self.globals.get(name).copied()
    }

    /// Addresses of all variables.
    pub fn globals(&self) -> impl Iterator<Item = u64> + '_ {
        self.globals.values().map(|(address, _)| *address)
    }

    /// Takes in the kernel at the start of `tokens` and returns what comes after it.
    fn entry<'t, 'a>(
        &mut self,
        tokens: &'t [Token<'a>],
        shared: &[Variable<'a>],
        text: &str,
    ) -> Result<&'t [Token<'a>], ParseError> {
        let fail = |line, message: String| ParseError { line, message };
        let [_, name, rest @ ..] = tokens else {
            return Err(fail(tokens[0].line, "an entry without a name".into()));
        };
        let (parameters, rest) = if rest.first().is_some_and(|t| t.text == "(") {
            let end = rest.iter().position(|t| t.text == ")").unwrap_or(rest.len() - 1);
            (&rest[1..end], &rest[end + 1..])
        } else {
            (&rest[..0], rest)
        };
        let open = rest.iter().position(|t| t.text == "{").unwrap_or(rest.len());
        let close = closing(&rest[open..]) + open;
        let mut builder = Builder::new(name.text, text);
        for (variable, (address, _)) in &self.globals {
            builder.names.addresses.insert(variable.clone(), *address);
        }
        builder.parameters(parameters).map_err(|e| fail(name.line, e))?;
        builder.limits(&rest[..open]);
        let body = rest.get(open + 1..close).unwrap_or_default();
        let kernel = builder.body(body, shared)?;
        self.kernels.insert(name.text.to_owned(), Arc::new(kernel));
        Ok(rest.get(close + 1..).unwrap_or_default())
    }
}

/// Index of the brace that closes the first one.
fn closing(tokens: &[Token<'_>]) -> usize {
    let mut depth = 0;
    let closes = tokens.iter().position(|t| {
        match t.text {
            "{" => depth += 1,
            "}" => depth -= 1,
            _ => {}
        }
        depth == 0
    });
    closes.unwrap_or(tokens.len())
}

/// Tokens up to the next semicolon, and those after it.
fn statement<'t, 'a>(tokens: &'t [Token<'a>]) -> (&'t [Token<'a>], &'t [Token<'a>]) {
    let end = tokens.iter().position(|t| t.text == ";").unwrap_or(tokens.len());
    (&tokens[..end], tokens.get(end + 1..).unwrap_or_default())
}

/// A function that is called is not supported, so `call` stops a kernel; what it would call is passed over.
fn skip_function<'t, 'a>(tokens: &'t [Token<'a>]) -> &'t [Token<'a>] {
    let end = tokens.iter().position(|t| matches!(t.text, ";" | "{")).unwrap_or(tokens.len());
    if tokens.get(end).is_some_and(|t| t.text == "{") {
        let close = end + closing(&tokens[end..]);
        return tokens.get(close + 1..).unwrap_or_default();
    }
    tokens.get(end + 1..).unwrap_or_default()
}

/// A variable's declaration after its space: `.align 4 .b8 name[16] = {1, 2}`.
fn variable<'a>(tokens: &[Token<'a>]) -> Result<Variable<'a>, String> {
    let (declared, values) = match tokens.iter().position(|t| t.text == "=") {
        Some(at) => (&tokens[..at], &tokens[at + 1..]),
        None => (tokens, &tokens[..0]),
    };
    let mut align = 0;
    let mut ty = None;
    let mut name = None;
    let mut count = Some(1);
    let mut i = 0;
    while i < declared.len() {
        match declared[i].text {
            ".align" => {
                align = declared.get(i + 1).and_then(|t| t.text.parse().ok()).ok_or("an alignment")?;
                i += 1;
            }
            "[" => {
                let inner = declared.get(i + 1).map_or("]", |t| t.text);
                count = if inner == "]" { None } else { Some(inner.parse().map_err(|_| "a length")?) };
                i += if count.is_none() { 1 } else { 2 };
            }
            word => match word.strip_prefix('.') {
                Some(word) => ty = Type::from_name(word).or(ty),
                None => name = Some(word),
            },
        }
        i += 1;
    }
    let (ty, name) = (ty.ok_or("a variable without a type")?, name.ok_or("a variable without a name")?);
    let size = ty.bytes() as u64;
    let bytes = count.unwrap_or(0u64) * size;
    let mut initial = Vec::new();
    for element in values.split(|t| matches!(t.text, "," | "{" | "}")).filter(|e| !e.is_empty()) {
        let value = match element {
            [Token { text: "-", .. }, v] => number(v.text).map(u64::wrapping_neg),
            [v] => number(v.text),
            _ => None,
        };
        let value = value.ok_or_else(|| format!("initial value of {name}"))?;
        initial.extend(&value.to_le_bytes()[..size as usize]);
    }
    initial.resize(bytes as usize, 0);
    Ok(Variable { name, align: align.max(size), bytes, values: initial })
}

/// A kernel in the making.
struct Builder<'a> {
    kernel: Kernel,
    names: Names,
    source: Vec<&'a str>,
}

impl<'a> Builder<'a> {
    fn new(name: &str, text: &'a str) -> Builder<'a> {
        let kernel = Kernel {
            name: name.to_owned(),
            parameters: Vec::new(),
            shared_bytes: 0,
            local_bytes: 0,
            max_threads: None,
            instructions: Vec::new(),
            lines: Vec::new(),
            texts: Vec::new(),
            lists: Vec::new(),
            initial: Vec::new(),
        };
        Builder { kernel, names: Names::new(), source: text.lines().collect() }
    }

    fn parameters(&mut self, tokens: &[Token<'_>]) -> Result<(), String> {
        let mut end = 0u64;
        for parameter in tokens.split(|t| t.text == ",").filter(|p| !p.is_empty()) {
            let declared: Vec<Token<'_>> = without_pointer_attributes(&parameter[1..]);
            let variable = variable(&declared)?;
            let offset = end.next_multiple_of(variable.align);
            self.names.addresses.insert(variable.name.to_owned(), offset);
            self.kernel.parameters.push((offset as usize, variable.bytes as usize));
            end = offset + variable.bytes;
        }
        Ok(())
    }

    /// Directives between the parameters and the body.
    fn limits(&mut self, tokens: &[Token<'_>]) {
        if let Some(at) = tokens.iter().position(|t| t.text == ".maxntid") {
            let sizes = tokens[at + 1..].iter().take_while(|t| !t.text.starts_with('.'));
            let sizes = sizes.filter_map(|t| t.text.parse::<u32>().ok());
            self.kernel.max_threads = Some(sizes.product());
        }
    }

    fn body(mut self, tokens: &[Token<'_>], shared: &[Variable<'_>]) -> Result<Kernel, ParseError> {
        self.variables(tokens, shared)?;
        let mut rest = tokens;
        self.names.open_scope();
        while let Some(first) = rest.first() {
            let is_label = rest.get(1).is_some_and(|t| t.text == ":");
            rest = match first.text {
                "{" | "}" => {
                    if first.text == "{" {
                        self.names.open_scope();
                    } else {
                        self.names.close_scope();
                    }
                    &rest[1..]
                }
                _ if is_label => &rest[2..],
                _ => {
                    let (words, after) = statement(rest);
                    self.statement(words).map_err(|message| ParseError { line: first.line, message })?;
                    after
                }
            };
        }
        self.kernel.initial = self.names.initial;
        Ok(self.kernel)
    }

    /// Finds labels and variables, which may be used before they are declared.
    fn variables(&mut self, tokens: &[Token<'_>], shared: &[Variable<'_>]) -> Result<(), ParseError> {
        let (mut rest, mut index) = (tokens, 0);
        let mut dynamic: Vec<&str> = Vec::new();
        for variable in shared {
            let used = tokens.iter().any(|t| t.text == variable.name);
            if used && variable.bytes == 0 {
                dynamic.push(variable.name);
            } else if used {
                self.place_shared(variable);
            }
        }
        while let Some(first) = rest.first() {
            if matches!(first.text, "{" | "}") {
                rest = &rest[1..];
                continue;
            }
            if rest.get(1).is_some_and(|t| t.text == ":") {
                self.names.labels.insert(first.text.to_owned(), index);
                rest = &rest[2..];
                continue;
            }
            let (words, after) = statement(rest);
            if matches!(first.text, ".shared" | ".local") {
                let variable =
                    variable(&words[1..]).map_err(|message| ParseError { line: first.line, message })?;
                if first.text == ".shared" {
                    self.place_shared(&variable);
                } else {
                    let start = (self.kernel.local_bytes as u64).next_multiple_of(variable.align);
                    self.names.addresses.insert(variable.name.to_owned(), start);
                    self.kernel.local_bytes = (start + variable.bytes) as usize;
                }
            }
            index += u32::from(!first.text.starts_with('.'));
            rest = after;
        }
        // Dynamic shared memory begins where the kernel's own ends.
        self.kernel.shared_bytes = self.kernel.shared_bytes.next_multiple_of(16);
        for name in dynamic {
            self.names.addresses.insert(name.to_owned(), self.kernel.shared_bytes as u64);
        }
        Ok(())
    }

    fn place_shared(&mut self, variable: &Variable<'_>) {
        let start = (self.kernel.shared_bytes as u64).next_multiple_of(variable.align);
        self.names.addresses.insert(variable.name.to_owned(), start);
        self.kernel.shared_bytes = (start + variable.bytes) as usize;
    }

    fn statement(&mut self, words: &[Token<'_>]) -> Result<(), String> {
        let Some(first) = words.first() else { return Ok(()) };
        match first.text {
            ".reg" => return self.names.declare(words.get(2..).unwrap_or_default()),
            directive if directive.starts_with('.') => return Ok(()),
            _ => {}
        }
        let decoded = decode(words, &mut self.names, &mut self.kernel.lists);
        let unknown = Instruction { op: Op::Unknown, guard: NONE, d: 0, a: 0, b: 0, c: 0, e: 0 };
        self.kernel.instructions.push(decoded.unwrap_or(unknown));
        self.kernel.lines.push(first.line);
        let text = self.source.get(first.line - 1).unwrap_or(&"").trim();
        self.kernel.texts.push(text.trim_end_matches(';').to_owned());
        Ok(())
    }
}

/// A parameter without what it says of the memory it points to (`.ptr .global .align 16`).
fn without_pointer_attributes<'a>(tokens: &[Token<'a>]) -> Vec<Token<'a>> {
    let Some(at) = tokens.iter().position(|t| t.text == ".ptr") else { return tokens.to_vec() };
    let mut kept = tokens[..at].to_vec();
    let mut rest = tokens[at + 1..].iter();
    while let Some(token) = rest.next() {
        match token.text {
            ".align" => drop(rest.next()),
            text if text.starts_with('.') => {}
            _ => kept.push(*token),
        }
    }
    kept
}
