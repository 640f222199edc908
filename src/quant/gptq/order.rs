//! In which order the columns of a matrix are quantized.

use std::ops::Range;

use super::Ordering;
use crate::quant::codes::Grid;

/// Columns that are quantized before their error is propagated to all others; more if a group is longer.
const BLOCK: usize = 128;

/// Columns in the order of their quantization, in blocks.
#[derive(Debug)]
pub(crate) struct Order {
    /// The column of each step.
    pub(crate) columns: Vec<usize>,
    /// Consecutive steps.
    pub(crate) blocks: Vec<Block>,
    /// Whether the scales of all groups are chosen before the first step. If not, each is chosen at the first step of its
    /// group.
    pub(crate) scales_first: bool,
}

/// Steps that are done together.
#[derive(Debug)]
pub(crate) struct Block {
    /// The steps.
    pub(crate) steps: Range<usize>,
    /// The groups in them, in the order of their steps; consecutive, and all of the block. Without meaning if scales are
    /// chosen first.
    pub(crate) groups: Vec<(usize, Range<usize>)>,
}

impl Order {
    /// Orders columns by how much they matter. Ties go by position, so that the order is always the same.
    pub(super) fn new(diagonal: &[f32], grid: Grid, ordering: Ordering) -> Order {
        let by_importance = |columns: &mut [usize]| {
            columns.sort_by(|a, b| diagonal[*b].total_cmp(&diagonal[*a]).then(a.cmp(b)));
        };
        let size = diagonal.len();
        let mut columns: Vec<usize> = (0..size).collect();
        if ordering == Ordering::Descending || grid.groups(size) == 1 {
            by_importance(&mut columns);
            let blocks = (0..size)
                .step_by(BLOCK)
                .map(|start| Block { steps: start..(start + BLOCK).min(size), groups: Vec::new() })
                .collect();
            return Order { columns, blocks, scales_first: true };
        }
        let mut groups: Vec<(usize, &mut [usize])> =
            columns.chunks_mut(grid.group_size).enumerate().collect();
        groups.iter_mut().for_each(|(_, columns)| by_importance(columns));
        groups.sort_by(|(a, x), (b, y)| diagonal[y[0]].total_cmp(&diagonal[x[0]]).then(a.cmp(b)));
        let mut blocks: Vec<Block> = Vec::new();
        let mut step = 0;
        for (group, columns) in &groups {
            let steps = step..step + columns.len();
            step = steps.end;
            match blocks.last_mut() {
                Some(last) if steps.end - last.steps.start <= BLOCK => {
                    last.steps.end = steps.end;
                    last.groups.push((*group, steps));
                }
                _ => blocks.push(Block { steps: steps.clone(), groups: vec![(*group, steps)] }),
            }
        }
        let columns = groups.into_iter().flat_map(|(_, columns)| columns.iter().copied()).collect();
        Order { columns, blocks, scales_first: false }
    }

    /// Steps of the longest block.
    pub(crate) fn longest(&self) -> usize {
        self.blocks.iter().map(|b| b.steps.len()).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(group_size: usize) -> Grid {
        Grid { bits: 4, group_size, symmetric: true }
    }

    #[test]
    fn groups_stay_together_and_the_most_important_come_first() {
        let diagonal = [1.0, 3.0, 3.0, 2.0, 9.0];
        let order = Order::new(&diagonal, grid(2), Ordering::GroupAware);
        assert_eq!(order.columns, [4, 1, 0, 2, 3], "the last group is shorter");
        let [block] = &*order.blocks else { panic!("{order:?}") };
        assert_eq!(block.groups, [(2, 0..1), (0, 1..3), (1, 3..5)]);
        assert!(!order.scales_first);
    }

    #[test]
    fn one_group_or_static_groups_are_ordered_as_a_whole() {
        for (group_size, ordering) in [(5, Ordering::GroupAware), (2, Ordering::Descending)] {
            let order = Order::new(&[1.0, 3.0, 3.0, 2.0, 9.0], grid(group_size), ordering);
            assert_eq!(order.columns, [4, 1, 2, 3, 0]);
            assert!(order.scales_first);
        }
    }

    #[test]
    fn blocks_hold_whole_groups() {
        for (group_size, lengths) in [(32, vec![128, 128, 44]), (256, vec![256, 44]), (96, vec![96, 96, 108])]
        {
            let order = Order::new(&[1.0; 300], grid(group_size), Ordering::GroupAware);
            assert_eq!(order.blocks.iter().map(|b| b.steps.len()).collect::<Vec<_>>(), lengths);
            assert_eq!(order.longest(), lengths.into_iter().max().unwrap());
        }
    }
}
