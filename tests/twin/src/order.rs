//! The order in which threads and blocks run.

/// An order. A correct kernel gives the same result in any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As they are numbered.
    Forward,
    /// From the last to the first.
    Reverse,
    /// At random, another one after each barrier.
    Seeded(u64),
}

impl Order {
    /// Puts `list` in this order; `turn` tells one use from the next.
    pub(crate) fn arrange(self, list: &mut [u32], turn: u64) {
        match self {
            Order::Forward => list.sort_unstable(),
            Order::Reverse => list.sort_unstable_by(|a, b| b.cmp(a)),
            Order::Seeded(seed) => {
                list.sort_unstable();
                let mut state = seed ^ turn.wrapping_mul(0xd134_2543_de82_ef95);
                for i in (1..list.len()).rev() {
                    let j = (next(&mut state) % (i as u64 + 1)) as usize;
                    list.swap(i, j);
                }
            }
        }
    }
}

/// SplitMix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_order_has_every_thread_once() {
        let mut list: Vec<u32> = (0..100).collect();
        let all = list.clone();
        for order in [Order::Seeded(1), Order::Seeded(2)] {
            order.arrange(&mut list, 0);
            let first = list.clone();
            order.arrange(&mut list, 1);
            assert_ne!(list, first);
            order.arrange(&mut list, 0);
            assert_eq!(list, first, "an order can be had again");
            list.sort_unstable();
            assert_eq!(list, all);
        }
        Order::Reverse.arrange(&mut list, 0);
        assert_eq!((list[0], list[99]), (99, 0));
    }
}
