//! GGML tensor types: ids, block geometry and names.
//!
//! The ids and block sizes are those of `ggml.h` and `ggml-common.h` in llama.cpp.

use std::fmt;

/// Weights in one super-block of the k-quants and of the IQ and TQ types that are built like them.
pub const QK_K: usize = 256;

/// How one tensor's weights are stored in a GGUF file. The discriminant is the id in the file.
#[allow(non_camel_case_types, missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum GgmlType {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q2_K = 10,
    Q3_K = 11,
    Q4_K = 12,
    Q5_K = 13,
    Q6_K = 14,
    IQ2_XXS = 16,
    IQ2_XS = 17,
    IQ3_XXS = 18,
    IQ1_S = 19,
    IQ4_NL = 20,
    IQ3_S = 21,
    IQ2_S = 22,
    IQ4_XS = 23,
    I8 = 24,
    I16 = 25,
    I32 = 26,
    I64 = 27,
    F64 = 28,
    IQ1_M = 29,
    BF16 = 30,
    TQ1_0 = 34,
    TQ2_0 = 35,
    MXFP4 = 39,
}

/// Geometry of one type: (type, name, weights per block, bytes per block).
const TABLE: &[(GgmlType, &str, usize, usize)] = &[
    (GgmlType::F32, "F32", 1, 4),
    (GgmlType::F16, "F16", 1, 2),
    (GgmlType::Q4_0, "Q4_0", 32, 18),
    (GgmlType::Q4_1, "Q4_1", 32, 20),
    (GgmlType::Q5_0, "Q5_0", 32, 22),
    (GgmlType::Q5_1, "Q5_1", 32, 24),
    (GgmlType::Q8_0, "Q8_0", 32, 34),
    (GgmlType::Q2_K, "Q2_K", QK_K, 84),
    (GgmlType::Q3_K, "Q3_K", QK_K, 110),
    (GgmlType::Q4_K, "Q4_K", QK_K, 144),
    (GgmlType::Q5_K, "Q5_K", QK_K, 176),
    (GgmlType::Q6_K, "Q6_K", QK_K, 210),
    (GgmlType::IQ2_XXS, "IQ2_XXS", QK_K, 66),
    (GgmlType::IQ2_XS, "IQ2_XS", QK_K, 74),
    (GgmlType::IQ3_XXS, "IQ3_XXS", QK_K, 98),
    (GgmlType::IQ1_S, "IQ1_S", QK_K, 50),
    (GgmlType::IQ4_NL, "IQ4_NL", 32, 18),
    (GgmlType::IQ3_S, "IQ3_S", QK_K, 110),
    (GgmlType::IQ2_S, "IQ2_S", QK_K, 82),
    (GgmlType::IQ4_XS, "IQ4_XS", QK_K, 136),
    (GgmlType::I8, "I8", 1, 1),
    (GgmlType::I16, "I16", 1, 2),
    (GgmlType::I32, "I32", 1, 4),
    (GgmlType::I64, "I64", 1, 8),
    (GgmlType::F64, "F64", 1, 8),
    (GgmlType::IQ1_M, "IQ1_M", QK_K, 56),
    (GgmlType::BF16, "BF16", 1, 2),
    (GgmlType::TQ1_0, "TQ1_0", QK_K, 54),
    (GgmlType::TQ2_0, "TQ2_0", QK_K, 66),
    (GgmlType::MXFP4, "MXFP4", 32, 17),
];

impl GgmlType {
    /// Every type that can appear in a file we read.
    pub fn all() -> impl Iterator<Item = GgmlType> {
        TABLE.iter().map(|row| row.0)
    }

    /// The type with this id in a GGUF file, if it is one we know.
    pub fn from_id(id: u32) -> Option<GgmlType> {
        TABLE.iter().map(|row| row.0).find(|t| *t as u32 == id)
    }

    /// The type of this name, in any case (`q4_K`, `Q4_K`).
    pub fn from_name(name: &str) -> Option<GgmlType> {
        TABLE.iter().find(|row| row.1.eq_ignore_ascii_case(name)).map(|row| row.0)
    }

    fn row(self) -> &'static (GgmlType, &'static str, usize, usize) {
        TABLE.iter().find(|row| row.0 == self).expect("every type has its row in TABLE")
    }

    /// The name as llama.cpp prints it, in upper case.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Weights per block; a row's length must be a multiple of it.
    pub fn block_len(self) -> usize {
        self.row().2
    }

    /// Bytes per block.
    pub fn block_bytes(self) -> usize {
        self.row().3
    }

    /// Whether the weights are held in blocks with a shared scale, rather than one by one.
    pub fn is_quantized(self) -> bool {
        self.block_len() > 1
    }

    /// Whether this program can write the type.
    pub fn is_writable(self) -> bool {
        use GgmlType::*;
        matches!(
            self,
            F32 | F16
                | BF16
                | Q8_0
                | Q4_0
                | Q4_1
                | Q5_0
                | Q5_1
                | Q2_K
                | Q3_K
                | Q4_K
                | Q5_K
                | Q6_K
                | IQ4_NL
                | IQ4_XS
                | TQ1_0
                | TQ2_0
        )
    }

    /// Whether this program can decode the type; integers and double precision hold no weights.
    pub fn is_readable(self) -> bool {
        use GgmlType::*;
        !matches!(self, I8 | I16 | I32 | I64 | F64)
    }

    /// Bytes that `n` weights take; `None` when `n` is no multiple of the block length or the size overflows.
    pub fn bytes_for(self, n: u64) -> Option<u64> {
        let (len, bytes) = (self.block_len() as u64, self.block_bytes() as u64);
        n.is_multiple_of(len).then(|| (n / len).checked_mul(bytes)).flatten()
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_found_by_id_and_by_name() {
        for t in GgmlType::all() {
            assert_eq!(GgmlType::from_id(t as u32), Some(t));
            assert_eq!(GgmlType::from_name(&t.name().to_lowercase()), Some(t));
        }
        assert_eq!(GgmlType::from_id(4), None, "id 4 was Q4_2, withdrawn before GGUF");
    }

    #[test]
    fn sizes_are_whole_blocks() {
        assert_eq!(GgmlType::Q4_K.bytes_for(512), Some(288));
        assert_eq!(GgmlType::Q4_K.bytes_for(255), None);
        assert_eq!(GgmlType::F64.bytes_for(u64::MAX), None);
    }
}
