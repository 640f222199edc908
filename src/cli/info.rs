//! `llm-quantize info MODEL`.

use std::fmt::Write;

use super::CANCEL;
use super::output::{Output, size, thousands};
use super::terminal::Terminal;
use crate::error::Result;
use crate::pipeline::inspect::{Inspection, inspect};

/// Show what a model or a GGUF file is
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Directory of a Hugging Face model, its name on the Hub (org/name), or a .gguf file
    model: String,
}

pub(super) fn run(args: &Args, output: &Output, terminal: &Terminal) -> Result<()> {
    let found = inspect(&args.model, &CANCEL, terminal)?;
    output.result(&found, &describe(&found));
    Ok(())
}

fn describe(i: &Inspection) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            let _ = writeln!(text, "{:<14} {value}", format!("{name}:"));
        }
    };
    let number = |n: Option<u64>| n.map(thousands);
    line("Model", Some(i.model_name.clone()));
    line("Architecture", Some(i.architecture.clone()));
    line("Parameters", number(i.parameter_count));
    line("Hidden Size", number(i.hidden_size));
    line("Layers", number(i.num_layers));
    line("Heads", number(i.num_heads));
    line("Vocab Size", number(i.vocab_size));
    line("Dtype", Some(i.torch_dtype.clone()));
    line("Size", (i.file_size > 0).then(|| size(i.file_size)));
    if i.supported == Some(false) {
        line("Note", Some("this model cannot be quantized by this program".into()));
    }
    if let Some(g) = &i.gguf {
        line("Format", Some(format!("GGUF version {}", g.version)));
        line("Level", g.level.map(str::to_owned));
        line("Bits/Weight", Some(format!("{:.2}", g.bits_per_weight)));
        line("Context", number(g.context_length));
        line("Experts", number(g.expert_count));
        line("Tokenizer", g.tokenizer.clone());
        line("Imatrix", g.imatrix.clone());
        for (name, (count, bytes)) in &g.types {
            line("Tensors", Some(format!("{name:<8} {count:>5} {:>10}", size(*bytes))));
        }
    }
    text
}
