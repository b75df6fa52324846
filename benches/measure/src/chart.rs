//! Measurements as SVG: TOPS over sequence length, under the hardware's limits; and errors.

use std::ops::Range;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::prelude::*;

use crate::limits::Limits;
use crate::{Accuracy, Case, Error, Measurement, Mode, Part, Report};

const PANEL: (u32, u32) = (640, 520);
const LEGEND: u32 = 230;
const FONT: &str = "sans-serif";
/// Okabe and Ito's colours, which colour-blind readers can tell apart.
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
];

type Drawn = Result<(), Box<dyn std::error::Error>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// A linear axis with ticks at these places, and nowhere else.
struct Ticks {
    range: Range<f64>,
    at: Vec<f64>,
}

impl Ranged for Ticks {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, place: &f64, (start, end): (i32, i32)) -> i32 {
        let fraction = (place - self.range.start) / (self.range.end - self.range.start);
        start + (f64::from(end - start) * fraction).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.at.clone()
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

/// Every chart of a report: its name and the SVG.
///
/// # Errors
///
/// If one can't be drawn.
pub fn all(report: &Report) -> Result<Vec<(String, String)>, Error> {
    let limits = report.device.multiprocessors.zip(report.device.clock_ghz);
    let limits = limits.map(|(multiprocessors, clock_ghz)| Limits { multiprocessors, clock_ghz });
    let mut charts = Vec::new();
    let with_tops = report.measurements.iter().filter(|measurement| measurement.tops.is_some());
    let mut groups: Vec<(usize, &str)> = Vec::new();
    for Measurement { case, .. } in with_tops.clone() {
        if !groups.contains(&(case.head_dim, case.mask)) {
            groups.push((case.head_dim, case.mask));
        }
    }
    for (head_dim, mask) in groups {
        let is_member = |case: &Case| (case.head_dim, case.mask) == (head_dim, mask);
        let group: Vec<_> = with_tops.clone().filter(|measurement| is_member(&measurement.case)).collect();
        let title = format!("{}, head_dim {head_dim}, {}", report.device.name, mask_title(mask));
        charts.push((format!("d{head_dim}-{mask}"), throughput(&title, &group, limits)?));
    }
    if !report.accuracy.is_empty() {
        charts.push(("accuracy".into(), accuracy(&report.device.name, &report.accuracy)?));
    }
    Ok(charts)
}

fn mask_title(mask: &str) -> &str {
    if mask == "full" { "no mask" } else { mask }
}

/// TOPS over sequence length: a panel a mode, a line a contender and part, with the range of the samples.
fn throughput(title: &str, measurements: &[&Measurement], limits: Option<Limits>) -> Result<String, Error> {
    let modes = [Mode::Burst, Mode::Sustained].map(|mode| {
        let of_mode = measurements.iter().copied().filter(|measurement| measurement.mode == mode);
        (mode, of_mode.collect::<Vec<_>>())
    });
    let modes: Vec<_> = modes.into_iter().filter(|(_, of_mode)| !of_mode.is_empty()).collect();
    let head_dim = measurements.first().map_or(0, |measurement| measurement.case.head_dim);
    let ceilings = limits.map_or(Vec::new(), |limits| ceilings(limits, head_dim));
    let series = series(measurements);
    let highest = measurements.iter().filter_map(|measurement| Some(measurement.tops_range()?[1]));
    let highest = ceilings.iter().map(|(_, tops)| *tops).chain(highest).fold(0.0, f64::max);

    let width = PANEL.0 * modes.len() as u32;
    svg(title, (width + LEGEND, PANEL.1), |area| {
        let (panels, legend) = area.split_horizontally(width);
        for (panel, (mode, of_mode)) in panels.split_evenly((1, modes.len())).iter().zip(&modes) {
            draw_panel(panel, mode.name(), of_mode, &series, &ceilings, 1.08 * highest)?;
        }
        draw_legend(&legend, series.iter().map(|(contender, part)| format!("{contender}, {}", part.name())))
    })
}

/// What the hardware allows: the tensor cores, and the exponentials where they allow less.
fn ceilings(limits: Limits, head_dim: usize) -> Vec<(String, f64)> {
    let [tensor_cores, exponentials] = [limits.tensor_cores(8), limits.exponentials(head_dim)];
    let mut ceilings = vec![("8-bit tensor cores", tensor_cores)];
    if exponentials < tensor_cores {
        ceilings.push(("exponentials", exponentials));
    }
    let label = |(name, tops): (&str, f64)| (format!("{name} at {} GHz: {tops:.0}", limits.clock_ghz), tops);
    ceilings.into_iter().map(label).collect()
}

/// The lines of a chart, in the order of their colours.
fn series(measurements: &[&Measurement]) -> Vec<(String, Part)> {
    let mut series = Vec::new();
    for Measurement { case, .. } in measurements {
        let line = (case.contender.clone(), case.part);
        if !series.contains(&line) {
            series.push(line);
        }
    }
    series
}

fn draw_panel(
    area: &Area,
    mode: &str,
    measurements: &[&Measurement],
    series: &[(String, Part)],
    ceilings: &[(String, f64)],
    top: f64,
) -> Drawn {
    let octave = |length: usize| (length as f64).log2();
    let mut octaves: Vec<f64> = measurements.iter().map(|measurement| octave(measurement.case.length)).collect();
    octaves.sort_by(f64::total_cmp);
    octaves.dedup();
    let (Some(first), Some(last)) = (octaves.first(), octaves.last()) else { return Ok(()) };
    let range: Range<f64> = first - 0.3..last + 0.3;

    let x = Ticks { range: range.clone(), at: octaves };
    let mut chart = ChartBuilder::on(area)
        .caption(mode, (FONT, 16))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d(x, 0.0..top)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_label_formatter(&|octave| length_label(octave.exp2()))
        .y_label_formatter(&|tops| if top < 10.0 { format!("{tops:.2}") } else { format!("{tops:.0}") })
        .x_desc("sequence length")
        .y_desc("TOPS")
        .label_style((FONT, 13))
        .axis_desc_style((FONT, 14))
        .draw()?;

    for (label, tops) in ceilings {
        let ends = [(range.start, *tops), (range.end, *tops)];
        chart.draw_series(DashedLineSeries::new(ends, 6, 4, BLACK.mix(0.6).stroke_width(1)))?;
        let above = (range.start + 0.02 * (range.end - range.start), tops + 0.03 * top);
        chart.draw_series([Text::new(label.clone(), above, (FONT, 13).into_font())])?;
    }
    for (index, (contender, part)) in series.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let mut points: Vec<_> = measurements
            .iter()
            .filter(|measurement| (&measurement.case.contender, measurement.case.part) == (contender, *part))
            .filter_map(|measurement| {
                Some((octave(measurement.case.length), measurement.tops?, measurement.tops_range()?))
            })
            .collect();
        points.sort_by(|one, other| one.0.total_cmp(&other.0));
        if points.is_empty() {
            continue;
        }
        let line = LineSeries::new(points.iter().map(|&(x, tops, _)| (x, tops)), colour.stroke_width(2));
        chart.draw_series(line)?;
        chart.draw_series(points.iter().map(|&(x, tops, _)| Circle::new((x, tops), 3, colour.filled())))?;
        chart.draw_series(
            points.iter().map(|&(x, _, [low, high])| PathElement::new([(x, low), (x, high)], colour.stroke_width(5))),
        )?;
    }
    Ok(())
}

/// The colours, in their order, and what each stands for.
fn draw_legend(area: &Area, labels: impl IntoIterator<Item = String>) -> Drawn {
    for (index, label) in labels.into_iter().enumerate() {
        let (y, colour) = (50 + 22 * index as i32, COLOURS[index % COLOURS.len()]);
        area.draw(&Rectangle::new([(4, y - 2), (22, y + 2)], colour.filled()))?;
        area.draw(&Text::new(label, (30, y - 7), (FONT, 13).into_font()))?;
    }
    Ok(())
}

/// `16384` as `16k`.
fn length_label(length: f64) -> String {
    let length = length.round() as u64;
    if length >= 1024 && length.is_multiple_of(1024) { format!("{}k", length / 1024) } else { length.to_string() }
}

/// A bar a call: its relative L1 against the exact result.
fn accuracy(device: &str, accuracy: &[Accuracy]) -> Result<String, Error> {
    let title = format!("{device}: relative L1 against exact attention (lower is better)");
    let highest = accuracy.iter().map(|bar| bar.relative_l1).fold(0.0, f64::max);
    let mut contenders: Vec<&str> = Vec::new();
    for Accuracy { case, .. } in accuracy {
        if !contenders.contains(&&*case.contender) {
            contenders.push(&case.contender);
        }
    }
    let label = |bar: &Accuracy| {
        format!("D={} {}, {}", bar.case.head_dim, mask_title(bar.case.mask), length_label(bar.case.length as f64))
    };
    let count = accuracy.len() as f64;
    let width = PANEL.0.max(130 * accuracy.len() as u32);
    svg(&title, (width + LEGEND, PANEL.1), |area| {
        let (panel, legend) = area.split_horizontally(width);
        let x = Ticks { range: 0.0..count, at: (0..accuracy.len()).map(|place| place as f64 + 0.5).collect() };
        let mut chart = ChartBuilder::on(&panel)
            .margin(12)
            .x_label_area_size(30)
            .y_label_area_size(64)
            .build_cartesian_2d(x, 0.0..1.15 * highest.max(f64::MIN_POSITIVE))?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .x_label_formatter(&|place| accuracy.get(*place as usize).map_or(String::new(), label))
            .y_label_formatter(&|error| format!("{error:.4}"))
            .label_style((FONT, 13))
            .draw()?;
        for (place, bar) in accuracy.iter().enumerate() {
            let (place, error) = (place as f64, bar.relative_l1);
            let colour = contenders.iter().position(|contender| *contender == bar.case.contender).unwrap_or(0);
            let style = COLOURS[colour % COLOURS.len()].filled();
            chart.draw_series([Rectangle::new([(place + 0.2, 0.0), (place + 0.8, error)], style)])?;
            let above = (place + 0.38, error + 0.04 * highest);
            chart.draw_series([Text::new(format!("{error:.4}"), above, (FONT, 13).into_font())])?;
        }
        draw_legend(&legend, contenders.iter().map(ToString::to_string))
    })
}

/// A picture of this size with a title.
fn svg(title: &str, size: (u32, u32), draw: impl FnOnce(&Area) -> Drawn) -> Result<String, Error> {
    let mut text = String::new();
    let drawn = (|| {
        let root = SVGBackend::with_string(&mut text, size).into_drawing_area();
        root.fill(&WHITE)?;
        draw(&root.titled(title, (FONT, 18))?)?;
        root.present()?;
        Ok(())
    })();
    drawn
        .map_err(|error: Box<dyn std::error::Error>| Error::Draw { title: title.into(), reason: error.to_string() })?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::made_up;

    fn chart(report: &Report, name: &str) -> String {
        all(report).unwrap().into_iter().find(|(other, _)| other == name).unwrap().1
    }

    #[test]
    fn a_chart_says_what_it_shows() {
        let svg = chart(&made_up::report(), "d64-causal");
        for text in [
            "Made-up &lt;GPU&gt;, head_dim 64, causal",
            "burst",
            "sustained",
            "int8-fp8, attention",
            "int8-fp8, end-to-end",
            "torch-cudnn-f16, attention",
            "8-bit tensor cores at 1.98 GHz: 2141",
            "exponentials at 1.98 GHz: 1071",
            "1k",
            "16k",
        ] {
            assert!(svg.contains(text), "{text}");
        }
        assert!(!svg.contains("quantization"), "has no TOPS");
        assert!(!chart(&made_up::report(), "d128-full").contains("exponentials"), "allow as much as the tensor cores");
    }

    #[test]
    fn one_length_of_one_mode_on_an_unknown_device() {
        let mut report = made_up::report();
        report.device = Default::default();
        report.measurements.retain(|measurement| measurement.case.length == 4096 && measurement.mode == Mode::Burst);
        let svg = chart(&report, "d128-full");
        assert!(svg.contains("4k") && !svg.contains("sustained") && !svg.contains("tensor cores"));
    }

    #[test]
    fn bars_of_errors() {
        let svg = chart(&made_up::report(), "accuracy");
        for text in ["D=128 no mask, 4k", "D=128 causal, 4k", "0.0388", "int8-fp8", "relative L1"] {
            assert!(svg.contains(text), "{text}");
        }
    }

    #[test]
    fn nothing_measured_is_no_chart() {
        assert_eq!(all(&Report::default()).unwrap(), []);
    }
}
