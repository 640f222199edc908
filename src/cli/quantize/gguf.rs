//! `llm-quantize quantize MODEL gguf -q LEVEL`.

use std::fmt::Write;
use std::path::PathBuf;

use regex::RegexBuilder;

use super::budget::Run;
use super::finish::Finish;
use super::{Common, given, not_plain, refuse};
use crate::backend::{self, DeviceName};
use crate::calib::imatrix::Imatrix;
use crate::cli::data::DataArgs;
use crate::cli::output::{Output, duration, size, thousands};
use crate::cli::terminal::Terminal;
use crate::cli::{CANCEL, Global};
use crate::error::{Error, Kind, Result};
use crate::format::gguf::GgmlType;
use crate::format::gguf::blocks::Simd;
use crate::format::gguf::level::Level;
use crate::format::gguf::mix::Overrides;
use crate::pipeline::checkpoint::Settings;
use crate::pipeline::gguf::report::{Report, Summary};
use crate::pipeline::gguf::{Config, Job};
use crate::pipeline::recipe::Recipe;
use crate::progress::Progress;

/// Options of GGUF alone
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "GGUF")]
pub(in crate::cli) struct GgufOptions {
    /// Importance matrix by `analyze importance` or llama-imatrix, GGUF or .dat
    #[arg(long, value_name = "FILE")]
    imatrix: Option<PathBuf>,
    /// Type of the tensors whose name matches a regular expression; may be repeated, the first match wins
    #[arg(long, value_name = "PATTERN=TYPE")]
    tensor_type: Vec<String>,
    /// Type of output.weight
    #[arg(long, value_name = "TYPE")]
    output_tensor_type: Option<String>,
    /// Type of the token embedding
    #[arg(long, value_name = "TYPE")]
    token_embedding_type: Option<String>,
    /// The level's base type for all tensors, no mix
    #[arg(long)]
    pure: bool,
    /// Set a metadata key; KEY=TYPE:VALUE with int, float, bool or str fixes the type; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    metadata: Vec<String>,
    /// Instruction set of the encoders: avx512, avx2 or portable; the result is the same
    #[arg(long, value_name = "NAME", hide = true)]
    simd: Option<String>,
}

impl GgufOptions {
    /// What they ask for, at a level; where it goes and the rest are to be filled in.
    ///
    /// # Errors
    /// `Usage` for an option that makes no sense, and whatever an importance matrix cannot be read for.
    pub(in crate::cli) fn config(
        &self,
        level: Level,
        device: DeviceName,
        terminal: &Terminal,
    ) -> Result<Config> {
        let overrides = parse_overrides(self)?;
        let simd = parse_simd(self.simd.as_deref())?;
        let backend = backend::open(&device, simd)?;
        if device != DeviceName::Cpu {
            terminal.info(&format!("Device: {}", backend.name()));
        }
        let imatrix = self.imatrix.as_deref().map(Imatrix::load).transpose()?;
        if let Some(m) = &imatrix {
            terminal.info(&format!("Importance matrix: {} tensors, {} chunks", m.entries.len(), m.chunks));
        }
        Ok(Config {
            level,
            output: PathBuf::new(),
            force: false,
            checkpoint: Settings::default(),
            overrides,
            imatrix,
            metadata: self.metadata.clone(),
            ignore_config: Vec::new(),
            threads: 1,
            simd,
            backend,
        })
    }

    /// The options that were given.
    pub(in crate::cli) fn given(&self) -> Vec<&'static str> {
        super::given(&[
            ("--imatrix", self.imatrix.is_some()),
            ("--tensor-type", !self.tensor_type.is_empty()),
            ("--output-tensor-type", self.output_tensor_type.is_some()),
            ("--token-embedding-type", self.token_embedding_type.is_some()),
            ("--pure", self.pure),
            ("--metadata", !self.metadata.is_empty()),
            ("--simd", self.simd.is_some()),
        ])
    }
}

pub(super) fn run(
    common: &Common,
    args: &GgufOptions,
    data: &DataArgs,
    global: &Global,
    finish: Finish<'_>,
    output: &Output,
    terminal: &Terminal,
) -> Result<()> {
    let profile = common.budget.profile("gguf")?;
    let of_profile = profile.as_ref().and_then(|profile| profile.level.as_deref());
    let level = match (common.quant_level.as_deref().or(of_profile), common.budget.target_bpw) {
        (Some(level), _) => parse_level(level)?,
        (None, target) => level_below(target.unwrap_or(16.0)),
    };
    let mut config = args.config(level, global.device()?, terminal)?;
    if profile.is_some() || common.budget.target_bpw.is_some() {
        let types = [("--tensor-type", !args.tensor_type.is_empty()), ("--pure", args.pure)];
        refuse(&given(&types), "--profile and --target-bpw, which choose types")?;
    }
    if let Some(profile) = &profile {
        profile.choice.apply_types(&mut config.overrides);
    }
    let source = common.open(terminal)?;
    let file = match &common.output_name {
        Some(name) => with_extension(name)?,
        None => format!("{}-{}.gguf", source.name()?, common.precision_name(level.name, profile.as_ref())),
    };
    let path = common.output(&file)?;
    let config = Config {
        checkpoint: common.checkpoints.settings_if_asked("quantize gguf", &path),
        output: path,
        force: common.force,
        ignore_config: common.ignore_config.clone(),
        threads: global.threads(),
        ..config
    };
    if common.budget.is_given() {
        let backend = config.backend.clone();
        let run =
            Run { source, group_sizes: Vec::new(), backend, common, data, global, finish, output, terminal };
        return run.go(Recipe::Gguf(Box::new(config)));
    }
    let job = Job::prepare(&source, config, terminal)?;
    if common.dry_run {
        let summary = job.dry_run();
        output.result(&summary, &describe_plan(&summary, &job.output().display().to_string()));
        return Ok(());
    }
    job.preflight()?;
    let report = job.run(terminal, &CANCEL)?.commit(terminal)?;
    drop((job, source));
    finish.gguf(&report, None)
}

/// The level of tensors that are not chosen, such as the embedding, where all together take so many bits per weight: the largest
/// of llama.cpp's usual ones that takes no more.
pub(in crate::cli) fn level_below(bits_per_weight: f64) -> Level {
    let levels = [("Q8_0", 8.5), ("Q6_K", 6.57), ("Q5_K_M", 5.5), ("Q4_K_M", 4.6), ("Q3_K_M", 3.5)];
    let name = levels.into_iter().find(|(_, bits)| *bits <= bits_per_weight).map_or("Q2_K", |(name, _)| name);
    Level::from_name(name).expect("the levels are llama.cpp's")
}

/// The name of a GGUF file, which may be given without its extension.
pub(in crate::cli) fn with_extension(name: &str) -> Result<String> {
    match name.to_lowercase() {
        lower if lower.is_empty() || lower == ".gguf" => Err(not_plain(name)),
        lower if lower.ends_with(".gguf") => Ok(name.to_owned()),
        _ => Ok(format!("{name}.gguf")),
    }
}

pub(in crate::cli) fn parse_level(name: &str) -> Result<Level> {
    Level::from_name(name).ok_or_else(|| {
        if Level::is_known_elsewhere(name) {
            return Error::new(Kind::Unsupported, format!("level {name} of llama.cpp is not supported yet"))
                .hint(format!("Supported are: {}.", Level::names()));
        }
        Error::new(Kind::Usage, format!("Invalid quantization level '{name}' for GGUF"))
            .hint(format!("Valid levels: {}.", Level::names()))
    })
}

fn parse_type(name: &str, option: &str) -> Result<GgmlType> {
    match GgmlType::from_name(name) {
        Some(ty) if ty.is_writable() => Ok(ty),
        Some(ty) => Err(Error::new(Kind::Unsupported, format!("{option}: type {ty} cannot be written yet"))),
        None => {
            let valid: Vec<&str> = GgmlType::all().filter(|t| t.is_writable()).map(|t| t.name()).collect();
            Err(Error::new(Kind::Usage, format!("{option}: there is no type '{name}'"))
                .hint(format!("Valid types: {}.", valid.join(", "))))
        }
    }
}

fn parse_overrides(args: &GgufOptions) -> Result<Overrides> {
    let mut tensor_types = Vec::new();
    for text in &args.tensor_type {
        let (pattern, ty) = text.rsplit_once('=').filter(|(p, _)| !p.is_empty()).ok_or_else(|| {
            Error::new(Kind::Usage, format!("--tensor-type '{text}' is not of the form PATTERN=TYPE"))
        })?;
        // llama-quantize lowers the case of the pattern; tensor names are in lower case.
        let pattern = RegexBuilder::new(pattern).case_insensitive(true).build().map_err(|e| {
            Error::new(Kind::Usage, format!("--tensor-type: '{pattern}' is not a regular expression"))
                .because(e)
        })?;
        tensor_types.push((pattern, parse_type(ty, "--tensor-type")?));
    }
    let one = |ty: &Option<String>, option| ty.as_deref().map(|name| parse_type(name, option)).transpose();
    Ok(Overrides {
        tensor_types,
        output: one(&args.output_tensor_type, "--output-tensor-type")?,
        embedding: one(&args.token_embedding_type, "--token-embedding-type")?,
        pure: args.pure,
    })
}

fn parse_simd(name: Option<&str>) -> Result<Simd> {
    let Some(name) = name else { return Ok(Simd::best()) };
    let available = Simd::available();
    match Simd::from_name(name) {
        Some(simd) if available.contains(&simd) => Ok(simd),
        Some(_) => Err(Error::new(Kind::Usage, format!("--simd {name}: this processor does not have it"))),
        None => {
            let names: Vec<&str> = available.iter().map(|s| s.name()).collect();
            Err(Error::new(Kind::Usage, format!("--simd '{name}' is none of {}", names.join(", "))))
        }
    }
}

fn describe_types(summary: &Summary) -> String {
    let mut text = String::new();
    // Largest types last in LEVELS; here the order of size says most.
    let mut types: Vec<_> = summary.types.iter().collect();
    types.sort_by_key(|(_, t)| std::cmp::Reverse(t.bytes));
    for (name, t) in types {
        let _ = write!(text, "  {name:<8} {:>5} tensors {:>10}", t.tensors, size(t.bytes));
        let _ = match t.nmse {
            Some(nmse) => writeln!(text, "   NMSE {nmse:.3e}"),
            None => writeln!(text),
        };
    }
    text
}

fn describe_plan(summary: &Summary, path: &str) -> String {
    let mut text = String::new();
    for t in &summary.tensors {
        let shape: Vec<String> = t.shape.iter().map(u64::to_string).collect();
        let why = t.instead_of.as_deref().map_or(String::new(), |ty| format!("   (rows do not fit {ty})"));
        let _ =
            writeln!(text, "{:<40} {:>20} {:<8} {:>10}{why}", t.name, shape.join(" x "), t.ty, size(t.bytes));
    }
    let _ = writeln!(text, "\n{path} would be {} ({} bytes)", size(summary.file_size), summary.file_size);
    let _ = writeln!(
        text,
        "{} weights, {:.2} bits each:",
        thousands(summary.parameters),
        summary.bits_per_weight
    );
    text + &describe_types(summary)
}

pub(super) fn describe_report(report: &Report, verbose: bool) -> String {
    let summary = &report.metadata;
    let mut text = format!(
        "Complete: {} ({}, {:.2} bits per weight)\n",
        report.output_path,
        size(report.file_size),
        summary.bits_per_weight
    );
    text += &describe_types(summary);
    if verbose {
        let _ = writeln!(
            text,
            "Duration: {} (encoding {})",
            duration(report.duration_seconds),
            duration(report.encode_seconds)
        );
        let _ = writeln!(text, "Compression: {:.3} of 16 bits", report.compression_ratio);
        if let Some(bytes) = report.peak_memory_bytes {
            let _ = writeln!(text, "Peak memory: {}", size(bytes));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::gguf::level::LEVELS;

    #[test]
    fn levels_are_found_in_any_case_and_by_alias() {
        for level in LEVELS {
            assert_eq!(parse_level(&level.name.to_lowercase()).unwrap(), *level);
        }
        assert_eq!(parse_level("q4_k").unwrap().name, "Q4_K_M");
        assert_eq!(parse_level("IQ2_XS").unwrap_err().kind(), Kind::Unsupported);
        let e = parse_level("Q9").unwrap_err();
        assert_eq!(e.kind(), Kind::Usage);
        assert!(e.suggestion().unwrap().contains("Q4_K_M"));
    }
}
