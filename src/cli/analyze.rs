//! `llm-quantize analyze ...`.

mod importance;
mod profile;
mod quality;

use super::Global;
use super::output::Output;
use super::terminal::Terminal;
use crate::error::Result;

/// Look into a model: what matters in it, and what quantization does to it
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    Importance(Box<importance::Args>),
    Profile(Box<profile::Args>),
    Quality(Box<quality::Args>),
}

pub(super) fn run(args: &Args, global: &Global, output: &Output, terminal: &Terminal) -> Result<()> {
    match &args.what {
        What::Importance(args) => importance::run(args, global, output, terminal),
        What::Profile(args) => profile::run(args, global, output, terminal),
        What::Quality(args) => quality::run(args, global, output, terminal),
    }
}
