//! A profile as it is saved, and what it makes of a job.

use std::collections::BTreeMap;
use std::path::Path;

use regex::Regex;
use serde::{Deserialize, Serialize};

use super::{Allocation, Precision, Sensitivities};
use crate::error::{Error, Kind, Result};
use crate::format::gguf::GgmlType;
use crate::format::gguf::mix::Overrides;
use crate::pipeline::layerwise::Options;
use crate::quant::Grid;

/// The version of the file.
const VERSION: u32 = 1;

/// A wish in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// Close to the original.
    Quality,
    /// The size of a usual 4-bit model.
    Balanced,
    /// The size of a usual 3-bit model.
    Compression,
}

impl Preset {
    /// Bits per weight in a format: of GPTQ those of 4 bits in groups of 32, of 4 bits and of 3 bits in groups of 128; of GGUF
    /// those of Q5_K_M, Q4_K_M and Q3_K_M; of AWQ with a fifth, a twentieth and none of the weights in 16 bits.
    pub fn bits_per_weight(self, format: &str) -> f64 {
        match (format, self) {
            ("gguf", Preset::Quality) => 5.7,
            ("gguf", Preset::Balanced) => 4.85,
            ("gguf", Preset::Compression) => 3.9,
            ("awq", Preset::Quality) => 6.5,
            ("awq", Preset::Balanced) => 4.75,
            ("awq", Preset::Compression) => 4.16,
            (_, Preset::Quality) => 4.625,
            (_, Preset::Balanced) => 4.16,
            (_, Preset::Compression) => 3.15,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Preset::Quality => "quality",
            Preset::Balanced => "balanced",
            Preset::Compression => "compression",
        }
    }
}

/// The precision of linear layers of GPTQ and AWQ, or of tensors of GGUF, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice(pub BTreeMap<String, Precision>);

/// A profile: what was measured, and what was chosen by it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// Of the file's format.
    pub version: u32,
    /// Always `success`.
    pub status: String,
    /// The model, as it was given.
    pub model: String,
    /// The format that it is for.
    pub format: String,
    /// The preset, if one was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preset: Option<Preset>,
    /// Bits per weight that were asked for: of GPTQ and AWQ those of the matrices here, of GGUF those of the file.
    pub target_bits_per_weight: f64,
    /// The level of all that is not chosen here; of GGUF.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
    /// Bytes of the matrices here.
    pub bytes: u64,
    /// Bits per weight of the matrices here.
    pub bits_per_weight: f64,
    /// The sum of what all units lose by themselves, in nats.
    pub predicted_kl_divergence: f64,
    /// The precision of each linear layer or tensor.
    pub choice: Choice,
    /// What it was chosen by.
    #[serde(flatten)]
    pub sensitivities: Sensitivities,
}

impl Profile {
    /// Of an allocation.
    pub fn new(
        model: &str,
        format: &str,
        target: f64,
        level: Option<&str>,
        sensitivities: Sensitivities,
        allocation: &Allocation,
    ) -> Profile {
        Profile {
            version: VERSION,
            status: "success".into(),
            model: model.into(),
            format: format.into(),
            preset: None,
            target_bits_per_weight: target,
            level: level.map(String::from),
            bytes: allocation.bytes,
            bits_per_weight: allocation.bytes as f64 * 8.0 / sensitivities.weights() as f64,
            predicted_kl_divergence: allocation.loss,
            choice: sensitivities.choice(&allocation.options),
            sensitivities,
        }
    }

    /// Reads a profile for a format.
    ///
    /// # Errors
    /// `NotFound` if there is no such file, `Invalid` if it is no profile, `Usage` if it is for another format.
    pub fn load(path: &Path, format: &str) -> Result<Profile> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| Error::io(format!("cannot read the profile {}", path.display()), e))?;
        let profile: Profile = serde_json::from_str(&text).map_err(|e| {
            Error::new(Kind::Invalid, format!("{} is not a profile", path.display()))
                .because(e)
                .hint("Profiles are made by `llm-quantize analyze profile MODEL -o FILE`.")
        })?;
        if profile.version != VERSION {
            let version = profile.version;
            return Err(Error::new(Kind::Invalid, format!("{} has version {version}", path.display()))
                .hint(format!("This program reads version {VERSION}; make the profile again.")));
        }
        if profile.format != format {
            return Err(Error::new(
                Kind::Usage,
                format!("{} is for {}, not for {format}", path.display(), profile.format),
            )
            .hint("A profile holds precisions of one format; make another with --output-format."));
        }
        Ok(profile)
    }
}

impl Choice {
    /// Has a job in GPTQ or AWQ quantize so. The grid that most matrices have becomes that of the configuration.
    pub fn apply(&self, options: &mut Options) {
        let base = options.grids.base;
        let mut counts: BTreeMap<(u32, usize), usize> = BTreeMap::new();
        for (name, precision) in &self.0 {
            match precision {
                Precision::Codes { bits, group_size } => {
                    let grid = Grid { bits: *bits, group_size: *group_size, ..base };
                    options.grids.named.insert(name.clone(), grid);
                    *counts.entry((*bits, *group_size)).or_default() += 1;
                }
                Precision::Whole => options.skip.push(exactly(name)),
                Precision::Blocks(_) => {}
            }
        }
        // Of as many, the larger grid.
        if let Some(((bits, group_size), _)) = counts.into_iter().max_by_key(|(_, count)| *count) {
            options.grids.base = Grid { bits, group_size, ..base };
        }
    }

    /// The same for GGUF, where what is not quantized has a type too.
    pub fn with_types(self, whole: GgmlType) -> Choice {
        let typed =
            |precision| if precision == Precision::Whole { Precision::Blocks(whole) } else { precision };
        Choice(self.0.into_iter().map(|(name, precision)| (name, typed(precision))).collect())
    }

    /// Has a job in GGUF give tensors these types, before all others that were asked for.
    pub fn apply_types(&self, overrides: &mut Overrides) {
        let types = self.0.iter().filter_map(|(name, precision)| match precision {
            Precision::Blocks(ty) => Some((exactly(name), *ty)),
            Precision::Codes { .. } | Precision::Whole => None,
        });
        overrides.tensor_types.splice(0..0, types.collect::<Vec<_>>());
    }
}

fn exactly(name: &str) -> Regex {
    Regex::new(&format!("^{}$", regex::escape(name))).expect("an escaped name is a regular expression")
}
