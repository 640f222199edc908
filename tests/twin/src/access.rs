//! Loads, stores and atomics of one thread, in every space.

use crate::fault::{Kind, Trap, trap};
use crate::float::float;
use crate::instruction::{AtomicOp, FloatOp, Space};
use crate::memory::View;
use crate::races::{GlobalWrites, Use, User};
use crate::rounding::Rounding;
use crate::shared::Shared;
use crate::types::Type;

/// Where shared and local memory lie among generic addresses.
const SHARED: u64 = 0x0a00_0000_0000_0000;
const LOCAL: u64 = 0x0b00_0000_0000_0000;
/// Bytes of generic addresses that a space may take.
const WINDOW: u64 = 1 << 32;

/// The memory that the threads of a block use.
pub(crate) struct Spaces<'a> {
    pub(crate) global: View,
    pub(crate) writes: GlobalWrites,
    pub(crate) shared: Shared,
    /// Local memory of all threads, one after the other.
    pub(crate) local: Vec<u8>,
    pub(crate) local_bytes: usize,
    pub(crate) parameters: &'a [u8],
}

/// The generic address of an address in a space.
pub(crate) fn to_generic(space: Space, address: u64) -> u64 {
    match space {
        Space::Shared => SHARED + address,
        Space::Local => LOCAL + address,
        _ => address,
    }
}

/// The address in a space of a generic one.
pub(crate) fn from_generic(space: Space, address: u64) -> u64 {
    match space {
        Space::Shared => address.wrapping_sub(SHARED),
        Space::Local => address.wrapping_sub(LOCAL),
        _ => address,
    }
}

fn resolve(space: Space, address: u64) -> (Space, u64) {
    match space {
        Space::Generic if address.wrapping_sub(SHARED) < WINDOW => (Space::Shared, address - SHARED),
        Space::Generic if address.wrapping_sub(LOCAL) < WINDOW => (Space::Local, address - LOCAL),
        Space::Generic => (Space::Global, address),
        space => (space, address),
    }
}

#[inline]
fn check_alignment(address: u64, bytes: usize) -> Result<(), Trap> {
    if address & (bytes as u64 - 1) != 0 {
        return trap(Kind::Misaligned, format!("{bytes} bytes at {address:#x}"));
    }
    Ok(())
}

impl Spaces<'_> {
    /// Checks an access of `bytes` bytes in all, which its elements are then loaded or stored from.
    #[inline]
    pub(crate) fn begin(
        &mut self,
        space: Space,
        address: u64,
        bytes: usize,
        user: User,
        how: Use,
    ) -> Result<(Space, u64), Trap> {
        let (space, address) = resolve(space, address);
        check_alignment(address, bytes)?;
        if space == Space::Global {
            self.global.check(address, bytes)?;
            self.writes.note(address, bytes, user, how)?;
        }
        Ok((space, address))
    }

    /// Loads one element of a checked access.
    #[inline]
    pub(crate) fn load(&mut self, space: Space, address: u64, size: usize, user: User) -> Result<u64, Trap> {
        match space {
            Space::Global => self.global.load(address, size),
            Space::Shared => self.shared.load(address, size, user),
            Space::Param => bytes_of(self.parameters, address, size),
            _ => {
                let own = self.local_of(user);
                bytes_of(&self.local[own], address, size)
            }
        }
    }

    /// Stores one element of a checked access.
    #[inline]
    pub(crate) fn store(
        &mut self,
        space: Space,
        address: u64,
        size: usize,
        value: u64,
        user: User,
    ) -> Result<(), Trap> {
        match space {
            Space::Global => self.global.store(address, size, value),
            Space::Shared => self.shared.store(address, size, value, user),
            Space::Param => trap(Kind::OutOfBounds, "parameters cannot be written"),
            _ => {
                let own = self.local_of(user);
                let own = &mut self.local[own];
                let length = own.len();
                let Some(place) = own.get_mut(address as usize..(address as usize).saturating_add(size))
                else {
                    return outside(address, size, length);
                };
                place.copy_from_slice(&value.to_le_bytes()[..size]);
                Ok(())
            }
        }
    }

    fn local_of(&self, user: User) -> std::ops::Range<usize> {
        let start = usize::from(user.thread) * self.local_bytes;
        start..start + self.local_bytes
    }

    /// Replaces a value by what an operation makes of it; returns the old one.
    pub(crate) fn atomic(
        &mut self,
        (atomic, ty): (AtomicOp, Type),
        (space, address): (Space, u64),
        (b, c): (u64, u64),
        user: User,
    ) -> Result<u64, Trap> {
        let size = ty.bytes();
        if size < 2 {
            return trap(Kind::Unknown, "an atomic on one byte");
        }
        let (space, address) = self.begin(space, address, size, user, Use::Atomic)?;
        let next = |old| updated(atomic, ty, old, b, c);
        match space {
            Space::Global => self.global.update(address, size, next),
            Space::Shared => self.shared.update(address, size, user, next),
            _ => trap(Kind::Unknown, "an atomic on local memory"),
        }
    }
}

fn bytes_of(bytes: &[u8], address: u64, size: usize) -> Result<u64, Trap> {
    let Some(found) = bytes.get(address as usize..(address as usize).saturating_add(size)) else {
        return outside(address, size, bytes.len());
    };
    let mut value = [0; 8];
    value[..size].copy_from_slice(found);
    Ok(u64::from_le_bytes(value))
}

#[cold]
fn outside<T>(address: u64, size: usize, length: usize) -> Result<T, Trap> {
    trap(Kind::OutOfBounds, format!("{size} bytes at {address:#x} of {length} bytes of a thread's own"))
}

/// What an atomic puts in the place of `old`.
fn updated(atomic: AtomicOp, ty: Type, old: u64, b: u64, c: u64) -> u64 {
    let (x, y) = (ty.extend(old), ty.extend(b));
    let less = if ty.is_signed() { (x as i64) < y as i64 } else { x < y };
    match atomic {
        AtomicOp::Add => match ty {
            Type::F32 => {
                float(FloatOp::Add, Rounding::Nearest, (false, false), [old as u32, b as u32, 0]).into()
            }
            Type::F64 => (f64::from_bits(old) + f64::from_bits(b)).to_bits(),
            Type::F16 | Type::F16x2 | Type::Bf16 | Type::Bf16x2 => {
                let brain = matches!(ty, Type::Bf16 | Type::Bf16x2);
                let pair = matches!(ty, Type::F16x2 | Type::Bf16x2);
                crate::float::small(FloatOp::Add, (brain, pair, false), [old, b, 0]).unwrap_or(old)
            }
            _ => old.wrapping_add(b),
        },
        AtomicOp::Min if less => old,
        AtomicOp::Max if !less => old,
        AtomicOp::Min | AtomicOp::Max | AtomicOp::Exchange => b,
        AtomicOp::And => old & b,
        AtomicOp::Or => old | b,
        AtomicOp::Xor => old ^ b,
        AtomicOp::CompareExchange if x == y => c,
        AtomicOp::CompareExchange => old,
        AtomicOp::Increment if x >= y => 0,
        AtomicOp::Increment => x + 1,
        AtomicOp::Decrement if x == 0 || x > y => b,
        AtomicOp::Decrement => x - 1,
    }
}
