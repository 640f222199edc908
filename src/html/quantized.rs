//! The page about a model that was quantized layer by layer: what became of each matrix, and of the model.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::grid::Grid;
use super::lines::{Lines, Series};
use super::markup::escape;
use super::{document, figures, positions, table};
use crate::pipeline::budget::BudgetReport;
use crate::pipeline::evaluate;
use crate::pipeline::layerwise::report::{Linear, Report};
use crate::pipeline::tune::report::{Curve, Point};

/// A column of the table of matrices, and what stands in it.
pub type Column<'a, H> = (&'a str, &'a dyn Fn(&H) -> String);

/// The page; `how` says how a matrix was quantized. The evaluation and what was tried to keep to a limit are part of it if they
/// are there.
pub fn page<O, H>(
    report: &Report<O, H>,
    how: Column<'_, H>,
    evaluation: Option<&evaluate::Report>,
    budget: Option<&BudgetReport>,
) -> String {
    let mut html = summary(report);
    html += &budget.map(stages).unwrap_or_default();
    if let Some(evaluation) = evaluation {
        html += "<h2>What the model has lost</h2>\n";
        html += &table(&figures(&evaluation.evaluation));
        html += &positions(&evaluation.evaluation);
    }
    html += &tuning(&report.tuning);
    html += "<h2>Error by layer</h2>\n<p class=\"note\">Squared error of each matrix&#39;s outputs over the calibration data, \
             per their energy; of experts the largest. A matrix with a large error in a model that has lost little does \
             not matter much.</p>\n";
    html += &grid(&report.linears).svg();
    html += "<h2>Matrices</h2>\n";
    html += &matrices(&report.linears, how);
    html += &left_out(report);
    document(&escape(&report.output_path), &html)
}

fn summary<O, H>(report: &Report<O, H>) -> String {
    let sizes = &report.metadata;
    let data = &report.calibration;
    table(&[
        ("Format", format!("{} {}, {}", report.format, report.quantization_level, sizes.architecture)),
        (
            "Bits per weight",
            format!(
                "{:.3} of quantized weights, {:.2} of all",
                sizes.quantized_bits_per_weight, sizes.bits_per_weight
            ),
        ),
        ("Size", format!("{} bytes, {:.1} % of 16 bits", report.file_size, 100.0 * report.compression_ratio)),
        ("Calibration", format!("{}: {} rows of {} tokens", escape(&data.source), data.rows, data.seq_len)),
        ("Time", format!("{:.1} s", report.duration_seconds)),
    ])
}

/// What each stage on the way to a limit has bought, and what it cost.
fn stages(budget: &BudgetReport) -> String {
    let verdict =
        if budget.met { "The result keeps to it." } else { "No result keeps to it; the best is kept." };
    let mut html = format!(
        "<h2>Stages</h2>\n<p class=\"note\">The limit is {}, on {}. {verdict}</p>\n\
         <table>\n<tr><th></th><th class=\"n\">KL divergence</th><th class=\"n\">less</th><th class=\"n\">perplexity</th>\
         <th class=\"n\">bytes</th><th class=\"n\">more</th><th class=\"n\">bits per weight</th><th class=\"n\">seconds</th></tr>\n",
        escape(&budget.limit.to_string()),
        escape(&budget.attempts[budget.kept].loss.data)
    );
    for (place, attempt) in budget.attempts.iter().enumerate() {
        let kept = if place == budget.kept { " (kept)" } else { "" };
        let _ = writeln!(
            html,
            "<tr><th>{}{kept}</th><td class=\"n\">{:.6} ± {:.6}</td><td class=\"n\">{:+.6}</td><td class=\"n\">{:.4}</td>\
             <td class=\"n\">{}</td><td class=\"n\">{:+}</td><td class=\"n\">{:.3}</td><td class=\"n\">{:.1}</td></tr>",
            attempt.stage.title(),
            attempt.loss.kl_divergence,
            attempt.loss.kl_divergence_stderr,
            attempt.kl_divergence_gained,
            attempt.loss.perplexity,
            attempt.file_size,
            attempt.bytes_added,
            attempt.bits_per_weight,
            attempt.seconds()
        );
    }
    html + "</table>\n"
}

/// The loss of everything that was tuned, in two charts: on rows that were learned from, and on those that were held out.
fn tuning(curves: &[Curve]) -> String {
    if curves.is_empty() {
        return String::new();
    }
    let chart = |value: &dyn Fn(&Point) -> Option<f64>| {
        let series = |curve: &Curve| Series {
            name: curve.name.clone(),
            points: curve.points.iter().filter_map(|p| Some((p.step as f64, value(p)?))).collect(),
            heavy: curve.name == "model",
        };
        let series = curves.iter().map(series).collect();
        Lines { x: "step", y: "loss", logarithmic: true, series }.svg()
    };
    format!(
        "<h2>Tuning</h2>\n<p class=\"note\">Of a layer the squared error of its outputs per their energy, of the model the mean \
         KL divergence. What was best on held-out rows is kept: where the first chart falls and the second does not, the \
         rows that were learned from were learned by heart.</p>\n<h3>Rows that were learned from</h3>\n{}\
         <h3>Held-out rows</h3>\n{}",
        chart(&|point| point.train),
        chart(&|point| Some(point.held_out))
    )
}

/// Layers and the names that are common to them.
fn grid<H>(linears: &[Linear<H>]) -> Grid {
    let mut columns: Vec<String> = Vec::new();
    let mut layers: BTreeMap<usize, BTreeMap<usize, f64>> = BTreeMap::new();
    for linear in linears {
        let Some((layer, name)) = place(&linear.name) else { continue };
        let column = columns.iter().position(|c| *c == name).unwrap_or_else(|| {
            columns.push(name);
            columns.len() - 1
        });
        let worst = layers.entry(layer).or_default().entry(column).or_insert(0.0);
        *worst = worst.max(linear.relative_error);
    }
    let cells = layers.values().map(|row| (0..columns.len()).map(|c| row.get(&c).copied()).collect());
    Grid {
        what: "relative error",
        cells: cells.collect(),
        rows: layers.keys().map(|layer| format!("layer {layer}")).collect(),
        columns,
        logarithmic: true,
    }
}

/// The layer of a matrix, and the last two parts of its name, without the number of an expert.
fn place(name: &str) -> Option<(usize, String)> {
    let (layer, rest) = name.split_once("layers.")?.1.split_once('.')?;
    let parts: Vec<&str> = rest.split('.').filter(|part| part.parse::<usize>().is_err()).collect();
    Some((layer.parse().ok()?, parts[parts.len().saturating_sub(2)..].join(".")))
}

fn matrices<H>(linears: &[Linear<H>], (title, how): Column<'_, H>) -> String {
    let mut html = format!(
        "<table>\n<tr><th></th><th class=\"n\">error</th><th class=\"n\">share</th><th class=\"n\">{}</th>\
         <th class=\"n\">outliers</th><th class=\"n\">tokens</th><th class=\"n\">weight NMSE</th>\
         <th class=\"n\">seconds</th></tr>\n",
        escape(title)
    );
    for linear in linears {
        let _ = writeln!(
            html,
            "<tr><th>{}</th><td class=\"n\">{:.3e}</td><td class=\"n\">{:.1} %</td><td class=\"n\">{}</td>\
             <td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{:.3e}</td><td class=\"n\">{:.2}</td></tr>",
            escape(&linear.name),
            linear.relative_error,
            100.0 * linear.share,
            escape(&how(&linear.how)),
            linear.outliers,
            linear.tokens,
            linear.weight_nmse,
            linear.seconds
        );
    }
    html + "</table>\n"
}

fn left_out<O, H>(report: &Report<O, H>) -> String {
    if report.metadata.left_out.is_empty() {
        return String::new();
    }
    let mut html = String::from("<h2>In 16 bits</h2>\n<table>\n");
    for matrix in &report.metadata.left_out {
        let _ =
            writeln!(html, "<tr><th>{}</th><td>{}</td></tr>", escape(&matrix.name), escape(&matrix.reason));
    }
    html + "</table>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_of_a_layer_share_a_column() {
        let place = |name| place(name).unwrap();
        assert_eq!(place("model.layers.3.self_attn.q_proj"), (3, "self_attn.q_proj".into()));
        assert_eq!(place("model.layers.0.mlp.experts.17.up_proj"), (0, "experts.up_proj".into()));
        assert_eq!(place("model.layers.11.block_sparse_moe.experts.2.w1"), (11, "experts.w1".into()));
        assert!(super::place("lm_head").is_none());
    }
}
