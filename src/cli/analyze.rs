//! `llm-quantize analyze ...`.

mod quality;

use super::Global;
use super::output::Output;
use super::terminal::Terminal;
use crate::error::Result;

/// Look into a model
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    Quality(Box<quality::Args>),
}

pub(super) fn run(args: &Args, global: &Global, output: &Output, terminal: &Terminal) -> Result<()> {
    match &args.what {
        What::Quality(args) => quality::run(args, global, output, terminal),
    }
}
