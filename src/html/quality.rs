//! The page about a model and the one that it was made from.

use std::fmt::Write;

use super::grid::Grid;
use super::lines::{Lines, Series};
use super::markup::escape;
use super::{document, figures, positions, table};
use crate::eval::quality::Quality;

/// The page.
pub fn page(quality: &Quality) -> String {
    let mut html = summary(quality);
    html += "<h2>Error by layer</h2>\n<p class=\"note\">Normalised squared error. <b>hidden states</b>: how far the \
             residual stream has drifted after each layer when each model goes its own way. The matrices: their outputs \
             on the reference&#39;s own inputs, so each shows its own damage only.</p>\n";
    html += &layer_lines(quality).svg();
    html += &layer_grid(quality).svg();
    html += &positions(&quality.evaluation);
    html += "<h2>Where the bits are</h2>\n<p class=\"note\">Bits per weight of each tensor, scales and zero points \
             included.</p>\n";
    html += &bit_grid(quality).svg();
    html += &other_tensors(quality);
    document(&format!("Quality of {}", escape(&quality.model)), &html)
}

fn summary(q: &Quality) -> String {
    let mut rows = vec![
        ("Model", format!("{} ({})", escape(&q.model), q.format)),
        ("Reference", format!("{} ({})", escape(&q.reference), q.reference_format)),
        (
            "Bits per weight",
            format!("{:.3} (reference {:.3})", q.bits_per_weight, q.reference_bits_per_weight),
        ),
        ("Text", escape(&q.data)),
    ];
    rows.extend(figures(&q.evaluation));
    table(&rows)
}

fn layer_lines(q: &Quality) -> Lines {
    let points = |value: &dyn Fn(usize) -> Option<f64>| -> Vec<(f64, f64)> {
        (0..q.layers.len()).filter_map(|i| Some((q.layers[i].layer as f64, value(i)?))).collect()
    };
    let mut series = vec![Series {
        name: "hidden states".into(),
        points: points(&|i| Some(q.layers[i].nmse)),
        heavy: true,
    }];
    series.extend(q.linears().into_iter().map(|name| Series {
        name: name.into(),
        points: points(&|i| q.layers[i].linears.iter().find(|l| l.name == name).map(|l| l.nmse)),
        heavy: false,
    }));
    Lines { x: "layer", y: "NMSE", logarithmic: true, series }
}

fn layer_grid(q: &Quality) -> Grid {
    let columns = q.linears();
    let cells = q.layers.iter().map(|layer| {
        let nmse = |name: &&str| layer.linears.iter().find(|l| l.name == *name).map(|l| l.nmse);
        columns.iter().map(nmse).collect()
    });
    Grid {
        what: "NMSE",
        cells: cells.collect(),
        rows: q.layers.iter().map(|layer| format!("layer {}", layer.layer)).collect(),
        columns: columns.iter().map(|name| (*name).to_owned()).collect(),
        logarithmic: true,
    }
}

/// Layer, name and bits of the tensors that belong to a layer.
fn of_layers(q: &Quality) -> impl Iterator<Item = (usize, &str, f64)> {
    q.tensors.iter().filter_map(|t| {
        let (layer, name) = t.name.strip_prefix("blk.")?.split_once('.')?;
        Some((layer.parse().ok()?, name.strip_suffix(".weight").unwrap_or(name), t.bits_per_weight))
    })
}

fn bit_grid(q: &Quality) -> Grid {
    let mut columns: Vec<String> = Vec::new();
    for (_, name, _) in of_layers(q) {
        if !columns.iter().any(|c| c == name) {
            columns.push(name.to_owned());
        }
    }
    let layers = of_layers(q).map(|(layer, ..)| layer + 1).max().unwrap_or(0);
    let mut cells = vec![vec![None; columns.len()]; layers];
    for (layer, name, bits) in of_layers(q) {
        if let Some(column) = columns.iter().position(|c| c == name) {
            cells[layer][column] = Some(bits);
        }
    }
    let rows = (0..layers).map(|layer| format!("layer {layer}")).collect();
    Grid { what: "bits per weight", cells, rows, columns, logarithmic: false }
}

fn other_tensors(q: &Quality) -> String {
    let mut html = String::from("<table>\n");
    for t in q.tensors.iter().filter(|t| !t.name.starts_with("blk.")) {
        let _ = writeln!(
            html,
            "<tr><th>{}</th><td class=\"n\">{} weights</td><td class=\"n\">{:.3} bits</td></tr>",
            escape(&t.name),
            t.weights,
            t.bits_per_weight
        );
    }
    html + "</table>\n"
}
