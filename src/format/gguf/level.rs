//! Quantization levels by llama.cpp's names: what `-q` accepts.

use super::types::GgmlType;

/// A level: its name, the number in `general.file_type` (`llama_ftype` in `llama.h`) and the type that most tensors get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    /// As llama.cpp prints it.
    pub name: &'static str,
    /// `llama_ftype`.
    pub file_type: u32,
    /// The type of tensors that the mix does not treat specially.
    pub base: GgmlType,
}

const fn level(name: &'static str, file_type: u32, base: GgmlType) -> Level {
    Level { name, file_type, base }
}

/// All levels that can be written, smallest first.
pub const LEVELS: &[Level] = &[
    level("TQ1_0", 36, GgmlType::TQ1_0),
    level("TQ2_0", 37, GgmlType::TQ2_0),
    level("Q2_K_S", 21, GgmlType::Q2_K),
    level("Q2_K", 10, GgmlType::Q2_K),
    level("Q3_K_S", 11, GgmlType::Q3_K),
    level("Q3_K_M", 12, GgmlType::Q3_K),
    level("Q3_K_L", 13, GgmlType::Q3_K),
    level("IQ4_XS", 30, GgmlType::IQ4_XS),
    level("IQ4_NL", 25, GgmlType::IQ4_NL),
    level("Q4_0", 2, GgmlType::Q4_0),
    level("Q4_K_S", 14, GgmlType::Q4_K),
    level("Q4_K_M", 15, GgmlType::Q4_K),
    level("Q4_1", 3, GgmlType::Q4_1),
    level("Q5_0", 8, GgmlType::Q5_0),
    level("Q5_K_S", 16, GgmlType::Q5_K),
    level("Q5_K_M", 17, GgmlType::Q5_K),
    level("Q5_1", 9, GgmlType::Q5_1),
    level("Q6_K", 18, GgmlType::Q6_K),
    level("Q8_0", 7, GgmlType::Q8_0),
    level("F16", 1, GgmlType::F16),
    level("BF16", 32, GgmlType::BF16),
    level("F32", 0, GgmlType::F32),
];

/// llama.cpp's short names for the medium mixes.
const ALIASES: &[(&str, &str)] = &[("Q3_K", "Q3_K_M"), ("Q4_K", "Q4_K_M"), ("Q5_K", "Q5_K_M")];

/// Levels of llama.cpp that need code books which are not built in yet.
const KNOWN_ELSEWHERE: &[&str] = &[
    "IQ1_S",
    "IQ1_M",
    "IQ2_XXS",
    "IQ2_XS",
    "IQ2_S",
    "IQ2_M",
    "IQ3_XXS",
    "IQ3_XS",
    "IQ3_S",
    "IQ3_M",
    "MXFP4_MOE",
    "Q1_0",
    "Q2_0",
    "NVFP4",
];

impl Level {
    /// The level of this name, in any case.
    pub fn from_name(name: &str) -> Option<Level> {
        let name =
            ALIASES.iter().find(|(alias, _)| alias.eq_ignore_ascii_case(name)).map_or(name, |(_, full)| full);
        LEVELS.iter().find(|l| l.name.eq_ignore_ascii_case(name)).copied()
    }

    /// Whether llama.cpp has a level of this name that is not supported here.
    pub fn is_known_elsewhere(name: &str) -> bool {
        KNOWN_ELSEWHERE.iter().any(|known| known.eq_ignore_ascii_case(name))
    }

    /// The level with this number in `general.file_type`.
    pub fn from_file_type(file_type: u32) -> Option<Level> {
        LEVELS.iter().find(|l| l.file_type == file_type).copied()
    }

    /// Names of all levels, for messages.
    pub fn names() -> String {
        LEVELS.iter().map(|l| l.name).collect::<Vec<_>>().join(", ")
    }
}
