//! Tests of the whole program.

/// AWQ checkpoints from the command line.
mod awq;
/// What can be wrong with a configuration, a tokenizer, an option or an output.
mod bad_config;
/// What can be wrong with weights.
mod bad_input;
/// Limits for what a result may lose.
mod budget;
/// Models that the tests write or change.
mod checkpoint;
/// What each command and option does and prints.
mod commands;
/// GPTQ and AWQ directories.
mod containers;
/// From one format to another.
mod convert;
/// Outputs with random damage.
mod corruption;
/// The program on a GPU.
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "cuda")]
mod cuda_decoder;
#[cfg(feature = "cuda")]
mod cuda_layerwise;
/// Calibration data: files and data sets to rows of tokens.
mod data;
/// Data sets from a Hub on this machine.
#[cfg(feature = "hub")]
mod data_hub;
/// The decoder against transformers.
mod decoder;
/// Perplexity and KL divergence.
mod evaluate;
/// Evaluations that are killed or interrupted.
mod evaluate_checkpoint;
/// System calls that fail.
mod fault;
/// An independent parser of what the program writes.
mod gguf_file;
/// GGUF files as models that are computed.
mod gguf_model;
/// Digests of llama.cpp's own files.
mod golden;
/// GPTQ checkpoints from the command line.
mod gptq;
/// Layers that GPTQModel packed.
mod gptqmodel;
/// GGUF files that lie.
mod hostile_gguf;
/// GPTQ and AWQ directories that lie.
mod hostile_packed;
/// Downloads from a Hub on this machine.
#[cfg(feature = "hub")]
mod hub;
/// The program with a model's name on a Hub.
#[cfg(feature = "hub")]
mod hub_commands;
/// The Hub on this machine.
#[cfg(feature = "hub")]
mod hub_server;
/// Importance matrices that llama-imatrix wrote, and damaged ones.
mod imatrix;
/// Importance matrices that the program makes.
mod importance;
/// Signals in the middle of the work.
mod interrupt;
/// Runs that are killed and go on.
mod kill;
/// Layers of GPTQ and AWQ that are kept, and hidden states on the disk.
mod layers;
/// Limits on memory, and files that change while they are read.
mod limits;
/// How much memory the work takes.
mod measured;
mod memory;
/// Precisions that differ between matrices.
mod mixed;
/// Options of `quantize` that change what is written.
mod options;
/// GPTQ and AWQ directories that the tests make.
mod packed;
/// A second reader of GPTQ and AWQ.
mod packed_file;
/// The order in which things come to the disk.
mod power_cut;
/// Random small models.
mod property;
/// What a model has lost, and where.
mod quality;
/// Another project's reader.
mod readers;
/// Random tensors through every format.
mod round_trip;
/// The same bytes, however the work is done.
mod same_bytes;
/// The same weights in several shards or another type.
mod sources;
/// Commands that are stopped in the middle.
mod stop;
/// What the tests share.
mod support;
/// What a stranger's files and other programs must not be able to do: docs/threats.md.
mod threats;
/// Codes, scales and norms learned by gradients.
mod tune;
