//! What an evaluation found, summed up for people and machines.

use serde::{Deserialize, Serialize};

use super::score::{Compared, Score};
use super::statistics::{Mean, percentile};
use super::windows::{Protocol, Windows};

/// Perplexity, and with a reference how far the predictions have moved. Divergences are in nats.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Evaluation {
    /// How the text was cut and what was scored.
    pub protocol: Protocol,
    /// Tokens in each window.
    pub ctx: usize,
    /// Windows.
    pub windows: usize,
    /// Tokens that were scored.
    pub tokens: usize,
    /// Exponential of the mean negative log-likelihood.
    pub perplexity: f64,
    /// Its standard error, tokens taken as independent.
    pub perplexity_stderr: f64,
    /// The comparison with the reference.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub comparison: Option<Comparison>,
    /// By position in the window.
    pub positions: Positions,
    /// By window, in the order of the text.
    pub chunks: Vec<Chunk>,
}

/// A model against its reference.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Comparison {
    /// The reference's perplexity.
    pub reference_perplexity: f64,
    /// Its standard error.
    pub reference_perplexity_stderr: f64,
    /// The model's perplexity over the reference's.
    pub perplexity_ratio: f64,
    /// Its standard error; that of two models on one text is much smaller than theirs.
    pub perplexity_ratio_stderr: f64,
    /// Mean of `KL(reference || model)`.
    pub kl_divergence: f64,
    /// Its standard error.
    pub kl_divergence_stderr: f64,
    /// The largest of all tokens.
    pub kl_divergence_max: f64,
    /// The tokens' distribution.
    pub kl_divergence_percentiles: Percentiles,
    /// Share of the tokens where both find the same next token most likely.
    pub top1_agreement: f64,
    /// Its standard error.
    pub top1_agreement_stderr: f64,
}

/// Values below which so many percent lie.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Percentiles {
    #[serde(rename = "50")]
    pub p50: f64,
    #[serde(rename = "90")]
    pub p90: f64,
    #[serde(rename = "95")]
    pub p95: f64,
    #[serde(rename = "99")]
    pub p99: f64,
}

/// Means over the windows, one for each scored position.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Positions {
    /// The position that was predicted from, from 0.
    pub position: Vec<usize>,
    /// Negative log-likelihood.
    pub nll: Vec<f64>,
    /// KL divergence.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kl_divergence: Vec<f64>,
    /// Share of equal first choices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub top1_agreement: Vec<f64>,
}

/// One window.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Chunk {
    /// Tokens that were scored.
    pub tokens: usize,
    /// Its perplexity.
    pub perplexity: f64,
    /// Its mean KL divergence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_divergence: Option<f64>,
    /// Its share of equal first choices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top1_agreement: Option<f64>,
}

impl Evaluation {
    /// Sums up the scores of all windows.
    pub fn new(windows: &Windows, scores: &[Vec<Score>]) -> Evaluation {
        let all = || scores.iter().flatten();
        let nll = Mean::of(all().map(|s| s.nll)).exp();
        Evaluation {
            protocol: windows.protocol(),
            ctx: windows.ctx(),
            windows: windows.len(),
            tokens: all().count(),
            perplexity: nll.mean,
            perplexity_stderr: nll.stderr,
            comparison: Comparison::new(scores),
            positions: Positions::new(windows, scores),
            chunks: scores.iter().map(|scores| Chunk::new(scores)).collect(),
        }
    }
}

impl Comparison {
    fn new(scores: &[Vec<Score>]) -> Option<Comparison> {
        let pairs: Vec<(f64, Compared)> =
            scores.iter().flatten().map(|s| Some((s.nll, s.compared?))).collect::<Option<_>>()?;
        let reference = Mean::of(pairs.iter().map(|(_, c)| c.reference_nll)).exp();
        let ratio = Mean::of(pairs.iter().map(|(nll, c)| nll - c.reference_nll)).exp();
        let kl = Mean::of(pairs.iter().map(|(_, c)| c.kl_divergence));
        let top = Mean::of(pairs.iter().map(|(_, c)| f64::from(u8::from(c.same_top))));
        let mut sorted: Vec<f64> = pairs.iter().map(|(_, c)| c.kl_divergence).collect();
        sorted.sort_by(f64::total_cmp);
        let [p50, p90, p95, p99] = [50.0, 90.0, 95.0, 99.0].map(|p| percentile(&sorted, p));
        Some(Comparison {
            reference_perplexity: reference.mean,
            reference_perplexity_stderr: reference.stderr,
            perplexity_ratio: ratio.mean,
            perplexity_ratio_stderr: ratio.stderr,
            kl_divergence: kl.mean,
            kl_divergence_stderr: kl.stderr,
            kl_divergence_max: percentile(&sorted, 100.0),
            kl_divergence_percentiles: Percentiles { p50, p90, p95, p99 },
            top1_agreement: top.mean,
            top1_agreement_stderr: top.stderr,
        })
    }
}

impl Positions {
    fn new(windows: &Windows, scores: &[Vec<Score>]) -> Positions {
        let mut positions = Positions::default();
        for (i, position) in windows.scored().enumerate() {
            let here = Chunk::mean(scores.iter().map(|scores| &scores[i]));
            positions.position.push(position);
            positions.nll.push(here.0);
            positions.kl_divergence.extend(here.1);
            positions.top1_agreement.extend(here.2);
        }
        positions
    }
}

impl Chunk {
    fn new(scores: &[Score]) -> Chunk {
        let (nll, kl_divergence, top1_agreement) = Chunk::mean(scores.iter());
        Chunk { tokens: scores.len(), perplexity: nll.exp(), kl_divergence, top1_agreement }
    }

    /// Means of negative log-likelihood, KL divergence and agreement.
    fn mean<'a>(scores: impl Iterator<Item = &'a Score> + Clone) -> (f64, Option<f64>, Option<f64>) {
        let n = scores.clone().count() as f64;
        let compared = |value: fn(&Compared) -> f64| {
            let values = scores.clone().map(|s| s.compared.as_ref().map(value));
            values.sum::<Option<f64>>().map(|sum| sum / n)
        };
        let nll = scores.clone().map(|s| s.nll).sum::<f64>() / n;
        (nll, compared(|c| c.kl_divergence), compared(|c| f64::from(u8::from(c.same_top))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(nll: f64, kl: f64, same_top: bool) -> Score {
        let compared = Compared { reference_nll: 1.0, kl_divergence: kl, same_top };
        Score { nll, compared: Some(compared) }
    }

    #[test]
    fn an_evaluation_sums_up_by_token_position_and_window() {
        let tokens: Vec<u32> = (0..5).collect();
        let windows = Windows::cut(Protocol::Full, &tokens, None, 2, None).unwrap();
        let scores = [
            vec![score(1.0, 0.1, true), score(2.0, 0.3, false)],
            vec![score(3.0, 0.5, true), score(2.0, 0.7, true)],
        ];
        let found = Evaluation::new(&windows, &scores);
        assert_eq!((found.tokens, found.windows, found.ctx), (4, 2, 2));
        assert!((found.perplexity - 2f64.exp()).abs() < 1e-12);
        assert_eq!(found.positions.position, [0, 1]);
        assert_eq!(found.positions.nll, [2.0, 2.0]);
        assert!((found.positions.kl_divergence[1] - 0.5).abs() < 1e-12);
        assert_eq!(found.positions.top1_agreement, [1.0, 0.5]);
        assert!((found.chunks[1].perplexity - 2.5f64.exp()).abs() < 1e-12);
        let comparison = found.comparison.as_ref().unwrap();
        assert!((comparison.kl_divergence - 0.4).abs() < 1e-12);
        assert_eq!((comparison.kl_divergence_max, comparison.top1_agreement), (0.7, 0.75));
        assert!((comparison.perplexity_ratio - 1f64.exp()).abs() < 1e-12);
        assert!((comparison.kl_divergence_percentiles.p50 - 0.4).abs() < 1e-12);
        let json = serde_json::to_value(&found).unwrap();
        assert_eq!(json["protocol"], "full");
        assert_eq!(json["kl_divergence_percentiles"]["99"].as_f64().map(|v| v > 0.69), Some(true));
    }

    #[test]
    fn without_a_reference_nothing_is_compared() {
        let windows = Windows::cut(Protocol::LlamaCpp, &[1, 2, 3, 4], None, 4, None).unwrap();
        let found = Evaluation::new(&windows, &[vec![Score { nll: 0.5, compared: None }]]);
        let json = serde_json::to_value(&found).unwrap();
        assert!(json.get("kl_divergence").is_none() && json["positions"].get("kl_divergence").is_none());
        assert_eq!((json["tokens"].as_u64(), json["positions"]["position"][0].as_u64()), (Some(1), Some(2)));
    }
}
