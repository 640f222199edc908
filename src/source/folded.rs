//! A model with factors moved from one tensor into others.

use std::collections::BTreeMap;
use std::ops::Range;

use super::dense::Dense;
use super::safetensors::FloatType;
use crate::error::Result;

/// The weights of a model, of which some columns are multiplied, some rows divided, and some tensors replaced.
#[derive(Debug)]
pub struct Folded<'a> {
    base: &'a dyn Dense,
    moved: Moved,
}

/// What has been moved, apart from the weights that it has been moved in.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Moved {
    /// Whole tensors.
    pub replaced: BTreeMap<String, Vec<f32>>,
    /// One factor for each column.
    pub columns: BTreeMap<String, Vec<f32>>,
    /// The first of the rows that are divided, and one divisor for each.
    pub rows: BTreeMap<String, (usize, Vec<f32>)>,
}

impl Moved {
    /// Adds what has been moved between other tensors.
    pub fn append(&mut self, mut other: Moved) {
        self.replaced.append(&mut other.replaced);
        self.columns.append(&mut other.columns);
        self.rows.append(&mut other.rows);
    }

    /// Whether all of it fits the tensors of `base`.
    pub fn fits(&self, base: &dyn Dense) -> bool {
        let shape = |name: &String| base.shape(name).unwrap_or_default();
        let of_rows = |(name, (first, divisors)): (&String, &(usize, Vec<f32>))| {
            first
                .checked_add(divisors.len())
                .is_some_and(|end| shape(name).first().is_some_and(|n| end <= *n))
        };
        self.replaced.iter().all(|(name, values)| {
            base.shape(name).is_some_and(|shape| shape.iter().product::<usize>() == values.len())
        }) && self.columns.iter().all(|(name, factors)| shape(name).get(1) == Some(&factors.len()))
            && self.rows.iter().all(of_rows)
    }
}

impl<'a> Folded<'a> {
    /// The weights as they are.
    pub fn new(base: &'a dyn Dense) -> Folded<'a> {
        Folded::with(base, Moved::default())
    }

    /// The weights with what has been moved in the same ones before.
    pub fn with(base: &'a dyn Dense, moved: Moved) -> Folded<'a> {
        Folded { base, moved }
    }

    /// What has been moved.
    pub fn into_moved(self) -> Moved {
        self.moved
    }

    /// What has been moved; from here on the weights are as they were.
    pub fn take_moved(&mut self) -> Moved {
        std::mem::take(&mut self.moved)
    }

    /// Replaces a tensor.
    ///
    /// # Panics
    /// If there is no such tensor, or it has another size.
    pub fn replace(&mut self, name: &str, values: Vec<f32>) {
        let size = self.base.shape(name).map(|shape| shape.iter().product::<usize>());
        assert_eq!(size, Some(values.len()), "the size of {name}");
        self.moved.replaced.insert(name.to_owned(), values);
    }

    /// Multiplies the columns of a matrix.
    ///
    /// # Panics
    /// If there is no such matrix, or it has another number of columns.
    pub fn multiply_columns(&mut self, name: &str, factors: Vec<f32>) {
        let columns = self.base.shape(name).and_then(|shape| shape.get(1));
        assert_eq!(columns, Some(&factors.len()), "the columns of {name}");
        self.moved.columns.insert(name.to_owned(), factors);
    }

    /// Divides rows of a matrix, or elements of a bias, from `first` on.
    ///
    /// # Panics
    /// If there is no such tensor, or it has fewer rows.
    pub fn divide_rows(&mut self, name: &str, first: usize, divisors: Vec<f32>) {
        let rows = self.base.shape(name).and_then(|shape| shape.first());
        assert!(rows.is_some_and(|rows| first + divisors.len() <= *rows), "the rows of {name}");
        self.moved.rows.insert(name.to_owned(), (first, divisors));
    }
}

impl Dense for Folded<'_> {
    fn names(&self) -> Vec<&str> {
        self.base.names()
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.base.shape(name)
    }

    fn float_type(&self, name: &str) -> Option<FloatType> {
        self.base.float_type(name)
    }

    fn bits(&self, name: &str) -> Option<f64> {
        self.base.bits(name)
    }

    fn read(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let width: usize = self.base.shape(name).unwrap_or_default().iter().skip(1).product();
        match self.moved.replaced.get(name) {
            Some(values) => out.copy_from_slice(&values[rows.start * width..rows.end * width]),
            None => self.base.read(name, rows.clone(), out)?,
        }
        if let Some(factors) = self.moved.columns.get(name) {
            for row in out.chunks_exact_mut(width) {
                row.iter_mut().zip(factors).for_each(|(weight, factor)| *weight *= factor);
            }
        }
        if let Some((first, divisors)) = self.moved.rows.get(name) {
            for (row, values) in rows.zip(out.chunks_exact_mut(width)) {
                if let Some(divisor) = row.checked_sub(*first).and_then(|i| divisors.get(i)) {
                    values.iter_mut().for_each(|v| *v /= divisor);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Counting;

    impl Dense for Counting {
        fn names(&self) -> Vec<&str> {
            vec!["a", "b"]
        }

        fn shape(&self, name: &str) -> Option<&[usize]> {
            ["a", "b"].contains(&name).then_some(&[3, 2])
        }

        fn bits(&self, _: &str) -> Option<f64> {
            None
        }

        fn read(&self, _: &str, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
            out.iter_mut().zip(rows.start * 2..).for_each(|(v, i)| *v = i as f32);
            Ok(())
        }
    }

    fn read(folded: &Folded<'_>, name: &str) -> [f32; 4] {
        let mut out = [0.0; 4];
        folded.read(name, 1..3, &mut out).unwrap();
        out
    }

    #[test]
    fn columns_are_multiplied_and_rows_divided() {
        let mut folded = Folded::new(&Counting);
        folded.multiply_columns("b", vec![1.0, 2.0]);
        assert_eq!(read(&folded, "b"), [2.0, 6.0, 4.0, 10.0]);
        folded.divide_rows("b", 2, vec![4.0]);
        assert_eq!((read(&folded, "a"), read(&folded, "b")), ([2.0, 3.0, 4.0, 5.0], [2.0, 6.0, 1.0, 2.5]));
        assert_eq!((folded.names().len(), folded.shape("c")), (2, None));
    }

    #[test]
    fn only_what_is_replaced_differs() {
        let mut folded = Folded::new(&Counting);
        folded.replace("b", vec![9.0, 8.0, 7.0, 6.0, 5.0, 4.0]);
        assert_eq!((read(&folded, "a"), read(&folded, "b")), ([2.0, 3.0, 4.0, 5.0], [7.0, 6.0, 5.0, 4.0]));
    }

    #[test]
    #[should_panic(expected = "the size of a")]
    fn another_size_is_refused() {
        Folded::new(&Counting).replace("a", vec![0.0; 5]);
    }

    #[test]
    #[should_panic(expected = "the rows of a")]
    fn rows_that_are_not_there_are_refused() {
        Folded::new(&Counting).divide_rows("a", 2, vec![1.0; 2]);
    }
}
