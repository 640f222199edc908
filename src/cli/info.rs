//! `llm-quantize info MODEL`.

use std::fmt::Write;

use super::output::{Output, size, thousands};
use super::terminal::Terminal;
use super::{CANCEL, Global};
use crate::error::Result;
use crate::pipeline::inspect::{Inspection, inspect};
use crate::pipeline::verify::{Verification, verify};

/// Show what a model or a GGUF file is
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Directory of a Hugging Face model (also in GPTQ or AWQ), its name on the Hub (org/name), or a .gguf file
    model: String,
    /// Check every tensor: sizes, shapes, scales, indices, weights that are no numbers; and whether configuration, tokenizer
    /// and tensors belong together
    #[arg(long)]
    verify: bool,
}

/// What was found, and what came of checking it.
#[derive(serde::Serialize)]
struct Info {
    #[serde(flatten)]
    model: Inspection,
    #[serde(skip_serializing_if = "Option::is_none")]
    verification: Option<Verification>,
}

pub(super) fn run(args: &Args, global: &Global, output: &Output, terminal: &Terminal) -> Result<()> {
    let verification = match args.verify {
        true => Some(verify(&args.model, global.threads(), &CANCEL, terminal)?),
        false => None,
    };
    let model = inspect(&args.model, &CANCEL, terminal)?;
    let mut text = describe(&model);
    if let Some(v) = &verification {
        let checked =
            format!("{} tensors, {} weights: intact", thousands(v.tensors as u64), thousands(v.weights));
        let _ = writeln!(text, "{:<14} {checked}", "Verified:");
    }
    output.result(&Info { model, verification }, &text);
    Ok(())
}

fn yes(flag: bool) -> String {
    if flag { "yes" } else { "no" }.into()
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
    line("Tokenizer", i.tokenizer.clone());
    if let Some(plain) = &i.plain {
        line("Bits/Weight", Some(format!("{:.2}", plain.bits_per_weight)));
        for (name, (count, bytes)) in &plain.types {
            line("Tensors", Some(format!("{name:<8} {count:>5} {:>10}", size(*bytes))));
        }
    }
    if let Some(q) = &i.quantization {
        line("Quantized", Some(q.method.to_uppercase()));
        line("Bits", number(q.bits.map(u64::from)));
        line("Group Size", q.group_size.map(|n| if n < 0 { "a whole row".into() } else { n.to_string() }));
        line("Symmetric", q.sym.map(yes));
        line("Act-Order", q.weights.as_ref().map(|w| w.act_order).or(q.desc_act).map(yes));
        line("Container", q.checkpoint_format.map(str::to_owned));
        line("Quantizer", q.quantizer.clone());
        if let Some(weights) = &q.weights {
            let layers = format!("{:.2} in quantized layers", weights.layer_bits_per_weight);
            line("Bits/Weight", Some(format!("{:.2}, {layers}", weights.bits_per_weight)));
            for (name, (count, bytes)) in &weights.types {
                line("Tensors", Some(format!("{name:<8} {count:>5} {:>10}", size(*bytes))));
            }
        }
        line("Note", Some("quantized already; quantize takes the 16-bit original".into()));
    } else if i.supported == Some(false) {
        line("Note", Some("this model cannot be quantized by this program".into()));
    }
    if let Some(g) = &i.gguf {
        line("Format", Some(format!("GGUF version {}", g.version)));
        line("Level", g.level.map(str::to_owned));
        line("Bits/Weight", Some(format!("{:.2}", g.bits_per_weight)));
        line("Context", number(g.context_length));
        line("Experts", number(g.expert_count));
        line("Files", (g.files > 1).then(|| g.files.to_string()));
        line("Imatrix", g.imatrix.clone());
        for (name, (count, bytes)) in &g.types {
            line("Tensors", Some(format!("{name:<8} {count:>5} {:>10}", size(*bytes))));
        }
    }
    text
}
