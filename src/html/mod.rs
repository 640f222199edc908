//! Reports as HTML pages: no scripts, nothing loaded from elsewhere.

mod axis;
mod grid;
mod lines;
mod markup;
pub mod quality;
pub mod quantized;

use std::fmt::Write;

use lines::{Lines, Series};

use crate::eval::report::{Comparison, Evaluation};

/// Points of a curve; more positions than that are averaged in groups.
const POINTS: usize = 128;

const STYLE: &str = "\
body{font:15px/1.5 system-ui,sans-serif;max-width:960px;margin:2em auto;padding:0 1em;color:#222;background:#fff}
h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}
table{border-collapse:collapse}td,th{padding:.15em .8em .15em 0;text-align:left;vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
svg{width:100%;height:auto}svg text{font:11px system-ui,sans-serif;fill:#444}
p.note{color:#666}";

/// A page of its title and its body, both markup.
fn document(title: &str, body: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n\
         <style>\n{STYLE}\n</style>\n</head>\n<body>\n<h1>{title}</h1>\n{body}</body>\n</html>\n"
    )
}

/// Names and values, which are markup.
fn table(rows: &[(&str, String)]) -> String {
    let mut html = String::from("<table>\n");
    for (name, value) in rows {
        let _ = writeln!(html, "<tr><th>{name}</th><td>{value}</td></tr>");
    }
    html + "</table>\n"
}

/// The figures of an evaluation.
fn figures(e: &Evaluation) -> Vec<(&'static str, String)> {
    let mut rows = vec![
        (
            "Protocol",
            format!("{}: {} windows of {} tokens, {} scored", e.protocol.name(), e.windows, e.ctx, e.tokens),
        ),
        ("Perplexity", format!("{:.4} ± {:.4}", e.perplexity, e.perplexity_stderr)),
    ];
    rows.extend(e.comparison.iter().flat_map(comparison));
    rows
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

/// KL divergence over the position in the window; nothing if there was no reference.
fn positions(e: &Evaluation) -> String {
    let positions = &e.positions;
    if positions.kl_divergence.is_empty() {
        return String::new();
    }
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
    let lines = Lines { x: "position", y: "nats", logarithmic: false, series };
    format!("<h2>KL divergence by position in the window</h2>\n{}", lines.svg())
}
