//! How a matrix is stored.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::format::gguf::GgmlType;
use crate::quant::Grid;

/// How a matrix is stored. In files it is written as `3bit:128` (bits and group size, -1 for a whole row), by the name of a GGML
/// type, or as `16bit`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Precision {
    /// Codes of so many bits in groups of so many inputs: GPTQ and AWQ.
    Codes {
        /// Bits per code.
        bits: u32,
        /// Inputs per group; [`Grid::WHOLE_ROW`] for one group per row.
        group_size: usize,
    },
    /// Blocks of GGUF.
    Blocks(GgmlType),
    /// Not quantized.
    Whole,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Precision::Codes { bits, group_size: Grid::WHOLE_ROW } => write!(f, "{bits}bit:-1"),
            Precision::Codes { bits, group_size } => write!(f, "{bits}bit:{group_size}"),
            Precision::Blocks(ty) => write!(f, "{ty}"),
            Precision::Whole => f.write_str("16bit"),
        }
    }
}

/// What is no precision.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no precision: they are written like 3bit:128, Q4_K or 16bit")]
pub struct NoPrecision(String);

impl FromStr for Precision {
    type Err = NoPrecision;

    fn from_str(text: &str) -> Result<Precision, NoPrecision> {
        let wrong = || NoPrecision(text.to_owned());
        if text == "16bit" {
            return Ok(Precision::Whole);
        }
        let Some((bits, group)) = text.split_once("bit:") else {
            return GgmlType::from_name(text).map(Precision::Blocks).ok_or_else(wrong);
        };
        let bits = bits.parse().ok().filter(|bits| [2, 3, 4, 8].contains(bits)).ok_or_else(wrong)?;
        let group_size = match group.parse::<i64>() {
            Ok(-1) => Grid::WHOLE_ROW,
            Ok(size @ 1..=0x7fff_ffff) => size as usize,
            _ => return Err(wrong()),
        };
        Ok(Precision::Codes { bits, group_size })
    }
}

impl TryFrom<String> for Precision {
    type Error = NoPrecision;

    fn try_from(text: String) -> Result<Precision, NoPrecision> {
        text.parse()
    }
}

impl From<Precision> for String {
    fn from(precision: Precision) -> String {
        precision.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn precisions_are_read_as_they_are_written() {
        for text in ["3bit:128", "8bit:-1", "Q4_K", "BF16", "16bit"] {
            assert_eq!(text.parse::<Precision>().unwrap().to_string(), text);
        }
        for text in ["", "5bit:128", "3bit:", "3bit:0", "3bit:-2", "Q9_K", "16"] {
            assert!(text.parse::<Precision>().is_err(), "{text}");
        }
        let json = serde_json::to_string(&Precision::Codes { bits: 4, group_size: 64 }).unwrap();
        assert_eq!(json, r#""4bit:64""#);
        assert!(serde_json::from_str::<Precision>(r#""7bit:64""#).is_err());
    }
}
