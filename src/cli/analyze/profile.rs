//! `llm-quantize analyze profile MODEL`.

use std::fmt::Write;
use std::path::PathBuf;

use clap::ValueEnum;

use crate::cli::data::DataArgs;
use crate::cli::output::{Output, duration, size, thousands};
use crate::cli::quantize::gguf::level_below;
use crate::cli::quantize::layerwise::open_device;
use crate::cli::quantize::{FormatOptions, OutputFormat, bits, refuse};
use crate::cli::result_file::ResultFile;
use crate::cli::terminal::Terminal;
use crate::cli::{CANCEL, Global};
use crate::error::Result;
use crate::pipeline::budget::{Config, find_profile};
use crate::pipeline::profile::{self, Profile, UnitProfile};
use crate::pipeline::recipe::Recipe;
use crate::progress::Progress;
use crate::source::tokenizer::encoder::Encoder;
use crate::source::{Need, SourceModel};

/// Measure what each part of a model loses at each precision, and choose precisions by it
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(in crate::cli) struct Args {
    /// Directory of a Hugging Face model, or its name on the Hub (org/name)
    model: String,
    /// The format that it is for
    #[arg(long, value_enum, ignore_case = true, value_name = "FORMAT", default_value_t = OutputFormat::Gptq)]
    output_format: OutputFormat,
    /// A usual number of bits per weight
    #[arg(long, value_enum, ignore_case = true, value_name = "NAME", required_unless_present = "target_bpw")]
    preset: Option<Preset>,
    /// Bits per weight, scales included, that matrices (of GGUF all tensors) take together
    #[arg(long, value_name = "B", value_parser = bits, visible_alias = "target-bits", conflicts_with = "preset")]
    target_bpw: Option<f64>,
    /// Estimate what most precisions lose from the error of outputs, and do not measure each
    #[arg(long)]
    estimate: bool,
    /// The file to write [default: MODEL-FORMAT.profile.json]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Overwrite the file if it exists
    #[arg(long)]
    force: bool,
    /// Accept a key of config.json that is not understood; may be repeated
    #[arg(long, value_name = "KEY")]
    ignore_config: Vec<String>,
    #[command(flatten)]
    formats: FormatOptions,
    #[command(flatten)]
    data: DataArgs,
}

const EXAMPLES: &str = "\
Examples:
  llm-quantize analyze profile ./Llama-3.1-8B --target-bpw 3.5 -o llama.profile.json
  llm-quantize analyze profile ./Llama-3.1-8B --output-format gguf --preset balanced --estimate
  llm-quantize quantize ./Llama-3.1-8B gptq --profile llama.profile.json

What a part loses is the KL divergence of the model's predictions when this part alone is quantized, on rows of the calibration
data that nothing is calibrated with.";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Preset {
    /// Close to the original
    Quality,
    /// The size of a usual 4-bit model
    Balanced,
    /// The size of a usual 3-bit model
    Compression,
}

impl From<Preset> for profile::Preset {
    fn from(preset: Preset) -> profile::Preset {
        match preset {
            Preset::Quality => profile::Preset::Quality,
            Preset::Balanced => profile::Preset::Balanced,
            Preset::Compression => profile::Preset::Compression,
        }
    }
}

pub(in crate::cli) fn run(args: &Args, global: &Global, output: &Output, terminal: &Terminal) -> Result<()> {
    let (formats, output_format) = (&args.formats, args.output_format);
    refuse(&formats.of_others(Some(output_format)), output_format.title())?;
    let format = output_format.name();
    let preset = args.preset.map(profile::Preset::from);
    let target = args.target_bpw.or(preset.map(|preset| preset.bits_per_weight(format))).unwrap_or_default();
    let backend = open_device(global, terminal)?;
    let recipe = match output_format {
        OutputFormat::Gguf => {
            Recipe::Gguf(Box::new(formats.gguf.config(level_below(target), global.device()?, terminal)?))
        }
        OutputFormat::Gptq => {
            Recipe::Gptq(Box::new(formats.gptq.config(&formats.layerwise, 4, backend.clone())?))
        }
        OutputFormat::Awq => Recipe::Awq(Box::new(formats.awq.config(&formats.layerwise, backend.clone())?)),
    };
    terminal.info(&format!("Loading model {}", args.model));
    let source = SourceModel::open(&args.model, Need::Weights, &CANCEL, terminal)?;
    let path = match &args.output {
        Some(path) => path.clone(),
        None => PathBuf::from(format!("{}-{format}.profile.json", source.name()?)),
    };
    let file = ResultFile::new(&path, args.force)?;
    let rows = |encoder: &Encoder, limits| args.data.rows_and_held_out(encoder, limits, &CANCEL, terminal);
    let config = Config {
        model: args.model.clone(),
        source,
        recipe,
        target: Some(target),
        limit: None,
        text: None,
        measured: !args.estimate,
        group_sizes: formats.layerwise.group_sizes(),
        rows: &rows,
        ignore_config: args.ignore_config.clone(),
        threads: global.threads(),
        backend,
    };
    let found = Profile { preset, ..find_profile(&config, target, terminal, &CANCEL)? };
    file.write(&(serde_json::to_string_pretty(&found).expect("profiles are plain data") + "\n"))?;
    output.result(&found, &describe(&found));
    output.note(&format!("Saved as {}", path.display()));
    Ok(())
}

fn describe(found: &Profile) -> String {
    let units = &found.sensitivities.units;
    let width = units.iter().map(|unit| unit.name.len()).max().unwrap_or(0);
    let mut text =
        format!("{:<width$} {:>12} {:<10} {:>12}   loss by itself at\n", "", "weights", "chosen", "loss");
    for unit in units {
        let option = chosen(found, unit);
        let precision = option.map_or_else(String::new, |option| option.precision.to_string());
        let loss = option.map_or(0.0, profile::OptionProfile::loss);
        let weights = thousands(unit.weights);
        let _ = write!(text, "{:<width$} {weights:>12} {precision:<10} {loss:>12.3e}  ", unit.name);
        // Of group sizes the first: the table would be too wide.
        let mut last = String::new();
        for option in &unit.options[..unit.options.len() - 1] {
            let name = option.precision.to_string();
            let kind = name.split(':').next().unwrap_or(&name);
            if kind != last {
                let _ = write!(text, " {kind} {:.2e}", option.loss());
                last = kind.to_owned();
            }
        }
        text.push('\n');
    }
    let _ = writeln!(
        text,
        "\n{:.3} bits per weight, {}; what units lose by themselves sums up to {:.6} nats",
        found.bits_per_weight,
        size(found.bytes),
        found.predicted_kl_divergence
    );
    if let Some(correlation) = &found.sensitivities.rank_correlation {
        let _ = writeln!(
            text,
            "Estimates would have ranked what was measured with a correlation of {:.3}, among units of one precision {:.3}",
            correlation.all, correlation.same_precision
        );
    }
    let _ = writeln!(text, "Found in {}", duration(found.sensitivities.seconds));
    text
}

/// The option that a unit has got.
fn chosen<'a>(found: &Profile, unit: &'a UnitProfile) -> Option<&'a profile::OptionProfile> {
    let name = if found.format == "gguf" { &unit.name } else { unit.matrices.first()? };
    let precision = found.choice.0.get(name)?;
    unit.options.iter().find(|option| option.precision == *precision).or(unit.options.last())
}
