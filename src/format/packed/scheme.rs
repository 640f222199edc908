//! How the layers of a checkpoint were quantized, as its configuration states it.

use fancy_regex::Regex;

use super::Layout;
use super::config::{BITS, GROUP_SIZE, Method, Stated};
use crate::error::{Error, Kind, Result};
use crate::format::{awq, gptq};
use crate::quant::Grid;

/// The grid of a layer as it is stated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatedGrid {
    /// Bits per code.
    pub bits: u32,
    /// Inputs per group; none is a whole row.
    pub group_size: Option<usize>,
    /// Whether it is said to be symmetric.
    pub symmetric: Option<bool>,
}

impl StatedGrid {
    /// Reads the keys. Bits other than 2, 3, 4 and 8 are refused.
    pub fn read(stated: &Stated) -> Result<StatedGrid> {
        let missing = |key: &str| stated.wrong(key, "stated", &serde_json::Value::Null);
        let bits = stated.opt_i64(BITS)?.ok_or_else(|| missing("bits"))?;
        if ![2, 3, 4, 8].contains(&bits) {
            return Err(stated.unsupported(format!("{bits} bits; codes of 2, 3, 4 and 8 bits can be read")));
        }
        let group_size = match stated.opt_i64(GROUP_SIZE)? {
            Some(-1) => None,
            Some(n @ 1..=0x7fff_ffff) => Some(n as usize),
            Some(n) => return Err(stated.wrong("group_size", "-1 or more than 0", &n.into())),
            None => return Err(missing("group_size")),
        };
        let symmetric = match stated.opt_flag(&["sym"])? {
            Some(sym) => Some(sym),
            None => stated.opt_flag(&["zero_point"])?.map(|zero_point| !zero_point),
        };
        Ok(StatedGrid { bits: bits as u32, group_size, symmetric })
    }

    /// The grid, symmetric or not.
    pub fn grid(self) -> Grid {
        Grid { bits: self.bits, group_size: self.group_size.unwrap_or(Grid::WHOLE_ROW), symmetric: false }
    }
}

/// A statement about some layers.
#[derive(Debug)]
pub struct Rule {
    pattern: Regex,
    /// Their grid; none if they are not quantized.
    grid: Option<StatedGrid>,
}

impl Rule {
    /// A rule about the layers whose names begin with what `pattern` matches, as Python's `re.match`.
    pub fn new(stated: &Stated, pattern: &str, grid: Option<StatedGrid>) -> Result<Rule> {
        let compiled = Regex::new(&format!("^(?:{pattern})"))
            .map_err(|e| stated.unsupported(format!("the pattern '{pattern}' is not understood: {e}")))?;
        Ok(Rule { pattern: compiled, grid })
    }
}

/// What a checkpoint states of its layers.
#[derive(Debug)]
pub struct Scheme {
    /// `gptq` or `awq`.
    pub method: &'static str,
    /// How layers are stored.
    pub layout: Box<dyn Layout>,
    /// The grid of layers without a rule.
    pub base: StatedGrid,
    /// Whether inputs were quantized in another order than theirs, as it is stated.
    pub desc_act: bool,
    /// The variant of the container: `gptq`, `gptq_v2` or `gemm`.
    pub checkpoint_format: &'static str,
    /// The tool that made it.
    pub quantizer: Option<String>,
    /// The first that matches counts.
    pub rules: Vec<Rule>,
}

impl Scheme {
    /// Understands what is stated.
    ///
    /// # Errors
    /// `Unsupported` for other methods and for variants that cannot be read, `Invalid` for values that make no sense.
    pub fn read(stated: &Stated) -> Result<Scheme> {
        match stated.method()? {
            Method::Gptq => gptq::config::read(stated),
            Method::Awq => awq::config::read(stated),
            Method::AutoRound => auto_round(stated),
            Method::Other(name) => Err(stated
                .unsupported(format!("the quantization method {name} is not supported; gptq and awq are"))
                .hint("Start from the unquantized 16-bit checkpoint.")),
        }
    }

    /// The grid of a layer; none if it is said not to be quantized.
    ///
    /// # Errors
    /// `Unsupported` if a pattern takes too long on this name.
    pub fn grid(&self, layer: &str) -> Result<Option<StatedGrid>> {
        for rule in &self.rules {
            let matches = rule.pattern.is_match(layer).map_err(|e| {
                Error::new(Kind::Unsupported, format!("a pattern of the quantization fails on {layer}"))
                    .because(e)
            })?;
            if matches {
                return Ok(rule.grid);
            }
        }
        Ok(Some(self.base))
    }
}

/// AutoRound's own format: one of the two containers, with exceptions by name or pattern in `extra_config`.
fn auto_round(stated: &Stated) -> Result<Scheme> {
    let mut scheme = match stated.opt_str(&["packing_format"])? {
        Some("auto_round:auto_gptq") => gptq::config::read(stated)?,
        Some("auto_round:auto_awq") => awq::config::read(stated)?,
        other => {
            let name = other.unwrap_or("(none)");
            return Err(stated
                .unsupported(format!("AutoRound's packing_format {name} is not supported"))
                .hint("Supported are auto_round:auto_gptq and auto_round:auto_awq."));
        }
    };
    for (name, over) in stated.object("extra_config")? {
        let serde_json::Value::Object(over) = over else {
            return Err(stated.wrong(&name, "an object", &over));
        };
        let over = stated.with(&over, &name);
        let plain = over.opt_i64(BITS)?.is_some_and(|bits| bits >= 16);
        let grid = if plain { None } else { Some(StatedGrid::read(&over)?) };
        scheme.rules.push(Rule::new(stated, &format!("(?:{name})$"), grid)?);
    }
    Ok(scheme)
}
