//! Checks a GGUF file, or the files that are parts of one.

use std::path::Path;

use super::numbers::first_not_finite;
use super::{Problem, Verification};
use crate::cancel::Cancel;
use crate::error::Result;
use crate::pipeline::gguf::plan;
use crate::pipeline::model::gguf::files::Files;
use crate::pipeline::model::gguf::open;
use crate::progress::{Progress, Unit};

/// Header, offsets and sizes; all weights; and the model that they make.
pub(super) fn verify(path: &Path, cancel: &Cancel, progress: &dyn Progress) -> Result<Verification> {
    let files = Files::open(path)?;
    let mut found = Verification::of(files.count(), files.bytes());
    progress.begin("Verifying", files.tensors().map(|tensor| tensor.bytes()).sum(), Unit::Bytes);
    let scanned: Result<()> = files.tensors().try_for_each(|tensor| {
        cancel.check()?;
        progress.item(&tensor.name);
        found.tensors += 1;
        if tensor.ty.is_readable() {
            found.weights += tensor.len();
            if let Some((weight, byte)) = first_not_finite(tensor.ty, files.data(&tensor.name)) {
                let (file, start) = files.place(&tensor.name);
                found.add(Problem {
                    file: file.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                    tensor: Some(tensor.name.clone()),
                    offset: Some(start + byte),
                    problem: format!("weight {weight} ({}) is NaN or infinite", tensor.ty),
                });
            }
        }
        progress.advance(tensor.bytes());
        Ok(())
    });
    progress.end();
    scanned?;
    let found = found.passed(&path.display().to_string())?;
    drop(files);
    let opened = open(path, &[], progress)?;
    plan(&opened.model, &*opened.weights, None)?;
    opened.decoder()?;
    Ok(found)
}
