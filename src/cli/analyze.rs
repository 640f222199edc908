//! `llm-quantize analyze ...`.

mod importance;

use clap::Subcommand;

use super::Global;
use super::output::Output;
use super::terminal::Terminal;
use crate::error::Result;

/// Look into a model: what matters in it, and what quantization does to it
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Importance(Box<importance::Args>),
}

pub(super) fn run(args: &Args, global: &Global, output: &Output, terminal: &Terminal) -> Result<()> {
    match &args.command {
        Command::Importance(args) => importance::run(args, global, output, terminal),
    }
}
