//! A model with some of its weights replaced.

use std::collections::BTreeMap;
use std::ops::Range;

use super::dense::Dense;
use crate::error::Result;

/// The weights of a model, of which some are replaced by others of the same shape that are in memory.
#[derive(Debug)]
pub struct Overlay<'a> {
    base: &'a dyn Dense,
    replaced: BTreeMap<String, Vec<f32>>,
}

impl<'a> Overlay<'a> {
    /// The weights as they are.
    pub fn new(base: &'a dyn Dense) -> Overlay<'a> {
        Overlay { base, replaced: BTreeMap::new() }
    }

    /// Replaces a tensor.
    ///
    /// # Panics
    /// If there is no such tensor, or it has another size.
    pub fn replace(&mut self, name: &str, values: Vec<f32>) {
        let size = self.base.shape(name).map(|shape| shape.iter().product::<usize>());
        assert_eq!(size, Some(values.len()), "the size of {name}");
        self.replaced.insert(name.to_owned(), values);
    }

    /// Takes all replacements back.
    pub fn clear(&mut self) {
        self.replaced.clear();
    }
}

impl Dense for Overlay<'_> {
    fn names(&self) -> Vec<&str> {
        self.base.names()
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.base.shape(name)
    }

    fn bits(&self, name: &str) -> Option<f64> {
        self.base.bits(name)
    }

    fn read(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let Some(values) = self.replaced.get(name) else { return self.base.read(name, rows, out) };
        let width: usize = self.base.shape(name).unwrap_or_default().iter().skip(1).product();
        out.copy_from_slice(&values[rows.start * width..rows.end * width]);
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

    #[test]
    fn only_what_is_replaced_differs() {
        let mut overlay = Overlay::new(&Counting);
        overlay.replace("b", vec![9.0, 8.0, 7.0, 6.0, 5.0, 4.0]);
        let read = |overlay: &Overlay<'_>, name| {
            let mut out = [0.0; 2];
            overlay.read(name, 1..2, &mut out).unwrap();
            out
        };
        assert_eq!((read(&overlay, "a"), read(&overlay, "b")), ([2.0, 3.0], [7.0, 6.0]));
        overlay.clear();
        assert_eq!(read(&overlay, "b"), [2.0, 3.0]);
        assert_eq!((overlay.names().len(), overlay.shape("c")), (2, None));
    }

    #[test]
    #[should_panic(expected = "the size of a")]
    fn another_size_is_refused() {
        Overlay::new(&Counting).replace("a", vec![0.0; 5]);
    }
}
