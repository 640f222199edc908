//! One block: its threads, one after the other, from barrier to barrier.

use crate::access::{Spaces, from_generic, to_generic};
use crate::fault::{Fault, Kind, Place, Trap, trap};
use crate::float;
use crate::instruction::{Instruction, NONE, Op, SPECIALS};
use crate::integer::int;
use crate::launch::Launch;
use crate::module::Kernel;
use crate::order::Order;
use crate::races::{Use, User};
use crate::rounding::canonical;
use crate::types::Type;

/// Instructions that a thread may run before it comes to a barrier or to its end.
const ENDLESS: u64 = 4_000_000_000;

/// What a thread is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Ready,
    /// At a barrier of the block.
    AtBarrier,
    /// At an instruction of the warp.
    AtWarp,
    Done,
}

/// A block that runs; used for one block of the grid after the other.
pub(crate) struct Block<'a> {
    pub(crate) kernel: &'a Kernel,
    launch: &'a Launch<'a>,
    order: Order,
    index: [u32; 3],
    /// Slots of all threads.
    pub(crate) slots: Vec<u64>,
    pub(crate) states: Vec<State>,
    pub(crate) counters: Vec<u32>,
    spaces: Spaces<'a>,
    phase: u32,
    pub(crate) warp_phases: Vec<u32>,
    /// Instructions run.
    pub(crate) instructions: u64,
    turns: u64,
}

impl<'a> Block<'a> {
    pub(crate) fn new(launch: &'a Launch<'a>, spaces: Spaces<'a>, order: Order) -> Block<'a> {
        let threads = launch.threads();
        Block {
            kernel: launch.kernel,
            launch,
            order,
            index: [0; 3],
            slots: vec![0; threads * launch.kernel.initial.len()],
            states: vec![State::Done; threads],
            counters: vec![0; threads],
            spaces,
            phase: 0,
            warp_phases: vec![0; threads.div_ceil(32)],
            instructions: 0,
            turns: 0,
        }
    }

    /// Runs the block with this number to its end.
    pub(crate) fn run(&mut self, number: u64) -> Result<(), Fault> {
        self.begin(number);
        let mut order: Vec<u32> = (0..self.states.len() as u32).collect();
        loop {
            self.turns += 1;
            self.order.arrange(&mut order, self.turns ^ number << 20);
            for &thread in &order {
                if self.states[thread as usize] == State::Ready {
                    self.run_thread(thread as usize).map_err(|t| self.fault(thread as usize, t))?;
                }
            }
            let mut moved = false;
            for warp in 0..self.warp_phases.len() {
                moved |= self.run_warp(warp).map_err(|(thread, t)| self.fault(thread, t))?;
            }
            if moved {
                continue;
            }
            if self.states.iter().all(|s| *s == State::Done) {
                return Ok(());
            }
            self.pass_barrier().map_err(|(thread, t)| self.fault(thread, t))?;
        }
    }

    fn begin(&mut self, number: u64) {
        let grid = self.launch.grid.map(u64::from);
        let index = [number % grid[0], number / grid[0] % grid[1], number / grid[0] / grid[1]];
        self.index = index.map(|i| i as u32);
        self.next_phase();
        self.spaces.shared.begin(self.phase);
        self.spaces.local.fill(crate::memory::POISON);
        self.states.fill(State::Ready);
        self.counters.fill(0);
        let length = self.kernel.initial.len();
        for thread in 0..self.states.len() {
            let slots = &mut self.slots[thread * length..][..length];
            slots.copy_from_slice(&self.kernel.initial);
            let [nx, ny, nz] = self.launch.block;
            let t = thread as u32;
            let tid = [t % nx, t / nx % ny, t / nx / ny];
            let lane = t % 32;
            let below = (1u32 << lane) - 1;
            let specials: [u32; SPECIALS.len() - 1] = [
                tid[0],
                tid[1],
                tid[2],
                nx,
                ny,
                nz,
                self.index[0],
                self.index[1],
                self.index[2],
                self.launch.grid[0],
                self.launch.grid[1],
                self.launch.grid[2],
                lane,
                t / 32,
                self.warp_phases.len() as u32,
                1 << lane,
                below,
                below | 1 << lane,
                !(below | 1 << lane),
                !below,
                self.launch.dynamic_shared,
            ];
            for (slot, value) in slots.iter_mut().zip(specials) {
                *slot = value.into();
            }
        }
    }

    /// What was before is ordered before what comes.
    fn next_phase(&mut self) {
        self.phase += 1;
        self.spaces.writes.clear();
    }

    /// Lets the threads past a barrier once all that are left have come to it.
    fn pass_barrier(&mut self) -> Result<(), (usize, Trap)> {
        let waiting: Vec<usize> =
            (0..self.states.len()).filter(|&t| self.states[t] == State::AtBarrier).collect();
        if let Some(stuck) = self.states.iter().position(|s| *s == State::AtWarp) {
            return Err((stuck, Trap(Kind::Deadlock, "waits for lanes of its warp that do not come".into())));
        }
        let first = waiting[0];
        let counter = self.counters[first];
        if let Some(&other) = waiting.iter().find(|&&t| self.counters[t] != counter) {
            let line = self.kernel.lines[counter as usize];
            let message = format!("thread {first} of the block waits at another barrier, in line {line}");
            return Err((other, Trap(Kind::Divergence, message)));
        }
        if self.states.len() != waiting.len() {
            let gone = self.states.iter().position(|s| *s == State::Done).unwrap_or(0);
            let message = format!("waits for thread {gone}, which has ended");
            return Err((first, Trap(Kind::Divergence, message)));
        }
        let ins = self.kernel.instructions[counter as usize];
        let length = self.kernel.initial.len();
        if let Op::BarrierReduce(vote) = ins.op {
            let truths: Vec<bool> =
                waiting.iter().map(|&t| self.slots[t * length + ins.a as usize] & 1 != 0).collect();
            let result = crate::warp::tally(vote, &truths, 0);
            for &t in &waiting {
                self.slots[t * length + ins.d as usize] = result;
            }
        }
        for t in waiting {
            self.states[t] = State::Ready;
            self.counters[t] += 1;
        }
        self.next_phase();
        Ok(())
    }

    fn fault(&self, thread: usize, Trap(kind, message): Trap) -> Fault {
        let [nx, ny, _] = self.launch.block;
        let t = thread as u32;
        let at = (self.counters[thread] as usize).min(self.kernel.lines.len().saturating_sub(1));
        let place = self.kernel.lines.get(at).map(|&line| Place {
            block: self.index,
            thread: [t % nx, t / nx % ny, t / nx / ny],
            line,
            text: self.kernel.texts[at].clone(),
        });
        Fault { kernel: self.kernel.name.clone(), kind, place, message }
    }

    /// Runs a thread until it ends or waits.
    fn run_thread(&mut self, thread: usize) -> Result<(), Trap> {
        let length = self.kernel.initial.len();
        let slots = &mut self.slots[thread * length..][..length];
        let user =
            User { thread: thread as u16, phase: self.phase, warp_phase: self.warp_phases[thread / 32] };
        let counter = &mut self.counters[thread];
        let mut budget = ENDLESS;
        let state = loop {
            let Some(ins) = self.kernel.instructions.get(*counter as usize) else { break State::Done };
            budget -= 1;
            if budget == 0 {
                return trap(Kind::Endless, format!("{ENDLESS} instructions without coming to a barrier"));
            }
            if ins.guard != NONE && (slots[(ins.guard >> 1) as usize] ^ u64::from(ins.guard)) & 1 == 0 {
                *counter += 1;
                continue;
            }
            match step(self.kernel, ins, slots, &mut self.spaces, user)? {
                Next::Go => *counter += 1,
                Next::To(target) => *counter = target,
                Next::Stop(state) => break state,
            }
        };
        self.states[thread] = state;
        self.instructions += ENDLESS - budget;
        Ok(())
    }
}

/// What comes after an instruction.
enum Next {
    Go,
    To(u32),
    Stop(State),
}

/// Runs one instruction of one thread.
#[inline(always)]
fn step(
    kernel: &Kernel,
    ins: &Instruction,
    slots: &mut [u64],
    spaces: &mut Spaces<'_>,
    user: User,
) -> Result<Next, Trap> {
    let f = |slots: &[u64], i: u32| f32::from_bits(slots[i as usize] as u32);
    let [a, b, c] = [ins.a, ins.b, ins.c].map(|i| i as usize);
    let result = match ins.op {
        Op::AddF32 => canonical(f(slots, ins.a) + f(slots, ins.b)).into(),
        Op::SubF32 => canonical(f(slots, ins.a) - f(slots, ins.b)).into(),
        Op::MulF32 => canonical(f(slots, ins.a) * f(slots, ins.b)).into(),
        Op::DivF32 => canonical(f(slots, ins.a) / f(slots, ins.b)).into(),
        Op::FmaF32 => canonical(f(slots, ins.a).mul_add(f(slots, ins.b), f(slots, ins.c))).into(),
        Op::Move => slots[a],
        Op::Int(op, ty) => {
            let value = |i: u32| slots.get(i as usize).copied().unwrap_or(0);
            int(op, ty, value(ins.a), value(ins.b), value(ins.c), value(ins.e))
        }
        Op::Compare { compare, ty, join, flush } => {
            let result = float::compare(compare, ty, slots[a], slots[b], flush);
            if ins.e != NONE {
                slots[ins.e as usize] = float::join(join, !result, slots[c]).into();
            }
            float::join(join, result, slots[c]).into()
        }
        Op::Select => {
            if slots[c] & 1 != 0 {
                slots[a]
            } else {
                slots[b]
            }
        }
        Op::Branch => return Ok(Next::To(ins.a)),
        Op::Load { space, ty, count } => {
            load(kernel, ins, (space, ty, count), slots, spaces, user)?;
            return Ok(Next::Go);
        }
        Op::Store { space, ty, count } => {
            store(kernel, ins, (space, ty, count), slots, spaces, user)?;
            return Ok(Next::Go);
        }
        Op::Exit => return Ok(Next::Stop(State::Done)),
        Op::Barrier | Op::BarrierReduce(_) => return Ok(Next::Stop(State::AtBarrier)),
        Op::WarpBarrier | Op::Shuffle(_) | Op::Vote(_) | Op::Match { .. } | Op::Reduce(..) => {
            return Ok(Next::Stop(State::AtWarp));
        }
        Op::Nothing => return Ok(Next::Go),
        Op::Unpack(bits) => {
            let value = slots[a];
            for (i, &to) in kernel.lists[ins.d as usize].iter().enumerate() {
                let part = value >> (bits * i as u32);
                slots[to as usize] = if bits == 64 { part } else { part & ((1 << bits) - 1) };
            }
            return Ok(Next::Go);
        }
        _ => rare(kernel, ins, slots, spaces, user)?,
    };
    slots[ins.d as usize] = result;
    Ok(Next::Go)
}

#[inline(never)]
fn rare(
    kernel: &Kernel,
    ins: &Instruction,
    slots: &[u64],
    spaces: &mut Spaces<'_>,
    user: User,
) -> Result<u64, Trap> {
    let operands = || [ins.a, ins.b, ins.c].map(|i| slots.get(i as usize).copied().unwrap_or(0));
    let [a, b, c] = operands();
    let unknown = || Trap(Kind::Unknown, "the interpreter does not know this instruction".into());
    Ok(match ins.op {
        Op::Pack(bits) => {
            let parts = kernel.lists[ins.a as usize].iter().enumerate();
            parts.fold(0, |out, (i, &slot)| {
                let part = slots[slot as usize];
                let part = if bits == 64 { part } else { part & ((1 << bits) - 1) };
                out | part << (bits * i as u32)
            })
        }
        Op::Float { op, rounding, flush, saturate } => {
            float::float(op, rounding, (flush, saturate), [a as u32, b as u32, c as u32]).into()
        }
        Op::Double(op) => float::double(op, [a, b, c]).ok_or_else(unknown)?,
        Op::Small { op, brain, pair, saturate } => {
            float::small(op, (brain, pair, saturate), [a, b, c]).ok_or_else(unknown)?
        }
        Op::Set { compare, ty, float: is_float } => {
            let result = float::compare(compare, ty, a, b, false);
            match (result, is_float) {
                (true, true) => 1f32.to_bits().into(),
                (true, false) => u64::MAX,
                (false, _) => 0,
            }
        }
        Op::Test(test, ty) => float::test(test, ty, a).into(),
        Op::Convert { to, from, rounding, integer, flush, saturate } => {
            float::convert(to, from, rounding, (integer, flush, saturate), a)
        }
        Op::ConvertPair { brain, rounding } => {
            let to = if brain { Type::Bf16 } else { Type::F16 };
            let half = |v| float::convert(to, Type::F32, rounding, (false, false, false), v);
            half(a) << 16 | half(b)
        }
        Op::ToGeneric(space) => to_generic(space, a),
        Op::FromGeneric(space) => from_generic(space, a),
        Op::Atomic { atomic, space, ty } => {
            let address = a.wrapping_add(ins.e as i32 as u64);
            spaces.atomic((atomic, ty), (space, address), (b, c), user)?
        }
        Op::Trap => return trap(Kind::Launch, "the kernel stopped itself with a trap"),
        _ => return Err(unknown()),
    })
}

#[inline(always)]
fn load(
    kernel: &Kernel,
    ins: &Instruction,
    (space, ty, count): (crate::instruction::Space, Type, u8),
    slots: &mut [u64],
    spaces: &mut Spaces<'_>,
    user: User,
) -> Result<(), Trap> {
    let size = ty.bytes();
    let address = slots[ins.a as usize].wrapping_add(ins.e as i32 as u64);
    let (space, address) = spaces.begin(space, address, size * usize::from(count), user, Use::Read)?;
    if count == 1 {
        slots[ins.d as usize] = ty.extend(spaces.load(space, address, size, user)?);
        return Ok(());
    }
    for (i, &to) in kernel.lists[ins.d as usize].iter().enumerate() {
        let value = spaces.load(space, address + (i * size) as u64, size, user)?;
        slots[to as usize] = ty.extend(value);
    }
    Ok(())
}

#[inline(always)]
fn store(
    kernel: &Kernel,
    ins: &Instruction,
    (space, ty, count): (crate::instruction::Space, Type, u8),
    slots: &[u64],
    spaces: &mut Spaces<'_>,
    user: User,
) -> Result<(), Trap> {
    let size = ty.bytes();
    let address = slots[ins.a as usize].wrapping_add(ins.e as i32 as u64);
    let (space, address) = spaces.begin(space, address, size * usize::from(count), user, Use::Write)?;
    if count == 1 {
        return spaces.store(space, address, size, slots[ins.b as usize], user);
    }
    for (i, &from) in kernel.lists[ins.b as usize].iter().enumerate() {
        spaces.store(space, address + (i * size) as u64, size, slots[from as usize], user)?;
    }
    Ok(())
}
