//! The first figure of a group's workloads as a picture: a dot for each contender's median and a line from its 10th to its
//! 90th percentile, on a logarithmic axis, because contenders can be ten thousand times apart.

use std::fmt::Write;

use super::text::{number, time};
use crate::results::{Role, Row};

#[derive(Clone, Copy)]
pub struct Theme {
    pub name: &'static str,
    surface: &'static str,
    text: &'static str,
    quiet: &'static str,
    grid: &'static str,
    ours: &'static str,
    peer: &'static str,
}

pub const LIGHT: Theme = Theme {
    name: "light",
    surface: "#ffffff",
    text: "#1a1a19",
    quiet: "#5b5a57",
    grid: "#e3e2dd",
    ours: "#2a78d6",
    peer: "#6f6e6a",
};

pub const DARK: Theme = Theme {
    name: "dark",
    surface: "#0d1117",
    text: "#f0efec",
    quiet: "#b4b3ac",
    grid: "#2c2f36",
    ours: "#58a0f2",
    peer: "#a3a29b",
};

const WIDTH: f64 = 860.0;
const LEFT: f64 = 210.0;
/// Beyond it there is room for values.
const RIGHT: f64 = 740.0;
const TOP: f64 = 64.0;
const LINE: f64 = 18.0;

/// Positions of values.
struct Axis {
    /// Powers of ten.
    from: i32,
    to: i32,
}

impl Axis {
    fn of(rows: &[&Row]) -> Self {
        let positive = || rows.iter().flat_map(|row| [row.figures[0].p10, row.figures[0].p90]).filter(|&v| v > 0.0);
        let least = positive().fold(f64::INFINITY, f64::min);
        let most = positive().fold(0.0, f64::max);
        if most == 0.0 {
            return Self { from: 0, to: 1 };
        }
        let from = least.log10().floor() as i32;
        Self { from, to: (most.log10().ceil() as i32).max(from + 1) }
    }

    /// Zero has no place on such an axis: it stands at its beginning.
    fn x(&self, value: f64) -> f64 {
        let decades = if value > 0.0 { value.log10() - f64::from(self.from) } else { 0.0 };
        LEFT + (RIGHT - LEFT) * (decades / f64::from(self.to - self.from)).clamp(0.0, 1.0)
    }
}

/// Of one group; its rows are in the order of their workloads.
pub fn svg(group: &str, rows: &[&Row], theme: Theme) -> String {
    let Theme { surface, text, quiet, grid, ours, peer, .. } = theme;
    let workloads = super::workloads_of(rows);
    let height = TOP + LINE * (rows.len() as f64 + 1.6 * workloads.len() as f64) + 34.0;
    let figure = &rows[0].figures[0];
    let axis = Axis::of(rows);
    let bottom = height - 30.0;
    let what = if figure.name == "time" { "time of an operation" } else { &figure.name };
    let title = format!("{group}: {what}, less is better, logarithmic");

    let mut svg = String::new();
    // Writing to a string does not fail.
    _ = writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         role=\"img\" font-family=\"system-ui, sans-serif\" font-size=\"12\">\n<title>{title}</title>\n<rect width=\"100%\" \
         height=\"100%\" fill=\"{surface}\"/>\n<text x=\"16\" y=\"24\" font-size=\"15\" font-weight=\"600\" \
         fill=\"{text}\">{title}</text>"
    );
    let legend = [("corelane", ours, ours), ("peer", peer, peer), ("reference", peer, surface)];
    for (i, (name, stroke, fill)) in legend.into_iter().enumerate() {
        let x = 22.0 + 90.0 * i as f64;
        _ = writeln!(
            svg,
            "<circle cx=\"{x}\" cy=\"42\" r=\"4.5\" fill=\"{fill}\" stroke=\"{stroke}\" stroke-width=\"1.5\"/><text \
             x=\"{}\" y=\"46\" fill=\"{quiet}\">{name}</text>",
            x + 10.0
        );
    }
    _ = writeln!(svg, "<text x=\"300\" y=\"46\" fill=\"{quiet}\">dot: median; line: 10th to 90th percentile</text>");
    for power in axis.from..=axis.to {
        let value = 10f64.powi(power);
        // A power of ten needs no decimals.
        let (x, label) = (axis.x(value), label(value, &figure.unit).replace(".00", "").replace(".0", ""));
        _ = writeln!(
            svg,
            "<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{bottom}\" stroke=\"{grid}\"/><text x=\"{x:.1}\" y=\"{}\" \
             text-anchor=\"middle\" fill=\"{quiet}\">{label}</text>",
            bottom + 18.0
        );
    }
    let mut y = TOP;
    for workload in workloads {
        y += 1.6 * LINE;
        _ = writeln!(svg, "<text x=\"16\" y=\"{:.1}\" font-weight=\"600\" fill=\"{text}\">{workload}</text>", y - 4.0);
        for row in rows.iter().filter(|row| row.workload == workload) {
            let figure = &row.figures[0];
            let (from, at, to) = (axis.x(figure.p10), axis.x(figure.median), axis.x(figure.p90));
            let (stroke, fill, ink) = match row.role {
                Role::Ours => (ours, ours, text),
                Role::Peer => (peer, peer, quiet),
                Role::Reference => (peer, surface, quiet),
            };
            let middle = y + LINE / 2.0;
            let value = label(figure.median, &figure.unit);
            _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"{ink}\">{}</text><line x1=\"{from:.1}\" \
                 y1=\"{middle:.1}\" x2=\"{to:.1}\" y2=\"{middle:.1}\" stroke=\"{stroke}\" stroke-width=\"2\"/><circle \
                 cx=\"{at:.1}\" cy=\"{middle:.1}\" r=\"4.5\" fill=\"{fill}\" stroke=\"{stroke}\" \
                 stroke-width=\"1.5\"/><text x=\"{:.1}\" y=\"{:.1}\" fill=\"{ink}\">{value}</text>",
                LEFT - 12.0,
                middle + 4.0,
                row.contender,
                to.max(at) + 10.0,
                middle + 4.0
            );
            y += LINE;
        }
    }
    svg + "</svg>\n"
}

fn label(value: f64, unit: &str) -> String {
    match unit {
        "ns/op" => time(value),
        "us" => time(value * 1e3),
        unit => format!("{} {unit}", number(value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{Allocator, Figure};

    #[test]
    fn axis_spans_whole_decades_and_zero_is_at_its_beginning() {
        let row = |value| Row {
            workload: "a/b".to_owned(),
            contender: "c".to_owned(),
            role: Role::Ours,
            allocator: Allocator::System,
            repeats: 1,
            ratio: None,
            figures: vec![Figure::of("time", "ns/op", vec![value])],
        };
        let (zero, small, large) = (row(0.0), row(20.0), row(3000.0));
        let axis = Axis::of(&[&zero, &small, &large]);
        assert_eq!((axis.from, axis.to), (1, 4));
        assert_eq!((axis.x(0.0), axis.x(10.0), axis.x(10_000.0)), (LEFT, LEFT, RIGHT));
    }
}
