//! A Hugging Face model in, a GPTQ checkpoint out.

mod entries;
pub mod layers;
pub mod linears;
pub mod report;
mod verify;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use regex::Regex;
use serde_json::{Map, Value, json};

use crate::arch::Model;
use crate::atomic;
use crate::calib::rows::{Limits, Rows};
use crate::cancel::Cancel;
use crate::error::{Error, Kind, Result};
use crate::format::gptq::{GptqConfig, Version};
use crate::format::packed::{Container, Entry, PackedWriter, Target};
use crate::pipeline::model::{OpenModel, Origin};
use crate::progress::Progress;
use crate::quant::Grid;
use crate::quant::gptq::{Ordering, Settings};
use crate::source::SourceModel;
use crate::source::dense::Dense;
use crate::source::safetensors::Tensors;
use crate::source::tokenizer::encoder::Encoder;
use entries::LeftOut;
use linears::Matrix;
use report::{Report, Summary, Times};

/// Rows of a tensor that is copied that are in memory at a time: about so many weights.
const COPIED: usize = 1 << 22;

/// What to do.
#[derive(Debug)]
pub struct Config {
    /// The grid.
    pub grid: Grid,
    /// Whether columns are quantized by their importance whatever their group, with the scales of the original weights.
    pub desc_act: bool,
    /// Share of the mean of the Hessian's diagonal that is added to it.
    pub damp: f32,
    /// How zero points are stored; none is version 2 for an asymmetric grid, else version 1.
    pub version: Option<Version>,
    /// Linear layers that stay as they are.
    pub skip: Vec<Regex>,
    /// Whether less is kept in memory for the price of computing it again.
    pub low_memory: bool,
    /// The directory to write.
    pub output: PathBuf,
    /// Whether it may be overwritten.
    pub force: bool,
    /// Keys of `config.json` that are accepted whatever they say.
    pub ignore_config: Vec<String>,
    /// Worker threads.
    pub threads: usize,
}

impl Config {
    fn version(&self) -> Version {
        self.version.unwrap_or(if self.grid.symmetric { Version::V1 } else { Version::V2 })
    }

    fn settings(&self) -> Settings {
        Settings {
            lowest_zero: u8::from(self.version() == Version::V1),
            ordering: if self.desc_act { Ordering::Descending } else { Ordering::GroupAware },
            damp: self.damp,
            ..Settings::new(self.grid)
        }
    }

    fn container(&self) -> Container {
        let mut meta = Map::new();
        meta.insert("act_group_aware".into(), json!(!self.desc_act));
        Container::Gptq(GptqConfig {
            grid: self.grid,
            version: self.version(),
            // Groups are those of neighbouring inputs in either order, so that no loader needs to gather.
            desc_act: false,
            static_groups: self.desc_act,
            true_sequential: true,
            damp_percent: f64::from((self.damp * 1e6).round()) / 1e6,
            meta,
        })
    }
}

/// Everything that is known before the work starts.
#[derive(Debug)]
pub struct Job {
    model: Model,
    tensors: Box<dyn Dense>,
    encoder: Encoder,
    origin: Origin,
    original_size: u64,
    matrices: Vec<Vec<Matrix>>,
    left_out: Vec<LeftOut>,
    entries: Vec<Entry>,
    container: Container,
    config: Config,
}

impl Job {
    /// Reads the model, understands it, and decides what is quantized. No tensor is read yet.
    ///
    /// # Errors
    /// `Unsupported` for a model that cannot be computed, `Invalid` for a damaged one.
    pub fn prepare(source: SourceModel, config: Config, progress: &dyn Progress) -> Result<Job> {
        let model = Model::read(source.config()?, &config.ignore_config)?;
        model.warnings.iter().for_each(|w| progress.warn(w));
        let tensors = Tensors::open(source.dir())?;
        let opened = OpenModel {
            name: source.name()?,
            model,
            encoder: Encoder::open(source.dir())?,
            format: "hf",
            file_bytes: tensors.file_bytes(),
            weights: Box::new(tensors),
            origin: Origin::Directory(source),
        };
        Job::of(opened, config, progress)
    }

    /// The same of a model that is open, in whatever format it is.
    ///
    /// # Errors
    /// As [`Job::prepare`].
    pub fn of(opened: OpenModel, config: Config, progress: &dyn Progress) -> Result<Job> {
        let OpenModel { model, weights: tensors, encoder, origin, file_bytes: original_size, .. } = opened;
        let mut matrices = linears::find(&model, &*tensors)?;
        let all: usize = matrices.iter().map(Vec::len).sum();
        let container = config.container();
        let left_out = entries::leave_out(&mut matrices, &container, config.grid, &config.skip);
        progress.info(&format!(
            "Architecture: {} ({} layers, {} of {all} matrices are quantized)",
            model.config.architecture()?,
            model.hyper.layers,
            all - left_out.len()
        ));
        for LeftOut { name, reason } in &left_out {
            progress.detail(&format!("{name} stays in 16 bits: {reason}"));
        }
        if all == left_out.len() {
            return Err(Error::new(Kind::Unsupported, "no matrix of the model can be quantized")
                .hint(format!("The first stays in 16 bits because of this: {}.", left_out[0].reason)));
        }
        let refused = left_out.iter().filter(|l| !l.reason.starts_with("--skip")).count();
        if refused > 0 {
            progress
                .warn(&format!("{refused} of {all} matrices cannot be stored in GPTQ and stay in 16 bits"));
        }
        let entries = entries::entries(&model, &*tensors, &matrices, &left_out, config.grid);
        Ok(Job {
            model,
            tensors,
            encoder,
            origin,
            original_size,
            matrices,
            left_out,
            entries,
            container,
            config,
        })
    }

    /// The model's tokenizer.
    pub fn encoder(&self) -> &Encoder {
        &self.encoder
    }

    /// What rows of calibration data the model can take.
    pub fn limits(&self) -> Limits {
        let hyper = &self.model.hyper;
        Limits { context: hyper.context.unwrap_or(usize::MAX), vocab: hyper.vocab }
    }

    /// The directory that will be written.
    pub fn output(&self) -> &Path {
        &self.config.output
    }

    /// Sizes without any work.
    pub fn dry_run(&self) -> Summary {
        let layout = self.container.layout();
        Summary::new(&self.model, self.original_size, &self.entries, &*layout, &self.left_out, &self.config)
    }

    /// Checks that need no work: the output may be written, and the disk has room.
    ///
    /// # Errors
    /// `Usage` if the output exists and may not be replaced, `Resources` if the disk is full.
    pub fn preflight(&self) -> Result<()> {
        atomic::refuse_existing_dir(&self.config.output, self.config.force)?;
        let dir = self.config.output.parent().unwrap_or(Path::new("."));
        atomic::check_space(dir, self.dry_run().file_size)
    }

    /// Quantizes and writes the checkpoint, then opens it again and compares it with the source.
    ///
    /// # Errors
    /// What the data, the model or the disk do not allow; nothing is left behind then.
    pub fn run(&self, rows: &Rows, progress: &dyn Progress, cancel: &Cancel) -> Result<Report> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(self.config.threads)
            .build()
            .map_err(|e| Error::new(Kind::Resources, "cannot start worker threads").because(e))?;
        pool.install(|| self.run_here(rows, progress, cancel))
    }

    fn run_here(&self, rows: &Rows, progress: &dyn Progress, cancel: &Cancel) -> Result<Report> {
        let started = Instant::now();
        let config = self.model.config.unquantized();
        let target = Target {
            force: self.config.force,
            ..Target::new(&self.config.output, self.origin.dir(), &config)
        };
        let mut writer = PackedWriter::create(target, &self.container, &self.entries)?;
        self.origin.write_rebuilt(writer.path())?;
        let mut linears = layers::quantize(
            &self.model,
            &*self.tensors,
            &rows.rows,
            &self.matrices,
            &self.config.settings(),
            !self.config.low_memory,
            &mut |matrix, linear| {
                let bias = self.bias(matrix)?;
                writer.linear(&matrix.name, &linear, bias.as_deref())
            },
            progress,
            cancel,
        )?;
        report::share_errors(&mut linears);
        self.copy(&mut writer, cancel)?;
        let mut times = Times { quantize: started.elapsed(), ..Times::default() };
        verify::verify(writer.path(), &*self.tensors, &linears, progress, cancel)?;
        times.validate = started.elapsed() - times.quantize;
        cancel.check()?;
        let written = writer.finish()?;
        times.flush = started.elapsed() - times.quantize - times.validate;
        Ok(Report::new(self.dry_run(), self, rows.record.clone(), linears, written.weight_bytes, times))
    }

    fn bias(&self, matrix: &Matrix) -> Result<Option<Vec<f32>>> {
        let name = format!("{}.bias", matrix.name);
        let Some(shape) = self.tensors.shape(&name) else { return Ok(None) };
        let mut bias = vec![0.0; shape.iter().product()];
        self.tensors.read(&name, 0..shape.first().copied().unwrap_or(1), &mut bias)?;
        Ok(Some(bias))
    }

    /// Writes the tensors that are not quantized.
    fn copy(&self, writer: &mut PackedWriter, cancel: &Cancel) -> Result<()> {
        for entry in &self.entries {
            let Entry::Dense { name, shape, .. } = entry else { continue };
            let rows = shape.first().copied().unwrap_or(1);
            let width: usize = shape.iter().skip(1).product();
            let at_a_time = (COPIED / width.max(1)).max(1);
            for start in (0..rows).step_by(at_a_time) {
                cancel.check()?;
                let rows = start..(start + at_a_time).min(rows);
                let mut values = vec![0.0; rows.len() * width];
                self.tensors.read(name, rows, &mut values)?;
                writer.dense(name, &values)?;
            }
        }
        Ok(())
    }
}

fn read_json(path: &Path) -> Result<Value> {
    let text =
        fs::read_to_string(path).map_err(|e| Error::io(format!("cannot read {}", path.display()), e))?;
    serde_json::from_str(&text)
        .map_err(|e| Error::new(Kind::Invalid, format!("{} is not valid JSON", path.display())).because(e))
}
