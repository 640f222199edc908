//! What tuning says of its work.

use serde::{Deserialize, Serialize};

/// The loss while something was tuned.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Curve {
    /// What was tuned: `layer 3`, or `model`.
    pub name: String,
    /// The losses, from before the first step to after the last.
    pub points: Vec<Point>,
    /// The step whose result was kept: that with the lowest loss on rows that were held out; 0 if none was better than the
    /// start.
    pub kept: usize,
    /// Steps that were taken back because the loss was not a number.
    pub rolled_back: usize,
    /// How long it took.
    pub seconds: f64,
}

/// The loss after some steps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Steps.
    pub step: usize,
    /// Mean over the rows of the steps since the last point, each as it was before its step; none at the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train: Option<f64>,
    /// Over the rows that were held out.
    pub held_out: f64,
}

impl Curve {
    /// The lowest loss on held-out rows.
    pub fn best(&self) -> Option<f64> {
        self.points.iter().find(|point| point.step == self.kept).map(|point| point.held_out)
    }

    /// That before the first step.
    pub fn start(&self) -> Option<f64> {
        self.points.first().map(|point| point.held_out)
    }
}
