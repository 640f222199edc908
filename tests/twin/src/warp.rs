//! Instructions that the lanes of a warp run together.

use crate::block::{Block, State};
use crate::fault::{Kind, Trap};
use crate::instruction::{Instruction, NONE, Op, Shuffle, Vote};
use crate::integer::int;

impl Block<'_> {
    /// Runs what lanes of a warp wait at, as soon as all that the mask names have come. Returns whether any went on.
    pub(crate) fn run_warp(&mut self, warp: usize) -> Result<bool, (usize, Trap)> {
        let first = warp * 32;
        let lanes = first..(first + 32).min(self.states.len());
        let mut moved = false;
        for thread in lanes.clone() {
            if self.states[thread] != State::AtWarp {
                continue;
            }
            let counter = self.counters[thread];
            let ins = self.kernel.instructions[counter as usize];
            let mask = self.slot(thread, ins.e) as u32;
            let named = |t: usize| mask >> (t - first) & 1 != 0;
            if !named(thread) {
                let message = format!("its lane is not in the mask {mask:#x}");
                return Err((thread, Trap(Kind::Deadlock, message)));
            }
            // Lanes that a short warp does not have are named by full masks.
            let members: Vec<usize> = lanes.clone().filter(|&t| named(t)).collect();
            if let Some(gone) = members.iter().find(|&&t| self.states[t] == State::Done) {
                let message = format!("waits for lane {}, which has ended", gone - first);
                return Err((thread, Trap(Kind::Deadlock, message)));
            }
            let together = |t: &usize| {
                self.states[*t] == State::AtWarp
                    && self.counters[*t] == counter
                    && self.slot(*t, ins.e) as u32 == mask
            };
            if !members.iter().all(together) {
                continue;
            }
            self.run_together(&ins, first, &members, mask);
            if members.len() == lanes.len() {
                self.warp_phases[warp] += u32::from(ins.op == Op::WarpBarrier);
            }
            for t in members {
                self.states[t] = State::Ready;
                self.counters[t] += 1;
                self.instructions += 1;
            }
            moved = true;
        }
        Ok(moved)
    }

    fn slot(&self, thread: usize, slot: u32) -> u64 {
        self.slots[thread * self.kernel.initial.len() + slot as usize]
    }

    fn set(&mut self, thread: usize, slot: u32, value: u64) {
        let length = self.kernel.initial.len();
        self.slots[thread * length + slot as usize] = value;
    }

    fn run_together(&mut self, ins: &Instruction, first: usize, members: &[usize], mask: u32) {
        let values: Vec<u64> = members.iter().map(|&t| self.slot(t, ins.a)).collect();
        match ins.op {
            Op::Shuffle(shuffle) => {
                let [to, in_range] = self.kernel.lists[ins.d as usize][..] else { return };
                let results: Vec<(u64, bool)> = members
                    .iter()
                    .zip(&values)
                    .map(|(&t, &own)| {
                        let lane = (t - first) as i32;
                        let (b, c) = (self.slot(t, ins.b) as i32, self.slot(t, ins.c) as i32);
                        let (source, inside) = source_lane(shuffle, lane, b, c);
                        // A lane that takes no part has nothing to give.
                        let given = members.iter().position(|&m| (m - first) as i32 == source);
                        let value =
                            if inside { given.map_or(u64::from(u32::MAX), |i| values[i]) } else { own };
                        (value, inside)
                    })
                    .collect();
                for (&t, (value, inside)) in members.iter().zip(results) {
                    self.set(t, to, value);
                    self.set(t, in_range, inside.into());
                }
            }
            Op::Vote(vote) => {
                let truths: Vec<bool> = values.iter().map(|v| v & 1 != 0).collect();
                let ballot = members.iter().zip(&truths).filter(|(_, truth)| **truth);
                let ballot = ballot.fold(0, |bits, (t, _)| bits | 1u64 << (t - first));
                let result = tally(vote, &truths, ballot);
                members.iter().for_each(|&t| self.set(t, ins.d, result));
            }
            Op::Match { all, ty } => {
                let values: Vec<u64> = values.into_iter().map(|v| ty.extend(v)).collect();
                let same = values.iter().all(|v| *v == values[0]);
                for (i, &t) in members.iter().enumerate() {
                    let equal = members.iter().zip(&values).filter(|(_, v)| **v == values[i]);
                    let equal = equal.fold(0, |bits, (m, _)| bits | 1u64 << (m - first));
                    let everyone = if same { mask.into() } else { 0 };
                    self.set(t, ins.d, if all { everyone } else { equal });
                    if ins.c != NONE {
                        self.set(t, ins.c, same.into());
                    }
                }
            }
            Op::Reduce(op, ty) => {
                let result = values.into_iter().reduce(|a, b| int(op, ty, a, b, 0, 0)).unwrap_or(0);
                members.iter().for_each(|&t| self.set(t, ins.d, result));
            }
            _ => {}
        }
    }
}

/// The lane that a shuffle reads, and whether it is in the range of `c` (PTX ISA, `shfl.sync`).
fn source_lane(shuffle: Shuffle, lane: i32, b: i32, c: i32) -> (i32, bool) {
    let (b, clamp, segments) = (b & 31, c & 31, c >> 8 & 31);
    let highest = lane & segments | clamp & !segments;
    let (source, inside) = match shuffle {
        Shuffle::Up => (lane - b, lane - b >= highest),
        Shuffle::Down => (lane + b, lane + b <= highest),
        Shuffle::Butterfly => (lane ^ b, lane ^ b <= highest),
        Shuffle::Index => {
            let source = lane & segments | b & !segments;
            (source, source <= highest)
        }
    };
    if inside { (source, true) } else { (lane, false) }
}

/// What a vote gives.
pub(crate) fn tally(vote: Vote, truths: &[bool], ballot: u64) -> u64 {
    let count = truths.iter().filter(|t| **t).count();
    match vote {
        Vote::All => (count == truths.len()).into(),
        Vote::Any => (count > 0).into(),
        Vote::Uniform => (count == 0 || count == truths.len()).into(),
        Vote::Ballot => ballot,
        Vote::Count => count as u64,
    }
}
