//! The options of all formats, for commands that know them all.

use clap::ValueEnum;

use super::awq::AwqOptions;
use super::gguf::GgufOptions;
use super::gptq::GptqOptions;
use super::layerwise::LayerwiseOptions;

/// A container of quantized weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum OutputFormat {
    /// llama.cpp
    Gguf,
    /// A directory that transformers, vLLM and others load
    Gptq,
    /// The same with channels scaled before they are rounded
    Awq,
}

impl OutputFormat {
    /// Its name in names of files.
    pub(in crate::cli) fn name(self) -> &'static str {
        match self {
            OutputFormat::Gguf => "gguf",
            OutputFormat::Gptq => "gptq",
            OutputFormat::Awq => "awq",
        }
    }

    /// Its name in sentences.
    pub(in crate::cli) fn title(self) -> &'static str {
        match self {
            OutputFormat::Gguf => "GGUF",
            OutputFormat::Gptq => "GPTQ",
            OutputFormat::Awq => "AWQ",
        }
    }
}

/// What each format has.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct FormatOptions {
    #[command(flatten)]
    pub(in crate::cli) gguf: GgufOptions,
    #[command(flatten)]
    pub(in crate::cli) layerwise: LayerwiseOptions,
    #[command(flatten)]
    pub(in crate::cli) gptq: GptqOptions,
    #[command(flatten)]
    pub(in crate::cli) awq: AwqOptions,
}

impl FormatOptions {
    /// The options that were given and that say nothing of `format`, or nothing of plain weights if that is none.
    pub(in crate::cli) fn of_others(&self, format: Option<OutputFormat>) -> Vec<&'static str> {
        let is = |one: OutputFormat| format == Some(one);
        let (gguf, gptq, awq) = (is(OutputFormat::Gguf), is(OutputFormat::Gptq), is(OutputFormat::Awq));
        let all = [
            (gguf, self.gguf.given()),
            (gptq || awq, self.layerwise.given()),
            (gptq, self.gptq.given()),
            (awq, self.awq.given()),
        ];
        all.into_iter().filter(|(own, _)| !own).flat_map(|(_, given)| given).collect()
    }
}
