// SPDX-License-Identifier: MIT OR Apache-2.0
//! Plots tables of times: one chart for each, both axes logarithmic.

use anyhow::{Context as _, anyhow, ensure};
use plotters::prelude::*;

/// The size of a chart; two are side by side.
const WIDTH: u32 = 720;
const HEIGHT: u32 = 460;
const COLUMNS: usize = 2;
/// Distinguishable with colour blindness (Okabe and Ito, 2008).
const COLORS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(90, 90, 90),
];

/// Number of segments of a curve.
const STEPS: u32 = 12;
/// Plotted in place of a time of 0, which has no logarithm, in µs.
const SHORTEST: f64 = 0.05;

/// Times by a count.
#[derive(Debug, PartialEq)]
struct Table {
    title: String,
    /// What is counted.
    what: String,
    lines: Vec<Line>,
}

#[derive(Debug, PartialEq)]
struct Line {
    name: String,
    /// Count and time.
    points: Vec<(f64, f64)>,
}

impl Line {
    fn last(&self) -> f64 {
        self.points.last().map_or(0.0, |(_, time)| *time)
    }
}

/// Draws the tables of times (those with "µs" in their titles) in `markdown`.
pub(super) fn svg(markdown: &str) -> anyhow::Result<String> {
    let tables: Vec<Table> = markdown.split("\n### ").filter_map(parse).collect();
    ensure!(!tables.is_empty(), "there are no tables to plot");
    let rows = u32::try_from(tables.len().div_ceil(COLUMNS))?;
    let columns = u32::try_from(COLUMNS)?;
    let mut svg = String::new();
    {
        let size = (columns * WIDTH, rows * HEIGHT);
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        area.fill(&WHITE).map_err(|e| anyhow!("{e}"))?;
        let places = area.split_evenly((usize::try_from(rows)?, COLUMNS));
        for (table, place) in tables.iter().zip(&places) {
            draw(table, place)
                .map_err(|error| anyhow!("{error}"))
                .with_context(|| table.title.clone())?;
        }
        area.present().map_err(|e| anyhow!("{e}"))?;
    }
    Ok(svg)
}

/// The table under a heading; `None` if it is not one of times.
fn parse(section: &str) -> Option<Table> {
    let (title, rest) = section.split_once('\n')?;
    let title = title.strip_suffix("(µs)")?.trim().to_owned();
    let cells = |row: &str| -> Vec<String> {
        let row = row.trim().trim_matches('|');
        row.split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    let mut rows = rest.lines().filter(|line| line.starts_with('|')).map(cells);
    let mut names = rows.next()?.into_iter();
    let what = names.next()?;
    let mut lines: Vec<Line> = Vec::new();
    let mut of = String::new();
    for name in names {
        // "window" belongs to the action before it.
        let name = match name.split_once(", ") {
            Some((action, _)) => {
                action.clone_into(&mut of);
                name
            }
            None if name == "window" && !of.is_empty() => format!("{of}, window"),
            None => name,
        };
        lines.push(Line {
            name,
            points: Vec::new(),
        });
    }
    // The separator row and the growth row have no count.
    for row in rows {
        let mut numbers = row.iter().map(|cell| cell.parse::<f64>());
        let Some(Ok(count)) = numbers.next() else {
            continue;
        };
        for (line, time) in lines.iter_mut().zip(numbers) {
            line.points.push((count, time.ok()?));
        }
    }
    Some(Table { title, what, lines })
}

/// A growth function, up to a constant factor.
type Growth = fn(f64) -> f64;
type Place<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn draw(table: &Table, place: &Place<'_>) -> Result<(), Box<dyn std::error::Error>> {
    let counts: Vec<f64> = table
        .lines
        .first()
        .map(|line| line.points.iter().map(|(count, _)| *count).collect())
        .unwrap_or_default();
    let most = counts.iter().copied().fold(2.0, f64::max);
    let longest = table.lines.iter().map(Line::last).fold(1.0, f64::max);
    let mut chart = ChartBuilder::on(place)
        .caption(&table.title, ("sans-serif", 20))
        .margin(14)
        .x_label_area_size(42)
        .y_label_area_size(64)
        .build_cartesian_2d(
            (1.0..most * 1.2).log_scale(),
            (SHORTEST..longest * 4.0).log_scale(),
        )?;
    chart
        .configure_mesh()
        .x_desc(&table.what)
        .y_desc("µs")
        .label_style(("sans-serif", 14))
        .light_line_style(WHITE)
        .bold_line_style(RGBColor(225, 225, 225))
        .x_label_formatter(&|count| format!("{count}"))
        .y_label_formatter(&|time| format!("{time}"))
        .draw()?;
    // Guide lines through the end of the slowest curve.
    let guides: [(&str, Growth); 2] = [("n", |n| n), ("n log n", |n| n * n.ln())];
    for ((name, growth), grey) in guides.into_iter().zip([200, 150]) {
        let points = (0..=STEPS).map(|step| {
            // The logarithm of 1 is 0.
            let count = most.powf(f64::from(step) / f64::from(STEPS)).max(1.5);
            (count, longest * growth(count) / growth(most))
        });
        let points: Vec<_> = points.filter(|(_, time)| *time > SHORTEST).collect();
        let style = RGBColor(grey, grey, grey).stroke_width(4);
        chart
            .draw_series(LineSeries::new(points, style))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 24, y)], style));
    }
    for (line, color) in table.lines.iter().zip(COLORS.iter().cycle()) {
        let points = || line.points.iter().map(|(n, time)| (*n, time.max(SHORTEST)));
        chart
            .draw_series(LineSeries::new(points(), color.stroke_width(2)))?
            .label(&line.name)
            .legend(|(x, y)| PathElement::new([(x, y), (x + 24, y)], color.stroke_width(2)));
        chart.draw_series(points().map(|at| Circle::new(at, 3, color.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .label_font(("sans-serif", 13))
        .background_style(WHITE.mix(0.85))
        .border_style(RGBColor(200, 200, 200))
        .draw()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLES: &str = "On 2 CPUs.\n\n### Payloads below (µs)\n\n\
        | payloads below | load | apply, before | window |\n|---:|---:|---:|---:|\n\
        | 1 | 2.6 | 0.3 | 0.0 |\n| 1000 | 10.9 | 104.1 | 0.2 |\n| growth | 1.4 | 2.5 | 1.1 |\n\n\
        ### Stack and code\n\n| | stack, bytes |\n|---|---:|\n| load | 2032 |\n";

    #[test]
    fn tables_of_times_are_read() {
        let tables: Vec<_> = TABLES.split("\n### ").filter_map(parse).collect();
        let [table] = tables.as_slice() else {
            panic!("{tables:?}")
        };
        assert_eq!(
            (table.title.as_str(), table.what.as_str()),
            ("Payloads below", "payloads below")
        );
        let names: Vec<_> = table.lines.iter().map(|line| line.name.as_str()).collect();
        assert_eq!(names, ["load", "apply, before", "apply, window"]);
        assert_eq!(table.lines[1].points, [(1.0, 0.3), (1000.0, 104.1)]);
    }

    #[test]
    fn every_line_is_drawn_and_named() {
        let drawn = svg(TABLES).unwrap();
        assert!(drawn.starts_with("<svg") && drawn.trim_end().ends_with("</svg>"));
        for text in ["Payloads below", "apply, window", "n log n"] {
            assert!(drawn.contains(text), "{text}");
        }
        assert!(svg("no tables").is_err());
    }
}
