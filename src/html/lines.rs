//! Curves in a frame, as SVG.

use std::fmt::Write;

use super::axis::Axis;
use super::markup::{escape, number};

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 340.0;
/// Room for the names of ticks and curves.
const LEFT: f64 = 60.0;
const RIGHT: f64 = 130.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 40.0;

/// Okabe and Ito's colours, which colour-blind people can tell apart.
const COLOURS: [&str; 8] =
    ["#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a8a00"];

/// Curves over one axis.
pub(super) struct Lines {
    pub(super) x: &'static str,
    pub(super) y: &'static str,
    /// Whether the values go up by factors.
    pub(super) logarithmic: bool,
    pub(super) series: Vec<Series>,
}

/// One curve.
pub(super) struct Series {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
    pub(super) heavy: bool,
}

impl Lines {
    pub(super) fn svg(&self) -> String {
        let points = || self.series.iter().flat_map(|s| &s.points);
        let x = Axis::around(points().map(|p| p.0), false, [LEFT, WIDTH - RIGHT]);
        let y = Axis::around(points().map(|p| p.1), self.logarithmic, [HEIGHT - BOTTOM, TOP]).with_zero();
        let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">\n");
        self.frame(&mut svg, &x, &y);
        for (i, series) in self.series.iter().enumerate() {
            let colour = COLOURS[i % COLOURS.len()];
            // A second round of colours is dashed.
            let dash = if i < COLOURS.len() { "" } else { " stroke-dasharray=\"4 3\"" };
            let width = if series.heavy { 2.5 } else { 1.2 };
            let places: Vec<(f64, f64, (f64, f64))> =
                series.points.iter().filter_map(|p| Some((x.place(p.0)?, y.place(p.1)?, *p))).collect();
            let path: Vec<String> = places.iter().map(|(x, y, _)| format!("{x:.1},{y:.1}")).collect();
            let _ = writeln!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\"{dash}/>",
                path.join(" ")
            );
            let name = escape(&series.name);
            for (px, py, (vx, vy)) in places {
                let _ = writeln!(
                    svg,
                    "<circle cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"2.5\" fill=\"{colour}\"><title>{name}, {} {}: {}</title></circle>",
                    self.x,
                    number(vx),
                    number(vy)
                );
            }
            let at = TOP + 8.0 + 16.0 * i as f64;
            let from = WIDTH - RIGHT + 12.0;
            let _ = writeln!(
                svg,
                "<line x1=\"{from}\" x2=\"{}\" y1=\"{at}\" y2=\"{at}\" stroke=\"{colour}\" stroke-width=\"{width}\"{dash}/>\
                 <text x=\"{}\" y=\"{}\">{name}</text>",
                from + 18.0,
                from + 24.0,
                at + 4.0
            );
        }
        svg + "</svg>\n"
    }

    fn frame(&self, svg: &mut String, x: &Axis, y: &Axis) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for (value, name) in y.ticks(6) {
            let Some(at) = y.place(value) else { continue };
            let _ = writeln!(
                svg,
                "<line x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{name}</text>",
                LEFT - 6.0,
                at + 4.0
            );
        }
        for (value, name) in x.ticks(10).into_iter().filter(|(value, _)| value.fract() == 0.0) {
            let Some(at) = x.place(value) else { continue };
            let _ = writeln!(
                svg,
                "<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{name}</text>",
                bottom + 16.0
            );
        }
        let _ = writeln!(
            svg,
            "<rect x=\"{LEFT}\" y=\"{TOP}\" width=\"{}\" height=\"{}\" fill=\"none\" stroke=\"#999\"/>\
             <text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\
             <text x=\"{}\" y=\"{}\">{}</text>",
            right - LEFT,
            bottom - TOP,
            (LEFT + right) / 2.0,
            HEIGHT - 6.0,
            self.x,
            LEFT + 6.0,
            TOP + 14.0,
            self.y
        );
    }
}
