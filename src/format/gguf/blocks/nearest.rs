//! Look-up of the nearest of sixteen unevenly spaced values.

/// Width of the cells of [`Nearest`]. Cells are less wide than values may be apart, so that none has more than one of the
/// points halfway between values, and 32 of them cover -155..=155.
const CELL: f32 = 10.0;

/// Values in ascending order, at least [`CELL`] apart, and an entry for each of them; prepared for the ways in which
/// instruction sets look them up.
pub(super) struct Nearest {
    /// The points halfway between values: from one of them on, the next value is the nearest.
    pub(super) halfway: [f32; 15],
    /// For each cell, by the five low bits of its number: the halfway point in it, or infinity.
    pub(super) cell_halfway: [f32; 32],
    /// The entry below that point.
    pub(super) cell_below: [f32; 32],
    /// The entry from that point on.
    pub(super) cell_above: [f32; 32],
    /// For bisection: halfway point `4 * n + 1` at place `-n & 7`.
    pub(super) bisect_4: [f32; 8],
    /// Halfway point `2 * n` at place `-n & 7`.
    pub(super) bisect_2: [f32; 8],
    /// Entry `2 * n` at place `-n & 7`.
    pub(super) even: [f32; 8],
    /// Entry `2 * n + 1` at place `-n & 7`.
    pub(super) odd: [f32; 8],
}

impl Nearest {
    /// What takes a number to that of its cell, before rounding to nearest.
    pub(super) const CELLS: f32 = 1.0 / CELL;

    /// Prepares the look-up of entries by values.
    pub(super) const fn new(values: &[f32; 16], entries: &[f32; 16]) -> Nearest {
        let mut table = Nearest {
            halfway: [0.0; 15],
            cell_halfway: [f32::INFINITY; 32],
            cell_below: [0.0; 32],
            cell_above: [0.0; 32],
            bisect_4: [0.0; 8],
            bisect_2: [0.0; 8],
            even: [0.0; 8],
            odd: [0.0; 8],
        };
        let mut i = 0;
        while i < 15 {
            table.halfway[i] = (values[i] + values[i + 1]) / 2.0;
            i += 1;
        }
        let mut n = 0usize;
        while n < 8 {
            let place = n.wrapping_neg() & 7;
            if n < 4 {
                table.bisect_4[place] = table.halfway[4 * n + 1];
            }
            table.bisect_2[place] = table.halfway[2 * n];
            table.even[place] = entries[2 * n];
            table.odd[place] = entries[2 * n + 1];
            n += 1;
        }
        let mut number = -16i32;
        while number < 16 {
            let cell = (number & 31) as usize;
            let end = (number as f32 + 0.5) * CELL;
            let mut below = 0;
            while below < 15 && table.halfway[below] < end - CELL {
                below += 1;
            }
            let inside = below < 15 && table.halfway[below] < end;
            if inside {
                table.cell_halfway[cell] = table.halfway[below];
            }
            table.cell_below[cell] = entries[below];
            table.cell_above[cell] = entries[if inside { below + 1 } else { below }];
            number += 1;
        }
        table
    }
}
