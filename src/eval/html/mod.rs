//! The report of [`Quality`] as one HTML page: no scripts, nothing loaded from elsewhere.

mod axis;
mod grid;
mod lines;
mod markup;

use std::fmt::Write;

use grid::Grid;
use lines::{Lines, Series};
use markup::escape;

use super::quality::Quality;
use super::report::Comparison;

/// Points of a curve; more positions than that are averaged in groups.
const POINTS: usize = 128;

const STYLE: &str = "\
body{font:15px/1.5 system-ui,sans-serif;max-width:960px;margin:2em auto;padding:0 1em;color:#222;background:#fff}
h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}
table{border-collapse:collapse}td,th{padding:.15em .8em .15em 0;text-align:left;vertical-align:top}
td.n{text-align:right;font-variant-numeric:tabular-nums}
svg{width:100%;height:auto}svg text{font:11px system-ui,sans-serif;fill:#444}
p.note{color:#666}";

/// The page.
pub fn page(quality: &Quality) -> String {
    let title = format!("Quality of {}", escape(&quality.model));
    let mut html = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n\
         <style>\n{STYLE}\n</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
    );
    html += &summary(quality);
    html += "<h2>Error by layer</h2>\n<p class=\"note\">Normalised squared error. <b>hidden states</b>: how far the \
             residual stream has drifted after each layer when each model goes its own way. The matrices: their outputs \
             on the reference&#39;s own inputs, so each shows its own damage only.</p>\n";
    html += &layer_lines(quality).svg();
    html += &layer_grid(quality).svg();
    if !quality.evaluation.positions.kl_divergence.is_empty() {
        html += "<h2>KL divergence by position in the window</h2>\n";
        html += &position_lines(quality).svg();
    }
    html += "<h2>Where the bits are</h2>\n<p class=\"note\">Bits per weight of each tensor, scales and zero points \
             included.</p>\n";
    html += &bit_grid(quality).svg();
    html += &other_tensors(quality);
    html += "</body>\n</html>\n";
    html
}

fn summary(q: &Quality) -> String {
    let e = &q.evaluation;
    let mut rows = vec![
        ("Model", format!("{} ({})", escape(&q.model), q.format)),
        ("Reference", format!("{} ({})", escape(&q.reference), q.reference_format)),
        (
            "Bits per weight",
            format!("{:.3} (reference {:.3})", q.bits_per_weight, q.reference_bits_per_weight),
        ),
        ("Text", escape(&q.data)),
        (
            "Protocol",
            format!("{}: {} windows of {} tokens, {} scored", e.protocol.name(), e.windows, e.ctx, e.tokens),
        ),
        ("Perplexity", format!("{:.4} ± {:.4}", e.perplexity, e.perplexity_stderr)),
    ];
    rows.extend(e.comparison.iter().flat_map(comparison));
    let mut html = String::from("<table>\n");
    for (name, value) in rows {
        let _ = writeln!(html, "<tr><th>{name}</th><td>{value}</td></tr>");
    }
    html + "</table>\n"
}

fn comparison(c: &Comparison) -> Vec<(&'static str, String)> {
    let p = &c.kl_divergence_percentiles;
    vec![
        (
            "Perplexity of the reference",
            format!("{:.4} ± {:.4}", c.reference_perplexity, c.reference_perplexity_stderr),
        ),
        ("Ratio", format!("{:.6} ± {:.6}", c.perplexity_ratio, c.perplexity_ratio_stderr)),
        ("Mean KL divergence", format!("{:.6} ± {:.6} nats", c.kl_divergence, c.kl_divergence_stderr)),
        (
            "50, 90, 95, 99 %, maximum",
            format!(
                "{:.6}, {:.6}, {:.6}, {:.6}, {:.6} nats",
                p.p50, p.p90, p.p95, p.p99, c.kl_divergence_max
            ),
        ),
        (
            "Top-1 agreement",
            format!("{:.3} ± {:.3} %", 100.0 * c.top1_agreement, 100.0 * c.top1_agreement_stderr),
        ),
    ]
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

fn position_lines(q: &Quality) -> Lines {
    let positions = &q.evaluation.positions;
    let group = positions.position.len().div_ceil(POINTS);
    let mean = |values: &mut dyn Iterator<Item = f64>| {
        let (sum, n) = values.fold((0.0, 0.0), |(sum, n), v| (sum + v, n + 1.0));
        sum / n
    };
    let points = positions
        .position
        .chunks(group)
        .zip(positions.kl_divergence.chunks(group))
        .map(|(x, y)| (mean(&mut x.iter().map(|p| *p as f64)), mean(&mut y.iter().copied())))
        .collect();
    let series = vec![Series { name: "mean KL divergence".into(), points, heavy: true }];
    Lines { x: "position", y: "nats", logarithmic: false, series }
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
