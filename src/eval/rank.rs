//! How well one figure foretells the order of another.

/// Spearman's rank correlation of pairs: 1 if both rise together, -1 if one falls as the other rises. Equal values share the mean
/// of their ranks. None if there are fewer than two pairs or one side is the same throughout.
pub fn spearman(pairs: &[(f64, f64)]) -> Option<f64> {
    let (a, b): (Vec<f64>, Vec<f64>) = pairs.iter().copied().unzip();
    let (a, b) = (ranks(&a), ranks(&b));
    let mean = (pairs.len() as f64 + 1.0) / 2.0;
    let sum = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| (x - mean) * (y - mean)).sum::<f64>();
    let spread = (sum(&a, &a) * sum(&b, &b)).sqrt();
    (spread > 0.0).then(|| sum(&a, &b) / spread)
}

/// The rank of each value, from 1.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|i, j| values[*i].total_cmp(&values[*j]));
    let mut ranks = vec![0.0; values.len()];
    let mut first = 0;
    for equal in order.chunk_by(|i, j| values[*i] == values[*j]) {
        let rank = first as f64 + (equal.len() as f64 + 1.0) / 2.0;
        equal.iter().for_each(|i| ranks[*i] = rank);
        first += equal.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_order_counts() {
        let pairs = |b: [f64; 4]| [1.0, 2.0, 3.0, 4.0].into_iter().zip(b).collect::<Vec<_>>();
        assert_eq!(spearman(&pairs([0.1, 5.0, 5.5, 900.0])), Some(1.0));
        assert_eq!(spearman(&pairs([4.0, 3.0, 2.0, 1.0])), Some(-1.0));
        // 1 - 6 * (0 + 1 + 1 + 0) / (4 * 15).
        assert!((spearman(&pairs([1.0, 3.0, 2.0, 4.0])).unwrap() - 0.8).abs() < 1e-12);
        // Ranks 1, 2.5, 2.5, 4: Pearson's correlation of the ranks is 4.5 / sqrt(5 * 4.5).
        let tied = spearman(&pairs([1.0, 2.0, 2.0, 4.0])).unwrap();
        assert!((tied - 4.5 / (5.0f64 * 4.5).sqrt()).abs() < 1e-12, "{tied}");
        assert_eq!(spearman(&pairs([2.0; 4])), None);
        assert_eq!(spearman(&[(1.0, 1.0)]), None);
    }
}
