//! Plots of lines and of bars, as SVG.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use sluice_common::process::Failure;

const SIZE: (u32, u32) = (760, 420);
const COLOURS: [RGBColor; 4] = [
    RGBColor(0x1f, 0x6f, 0xb4),
    RGBColor(0xd9, 0x5f, 0x02),
    RGBColor(0x1b, 0x9e, 0x77),
    RGBColor(0x7a, 0x4f, 0x9e),
];
/// How much higher the axis is than the highest point.
const HEADROOM: f64 = 1.15;

type NotDrawn = DrawingAreaErrorKind<std::io::Error>;

/// A picture of either kind.
#[derive(Debug, Clone)]
pub enum Picture {
    Lines(Plot),
    Bars(Bars),
}

impl Picture {
    pub fn title(&self) -> &str {
        match self {
            Self::Lines(plot) => &plot.title,
            Self::Bars(bars) => &bars.title,
        }
    }

    /// The picture.
    ///
    /// # Errors
    /// Where it cannot be drawn.
    pub fn svg(&self) -> Result<String, Failure> {
        let mut svg = String::new();
        let drawn = match self {
            Self::Lines(plot) => plot.draw(&mut svg),
            Self::Bars(bars) => bars.draw(&mut svg),
        };
        drawn.map_err(|error| Failure::new(format!("{}: {error}", self.title())))?;
        Ok(svg)
    }
}

/// A bar for each name, the first one on top, with its value beside it.
#[derive(Debug, Clone)]
pub struct Bars {
    pub title: String,
    pub unit: String,
    pub bars: Vec<(String, f64)>,
}

/// Of a bar, with what is between two.
const BAR_HEIGHT: u32 = 30;
/// What is above and below them.
const BARS_AROUND: u32 = 110;

impl Bars {
    fn draw(&self, svg: &mut String) -> Result<(), NotDrawn> {
        let values = self.bars.iter().map(|(_, value)| *value);
        let longest = values.fold(f64::MIN_POSITIVE, f64::max) * HEADROOM;
        let (rows, mut height) = (self.bars.len().max(1), BARS_AROUND);
        self.bars.iter().for_each(|_| height += BAR_HEIGHT);
        let area = SVGBackend::with_string(svg, (SIZE.0, height)).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(&self.title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(150)
            .build_cartesian_2d(0.0..longest, (0..rows).into_segmented())?;
        // The first one is on top, and the axis begins below.
        let name = |at: &SegmentValue<usize>| match at {
            SegmentValue::CenterOf(row) => {
                let bar = rows.checked_sub(row + 1).and_then(|at| self.bars.get(at));
                bar.map_or_else(String::new, |(name, _)| name.clone())
            }
            SegmentValue::Exact(_) | SegmentValue::Last => String::new(),
        };
        chart
            .configure_mesh()
            .disable_y_mesh()
            .x_desc(&self.unit)
            .x_label_formatter(&|x| short(*x))
            .y_labels(rows)
            .y_label_formatter(&name)
            .light_line_style(WHITE)
            .draw()?;
        for (row, (_, value)) in self.bars.iter().rev().enumerate() {
            let (from, to) = (SegmentValue::Exact(row), SegmentValue::Exact(row + 1));
            let mut bar = Rectangle::new([(0.0, from), (*value, to)], COLOURS[0].filled());
            bar.set_margin(4, 4, 0, 0);
            let text = Text::new(
                format!(" {}", short(*value)),
                (*value, SegmentValue::CenterOf(row)),
                ("sans-serif", 13)
                    .into_text_style(&area)
                    .pos(Pos::new(HPos::Left, VPos::Center)),
            );
            chart.draw_series(std::iter::once(bar))?;
            chart.draw_series(std::iter::once(text))?;
        }
        area.present()?;
        Ok(())
    }
}

/// Lines over one axis.
#[derive(Debug, Clone)]
pub struct Plot {
    pub title: String,
    pub x: String,
    pub y: String,
    /// Whether each step of the x axis is ten times the one before.
    pub by_tens: bool,
    pub lines: Vec<Line>,
}

#[derive(Debug, Clone)]
pub struct Line {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

impl Plot {
    fn draw(&self, svg: &mut String) -> Result<(), NotDrawn> {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let highest = points().map(|(_, y)| *y).fold(f64::MIN_POSITIVE, f64::max) * HEADROOM;
        let first = points().map(|(x, _)| *x).fold(f64::INFINITY, f64::min);
        let last = points().map(|(x, _)| *x).fold(f64::MIN_POSITIVE, f64::max);
        let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let mut builder = ChartBuilder::on(&area);
        builder
            .caption(&self.title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(72);
        if self.by_tens {
            let first = if first.is_finite() { first } else { 1.0 };
            self.fill(&mut builder.build_cartesian_2d((first..last).log_scale(), 0.0..highest)?)?;
        } else {
            self.fill(&mut builder.build_cartesian_2d(0.0..last, 0.0..highest)?)?;
        }
        area.present()?;
        Ok(())
    }

    fn fill<'a, X>(
        &self,
        chart: &mut ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, plotters::coord::types::RangedCoordf64>>,
    ) -> Result<(), NotDrawn>
    where
        X: Ranged<ValueType = f64> + plotters::coord::ranged1d::ValueFormatter<f64>,
    {
        chart
            .configure_mesh()
            .x_desc(&self.x)
            .y_desc(&self.y)
            .x_label_formatter(&|x| short(*x))
            .y_label_formatter(&|y| short(*y))
            .light_line_style(WHITE)
            .draw()?;
        for (line, colour) in self.lines.iter().zip(COLOURS.iter().cycle()) {
            let colour = *colour;
            chart
                .draw_series(
                    LineSeries::new(line.points.iter().copied(), colour.stroke_width(2)).point_size(3),
                )?
                .label(&line.name)
                .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], colour.stroke_width(2)));
        }
        chart
            .configure_series_labels()
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.3))
            .position(SeriesLabelPosition::UpperLeft)
            .draw()?;
        Ok(())
    }
}

/// 1.5 M, 200 k, 12, 0.25.
fn short(value: f64) -> String {
    let (value, unit) = match value.abs() {
        at if at >= 1e6 => (value / 1e6, " M"),
        at if at >= 1e3 => (value / 1e3, " k"),
        _ => (value, ""),
    };
    let text = format!("{value:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    format!("{text}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_drawn_and_named() {
        for by_tens in [false, true] {
            let line = |name: &str, by: f64| Line {
                name: name.into(),
                points: vec![(1.0, by), (10.0, 2.0 * by), (100.0, 300_000.0)],
            };
            let plot = Plot {
                title: "Stored events a second".into(),
                x: "events a request".into(),
                y: "events/s".into(),
                by_tens,
                lines: vec![line("Sluice", 10.0), line("direct", 20.0)],
            };
            let svg = Picture::Lines(plot).svg().expect("drawn");
            for word in [
                "<svg",
                "</svg>",
                "Stored events a second",
                "Sluice",
                "direct",
                "100 k",
            ] {
                assert!(svg.contains(word), "{word}: {svg}");
            }
            assert!(
                svg.matches("<polyline").count() >= 4,
                "lines and their legends: {svg}"
            );
        }
    }

    #[test]
    fn a_plot_of_nothing_is_drawn_too() {
        let plot = Plot {
            title: "Nothing".into(),
            x: "x".into(),
            y: "y".into(),
            by_tens: true,
            lines: Vec::new(),
        };
        assert!(Picture::Lines(plot).svg().expect("drawn").contains("Nothing"));
        let bars = Bars {
            title: "Nothing".into(),
            unit: "µs".into(),
            bars: Vec::new(),
        };
        assert!(Picture::Bars(bars).svg().expect("drawn").contains("Nothing"));
    }

    #[test]
    fn every_bar_is_drawn_with_its_name_and_value() {
        let bars = Bars {
            title: "CPU an event".into(),
            unit: "µs".into(),
            bars: vec![("parse".into(), 1.5), ("encode".into(), 0.25)],
        };
        let svg = Picture::Bars(bars).svg().expect("drawn");
        for word in ["CPU an event", "parse", "encode", "1.5", "0.25", "µs"] {
            assert!(svg.contains(word), "{word}: {svg}");
        }
        assert!(svg.find("parse") > svg.find("encode"), "labels go upwards");
        let filled = COLOURS[0];
        let colour = format!("#{:02X}{:02X}{:02X}", filled.0, filled.1, filled.2);
        assert_eq!(svg.matches(&colour).count(), 2, "{svg}");
    }

    #[test]
    fn figures_are_short() {
        let told: Vec<String> = [0.0, 0.25, 12.0, 200_000.0, 1_500_000.0].map(short).into();
        assert_eq!(told, ["0", "0.25", "12", "200 k", "1.5 M"]);
    }
}
