//! Whether a model is measured on what it was calibrated with.

use std::collections::HashSet;

/// Tokens of a passage: so many in a row are not the same by chance.
const PASSAGE: usize = 24;

/// How much of some rows is in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Overlap {
    /// Passages of the rows that the text has too.
    pub(super) shared: usize,
    /// Passages of the rows.
    pub(super) passages: usize,
}

impl Overlap {
    /// Of calibration `rows` and the windows of a text. Each row is cut into passages, which may be anywhere in a window.
    pub(super) fn of(rows: &[Vec<u32>], windows: &[Vec<u32>]) -> Overlap {
        let shortest = rows.iter().chain(windows).map(Vec::len).min().unwrap_or(0);
        let length = PASSAGE.min(shortest.div_ceil(2)).max(1);
        let text: HashSet<&[u32]> = windows.iter().flat_map(|window| window.windows(length)).collect();
        let mut overlap = Overlap { shared: 0, passages: 0 };
        for passage in rows.iter().flat_map(|row| row.chunks_exact(length)) {
            overlap.passages += 1;
            overlap.shared += usize::from(text.contains(passage));
        }
        overlap
    }

    /// What to say of it, if there is anything to say.
    pub(super) fn warning(self, data: &str) -> Option<String> {
        let percent = 100.0 * self.shared as f64 / self.passages.max(1) as f64;
        (self.shared > 0).then(|| {
            format!(
                "{percent:.1} % of the calibration rows are in {data} too: the loss that is measured there is less than that on \
                 other text. Measure on text that nothing was calibrated with"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_passages_are_found_wherever_they_are() {
        let text: Vec<u32> = (0..400).collect();
        let windows: Vec<Vec<u32>> = text.chunks(100).map(<[u32]>::to_vec).collect();
        let other: Vec<u32> = (1000..1100).collect();
        assert_eq!(Overlap::of(std::slice::from_ref(&other), &windows), Overlap { shared: 0, passages: 4 });
        assert!(Overlap::of(std::slice::from_ref(&other), &windows).warning("x").is_none());
        let moved = text[37..137].to_vec();
        // Of the passages from 37, 61, 85 and 109 on, the third crosses the end of a window.
        let found = Overlap::of(&[moved, other], &windows);
        assert_eq!(found, Overlap { shared: 3, passages: 8 });
        assert!(found.warning("x").unwrap().starts_with("37.5 %"));
    }

    #[test]
    fn short_rows_have_short_passages() {
        let rows = vec![vec![1, 2, 3, 4]];
        assert_eq!(Overlap::of(&rows, &rows), Overlap { shared: 2, passages: 2 });
        assert_eq!(Overlap::of(&[], &[]), Overlap { shared: 0, passages: 0 });
    }
}
