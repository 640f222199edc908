//! Measures several results against one original, which goes through the text once.

use super::Evaluated;
use super::layers::Through;
use crate::cancel::Cancel;
use crate::error::{Error, Kind, Result};
use crate::eval::report::Evaluation;
use crate::eval::score::score;
use crate::eval::windows::Windows;
use crate::pipeline::model::OpenModel;
use crate::progress::Progress;

/// An original model, and what it makes of a text.
pub(in crate::pipeline) struct Judge<'a> {
    original: Through<'a>,
    windows: Windows,
    /// What the text is called.
    data: String,
}

impl<'a> Judge<'a> {
    /// Takes the original through the text.
    ///
    /// # Errors
    /// What the model does not allow; `Interrupted`.
    pub(in crate::pipeline) fn new(
        original: &'a OpenModel,
        windows: Windows,
        data: &str,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Judge<'a>> {
        let original = Through::in_memory(original, &windows, cancel, progress)?;
        Ok(Judge { original, windows, data: data.to_owned() })
    }

    /// Measures a model that was made of the original: it has the same tokens.
    ///
    /// # Errors
    /// `Invalid` if what it computes is not finite; `Interrupted`.
    pub(in crate::pipeline) fn measure(
        &self,
        model: &OpenModel,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Evaluated> {
        let through = Through::in_memory(model, &self.windows, cancel, progress)?;
        let original = Some(self.original.computed());
        let scores = score(through.computed(), original, &self.windows, cancel, progress)?;
        let found = Evaluated::on(&Evaluation::new(&self.windows, &scores), &self.data);
        found.ok_or_else(|| Error::new(Kind::Other, "the result was not compared with the original"))
    }
}
