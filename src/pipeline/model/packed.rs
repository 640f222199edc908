//! Models that are quantized already, in a GPTQ or AWQ directory.

use crate::arch::Model;
use crate::error::Result;
use crate::format::packed::config::Stated;
use crate::format::packed::{PackedModel, Scheme};
use crate::source::SourceModel;

/// Opens the model if its directory says that it is quantized.
///
/// # Errors
/// `Unsupported` for other methods, `Invalid` if the weights are not what the directory says.
pub(in crate::pipeline) fn open(
    source: &SourceModel,
    ignore_config: &[String],
) -> Result<Option<(Model, PackedModel)>> {
    let config = source.config()?;
    let Some(stated) = Stated::find(source.dir(), config.raw())? else { return Ok(None) };
    let scheme = Scheme::read(&stated)?;
    let model = Model::read(config.without("quantization_config"), ignore_config)?;
    Ok(Some((model, PackedModel::open(source.dir(), scheme)?)))
}
