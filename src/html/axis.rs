//! Values on a line: range, places and ticks.

use super::markup::number;

/// A range of values between two places.
#[derive(Clone, Debug)]
pub(super) struct Axis {
    low: f64,
    high: f64,
    logarithmic: bool,
    /// Where the lowest and the highest value go.
    places: [f64; 2],
}

impl Axis {
    /// Around `values`; those that are not above 0 have no place on a logarithmic axis.
    pub(super) fn around(values: impl Iterator<Item = f64>, logarithmic: bool, places: [f64; 2]) -> Axis {
        let usable = |v: &f64| v.is_finite() && (!logarithmic || *v > 0.0);
        let scale = |v: f64| if logarithmic { v.log10() } else { v };
        let start = (f64::INFINITY, f64::NEG_INFINITY);
        let (mut low, mut high) =
            values.filter(usable).map(scale).fold(start, |(low, high), v| (low.min(v), high.max(v)));
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        if logarithmic {
            (low, high) = (low.floor(), high.ceil());
        }
        if low == high {
            high += 1.0;
        }
        Axis { low, high, logarithmic, places }
    }

    /// The same with 0 in its range, which a logarithmic axis cannot have.
    pub(super) fn with_zero(mut self) -> Axis {
        if !self.logarithmic {
            self.low = self.low.min(0.0);
        }
        self
    }

    /// Where in the range a value is, from 0 to 1.
    pub(super) fn share(&self, value: f64) -> Option<f64> {
        if !value.is_finite() || self.logarithmic && value <= 0.0 {
            return None;
        }
        let v = if self.logarithmic { value.log10() } else { value };
        Some(((v - self.low) / (self.high - self.low)).clamp(0.0, 1.0))
    }

    /// Where a value goes.
    pub(super) fn place(&self, value: f64) -> Option<f64> {
        let [from, to] = self.places;
        Some(from + (to - from) * self.share(value)?)
    }

    /// Round values and what they are called, about `count` of them.
    pub(super) fn ticks(&self, count: usize) -> Vec<(f64, String)> {
        if self.logarithmic {
            let decades = (self.high - self.low).round() as usize;
            let step = decades.div_ceil(count).max(1);
            return (0..=decades)
                .step_by(step)
                .map(|i| {
                    let exponent = self.low + i as f64;
                    (10f64.powf(exponent), format!("1e{exponent:.0}"))
                })
                .collect();
        }
        let rough = (self.high - self.low) / count as f64;
        let decade = 10f64.powf(rough.log10().floor());
        let step =
            [1.0, 2.0, 5.0, 10.0].map(|m| m * decade).into_iter().find(|s| *s >= rough).unwrap_or(rough);
        let first = (self.low / step).ceil();
        (0..=2 * count)
            .map(|i| (first + i as f64) * step)
            .take_while(|v| *v <= self.high * (1.0 + 1e-9))
            .map(|v| (v, number(v)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_places_and_ticks_are_round() {
        let axis = Axis::around([3.0, 47.0].into_iter(), false, [100.0, 0.0]).with_zero();
        assert_eq!((axis.place(0.0), axis.place(47.0)), (Some(100.0), Some(0.0)));
        assert_eq!(axis.ticks(5).iter().map(|(v, _)| *v).collect::<Vec<_>>(), [0.0, 10.0, 20.0, 30.0, 40.0]);
        let axis = Axis::around([0.0, 3e-5, 2e-2].into_iter(), true, [0.0, 4.0]);
        let ticks: Vec<String> = axis.ticks(5).into_iter().map(|(_, text)| text).collect();
        assert_eq!(ticks, ["1e-5", "1e-4", "1e-3", "1e-2", "1e-1"]);
        assert_eq!((axis.place(0.0), axis.place(f64::NAN)), (None, None));
        assert!((axis.place(1e-3).unwrap() - 2.0).abs() < 1e-9);
    }

    #[test]
    fn a_single_value_or_none_makes_an_axis() {
        for values in [vec![], vec![5.0], vec![f64::NAN]] {
            for logarithmic in [false, true] {
                let axis = Axis::around(values.iter().copied(), logarithmic, [0.0, 1.0]);
                assert!(axis.ticks(4).len() < 12);
                assert!(axis.place(5.0).unwrap().is_finite());
            }
        }
    }
}
