//! The options of calibration data, which every command that calibrates has.

use crate::calib::builtin;
use crate::calib::dataset::{Dataset, Selection};
use crate::calib::rows::{DEFAULT_ROWS, Limits, Rows, Want};
use crate::cancel::Cancel;
use crate::error::{Error, Kind, Result};
use crate::progress::Progress;
use crate::source::tokenizer::encoder::Encoder;

/// What to calibrate with
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Calibration data")]
pub struct DataArgs {
    /// Text to calibrate with: .txt, .jsonl, .json or .parquet (.gz too, except .parquet), a directory of these, or a
    /// data set on the Hub as org/name [default: a text that is built in]
    #[arg(long, value_name = "FILE|DIR|DATASET")]
    pub calibration_data: Option<String>,
    /// Rows to calibrate with [default: 256, or as many as there are]
    #[arg(long, value_name = "N")]
    pub calibration_samples: Option<usize>,
    /// Tokens in each row [default: 2048, or the model's context]
    #[arg(long, value_name = "N")]
    pub seq_len: Option<usize>,
    /// Draw the rows from all of the data; without it the first ones are taken
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Configuration (subset) of a data set on the Hub
    #[arg(long, value_name = "NAME")]
    pub dataset_config: Option<String>,
    /// Split of a data set on the Hub [default: train, or the only one]
    #[arg(long, value_name = "NAME")]
    pub dataset_split: Option<String>,
    /// Column or key of the text or the messages [default: text, content or messages]
    #[arg(long, value_name = "NAME")]
    pub text_column: Option<String>,
}

/// How many rows are held out beside so many to calibrate with: an even number, half to choose precisions by and half to judge
/// results by.
pub fn held_out_of(rows: usize) -> usize {
    2 * (rows / 8).clamp(2, 16)
}

impl DataArgs {
    /// The rows that the options ask for, as tokens of a model.
    ///
    /// # Errors
    /// `Usage` for options that contradict each other; what [`Dataset::open`] and [`Rows::cut`] fail with.
    pub fn rows(
        &self,
        encoder: &Encoder,
        limits: Limits,
        cancel: &Cancel,
        progress: &dyn Progress,
    ) -> Result<Rows> {
        let want = Want { rows: self.calibration_samples, seq_len: self.seq_len, seed: self.seed };
        Rows::cut(&self.dataset(cancel, progress)?, encoder, limits, want, cancel, progress)
    }

    /// The same rows, and some that follow them to measure on; if there are too few for both, the last of them.
    ///
    /// # Errors
    /// As [`DataArgs::rows`]; `Invalid` if there are not three rows.
    pub fn rows_and_held_out(
        &self,
        encoder: &Encoder,
        limits: Limits,
        cancel: &Cancel,
        progress: &dyn Progress,
    ) -> Result<(Rows, Rows)> {
        let wanted = self.calibration_samples.unwrap_or(DEFAULT_ROWS);
        let held_out = held_out_of(wanted);
        // None wanted is an error that the rows themselves tell.
        let rows = if wanted > 0 { wanted.saturating_add(held_out) } else { 0 };
        let want = Want { rows: Some(rows), seq_len: self.seq_len, seed: self.seed };
        let rows = Rows::cut(&self.dataset(cancel, progress)?, encoder, limits, want, cancel, progress)?;
        let there = rows.rows.len();
        let held_out = there.saturating_sub(wanted).max((there / 5).clamp(2, held_out));
        progress.info(&format!("The last {held_out} of these rows are held out, to measure on"));
        rows.hold_out(held_out)
    }

    /// The data set that the options name.
    ///
    /// # Errors
    /// `Usage` for options that contradict each other; what [`Dataset::open`] fails with.
    pub fn dataset(&self, cancel: &Cancel, progress: &dyn Progress) -> Result<Dataset> {
        let selection = Selection {
            config: self.dataset_config.clone(),
            split: self.dataset_split.clone(),
            column: self.text_column.clone(),
        };
        if let Some(data) = &self.calibration_data {
            return Dataset::open(data, selection, cancel, progress);
        }
        let options = [
            ("--dataset-config", &selection.config),
            ("--dataset-split", &selection.split),
            ("--text-column", &selection.column),
        ];
        if let Some((name, _)) = options.iter().find(|(_, value)| value.is_some()) {
            return Err(Error::new(Kind::Usage, format!("{name} is of no use without --calibration-data"))
                .hint("Pass --calibration-data with the data that it is about."));
        }
        progress
            .info(&format!("No --calibration-data: using the built-in text ({} kB)", builtin::size() / 1000));
        Ok(Dataset::built_in())
    }
}
