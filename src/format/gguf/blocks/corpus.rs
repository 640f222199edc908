//! Weights to test encoders with, the same on every machine: made of integers and single multiplications alone.

use crate::calib::random::SplitMix64;

/// Rows of one kind of weights.
pub(crate) struct Part {
    /// What is in it, for messages.
    pub(crate) name: String,
    /// Weights per row: three blocks of 256, so that no number of lanes divides the number of blocks.
    pub(crate) n_per_row: usize,
    /// Seven rows.
    pub(crate) src: Vec<f32>,
    /// One importance per column.
    pub(crate) importance: Option<Vec<f32>>,
}

/// Columns of every part.
const COLUMNS: usize = 768;
const ROWS: usize = 7;

/// Numbers of all kinds.
pub(super) struct Random(SplitMix64);

impl Random {
    pub(super) fn new(seed: u64) -> Random {
        Random(SplitMix64::new(seed))
    }

    fn below(&mut self, n: u64) -> u64 {
        (self.0.bits() >> 11) % n
    }

    /// Evenly spread over 0..1.
    fn uniform(&mut self) -> f32 {
        (self.0.bits() >> 40) as f32 / 16_777_216.0
    }

    /// About normally distributed, with standard deviation 1: the sum of twelve even ones.
    pub(super) fn normal(&mut self) -> f32 {
        let sum: i64 = (0..12).map(|_| (self.0.bits() >> 46) as i64).sum();
        (sum - 6 * 262_144) as f32 / 262_144.0
    }
}

const KINDS: [&str; 21] = [
    "normal",
    "heavy tails",
    "mostly zero",
    "all zero",
    "constant",
    "one outlier",
    "negative",
    "positive",
    "around 1e-30",
    "around 1e30",
    "subnormal",
    "bfloat16",
    "halves",
    "any exponent",
    "any magnitude",
    "around 1e-38",
    "around 1e-15",
    "zero sub-blocks",
    "zeros of both signs",
    "one magnitude",
    "faint sub-blocks",
];

fn weight(kind: &str, r: &mut Random, i: usize, of_block: (f32, usize)) -> f32 {
    let (level, sub) = of_block;
    let normal = r.normal();
    match kind {
        "heavy tails" => normal * normal * normal,
        "mostly zero" => normal * r.below(10).saturating_sub(8) as f32,
        "all zero" => 0.0,
        "constant" => level - 0.5,
        "one outlier" if i == 77 => 50.0,
        "negative" => -r.uniform() - 0.05,
        "positive" => r.uniform() + 0.05,
        "around 1e-30" => normal * 1e-30,
        "around 1e30" => normal * 1e30,
        "subnormal" => f32::from_bits((r.0.bits() as u32 & 0x007f_ffff) >> r.below(16)).copysign(normal),
        "bfloat16" => f32::from_bits(normal.to_bits() & 0xffff_0000),
        "halves" => (r.below(33) as f32 - 16.0) * 0.5,
        "any exponent" => {
            f32::from_bits((r.0.bits() as u32 & 0x807f_ffff) | (40 + r.below(170) as u32) << 23)
        }
        "any magnitude" => normal * f32::from_bits((127 + (level * 120.0) as u32) << 23),
        "around 1e-38" => normal * 1e-38,
        "around 1e-15" => normal * 1e-15,
        "zero sub-blocks" if i / 32 == sub && i % 32 < 16 => 0.0,
        "zero sub-blocks" => normal * (i / 16 % 7 + 1) as f32,
        "zeros of both signs" => [-0.0, 0.0, r.uniform()][r.below(if sub < 4 { 2 } else { 3 }) as usize],
        "one magnitude" => level.copysign(normal),
        "faint sub-blocks" if i / 32 == sub => normal * 1e-6,
        _ => normal,
    }
}

fn importance(kind: usize, r: &mut Random) -> Option<Vec<f32>> {
    let one = |r: &mut Random| match kind {
        1 => r.uniform() + 0.01,
        2 => r.uniform() * r.below(2) as f32,
        3 => 1.0,
        4 => f32::from_bits((r.0.bits() as u32 & 0x007f_ffff) | (70 + r.below(114) as u32) << 23),
        _ => r.uniform() * r.below(33).saturating_sub(31) as f32,
    };
    (kind > 0).then(|| (0..COLUMNS).map(|_| one(r)).collect())
}

/// All kinds of weights, each without importance and with five kinds of it.
pub(crate) fn parts() -> Vec<Part> {
    let mut r = Random::new(20);
    let mut parts = Vec::new();
    for kind in KINDS {
        for with in 0..6 {
            let mut src = Vec::with_capacity(COLUMNS * ROWS);
            for _ in 0..COLUMNS * ROWS / 256 {
                let of_block = (r.uniform(), r.below(8) as usize);
                src.extend((0..256).map(|i| weight(kind, &mut r, i, of_block)));
            }
            let name = format!("{kind}, importance {with}");
            parts.push(Part { name, n_per_row: COLUMNS, src, importance: importance(with, &mut r) });
        }
    }
    parts
}

/// 64-bit FNV-1a of some bytes, continued from `hash`.
pub(super) fn fnv(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, &b| (hash ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// What [`fnv`] starts from.
pub(super) const FNV_START: u64 = 0xcbf2_9ce4_8422_2325;

/// Hash of decoded weights, with one bit pattern for all that are not numbers.
pub(super) fn hash_floats(hash: u64, floats: &[f32]) -> u64 {
    floats.iter().fold(hash, |hash, v| {
        let bits = if v.is_nan() { 0x7fc0_0000 } else { v.to_bits() };
        fnv(hash, &bits.to_le_bytes())
    })
}
