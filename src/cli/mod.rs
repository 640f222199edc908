//! The command line: arguments in, text or JSON out. The only place that prints.

mod analyze;
mod checkpoints;
mod compute;
mod convert;
pub mod data;
mod evaluate;
mod info;
mod last_words;
mod measure;
mod output;
mod quantize;
mod result_file;
mod terminal;

use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

use crate::backend::DeviceName;
use crate::cancel::Cancel;
use crate::error::{Kind, Result};
use crate::pipeline::memory;
pub use last_words::Allocator;
use output::Output;
use terminal::Terminal;

/// Set by Ctrl-C and SIGTERM.
static CANCEL: Cancel = Cancel::new();

/// Quantize language models and say what it cost.
#[derive(Debug, Parser)]
#[command(
    name = "llm-quantize",
    display_name = "llm-quantize,",
    version = concat!("version ", env!("CARGO_PKG_VERSION")),
    arg_required_else_help = true,
    after_help = EXIT_CODES
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "\
Examples:
  llm-quantize quantize ./Llama-3.1-8B-Instruct gguf -q Q4_K_M
  llm-quantize quantize Qwen/Qwen2.5-7B-Instruct gguf -q Q5_K_M --imatrix imatrix.gguf
  llm-quantize convert model-Q4_K_M.gguf hf -o out
  llm-quantize evaluate ./Llama-3.1-8B-Instruct --data wiki.test.raw
  llm-quantize analyze importance ./Llama-3.1-8B-Instruct -o imatrix.gguf
  llm-quantize info model-Q4_K_M.gguf

Exit codes: 0 done, 1 error, 2 usage or output exists, 3 model not found, 4 login needed, 5 out of memory or disk,
6 invalid input or output, 7 checkpoint unusable, 8 not supported, 11 worse than
asked for, 130 interrupted.";

/// Options of every command.
#[derive(Debug, Clone, clap::Args)]
struct Global {
    /// How results are printed
    #[arg(long, global = true, value_enum, default_value_t = Format::Human)]
    format: Format,
    /// How much is said on the way
    #[arg(long, global = true, value_enum, default_value_t = Verbosity::Normal)]
    verbosity: Verbosity,
    /// Worker threads [default: all cores]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    threads: Option<u16>,
    /// Where the work is done: cpu, cuda:N (the GPU of this number; several as cuda:0,cuda:1) or auto (a GPU if there is one)
    #[arg(long, global = true, value_name = "DEVICE", default_value = "cpu")]
    device: String,
    /// Allocate no more memory than this (512MB, 2GB; mapped model files not counted): plans are chosen to fit, and a job that
    /// cannot is refused [default: what the control group allows]
    #[arg(long, global = true, value_name = "SIZE", value_parser = memory::parse_size)]
    memory_limit: Option<u64>,
}

impl Global {
    /// Which device was asked for.
    fn device(&self) -> Result<DeviceName> {
        self.device.parse()
    }

    /// How many threads work.
    fn threads(&self) -> usize {
        match self.threads {
            Some(n) => n.into(),
            None => std::thread::available_parallelism().map_or(1, |n| n.get()),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Human,
    /// One JSON object on standard output, also on failure
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Verbosity {
    /// Errors only
    Quiet,
    Normal,
    /// Details of each tensor
    Verbose,
    /// Internal logs too
    Debug,
}

#[derive(Debug, Subcommand)]
enum Command {
    Quantize(Box<quantize::Args>),
    Convert(Box<convert::Args>),
    Evaluate(Box<evaluate::Args>),
    Analyze(analyze::Args),
    Info(info::Args),
}

/// Parses the arguments, runs the command and gives the exit code.
pub fn main() -> ExitCode {
    memory::keep_freed();
    let cli = Cli::parse();
    let output = Output::new(cli.global.format, cli.global.verbosity);
    last_words::prepare(output.is_json());
    start_logs(cli.global.verbosity);
    // Without the handler a signal still ends the program, and the temporary file with it at the next run.
    let _ = ctrlc::set_handler(|| {
        if CANCEL.request() {
            // The second signal: leave at once. A file that is not renamed yet does not exist for anybody.
            #[allow(clippy::exit)]
            std::process::exit(Kind::Interrupted as i32);
        }
    });
    let terminal = Terminal::new(cli.global.verbosity);
    match run(&cli, &output, &terminal) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            output.failure(&e);
            ExitCode::from(e.exit_code())
        }
    }
}

fn run(cli: &Cli, output: &Output, terminal: &Terminal) -> Result<()> {
    let device = cli.global.device()?;
    if let Some(bytes) = cli.global.memory_limit {
        // A GPU's driver reserves far more than it uses; only plans keep to the limit then.
        memory::set(bytes, device == DeviceName::Cpu)?;
    }
    match &cli.command {
        Command::Quantize(args) => quantize::run(args, &cli.global, output, terminal),
        Command::Convert(args) => convert::run(args, &cli.global, output, terminal),
        Command::Evaluate(args) => {
            device.cpu_only("evaluate")?;
            evaluate::run(args, &cli.global, output, terminal)
        }
        Command::Analyze(args) => {
            device.cpu_only("analyze")?;
            analyze::run(args, &cli.global, output, terminal)
        }
        Command::Info(args) => {
            device.cpu_only("info")?;
            info::run(args, &cli.global, output, terminal)
        }
    }
}

fn start_logs(verbosity: Verbosity) {
    if verbosity == Verbosity::Debug {
        let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "debug".into());
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_argument_definitions_are_consistent() {
        Cli::command().debug_assert();
    }
}
