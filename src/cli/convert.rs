//! `llm-quantize convert SOURCE FORMAT`.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::ValueEnum;

use super::checkpoints::CheckpointArgs;
use super::data::DataArgs;
use super::evaluate::limit;
use super::measure::{MeasureArgs, describe_evaluation};
use super::output::{Output, size};
use super::quantize::layerwise::open_device;
use super::quantize::{FormatOptions, OutputFormat, awq, data_given, gguf, given, gptq, place, refuse};
use super::terminal::Terminal;
use super::{CANCEL, Global};
use crate::calib::rows::Limits;
use crate::error::Result;
use crate::pipeline::convert::{Config, ConversionResult, Target, Wanted, convert};
use crate::source::safetensors::FloatType;
use crate::source::tokenizer::encoder::Encoder;

/// The level of a GGUF file unless another is asked for.
const GGUF_LEVEL: &str = "Q4_K_M";

/// Tensors that the report lists unless all are wanted.
const LISTED: usize = 5;

/// Turn a quantized model into another format, and say what it cost
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// A .gguf file (of several the first), the directory of a GPTQ, AWQ or plain model, or its name on the Hub
    source: String,
    /// What it becomes
    #[arg(value_enum, ignore_case = true)]
    target_format: TargetFormat,
    /// Level, as of `quantize` [default: Q4_K_M for gguf, 4bit for gptq and awq]
    #[arg(short, long, visible_alias = "quantization", value_name = "LEVEL")]
    quant_level: Option<String>,
    /// Type of the weights of hf [default: that of the source's own floats, else bf16]
    #[arg(long, value_enum, ignore_case = true, value_name = "TYPE")]
    dtype: Option<Dtype>,
    /// Directory for the result, made if it is not there
    #[arg(short, long, value_name = "DIR", default_value = ".", visible_alias = "output")]
    output_dir: PathBuf,
    /// Name of the result in that directory [default: SOURCE-LEVEL.gguf, or a directory SOURCE-FORMAT-LEVEL]
    #[arg(short = 'n', long, value_name = "NAME")]
    output_name: Option<String>,
    /// Overwrite the result if it exists
    #[arg(long)]
    force: bool,
    /// Quantize again even where the codes could be carried over as they are
    #[arg(long)]
    requantize: bool,
    /// Accept a key of config.json or of a GGUF file's metadata that is not understood; may be repeated
    #[arg(long, value_name = "KEY")]
    ignore_config: Vec<String>,
    /// Remove the result and exit with 11 if its mean KL divergence from the source (nats) is larger
    #[arg(long, value_name = "X", value_parser = limit)]
    max_kld: Option<f64>,
    #[command(flatten)]
    checkpoints: CheckpointArgs,
    #[command(flatten)]
    measure: MeasureArgs,
    #[command(flatten)]
    formats: FormatOptions,
    #[command(flatten)]
    data: DataArgs,
}

const EXAMPLES: &str = "\
Examples:
  llm-quantize convert model-Q4_K_M.gguf hf -o out
  llm-quantize convert model-Q8_0.gguf gptq --calibration-data text.txt --evaluate --data wiki.test.raw
  llm-quantize convert ./model-gptq-4bit awq --max-kld 0.05

A model that is quantized twice loses more than one that is quantized from the original: convert if there is no original.";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TargetFormat {
    /// llama.cpp
    Gguf,
    /// Codes with scales, which transformers, vLLM and others load
    Gptq,
    /// The same in AutoAWQ's layout
    Awq,
    /// Plain weights in safetensors
    Hf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Dtype {
    Bf16,
    F16,
    F32,
}

impl From<Dtype> for FloatType {
    fn from(dtype: Dtype) -> FloatType {
        match dtype {
            Dtype::Bf16 => FloatType::BF16,
            Dtype::F16 => FloatType::F16,
            Dtype::F32 => FloatType::F32,
        }
    }
}

pub(super) fn run(args: &Args, global: &Global, output: &Output, terminal: &Terminal) -> Result<()> {
    check_options(args)?;
    if args.target_format == TargetFormat::Hf {
        global.device()?.cpu_only("conversion to this format")?;
    }
    let (target, wanted) = target(args, global, terminal)?;
    let name = name(args, &target)?;
    let path = place(&args.output_dir, &name)?;
    let config = Config {
        checkpoint: args.checkpoints.settings(&format!("convert to {}", target.format().name()), &path),
        source: args.source.clone(),
        target,
        carry_over: wanted.filter(|_| !args.requantize),
        rows: &|encoder: &Encoder, limits: Limits| args.data.rows(encoder, limits, &CANCEL, terminal),
        output: path,
        force: args.force,
        evaluate: args.measure.text(args.max_kld.is_some())?,
        max_kld: args.max_kld,
        ignore_config: args.ignore_config.clone(),
        threads: global.threads(),
    };
    let found = convert(config, terminal, &CANCEL)?;
    if output.is_json() {
        output.result(&found, "");
    } else {
        output.note(&describe(&found, output.is_verbose()));
    }
    Ok(())
}

/// An option that would be of no effect is a mistake.
fn check_options(args: &Args) -> Result<()> {
    let dtype = given(&[("--dtype", args.dtype.is_some())]);
    let level = given(&[("--quant-level", args.quant_level.is_some())]);
    let codes = given(&[("--requantize", args.requantize)]);
    let data = data_given(&args.data);
    let others = |format| args.formats.of_others(format);
    match args.target_format {
        TargetFormat::Gguf => {
            let useless = [others(Some(OutputFormat::Gguf)), data, dtype, codes].concat();
            refuse(&useless, "conversion to GGUF")?;
        }
        TargetFormat::Gptq => {
            refuse(&[others(Some(OutputFormat::Gptq)), dtype].concat(), "conversion to GPTQ")?;
        }
        TargetFormat::Awq => {
            refuse(&[others(Some(OutputFormat::Awq)), dtype].concat(), "conversion to AWQ")?;
        }
        TargetFormat::Hf => refuse(&[others(None), data, level, codes].concat(), "conversion to hf")?,
    }
    Ok(())
}

/// The target, and what codes that are there already would have to be.
fn target(args: &Args, global: &Global, terminal: &Terminal) -> Result<(Target, Option<Wanted>)> {
    let level = args.quant_level.as_deref();
    let bits = || level.map(gptq::parse_bits).transpose();
    Ok(match args.target_format {
        TargetFormat::Gguf => {
            let mut config = args.formats.gguf.config(
                gguf::parse_level(level.unwrap_or(GGUF_LEVEL))?,
                global.device()?,
                terminal,
            )?;
            config.ignore_config.clone_from(&args.ignore_config);
            config.threads = global.threads();
            (Target::Gguf(Box::new(config)), None)
        }
        TargetFormat::Gptq => {
            let mut config = args.formats.gptq.config(
                &args.formats.layerwise,
                bits()?.unwrap_or(4),
                open_device(global, terminal)?,
            )?;
            config.options.threads = global.threads();
            (
                Target::Gptq(Box::new(config)),
                Some(args.formats.gptq.wanted(&args.formats.layerwise, bits()?)?),
            )
        }
        TargetFormat::Awq => {
            level.map_or(Ok(()), awq::check_level)?;
            let mut config =
                args.formats.awq.config(&args.formats.layerwise, open_device(global, terminal)?)?;
            config.options.threads = global.threads();
            (Target::Awq(Box::new(config)), Some(args.formats.awq.wanted(&args.formats.layerwise)?))
        }
        TargetFormat::Hf => (Target::Hf(args.dtype.map(FloatType::from)), None),
    })
}

/// The name of the result.
fn name(args: &Args, target: &Target) -> Result<String> {
    let stem = || stem(&args.source);
    Ok(match (target, &args.output_name) {
        (Target::Gguf(_), Some(name)) => gguf::with_extension(name)?,
        (_, Some(name)) => name.clone(),
        (Target::Gguf(config), None) => format!("{}-{}.gguf", stem(), config.level.name),
        (Target::Gptq(config), None) => format!("{}-gptq-{}bit", stem(), config.options.grids.base.bits),
        (Target::Awq(_), None) => format!("{}-awq-4bit", stem()),
        (Target::Hf(_), None) => format!("{}-hf", stem()),
    })
}

/// What a source is called: a file without its extension and its number, a directory or a model on the Hub by its last part.
fn stem(source: &str) -> String {
    let path = Path::new(source);
    let Some(name) = path.file_name().map(|name| name.to_string_lossy().into_owned()) else {
        let full = path.canonicalize().ok();
        let last = full.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
        return last.unwrap_or_else(|| "model".into());
    };
    if path.is_dir() {
        return name;
    }
    let Some(file) = name.strip_suffix(".gguf").or_else(|| name.strip_suffix(".GGUF")) else {
        // A model on the Hub may name a revision.
        return name.split('@').next().unwrap_or(&name).to_owned();
    };
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    let numbered = file.rsplit_once("-of-").and_then(|(rest, count)| Some((rest.rsplit_once('-')?, count)));
    match numbered {
        Some(((prefix, number), count)) if digits(number) && digits(count) => prefix.to_owned(),
        _ => file.to_owned(),
    }
}

fn describe(found: &ConversionResult, verbose: bool) -> String {
    let mut text = format!(
        "Complete: {} ({}, {:.2} bits per weight; the source has {:.2})\n",
        found.output_path,
        size(found.file_size),
        found.weights.bits_per_weight,
        found.weights.source_bits_per_weight
    );
    let tensors = found.weights.tensors.len();
    if found.is_lossy {
        let changed = found.weights.tensors.iter().filter(|t| t.nmse > 0.0).count();
        let _ = writeln!(
            text,
            "Weights: NMSE {:.3e} against the source; {changed} of {tensors} tensors differ",
            found.weights.nmse
        );
        let mut worst: Vec<_> = found.weights.tensors.iter().filter(|t| t.nmse > 0.0).collect();
        if !verbose {
            worst.sort_by(|a, b| b.nmse.total_cmp(&a.nmse));
            worst.truncate(LISTED);
        }
        for tensor in worst {
            let _ = writeln!(
                text,
                "  {:<48} {:>10.3e}   {:.2} -> {:.2} bits",
                tensor.name, tensor.nmse, tensor.source_bits, tensor.bits
            );
        }
    } else {
        let _ =
            writeln!(text, "Weights: all {tensors} tensors are the same as the source's: nothing was lost");
    }
    if let Some(found) = &found.evaluation {
        text += &describe_evaluation(found);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_called_after_their_source() {
        for (source, expected) in [
            ("dir/model-Q4_K_M.gguf", "model-Q4_K_M"),
            ("model-00001-of-00005.gguf", "model"),
            ("model-1-of-5.gguf", "model-1-of-5"),
            ("org/name", "name"),
            ("org/name@v1", "name"),
            ("org/Qwen2.5-7B", "Qwen2.5-7B"),
        ] {
            assert_eq!(stem(source), expected, "{source}");
        }
    }
}
