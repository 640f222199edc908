//! How large a model is, as a label.

/// Numbers of weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ParamCounts {
    /// All of them.
    pub total: u64,
    /// Those that every token uses.
    pub shared: u64,
    /// Those of one expert in all layers.
    pub expert: u64,
    /// Number of experts; 0 for a dense model.
    pub experts: u64,
}

/// The size as `general.size_label` has it: `1.1B`, or `8x7B` for experts.
pub fn size_label(counts: ParamCounts) -> String {
    if counts.experts > 0 {
        format!("{}x{}", counts.experts, rounded(counts.shared.saturating_add(counts.expert)))
    } else {
        rounded(counts.total)
    }
}

/// At least two digits, with the unit.
fn rounded(count: u64) -> String {
    let count = count as f64;
    let (scaled, unit) = if count > 1e12 {
        (count * 1e-12, "T")
    } else if count > 1e9 {
        (count * 1e-9, "B")
    } else if count > 1e6 {
        (count * 1e-6, "M")
    } else {
        (count * 1e-3, "K")
    };
    let whole = scaled.round_ties_even().to_string();
    let decimals = 2usize.saturating_sub(whole.trim_start_matches('0').len());
    format!("{scaled:.decimals$}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_as_python_rounds_them() {
        // Results of gguf.size_label.
        let cases = [
            (426_624, "427K"),
            (1_100_048_384, "1.1B"),
            (6_738_415_616, "6.7B"),
            (9_500_000_000, "10B"),
            (12_500_000_000, "12B"),
            (9_449_000_000, "9.4B"),
            (999_999, "1000K"),
            (1_000_000, "1000K"),
            (1_000_001, "1.0M"),
            (499, "0.50K"),
            (500, "0.50K"),
            (501, "0.5K"),
            (1_250_000, "1.2M"),
            (1_350_000, "1.3M"),
        ];
        for (total, want) in cases {
            assert_eq!(size_label(ParamCounts { total, ..Default::default() }), want, "{total}");
        }
        let counts =
            ParamCounts { total: 46_702_792_704, shared: 1_605_639_168, expert: 5_637_144_192, experts: 8 };
        assert_eq!(size_label(counts), "8x7.2B");
    }
}
