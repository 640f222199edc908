//! The options of checkpoints, which every long job has.

use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Result};
use crate::pipeline::checkpoint::Settings;

/// How an interrupted run goes on
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Checkpoints")]
pub(super) struct CheckpointArgs {
    /// Keep no checkpoint; an interrupted run starts from the beginning
    #[arg(long, conflicts_with_all = ["checkpoint_dir", "resume"])]
    no_checkpoints: bool,
    /// Where the checkpoint is kept until the work is done [default: OUTPUT.checkpoint; none for quantization to GGUF, nor for an
    /// evaluation without an output file]
    #[arg(long, value_name = "DIR")]
    checkpoint_dir: Option<PathBuf>,
    /// Fail if there is no checkpoint to go on from; one that is there is used in any case
    #[arg(long)]
    resume: bool,
}

impl CheckpointArgs {
    /// The settings of a command that writes `output`.
    pub(super) fn settings(&self, command: &str, output: &Path) -> Settings {
        let dir = || self.checkpoint_dir.clone().unwrap_or_else(|| Settings::beside(output));
        Settings {
            command: command.into(),
            output: output.into(),
            dir: (!self.no_checkpoints).then(dir),
            resume: self.resume,
        }
    }

    /// The same of a command that writes a file only if it is asked to. Without one nothing says where a checkpoint belongs, and
    /// one that nobody knows of would never be taken up: there is one only if its directory is given.
    ///
    /// # Errors
    /// `Usage` for `--resume` if there is no place to look in.
    pub(super) fn settings_beside(&self, command: &str, output: Option<&Path>) -> Result<Settings> {
        if let Some(output) = output {
            return Ok(self.settings(command, output));
        }
        let mut settings = self.settings(command, Path::new(""));
        settings.dir = settings.dir.filter(|_| self.checkpoint_dir.is_some());
        match self.resume && settings.dir.is_none() {
            true => Err(Error::new(Kind::Usage, "--resume: there is no place for a checkpoint to be in")
                .hint("Pass --output as the run did that is to go on, or its --checkpoint-dir.")),
            false => Ok(settings),
        }
    }

    /// The same of a command that takes seconds to minutes, while a checkpoint writes everything twice: there is one only if
    /// it is asked for.
    pub(super) fn settings_if_asked(&self, command: &str, output: &Path) -> Settings {
        let mut settings = self.settings(command, output);
        settings.dir = settings.dir.filter(|_| self.checkpoint_dir.is_some() || self.resume);
        settings
    }
}
