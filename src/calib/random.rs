//! Random choices that stay the same from version to version.
//!
//! A seed is part of how a model was made, so the generator is written down here and not taken from a library that may
//! change its streams.

/// SplitMix64: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators" (2014), figure 17.
#[derive(Clone, Debug)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    /// The generator that starts at `seed`.
    pub fn new(seed: u64) -> SplitMix64 {
        SplitMix64(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 to `n - 1`, all equally likely. Panics if `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        // What is left over when 2^64 is divided by n would make small numbers more likely.
        let left_over = n.wrapping_neg() % n;
        loop {
            let bits = self.bits();
            if bits >= left_over {
                return bits % n;
            }
        }
    }
}

/// Draws `size` of the items that it is shown, each set of that size equally likely, without knowing how many will come:
/// Vitter, "Random Sampling with a Reservoir" (1985), algorithm R.
#[derive(Debug)]
pub struct Reservoir<T> {
    size: usize,
    seen: u64,
    random: SplitMix64,
    kept: Vec<(u64, T)>,
}

impl<T> Reservoir<T> {
    /// An empty one.
    pub fn new(size: usize, seed: u64) -> Reservoir<T> {
        Reservoir { size, seen: 0, random: SplitMix64::new(seed), kept: Vec::new() }
    }

    /// Shows it the next item.
    pub fn offer(&mut self, item: T) {
        let index = self.seen;
        self.seen += 1;
        if self.kept.len() < self.size {
            self.kept.push((index, item));
        } else if let Some(slot) = usize::try_from(self.random.below(self.seen)).ok()
            && slot < self.size
        {
            self.kept[slot] = (index, item);
        }
    }

    /// How many items it was shown.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// What was drawn, in the order in which it came.
    pub fn into_items(mut self) -> Vec<T> {
        self.kept.sort_by_key(|(index, _)| *index);
        self.kept.into_iter().map(|(_, item)| item).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_that_of_the_reference_implementation() {
        let mut random = SplitMix64::new(1_234_567);
        let first: Vec<u64> = (0..5).map(|_| random.bits()).collect();
        let expected = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
            4_593_380_528_125_082_431,
            16_408_922_859_458_223_821,
        ];
        assert_eq!(first, expected);
    }

    #[test]
    fn a_draw_is_the_same_in_every_version() {
        let draw = |seed| {
            let mut reservoir = Reservoir::new(5, seed);
            (0..1000).for_each(|i| reservoir.offer(i));
            assert_eq!(reservoir.seen(), 1000);
            reservoir.into_items()
        };
        assert_eq!(draw(42), DRAWN);
        assert_ne!(draw(43), DRAWN);
    }

    const DRAWN: [i32; 5] = [442, 607, 670, 902, 910];

    #[test]
    fn a_draw_of_all_is_all_in_order() {
        let mut reservoir = Reservoir::new(10, 1);
        (0..7).for_each(|i| reservoir.offer(i));
        assert_eq!(reservoir.into_items(), [0, 1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn every_item_is_drawn_about_as_often() {
        let mut counts = [0; 20];
        for seed in 0..4000 {
            let mut reservoir = Reservoir::new(5, seed);
            (0..20).for_each(|i| reservoir.offer(i));
            reservoir.into_items().into_iter().for_each(|i: usize| counts[i] += 1);
        }
        // Binomial with mean 1000 and standard deviation 27.
        assert!(counts.iter().all(|n| (860..1140).contains(n)), "{counts:?}");
    }
}
