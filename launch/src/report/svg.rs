//! Plots as inline SVG; colours come from the page's style, so that they follow its scheme.

use std::fmt::Write;

const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 48.0;
const BOTTOM: f64 = 36.0;
const TOP: f64 = 12.0;
const RIGHT: f64 = 12.0;

/// Axes from 0 to round numbers.
struct Frame {
    x_max: f64,
    y_max: f64,
    svg: String,
}

impl Frame {
    fn new(x_max: f64, y_max: f64, x: &str, y: &str) -> Self {
        let (x_max, y_max) = (ceiling(x_max), ceiling(y_max));
        let svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">");
        let mut frame = Self { x_max, y_max, svg };
        for tick in 0..=4 {
            let share = f64::from(tick) / 4.0;
            let (px, py) = frame.place(share * x_max, share * y_max);
            frame.add(format_args!(
                "<path class=\"grid\" d=\"M{LEFT} {py:.1}H{:.1}\"/><text x=\"{:.1}\" y=\"{:.1}\" class=\"end\">{}</text>\
                 <text x=\"{px:.1}\" y=\"{:.1}\" class=\"mid\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                py + 4.0,
                label(share * y_max),
                HEIGHT - BOTTOM + 16.0,
                label(share * x_max),
            ));
        }
        frame.add(format_args!(
            "<text x=\"{:.1}\" y=\"{:.1}\" class=\"mid quiet\">{x}</text><text x=\"{:.1}\" y=\"{TOP}\" class=\"quiet\">{y}</text>",
            (WIDTH + LEFT) / 2.0,
            HEIGHT - 4.0,
            LEFT + 4.0,
        ));
        frame
    }

    fn place(&self, x: f64, y: f64) -> (f64, f64) {
        let width = WIDTH - LEFT - RIGHT;
        let height = HEIGHT - TOP - BOTTOM;
        (
            LEFT + width * x / self.x_max,
            HEIGHT - BOTTOM - height * y / self.y_max,
        )
    }

    fn add(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = self.svg.write_fmt(text);
    }

    fn line(&mut self, class: &str, points: &[(f64, f64)]) {
        let places: Vec<String> = points
            .iter()
            .map(|(x, y)| self.place(*x, *y))
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        self.add(format_args!(
            "<polyline class=\"{class}\" points=\"{}\"/>",
            places.join(" ")
        ));
    }

    fn close(mut self) -> String {
        self.svg += "</svg>";
        self.svg
    }
}

/// Points joined by a line.
pub fn line(points: &[(f64, f64)], x: &str, y: &str) -> String {
    let mut frame = Frame::new(largest(points, |p| p.0), largest(points, |p| p.1), x, y);
    frame.line("line", points);
    frame.close()
}

/// Points against the diagonal where both axes agree.
pub fn reliability(points: &[(f64, f64)]) -> String {
    let top = largest(points, |p| p.0).max(largest(points, |p| p.1));
    let mut frame = Frame::new(top, top, "predicted", "observed");
    let end = frame.x_max;
    frame.line("ideal", &[(0.0, 0.0), (end, end)]);
    frame.line("line", points);
    for (x, y) in points {
        let (x, y) = frame.place(*x, *y);
        frame.add(format_args!(
            "<circle class=\"dot\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"/>"
        ));
    }
    frame.close()
}

/// Counts by the upper end of their bucket.
pub fn histogram(buckets: &[(f64, f64)], x: &str) -> String {
    let last = buckets
        .iter()
        .rposition(|(_, count)| *count > 0.0)
        .map_or(0, |at| (at + 2).min(buckets.len()));
    let buckets = &buckets[..last];
    let mut frame = Frame::new(
        largest(buckets, |p| p.0),
        largest(buckets, |p| p.1),
        x,
        "answers",
    );
    let mut from = 0.0;
    for (end, count) in buckets {
        let ((left, top), (right, bottom)) = (frame.place(from, *count), frame.place(*end, 0.0));
        frame.add(format_args!(
            "<rect class=\"bar\" x=\"{:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\"/>",
            left + 0.5,
            (right - left - 1.0).max(0.5),
            bottom - top,
        ));
        from = *end;
    }
    frame.close()
}

/// Named values as bars; the first is ours.
pub fn bars(values: &[(&str, f64)], digits: usize) -> String {
    let step = 34.0;
    let height = step * values.len() as f64 + 8.0;
    let top = values
        .iter()
        .map(|(_, value)| *value)
        .fold(0.0, f64::max)
        .max(1e-12);
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">");
    for (at, (name, value)) in values.iter().enumerate() {
        let y = 8.0 + step * at as f64;
        let width = (WIDTH - 210.0) * value / top;
        let class = if at == 0 { "bar" } else { "bar other" };
        let _ = write!(
            svg,
            "<text x=\"130\" y=\"{:.1}\" class=\"end\">{name}</text><rect class=\"{class}\" x=\"138\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"20\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{value:.digits$}</text>",
            y + 14.0,
            146.0 + width,
            y + 14.0,
        );
    }
    svg + "</svg>"
}

fn largest(points: &[(f64, f64)], part: impl Fn(&(f64, f64)) -> f64) -> f64 {
    points.iter().map(part).fold(0.0, f64::max)
}

/// A round number at or above a value.
fn ceiling(value: f64) -> f64 {
    if value <= 0.0 || !value.is_finite() {
        return 1.0;
    }
    let unit = 10f64.powf(value.log10().floor());
    let steps = [1.0, 1.2, 1.6, 2.0, 2.4, 3.2, 4.0, 5.0, 6.0, 8.0, 10.0];
    steps
        .into_iter()
        .map(|step| step * unit)
        .find(|top| *top >= value)
        .unwrap_or(10.0 * unit)
}

fn label(value: f64) -> String {
    if value == 0.0 || value >= 100.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.3}")
            .trim_end_matches('0')
            .trim_end_matches('.')
            .to_owned()
    }
}
