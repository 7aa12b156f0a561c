//! Pictures as SVG texts.

use plotters::coord::ranged1d::SegmentValue;
use plotters::element::DashedPathElement;
use plotters::prelude::*;

use super::rows::Spread;

const SIZE: (u32, u32) = (900, 400);
const COLOURS: [RGBColor; 6] = [
    RGBColor(31, 119, 180),
    RGBColor(214, 120, 14),
    RGBColor(44, 140, 44),
    RGBColor(190, 40, 50),
    RGBColor(130, 90, 170),
    RGBColor(110, 75, 65),
];

/// A bar: its median, with a line from the least to the greatest.
#[derive(Clone, Debug)]
pub struct Bar {
    /// What it is of.
    pub label: String,
    /// How high.
    pub spread: Spread,
    /// Where it should be, if that was promised.
    pub target: Option<f64>,
}

/// A curve by its points.
#[derive(Clone, Debug)]
pub struct Curve {
    /// What it is of.
    pub label: String,
    /// One value for each place on the horizontal axis.
    pub values: Vec<f64>,
}

type Drawn = Result<String, Box<dyn std::error::Error>>;

/// Bars with their values written on them. `unit` names the vertical axis.
pub fn bars(title: &str, unit: &str, bars: &[Bar]) -> Drawn {
    let top = bars
        .iter()
        .flat_map(|bar| [bar.spread.max, bar.target.unwrap_or(0.0)])
        .fold(0.0, f64::max);
    let last = bars.len().checked_sub(1).ok_or("no bar to draw")?;
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(title, ("sans-serif", 20))
            .margin(12)
            .x_label_area_size(32)
            .y_label_area_size(64)
            .build_cartesian_2d((0..last).into_segmented(), 0.0..top * 1.15 + f64::MIN_POSITIVE)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(WHITE)
            .x_labels(bars.len())
            .x_label_formatter(&|place| match place {
                SegmentValue::CenterOf(n) => bars.get(*n).map(|bar| bar.label.clone()).unwrap_or_default(),
                _ => String::new(),
            })
            .y_desc(unit)
            .axis_desc_style(("sans-serif", 15))
            .label_style(("sans-serif", 14))
            .draw()?;
        for (n, bar) in bars.iter().enumerate() {
            let colour = COLOURS[n % COLOURS.len()];
            let (left, right) = (SegmentValue::Exact(n), SegmentValue::Exact(n + 1));
            let mut body = Rectangle::new(
                [(left, 0.0), (right, bar.spread.median)],
                colour.mix(0.75).filled(),
            );
            // A quarter of its place on either side.
            let gap = SIZE.0 / bars.len().max(1) as u32 / 5;
            body.set_margin(0, 0, gap, gap);
            chart.draw_series([body])?;
            let middle = || SegmentValue::CenterOf(n);
            chart.draw_series([PathElement::new(
                [(middle(), bar.spread.min), (middle(), bar.spread.max)],
                BLACK.stroke_width(2),
            )])?;
            let text = Text::new(
                short(bar.spread.median),
                (middle(), bar.spread.max + top * 0.06),
                ("sans-serif", 15).into_font(),
            );
            chart.draw_series([text])?;
            if let Some(target) = bar.target {
                let line = [
                    (SegmentValue::Exact(n), target),
                    (SegmentValue::Exact(n + 1), target),
                ];
                chart.draw_series([DashedPathElement::new(line, 6, 4, RED.stroke_width(2))])?;
            }
        }
        root.present()?;
    }
    Ok(svg)
}

/// Curves over named places, the vertical axis logarithmic.
pub fn curves(title: &str, unit: &str, places: &[&str], curves: &[Curve]) -> Drawn {
    let values = || {
        curves
            .iter()
            .flat_map(|curve| &curve.values)
            .copied()
            .filter(|value| *value > 0.0)
    };
    let low = values().fold(f64::INFINITY, f64::min);
    let high = values().fold(0.0, f64::max);
    if high <= 0.0 {
        return Err("no value above zero to draw".into());
    }
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(title, ("sans-serif", 20))
            .margin(12)
            .x_label_area_size(32)
            .y_label_area_size(74)
            .build_cartesian_2d(
                (0..places.len().saturating_sub(1)).into_segmented(),
                (low / 1.5..high * 1.5).log_scale(),
            )?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(RGBColor(235, 235, 235))
            .x_labels(places.len())
            .x_label_formatter(&|place| match place {
                SegmentValue::CenterOf(n) => places.get(*n).copied().unwrap_or_default().to_owned(),
                _ => String::new(),
            })
            .y_label_formatter(&|value| short(*value))
            .y_desc(unit)
            .axis_desc_style(("sans-serif", 15))
            .label_style(("sans-serif", 14))
            .draw()?;
        for (n, curve) in curves.iter().enumerate() {
            let colour = COLOURS[n % COLOURS.len()];
            let points: Vec<_> = curve
                .values
                .iter()
                .enumerate()
                .filter(|(_, value)| **value > 0.0)
                .map(|(place, value)| (SegmentValue::CenterOf(place), *value))
                .collect();
            chart
                .draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)))?
                .label(&curve.label)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], colour.stroke_width(3)));
            chart.draw_series(
                points
                    .into_iter()
                    .map(|point| Circle::new(point, 3, colour.filled())),
            )?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.85))
            .border_style(RGBColor(180, 180, 180))
            .label_font(("sans-serif", 14))
            .draw()?;
        root.present()?;
    }
    Ok(svg)
}

/// A number as short as it can be read.
pub fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 1e6 => format!("{:.1}M", value / 1e6),
        size if size >= 1e4 => format!("{:.0}k", value / 1e3),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_say_what_they_are_of() {
        let bar = |label: &str, median| Bar {
            label: label.to_owned(),
            spread: Spread {
                min: median * 0.9,
                median,
                max: median * 1.2,
            },
            target: Some(25.0),
        };
        let svg = bars("Cost", "ns a packet", &[bar("one", 23.0), bar("two", 40.0)]).unwrap();
        for word in ["<svg", "Cost", "ns a packet", "one", "two", "40.00"] {
            assert!(svg.contains(word), "{word}");
        }
        let curve = Curve {
            label: "af_xdp".to_owned(),
            values: vec![10.0, 100.0, 12_000.0],
        };
        let svg = curves("Latency", "µs", &["p50", "p99", "max"], &[curve]).unwrap();
        for word in ["Latency", "µs", "p99", "af_xdp"] {
            assert!(svg.contains(word), "{word}");
        }
        assert!(curves("Nothing", "", &["p50"], &[]).is_err());
    }
}
