//! Where bits are worth most: how much each part of a model loses at each precision, and which precision each part gets if all
//! together may take so many bits.

mod allocation;
mod file;
mod precision;
mod sensitivity;
mod trials;
mod unit;

use std::time::Instant;

use regex::Regex;
use serde::{Deserialize, Serialize};

pub use allocation::{Allocation, Front, Item};
pub use file::{Choice, Preset, Profile};
pub use precision::{NoPrecision, Precision};
pub use trials::Method;

use super::evaluate::in_pool;
use super::layerwise::{Matrix, Watch, matrices};
use super::model::OpenModel;
use crate::backend::Backend;
use crate::calib::rows::{DataRecord, Rows};
use crate::cancel::Cancel;
use crate::error::{Error, Kind, Result};
use crate::eval::rank::spearman;
use crate::eval::windows::Windows;
use crate::progress::Progress;
use unit::Unit;

/// What to profile, and how.
#[derive(Debug)]
pub struct Config<'a> {
    /// The format.
    pub method: Method,
    /// Linear layers that stay as they are; of GPTQ and AWQ.
    pub skip: &'a [Regex],
    /// Whether every precision is measured; else all are estimated from one measurement per kind of matrix and layer.
    pub measured: bool,
    /// Worker threads.
    pub threads: usize,
    /// What quantizes.
    pub backend: &'a dyn Backend,
}

/// One precision of a unit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OptionProfile {
    /// The precision.
    pub precision: Precision,
    /// Bytes that the unit takes.
    pub bytes: u64,
    /// Mean of `KL(original || changed)` on the held-out rows if the unit alone has this precision, in nats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measured: Option<f64>,
    /// The same, estimated from the error of the unit's outputs.
    pub estimate: f64,
}

impl OptionProfile {
    /// What the unit loses at this precision: as measured, or else as estimated.
    pub fn loss(&self) -> f64 {
        self.measured.unwrap_or(self.estimate)
    }
}

/// Matrices that have one precision, and what they lose at each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UnitProfile {
    /// What loaders join them to (`model.layers.0.self_attn.qkv_proj`), or the tensor in GGUF.
    pub name: String,
    /// Their layer, from 0.
    pub layer: usize,
    /// Their linear layers.
    pub matrices: Vec<String>,
    /// Number of their weights.
    pub weights: u64,
    /// By the precisions that the format has for them; the last is 16 bits.
    pub options: Vec<OptionProfile>,
}

impl UnitProfile {
    fn unmeasured(unit: &Unit, method: &Method) -> UnitProfile {
        let option = |precision| OptionProfile {
            precision,
            bytes: unit.matrices.iter().filter_map(|m| method.bytes(m.shape, precision)).sum(),
            measured: None,
            estimate: 0.0,
        };
        UnitProfile {
            name: unit.name.clone(),
            layer: unit.layer,
            matrices: unit.matrices.iter().map(|m| m.name.clone()).collect(),
            weights: unit.weights(),
            options: method.precisions(unit).into_iter().map(option).collect(),
        }
    }
}

/// How well estimates foretell the order of what is measured (Spearman).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Correlation {
    /// Over all units and precisions.
    pub all: f64,
    /// Among units at the same precision, the mean over precisions: what matters for where bits go.
    pub same_precision: f64,
}

/// What every unit of a model loses at every precision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sensitivities {
    /// What the quantizers were calibrated with.
    pub calibration: DataRecord,
    /// What divergences were measured on.
    pub held_out: DataRecord,
    /// How good estimates are, if everything was measured too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank_correlation: Option<Correlation>,
    /// Wall time.
    pub seconds: f64,
    /// In the order of the model.
    pub units: Vec<UnitProfile>,
}

impl Sensitivities {
    /// Finds them.
    ///
    /// # Errors
    /// `Unsupported` if no matrix can be quantized; what the model, the rows or the device do not allow; `Interrupted`.
    pub fn find(
        opened: &OpenModel,
        config: &Config<'_>,
        calibration: &Rows,
        held_out: &Rows,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Sensitivities> {
        let started = Instant::now();
        let matrices = matrices::find(&opened.model, &*opened.weights)?;
        let units = units(&matrices, &config.method, config.skip);
        if units.is_empty() {
            return Err(Error::new(Kind::Unsupported, "no matrix of the model can be quantized"));
        }
        let windows = Windows::of_rows(&held_out.rows)?;
        let job = sensitivity::Job {
            opened,
            method: &config.method,
            units: &units,
            backend: config.backend,
            calibration: &calibration.rows,
            held_out: &windows,
            measured: config.measured,
            watch: Watch { progress, cancel },
        };
        let units = in_pool(config.threads, || job.run())?;
        Ok(Sensitivities {
            calibration: calibration.record.clone(),
            held_out: held_out.record.clone(),
            rank_correlation: correlation(&units),
            seconds: started.elapsed().as_secs_f64(),
            units,
        })
    }

    /// All allocations that nothing beats, with or without units in 16 bits.
    pub fn front(&self, whole: bool) -> Front {
        let items = |unit: &UnitProfile| {
            let options = unit.options.iter().take_while(|o| whole || o.precision != Precision::Whole);
            options.map(|option| Item { bytes: option.bytes, loss: option.loss() }).collect()
        };
        Front::new(&self.units.iter().map(items).collect::<Vec<_>>())
    }

    /// Number of weights of all units.
    pub fn weights(&self) -> u64 {
        self.units.iter().map(|unit| unit.weights).sum()
    }

    /// The best allocation in so many bytes.
    ///
    /// # Errors
    /// `Usage` if they are fewer than the least precisions take, or no fewer than 16 bits take; `what` names the option.
    pub fn allocate(&self, bytes: f64, what: &str) -> Result<Allocation> {
        check_bytes(&self.units, bytes, what)?;
        let allocation = self.front(true).within(bytes as u64);
        allocation.ok_or_else(|| Error::new(Kind::Usage, format!("{what}: there is no such allocation")))
    }

    /// What an allocation is expected to lose.
    pub(super) fn loss(&self, options: &[usize]) -> f64 {
        self.units.iter().zip(options).map(|(unit, option)| unit.options[*option].loss()).sum()
    }

    /// The precision of each linear layer, or of each tensor in GGUF.
    pub fn choice(&self, options: &[usize]) -> Choice {
        let chosen = self.units.iter().zip(options).flat_map(|(unit, option)| {
            let names = if unit.name.starts_with("blk.") {
                std::slice::from_ref(&unit.name)
            } else {
                &unit.matrices[..]
            };
            names.iter().map(move |name| (name.clone(), unit.options[*option].precision))
        });
        Choice(chosen.collect())
    }
}

/// The units of a model that a format can quantize.
fn units(matrices: &[Vec<Matrix>], method: &Method, skip: &[Regex]) -> Vec<Unit> {
    let mut units = match method {
        Method::Gguf { .. } => Unit::tensors(matrices),
        _ => Unit::packed(matrices, skip),
    };
    units.retain(|unit| method.precisions(unit).len() > 1);
    units
}

/// Every unit with its precisions and their bytes; nothing is measured.
pub(super) fn sizes(matrices: &[Vec<Matrix>], method: &Method, skip: &[Regex]) -> Vec<UnitProfile> {
    units(matrices, method, skip).iter().map(|unit| UnitProfile::unmeasured(unit, method)).collect()
}

/// Checks that units can take so many bytes; `what` names the option that asks for it.
///
/// # Errors
/// `Usage` if they are fewer than the lowest precisions take, or no fewer than 16 bits take.
pub(super) fn check_bytes(units: &[UnitProfile], bytes: f64, what: &str) -> Result<()> {
    let weights: u64 = units.iter().map(|unit| unit.weights).sum();
    let bits = |bytes: u64| bytes as f64 * 8.0 / weights as f64;
    let least = units.iter().filter_map(|u| u.options.iter().map(|o| o.bytes).min()).sum::<u64>();
    let most = units.iter().filter_map(|u| Some(u.options.last()?.bytes)).sum::<u64>();
    if bytes >= most as f64 {
        return Err(Error::new(Kind::Usage, format!("{what} is no less than the 16 bits of the original"))
            .hint(format!(
                "Between {:.2} and {:.2} bits per weight are possible.",
                bits(least),
                bits(most)
            )));
    }
    // NaN is enough for nothing.
    if bytes >= least as f64 {
        return Ok(());
    }
    let message = format!("{what} is less than the {:.3} that the lowest precisions take", bits(least));
    Err(Error::new(Kind::Usage, message).hint("Ask for more bits per weight."))
}

/// The option of each unit that is nearest in size to what it has: `precisions` are those of linear layers or tensors.
pub(super) fn options_of(units: &[UnitProfile], precisions: &[(String, Precision, u64)]) -> Vec<usize> {
    let of = |unit: &UnitProfile| {
        let named = |name: &String| *name == unit.name || unit.matrices.contains(name);
        let found = precisions.iter().find(|(name, ..)| named(name));
        let same = found.and_then(|f| unit.options.iter().position(|option| option.precision == f.1));
        let by_size =
            |bytes: u64| (0..unit.options.len()).min_by_key(|i| unit.options[*i].bytes.abs_diff(bytes));
        same.or_else(|| by_size(found.map_or(u64::MAX, |f| f.2))).unwrap_or_default()
    };
    units.iter().map(of).collect()
}

/// How estimates and measurements go together, if there are both.
fn correlation(units: &[UnitProfile]) -> Option<Correlation> {
    let of = |precision: Option<Precision>| {
        let options = units.iter().flat_map(|unit| &unit.options).filter(|o| o.precision != Precision::Whole);
        let wanted = options.filter(|option| precision.is_none_or(|p| p == option.precision));
        wanted.map(|option| Some((option.estimate, option.measured?))).collect::<Option<Vec<_>>>()
    };
    let all = spearman(&of(None)?)?;
    let mut precisions: Vec<Precision> = Vec::new();
    for option in units.iter().flat_map(|unit| &unit.options) {
        if !precisions.contains(&option.precision) {
            precisions.push(option.precision);
        }
    }
    let same: Vec<f64> = precisions.into_iter().filter_map(|p| spearman(&of(Some(p))?)).collect();
    let same_precision = same.iter().sum::<f64>() / same.len() as f64;
    (!same.is_empty()).then_some(Correlation { all, same_precision })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sensitivities() -> Sensitivities {
        let option = |precision: &str, bytes, loss: f64| OptionProfile {
            precision: precision.parse().unwrap(),
            bytes,
            measured: Some(loss),
            estimate: 2.0 * loss,
        };
        let unit = |name: &str, loss: f64| UnitProfile {
            name: format!("l.{name}_proj"),
            layer: 0,
            matrices: vec![format!("l.{name}_proj")],
            weights: 80,
            options: vec![
                option("2bit:32", 20, loss),
                option("4bit:32", 40, loss / 16.0),
                option("16bit", 160, 0.0),
            ],
        };
        let record = DataRecord {
            source: "text".into(),
            revision: None,
            config: None,
            split: None,
            sha256: String::new(),
            rows: 1,
            seq_len: 2,
            tokens: 2,
            seed: None,
        };
        let units = vec![unit("a", 0.2), unit("b", 0.3)];
        Sensitivities {
            calibration: record.clone(),
            held_out: record,
            rank_correlation: correlation(&units),
            seconds: 0.0,
            units,
        }
    }

    #[test]
    fn bits_go_where_they_gain_most() {
        let found = sensitivities();
        assert_eq!(found.rank_correlation, Some(Correlation { all: 1.0, same_precision: 1.0 }));
        let of = |bytes: f64| found.allocate(bytes, "--target-bpw").map(|a| a.options);
        assert_eq!(of(60.9).unwrap(), [0, 1]);
        assert_eq!(of(40.0).unwrap(), [0, 0]);
        assert_eq!(of(200.0).unwrap(), [1, 2]);
        let choice = found.choice(&[1, 2]).0;
        assert_eq!(choice["l.b_proj"], Precision::Whole);
        assert_eq!(choice["l.a_proj"].to_string(), "4bit:32");
    }

    #[test]
    fn impossible_sizes_are_refused() {
        for (bytes, word) in [(39.9, "2.000"), (-1.0, "2.000"), (320.0, "16 bits"), (f64::NAN, "2.000")] {
            let e = sensitivities().allocate(bytes, "--target-bpw 1").unwrap_err();
            assert_eq!(e.kind(), Kind::Usage);
            assert!(e.to_string().contains(word), "{e}");
        }
    }
}
