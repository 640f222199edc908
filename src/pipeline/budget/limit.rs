//! What a result may lose.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::pipeline::evaluate::Evaluated;

/// What a result may lose.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// Mean of `KL(original || result)`, in nats.
    MaxKld(f64),
    /// Percent by which perplexity is larger than the original's.
    MaxPplIncrease(f64),
}

impl Limit {
    /// Checks that a quantized model can keep to it at all.
    ///
    /// # Errors
    /// `Usage` for 0, less, and what is no number.
    pub fn check(self) -> Result<Limit> {
        let (Limit::MaxKld(value) | Limit::MaxPplIncrease(value)) = self;
        if value > 0.0 && value.is_finite() {
            return Ok(self);
        }
        Err(Error::new(Kind::Usage, format!("{self}: no quantized model keeps to that")).hint(
            "Pass a number above 0. Usual are 0.001 to 0.05 for --max-kld, 0.1% to 5% for --max-ppl-increase.",
        ))
    }

    /// What was measured of the quantity that it is about.
    pub fn of(self, found: &Evaluated) -> f64 {
        match self {
            Limit::MaxKld(_) => found.kl_divergence,
            Limit::MaxPplIncrease(_) => found.perplexity_change_percent,
        }
    }

    /// Whether what was measured keeps to it.
    pub fn is_met(self, found: &Evaluated) -> bool {
        let (Limit::MaxKld(limit) | Limit::MaxPplIncrease(limit)) = self;
        // NaN is below nothing.
        self.of(found) <= limit
    }

    /// How much of the limit is used up; above 1 it is not kept. A change of perplexity counts by its logarithm, which adds up
    /// as divergences do.
    pub fn used(self, found: &Evaluated) -> f64 {
        let log = |percent: f64| (percent / 100.0).ln_1p();
        match self {
            Limit::MaxKld(limit) => found.kl_divergence / limit,
            Limit::MaxPplIncrease(limit) => log(found.perplexity_change_percent) / log(limit),
        }
    }

    /// How much of the limit a nat of divergence uses up if nothing was measured: perplexity rises by as much in its logarithm.
    pub(super) fn per_nat(self) -> f64 {
        match self {
            Limit::MaxKld(limit) => 1.0 / limit,
            Limit::MaxPplIncrease(limit) => 1.0 / (limit / 100.0).ln_1p(),
        }
    }

    /// What was measured, in words.
    pub fn describe(self, found: &Evaluated) -> String {
        match self {
            Limit::MaxKld(limit) => format!("KL divergence {:.6} of {limit} allowed", found.kl_divergence),
            Limit::MaxPplIncrease(limit) => {
                format!("perplexity {:+.3} % of {limit} % allowed", found.perplexity_change_percent)
            }
        }
    }
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Limit::MaxKld(limit) => write!(f, "--max-kld {limit}"),
            Limit::MaxPplIncrease(limit) => write!(f, "--max-ppl-increase {limit}%"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(kl_divergence: f64, perplexity_change_percent: f64) -> Evaluated {
        Evaluated {
            data: "text".into(),
            tokens: 1,
            source_perplexity: 10.0,
            perplexity: 10.0,
            perplexity_change_percent,
            kl_divergence,
            kl_divergence_stderr: 0.0,
            top1_agreement: 1.0,
        }
    }

    #[test]
    fn a_limit_is_kept_or_not() {
        let (kld, ppl) = (Limit::MaxKld(0.01), Limit::MaxPplIncrease(2.0));
        assert!(kld.is_met(&found(0.01, 9.0)) && !kld.is_met(&found(0.010001, 0.0)));
        assert!(
            ppl.is_met(&found(9.0, 2.0)) && ppl.is_met(&found(9.0, -1.0)) && !ppl.is_met(&found(0.0, 2.01))
        );
        assert!(!kld.is_met(&found(f64::NAN, 0.0)));
        assert!((kld.used(&found(0.02, 0.0)) - 2.0).abs() < 1e-12);
        assert!((ppl.used(&found(0.0, 4.04)) - 2.0).abs() < 1e-12);
    }

    #[test]
    fn impossible_limits_are_refused() {
        for value in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let e = Limit::MaxKld(value).check().unwrap_err();
            assert_eq!(e.kind(), Kind::Usage, "{value}");
            assert_eq!(Limit::MaxPplIncrease(value).check().unwrap_err().kind(), Kind::Usage, "{value}");
        }
        assert!(Limit::MaxKld(1e-9).check().is_ok());
    }
}
