//! Which option each unit gets: the least sum of losses for a number of bytes, or the fewest bytes for a sum of losses.
//!
//! This is the multiple-choice knapsack problem. It is solved exactly, by dynamic programming over the sums of bytes that occur:
//! unit by unit, all sums of the units so far are kept that lose less than every sum of no more bytes. Sums of a model are few
//! beside the number of choices, because its layers are of one shape.

/// What one option of a unit costs and loses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Item {
    /// Bytes.
    pub bytes: u64,
    /// Loss, which adds up over units. May be below 0.
    pub loss: f64,
}

/// One choice for each unit.
#[derive(Clone, Debug, PartialEq)]
pub struct Allocation {
    /// The option of each unit, in the order of the units.
    pub options: Vec<usize>,
    /// Their bytes.
    pub bytes: u64,
    /// Their losses, added up in the order of the units.
    pub loss: f64,
}

/// A sum of bytes and losses, and how it came about.
#[derive(Clone, Copy, Debug)]
struct Sum {
    bytes: u64,
    loss: f64,
    option: u32,
    /// The sum of the units before, by its place.
    before: u32,
}

/// All allocations that nothing beats: each loses less than every other of no more bytes.
#[derive(Debug)]
pub struct Front {
    /// After each unit, by rising bytes and falling losses.
    stages: Vec<Vec<Sum>>,
}

impl Front {
    /// Of units with their options. Of equal allocations the one counts whose last unit has the earliest option, then the one
    /// before it, and so on: the result depends on nothing but the numbers.
    ///
    /// # Panics
    /// If a unit has no options or a loss is NaN.
    pub fn new(units: &[Vec<Item>]) -> Front {
        let mut stages: Vec<Vec<Sum>> = Vec::with_capacity(units.len());
        for options in units {
            assert!(!options.is_empty(), "a unit has options");
            assert!(options.iter().all(|item| !item.loss.is_nan()), "a loss is a number");
            let start = [Sum { bytes: 0, loss: 0.0, option: 0, before: 0 }];
            let before = stages.last().map_or(&start[..], Vec::as_slice);
            let mut sums = Vec::with_capacity(before.len() * options.len());
            for (option, item) in options.iter().enumerate() {
                sums.extend(before.iter().enumerate().map(|(i, sum)| Sum {
                    bytes: sum.bytes + item.bytes,
                    loss: sum.loss + item.loss,
                    option: option as u32,
                    before: i as u32,
                }));
            }
            // Stable: equal sums stay in the order of options.
            sums.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(a.loss.total_cmp(&b.loss)));
            let mut least = f64::INFINITY;
            sums.retain(|sum| {
                let better = sum.loss < least;
                least = least.min(sum.loss);
                better
            });
            stages.push(sums);
        }
        Front { stages }
    }

    /// The least loss that takes no more than so many bytes; none if every allocation takes more.
    pub fn within(&self, bytes: u64) -> Option<Allocation> {
        let last = self.stages.last()?;
        let fitting = last.partition_point(|sum| sum.bytes <= bytes);
        Some(self.trace(fitting.checked_sub(1)?))
    }

    /// The fewest bytes that lose no more than `loss`; none if every allocation loses more.
    pub fn below(&self, loss: f64) -> Option<Allocation> {
        let last = self.stages.last()?;
        let place = last.partition_point(|sum| sum.loss > loss);
        (place < last.len()).then(|| self.trace(place))
    }

    /// The least loss that there is.
    pub fn lowest(&self) -> Option<Allocation> {
        Some(self.trace(self.stages.last()?.len() - 1))
    }

    fn trace(&self, place: usize) -> Allocation {
        let end = self.stages.last().expect("the caller has looked")[place];
        let mut options = vec![0; self.stages.len()];
        let mut place = place;
        for (stage, option) in self.stages.iter().zip(&mut options).rev() {
            *option = stage[place].option as usize;
            place = stage[place].before as usize;
        }
        Allocation { options, bytes: end.bytes, loss: end.loss }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn items(options: &[(u64, f64)]) -> Vec<Item> {
        options.iter().map(|(bytes, loss)| Item { bytes: *bytes, loss: *loss }).collect()
    }

    /// All allocations, one after the other.
    fn all(units: &[Vec<Item>]) -> Vec<Allocation> {
        let none = Allocation { options: vec![], bytes: 0, loss: 0.0 };
        units.iter().fold(vec![none], |before, options| {
            let with = |a: &Allocation| {
                let a = a.clone();
                let next = move |(i, item): (usize, &Item)| Allocation {
                    options: [&a.options[..], &[i]].concat(),
                    bytes: a.bytes + item.bytes,
                    loss: a.loss + item.loss,
                };
                options.iter().enumerate().map(next).collect::<Vec<_>>()
            };
            before.iter().flat_map(with).collect()
        })
    }

    #[test]
    fn greedy_choices_are_beaten_where_they_can_be() {
        // The best gain per byte is that of the first unit; both together do not fit, and the second alone is worth more.
        let units = [items(&[(0, 10.0), (6, 3.0)]), items(&[(0, 10.0), (7, 2.0)])];
        let found = Front::new(&units).within(7).unwrap();
        assert_eq!((found.options, found.bytes, found.loss), (vec![0, 1], 7, 12.0));
    }

    #[test]
    fn equal_allocations_are_always_decided_the_same_way() {
        let units = [items(&[(1, 1.0), (1, 1.0)]), items(&[(2, 1.0), (1, 1.0)])];
        let found = Front::new(&units).within(3).unwrap();
        assert_eq!(found, Allocation { options: vec![0, 1], bytes: 2, loss: 2.0 });
    }

    #[test]
    fn what_cannot_be_had_is_none() {
        let front = Front::new(&[items(&[(4, 1.0), (8, 0.5)])]);
        assert_eq!(front.within(3), None);
        assert_eq!(front.below(0.4), None);
        assert_eq!(front.below(0.5).unwrap().options, [1]);
        assert_eq!(front.lowest().unwrap().options, [1]);
        assert_eq!(Front::new(&[]).within(3), None);
    }

    proptest! {
        #[test]
        fn it_is_what_trying_everything_finds(
            units in prop::collection::vec(prop::collection::vec((0u64..30, -2i32..40), 1..5), 1..6),
            limit in 0u64..120,
            loss in -5i32..120,
        ) {
            // Whole numbers: sums are exact in any order.
            let units: Vec<Vec<Item>> = units
                .iter()
                .map(|options| options.iter().map(|(b, l)| Item { bytes: *b, loss: f64::from(*l) }).collect())
                .collect();
            let (front, all) = (Front::new(&units), all(&units));
            let least = all.iter().filter(|a| a.bytes <= limit).map(|a| (a.loss, a.bytes));
            let least = least.min_by(|a, b| a.partial_cmp(b).unwrap());
            let found = front.within(limit);
            prop_assert_eq!(found.as_ref().map(|a| (a.loss, a.bytes)), least);
            let fewest = all.iter().filter(|a| a.loss <= f64::from(loss)).map(|a| a.bytes).min();
            let below = front.below(f64::from(loss));
            prop_assert_eq!(below.as_ref().map(|a| a.bytes), fewest);
            for a in found.iter().chain(&below) {
                let chosen = a.options.iter().zip(&units).map(|(option, items)| items[*option]);
                let sums = chosen.fold((0, 0.0), |s, item| (s.0 + item.bytes, s.1 + item.loss));
                prop_assert_eq!(sums, (a.bytes, a.loss));
            }
        }
    }
}
