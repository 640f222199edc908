//! Precisions that are chosen by what they lose, and limits for what a result may lose.

use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;

use super::Common;
use super::finish::Finish;
use crate::backend::Backend;
use crate::calib::rows::{DEFAULT_ROWS, DEFAULT_SEQ_LEN, Limits};
use crate::cli::data::{DataArgs, held_out_of};
use crate::cli::evaluate::limit;
use crate::cli::output::{Output, duration, size};
use crate::cli::terminal::Terminal;
use crate::cli::{CANCEL, Global};
use crate::error::{Error, Kind, Result};
use crate::pipeline::budget::{self, Config, Forecast, Limit, Tokens, forecast};
use crate::pipeline::profile::Profile;
use crate::pipeline::recipe::Recipe;
use crate::source::SourceModel;
use crate::source::tokenizer::encoder::Encoder;

/// Bits where they matter, and limits for what is lost
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Bits where they matter")]
pub(in crate::cli) struct BudgetArgs {
    /// Bits per weight, scales included, that matrices (of GGUF all tensors) take together; each gets as many as lower the
    /// loss of the model most. Takes the place of --quant-level
    #[arg(long, value_name = "B", value_parser = bits, conflicts_with_all = ["quant_level", "profile"], allow_negative_numbers = true)]
    pub(super) target_bpw: Option<f64>,
    /// Precisions that `analyze profile` has chosen. Takes the place of --quant-level
    #[arg(long, value_name = "FILE", conflicts_with = "quant_level")]
    profile: Option<PathBuf>,
    /// Estimate what most precisions lose from the error of outputs, and do not measure each
    #[arg(long)]
    estimate: bool,
    /// Go on until the mean KL divergence from the original (nats) is no larger: with more bits for what needs them, then with
    /// 16 bits for some; exit with 11 if that is not enough. Measured on --eval-data, or on a part of the calibration data
    #[arg(long, value_name = "X", value_parser = limit, allow_negative_numbers = true)]
    max_kld: Option<f64>,
    /// The same for the perplexity: at most so many percent above the original's
    #[arg(long, value_name = "P%", value_parser = percent, conflicts_with = "max_kld", allow_negative_numbers = true)]
    max_ppl_increase: Option<f64>,
}

pub(in crate::cli) fn bits(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|b| *b > 0.0 && *b <= 16.0)
        .ok_or_else(|| "not a number above 0, at most 16".into())
}

fn percent(text: &str) -> Result<f64, String> {
    limit(text.strip_suffix('%').unwrap_or(text))
}

impl BudgetArgs {
    /// What the result may lose.
    ///
    /// # Errors
    /// `Usage` for a limit that nothing keeps.
    pub(super) fn limit(&self) -> Result<Option<Limit>> {
        let kld = self.max_kld.map(Limit::MaxKld);
        kld.or(self.max_ppl_increase.map(Limit::MaxPplIncrease)).map(Limit::check).transpose()
    }

    /// Whether precisions are chosen or the result must keep to a limit.
    pub(super) fn is_given(&self) -> bool {
        self.target_bpw.is_some() || self.max_kld.is_some() || self.max_ppl_increase.is_some()
    }

    /// The profile that was named.
    ///
    /// # Errors
    /// As [`Profile::load`].
    pub(super) fn profile(&self, format: &str) -> Result<Option<Profile>> {
        self.profile.as_deref().map(|path| Profile::load(path, format)).transpose()
    }

    /// Refuses what is of no use.
    ///
    /// # Errors
    /// `Usage`.
    pub(super) fn check(&self) -> Result<()> {
        if self.estimate && !self.is_given() {
            return Err(Error::new(
                Kind::Usage,
                "--estimate is of no use without --target-bpw, --max-kld or --max-ppl-increase",
            ));
        }
        Ok(())
    }
}

/// What a run of stages needs beside the recipe.
pub(super) struct Run<'a> {
    pub(super) source: SourceModel,
    /// Group sizes of GPTQ to choose from.
    pub(super) group_sizes: Vec<usize>,
    pub(super) backend: Arc<dyn Backend>,
    pub(super) common: &'a Common,
    pub(super) data: &'a DataArgs,
    pub(super) global: &'a Global,
    pub(super) finish: Finish<'a>,
    pub(super) output: &'a Output,
    pub(super) terminal: &'a Terminal,
}

impl Run<'_> {
    /// Quantizes, measures and goes on until the limit is kept.
    pub(super) fn go(self, recipe: Recipe) -> Result<()> {
        let Run { source, group_sizes, backend, common, data, global, finish, output, terminal } = self;
        let limit = common.budget.limit()?;
        let rows =
            |encoder: &Encoder, limits: Limits| data.rows_and_held_out(encoder, limits, &CANCEL, terminal);
        let config = Config {
            model: common.model.clone(),
            source,
            recipe,
            target: common.budget.target_bpw,
            limit,
            text: finish.text().filter(|_| limit.is_some()).cloned(),
            measured: !common.budget.estimate,
            group_sizes,
            rows: &rows,
            ignore_config: common.ignore_config.clone(),
            threads: global.threads(),
            backend,
        };
        if common.dry_run {
            let found = forecast(&config, tokens(data), terminal)?;
            output.result(&found, &describe(&found, limit));
            return Ok(());
        }
        let done = budget::quantize(&config, terminal, &CANCEL)?;
        drop(config);
        finish.done(done)
    }
}

/// Tokens that the options ask for, if the data has so many.
fn tokens(data: &DataArgs) -> Tokens {
    let rows = data.calibration_samples.unwrap_or(DEFAULT_ROWS);
    let length = data.seq_len.unwrap_or(DEFAULT_SEQ_LEN);
    let held_out = held_out_of(rows) / 2;
    Tokens { calibration: rows * length, row: length, held_out: held_out * length, judged: held_out * length }
}

fn describe(found: &Forecast, limit: Option<Limit>) -> String {
    let mut text = match limit {
        Some(limit) => format!("Stages for {limit}; each is entered only if the one before is over it:\n"),
        None => "The only stage, as there is no limit:\n".to_owned(),
    };
    let stages = if limit.is_some() { &found.stages[..] } else { &found.stages[..1] };
    for stage in stages {
        let [least, most] = stage.file_size.map(size);
        let sizes = if least == most { least } else { format!("{least} to {most}") };
        let seconds = duration(stage.seconds);
        let _ = writeln!(text, "  {:<28} {sizes:<24} at least {seconds}", stage.stage.title());
    }
    let _ = writeln!(
        text,
        "{} precisions of units are measured if the second is entered; times are those of matrix products alone, at {:.1} billion \
         operations per second",
        found.trials,
        found.operations_per_second / 1e9
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_with_their_units() {
        assert_eq!((percent("2.5%"), percent("2.5")), (Ok(2.5), Ok(2.5)));
        assert!(percent("%").is_err() && percent("-1%").is_err());
        assert_eq!(bits("3.15"), Ok(3.15));
        assert!(bits("0").is_err() && bits("17").is_err() && bits("NaN").is_err());
    }
}
