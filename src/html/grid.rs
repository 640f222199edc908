//! Values in rows and columns as colours, as SVG.

use std::fmt::Write;

use super::axis::Axis;
use super::markup::{escape, number};

const WIDTH: f64 = 900.0;
const LEFT: f64 = 70.0;
const TOP: f64 = 22.0;
const ROW: f64 = 18.0;
/// A column is no wider than this.
const COLUMN: f64 = 118.0;

/// A table of colours.
pub(super) struct Grid {
    /// What the values are.
    pub(super) what: &'static str,
    pub(super) rows: Vec<String>,
    pub(super) columns: Vec<String>,
    /// By row, then column; none where there is nothing.
    pub(super) cells: Vec<Vec<Option<f64>>>,
    /// Whether colours go up by factors.
    pub(super) logarithmic: bool,
}

impl Grid {
    pub(super) fn svg(&self) -> String {
        let values = self.cells.iter().flatten().flatten().copied();
        let axis = Axis::around(values, self.logarithmic, [0.0, 1.0]);
        let column = ((WIDTH - LEFT) / self.columns.len().max(1) as f64).min(COLUMN);
        let height = TOP + ROW * self.rows.len() as f64 + 4.0;
        let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n");
        for (i, name) in self.columns.iter().enumerate() {
            let at = LEFT + column * (i as f64 + 0.5);
            let _ =
                writeln!(svg, "<text x=\"{at:.1}\" y=\"14\" text-anchor=\"middle\">{}</text>", escape(name));
        }
        for (r, (row, cells)) in self.rows.iter().zip(&self.cells).enumerate() {
            let top = TOP + ROW * r as f64;
            let _ = writeln!(
                svg,
                "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
                LEFT - 8.0,
                top + 13.0,
                escape(row)
            );
            for (c, value) in cells.iter().enumerate() {
                let Some(value) = value else { continue };
                let (left, share) = (LEFT + column * c as f64, axis.share(*value).unwrap_or(0.0));
                let text = number(*value);
                let _ = writeln!(
                    svg,
                    "<g><title>{}, {}: {text} {}</title><rect x=\"{left:.1}\" y=\"{top}\" width=\"{:.1}\" height=\"{}\" \
                     fill=\"{}\"/><text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\" style=\"fill:{}\">{text}</text></g>",
                    escape(row),
                    escape(&self.columns[c]),
                    self.what,
                    column - 2.0,
                    ROW - 2.0,
                    colour(share),
                    left + column / 2.0 - 1.0,
                    top + 12.0,
                    if share > 0.6 { "#fff" } else { "#222" }
                );
            }
        }
        svg + "</svg>\n"
    }
}

/// From nearly white to dark blue.
fn colour(share: f64) -> String {
    let mix = |from: f64, to: f64| (from + (to - from) * share).round() as u8;
    format!("#{:02x}{:02x}{:02x}", mix(240.0, 8.0), mix(245.0, 60.0), mix(252.0, 120.0))
}
