//! One linear layer as integers: what a quantizer returns and a container packs.

use half::f16;

use super::scale_search::stored;

/// The grid that the weights of a linear layer are rounded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Grid {
    /// Bits per code, 2 to 8.
    pub bits: u32,
    /// Input columns that share a scale and a zero point. As many as there are inputs, or more, means one group; the last
    /// group may be shorter.
    pub group_size: usize,
    /// Whether every zero point is the middle of the grid, `2^(bits-1)`.
    pub symmetric: bool,
}

impl Grid {
    /// The group size of one group per row, -1 in configurations.
    pub const WHOLE_ROW: usize = usize::MAX;

    /// The largest code.
    pub fn max_code(self) -> u8 {
        ((1u32 << self.bits) - 1) as u8
    }

    /// The zero point of a symmetric grid.
    pub fn middle(self) -> u8 {
        1 << (self.bits - 1)
    }

    /// Groups of a row of `in_features` weights.
    pub fn groups(self, in_features: usize) -> usize {
        in_features.div_ceil(self.group_size)
    }
}

/// A quantized linear layer: weight `[o, i]` is `scales[o, g] * (codes[o, i] - zeros[o, g])` with `g` the group of input `i`.
///
/// Inputs are in the order of the original weight, whatever order a quantizer went through them.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedLinear {
    out_features: usize,
    in_features: usize,
    grid: Grid,
    codes: Vec<u8>,
    scales: Vec<f16>,
    zeros: Vec<u8>,
    g_idx: Option<Vec<u32>>,
}

/// Why codes, scales and zero points do not make a linear layer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[allow(missing_docs)]
pub enum CodesError {
    #[error("{0} bits per code; 2 to 8 are possible")]
    Bits(u32),
    #[error("a layer of {0} outputs and {1} inputs in groups of {2} is impossible")]
    Shape(usize, usize, usize),
    #[error("{found} {what} instead of {expected}")]
    Count { what: &'static str, found: usize, expected: usize },
    #[error("the code of weight [{output}, {input}] is {code}, beyond the grid")]
    Code { output: usize, input: usize, code: u8 },
    #[error("the scale of output {output}, group {group} is {scale}")]
    Scale { output: usize, group: usize, scale: f16 },
    #[error("the zero point of output {output}, group {group} is {zero}; {expected}")]
    Zero { output: usize, group: usize, zero: u8, expected: &'static str },
    #[error("input {input} belongs to group {group} of {groups}")]
    Group { input: usize, group: u32, groups: usize },
}

impl CodesError {
    /// The same of a whole layer, where this was said of the outputs from `first` on.
    pub(crate) fn counted_from(mut self, first: usize) -> CodesError {
        match &mut self {
            CodesError::Code { output, .. }
            | CodesError::Scale { output, .. }
            | CodesError::Zero { output, .. } => *output += first,
            CodesError::Bits(_)
            | CodesError::Shape(..)
            | CodesError::Count { .. }
            | CodesError::Group { .. } => {}
        }
        self
    }
}

impl QuantizedLinear {
    /// Puts a layer together. `codes` is `[out_features, in_features]`, `scales` and `zeros` are `[out_features, groups]`, all
    /// row-major. `g_idx` gives the group of each input; without it input `i` is in group `i / group_size`.
    ///
    /// # Errors
    /// If the sizes do not fit together, a code or zero point is beyond the grid, a scale is not finite, a zero point of a
    /// symmetric grid is not its middle, or an input belongs to a group that is not there.
    pub fn new(
        [out_features, in_features]: [usize; 2],
        mut grid: Grid,
        codes: Vec<u8>,
        scales: Vec<f16>,
        zeros: Vec<u8>,
        g_idx: Option<Vec<u32>>,
    ) -> Result<QuantizedLinear, CodesError> {
        if !(2..=8).contains(&grid.bits) {
            return Err(CodesError::Bits(grid.bits));
        }
        let weights = out_features.checked_mul(in_features).filter(|n| *n > 0 && grid.group_size > 0);
        let weights = weights.ok_or(CodesError::Shape(out_features, in_features, grid.group_size))?;
        grid.group_size = grid.group_size.min(in_features);
        let groups = grid.groups(in_features);
        let count = |what, found, expected| match found == expected {
            true => Ok(()),
            false => Err(CodesError::Count { what, found, expected }),
        };
        count("codes", codes.len(), weights)?;
        count("scales", scales.len(), out_features * groups)?;
        count("zero points", zeros.len(), out_features * groups)?;
        if let Some(i) = codes.iter().position(|code| *code > grid.max_code()) {
            return Err(CodesError::Code { output: i / in_features, input: i % in_features, code: codes[i] });
        }
        if let Some(i) = scales.iter().position(|scale| !scale.is_finite()) {
            return Err(CodesError::Scale { output: i / groups, group: i % groups, scale: scales[i] });
        }
        let (allowed, expected) = match grid.symmetric {
            true => (grid.middle()..=grid.middle(), "a symmetric grid has its middle"),
            false => (0..=grid.max_code(), "that is beyond the grid"),
        };
        if let Some(i) = zeros.iter().position(|zero| !allowed.contains(zero)) {
            return Err(CodesError::Zero { output: i / groups, group: i % groups, zero: zeros[i], expected });
        }
        if let Some(g_idx) = &g_idx {
            count("group indices", g_idx.len(), in_features)?;
            if let Some(input) = g_idx.iter().position(|group| *group as usize >= groups) {
                return Err(CodesError::Group { input, group: g_idx[input], groups });
            }
        }
        let trivial = |g_idx: &Vec<u32>| {
            g_idx.iter().enumerate().all(|(i, group)| *group as usize == i / grid.group_size)
        };
        let g_idx = g_idx.filter(|g_idx| !trivial(g_idx));
        Ok(QuantizedLinear { out_features, in_features, grid, codes, scales, zeros, g_idx })
    }

    /// Rows of the weight matrix.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// Columns of the weight matrix.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// Bits, group size (at most `in_features`) and whether it is symmetric.
    pub fn grid(&self) -> Grid {
        self.grid
    }

    /// Bits per code.
    pub fn bits(&self) -> u32 {
        self.grid.bits
    }

    /// Inputs per group; `in_features` if a whole row is one group.
    pub fn group_size(&self) -> usize {
        self.grid.group_size
    }

    /// Groups per row.
    pub fn groups(&self) -> usize {
        self.grid.groups(self.in_features)
    }

    /// Whether every zero point is the middle of the grid.
    pub fn symmetric(&self) -> bool {
        self.grid.symmetric
    }

    /// `[out_features, in_features]`, inputs in the order of the original weight.
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// `[out_features, groups]`.
    pub fn scales(&self) -> &[f16] {
        &self.scales
    }

    /// `[out_features, groups]`.
    pub fn zeros(&self) -> &[u8] {
        &self.zeros
    }

    /// The group of each input, unless it is `i / group_size` for all of them.
    pub fn g_idx(&self) -> Option<&[u32]> {
        self.g_idx.as_deref()
    }

    /// The group of input `i`.
    pub fn group_of(&self, i: usize) -> usize {
        self.g_idx.as_ref().map_or(i / self.grid.group_size, |g_idx| g_idx[i] as usize)
    }

    /// Divides the weights of some outputs, from `first` on, by dividing their scales; codes stay. Scales are rounded to float16
    /// anew, so that weights are within 2^-11 of the quotients.
    ///
    /// # Panics
    /// If there are no such outputs.
    pub fn divide_rows(&mut self, first: usize, divisors: &[f32]) {
        let groups = self.groups();
        let scales = &mut self.scales[first * groups..(first + divisors.len()) * groups];
        for (scales, divisor) in scales.chunks_exact_mut(groups).zip(divisors) {
            for scale in scales {
                *scale = f16::from_f32(stored(scale.to_f32() / divisor));
            }
        }
    }

    /// The weights, `[out_features, in_features]` row-major. Exact: a scale of 11 bits times a difference of 9 fits float32.
    pub fn dequantize(&self) -> Vec<f32> {
        let mut weights = vec![0.0; self.codes.len()];
        for (output, row) in weights.chunks_exact_mut(self.in_features).enumerate() {
            self.dequantize_row(output, row);
        }
        weights
    }

    /// One row of the weights.
    ///
    /// # Panics
    /// If there is no such output or `row` does not hold `in_features` values.
    pub fn dequantize_row(&self, output: usize, row: &mut [f32]) {
        assert_eq!(row.len(), self.in_features, "a row of the layer");
        let codes = &self.codes[output * self.in_features..][..self.in_features];
        let groups = self.groups();
        let scales = &self.scales[output * groups..][..groups];
        let zeros = &self.zeros[output * groups..][..groups];
        for (i, (weight, code)) in row.iter_mut().zip(codes).enumerate() {
            let group = self.group_of(i);
            *weight = f32::from(scales[group]) * (i32::from(*code) - i32::from(zeros[group])) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRID: Grid = Grid { bits: 4, group_size: 2, symmetric: false };

    fn layer(grid: Grid, codes: &[u8], scales: &[f32], zeros: &[u8]) -> Result<QuantizedLinear, CodesError> {
        let scales = scales.iter().copied().map(f16::from_f32).collect();
        QuantizedLinear::new([1, codes.len()], grid, codes.to_vec(), scales, zeros.to_vec(), None)
    }

    #[test]
    fn a_weight_is_scale_times_code_minus_zero() {
        let q = layer(GRID, &[0, 15, 3], &[0.5, -2.0], &[8, 1]).unwrap();
        assert_eq!(q.groups(), 2, "the last group is shorter");
        assert_eq!(q.dequantize(), [-4.0, 3.5, -4.0]);
    }

    #[test]
    fn g_idx_says_the_group_of_an_input() {
        let new = |g_idx: &[u32]| {
            let scales = vec![f16::ONE, f16::from_f32(2.0)];
            QuantizedLinear::new([1, 4], GRID, vec![1; 4], scales, vec![0; 2], Some(g_idx.to_vec()))
        };
        assert_eq!(new(&[1, 0, 1, 0]).unwrap().dequantize(), [2.0, 1.0, 2.0, 1.0]);
        assert_eq!(new(&[0, 0, 1, 1]).unwrap().g_idx(), None, "the trivial order is not kept");
        assert_eq!(new(&[0, 0, 1, 2]), Err(CodesError::Group { input: 3, group: 2, groups: 2 }));
        assert!(matches!(new(&[0, 0, 1]), Err(CodesError::Count { .. })));
    }

    #[test]
    fn rows_are_divided_by_their_scales() {
        let scales = [1.0, 2.0, 4.0].map(f16::from_f32).to_vec();
        let mut q = QuantizedLinear::new([3, 2], GRID, vec![1; 6], scales, vec![0; 3], None).unwrap();
        q.divide_rows(1, &[4.0, 1e9]);
        assert_eq!(q.dequantize()[..4], [1.0, 1.0, 0.5, 0.5]);
        assert!(q.scales()[2].to_f32() > 0.0, "a scale is never zero");
    }

    #[test]
    fn a_group_size_beyond_the_row_is_the_row() {
        let q = layer(Grid { group_size: 128, ..GRID }, &[1, 2, 3], &[1.0], &[0]).unwrap();
        assert_eq!((q.group_size(), q.groups()), (3, 1));
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let symmetric = Grid { symmetric: true, ..GRID };
        assert!(layer(symmetric, &[1, 2], &[1.0], &[8]).is_ok());
        assert!(matches!(layer(symmetric, &[1, 2], &[1.0], &[7]), Err(CodesError::Zero { zero: 7, .. })));
        assert!(matches!(layer(GRID, &[1, 16], &[1.0], &[8]), Err(CodesError::Code { input: 1, .. })));
        assert!(matches!(layer(GRID, &[1, 2], &[f32::INFINITY], &[8]), Err(CodesError::Scale { .. })));
        assert!(matches!(layer(GRID, &[1, 2], &[1.0], &[16]), Err(CodesError::Zero { zero: 16, .. })));
        assert!(matches!(layer(GRID, &[1, 2], &[1.0, 1.0], &[8]), Err(CodesError::Count { .. })));
        assert!(matches!(layer(GRID, &[], &[], &[]), Err(CodesError::Shape(..))));
        let bits = Grid { bits: 9, ..GRID };
        assert_eq!(layer(bits, &[1], &[1.0], &[8]), Err(CodesError::Bits(9)));
    }
}
