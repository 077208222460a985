//! Small SVG plots that follow the reader's light or dark scheme.

use std::fmt::Write;

const SIZE: f64 = 360.0;
const MARGIN: f64 = 44.0;

const STYLE: &str = "text{font:12px system-ui,sans-serif;fill:#444}.axis{stroke:#999;fill:none}\
.grid{stroke:#8884;fill:none}.ideal{stroke:#999;stroke-dasharray:4 4}.line{stroke:#2a78d6;fill:none;stroke-width:2}\
.dot{fill:#2a78d6}@media(prefers-color-scheme:dark){text{fill:#ccc}.line{stroke:#6cb1ff}.dot{fill:#6cb1ff}}";

/// A line through points, with axes from 0 to the largest value.
#[derive(Debug, Clone)]
pub struct Plot<'a> {
    /// Above the plot.
    pub title: &'a str,
    /// Below the horizontal axis.
    pub x: &'a str,
    /// Beside the vertical axis.
    pub y: &'a str,
    /// (x, y), by rising x.
    pub points: &'a [(f64, f64)],
    /// Whether to draw the diagonal where y equals x, and give both axes one scale.
    pub diagonal: bool,
    /// Whether to mark each point.
    pub dots: bool,
}

impl Plot<'_> {
    /// The plot as an SVG document.
    pub fn to_svg(&self) -> String {
        let largest = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, f64::max);
        let mut x_max = ceiling(largest(&mut self.points.iter().map(|point| point.0)));
        let mut y_max = ceiling(largest(&mut self.points.iter().map(|point| point.1)));
        if self.diagonal {
            x_max = x_max.max(y_max);
            y_max = x_max;
        }
        let span = SIZE - 2.0 * MARGIN;
        let place = |x: f64, y: f64| (MARGIN + span * x / x_max, SIZE - MARGIN - span * y / y_max);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {SIZE} {SIZE}\" role=\"img\"><title>{0}</title><style>{STYLE}</style>\
             <text x=\"{1}\" y=\"20\" text-anchor=\"middle\" font-weight=\"600\">{0}</text>",
            escape(self.title),
            SIZE / 2.0,
        );
        for tick in 0..=4 {
            let share = f64::from(tick) / 4.0;
            let (x, y) = place(share * x_max, share * y_max);
            let (left, bottom) = (MARGIN, SIZE - MARGIN);
            // Writing to a string does not fail.
            let _ = write!(
                svg,
                "<path class=\"grid\" d=\"M{left} {y:.1}H{right}M{x:.1} {MARGIN}V{bottom}\"/>\
                 <text x=\"{x:.1}\" y=\"{below}\" text-anchor=\"middle\">{xt}</text>\
                 <text x=\"{beside}\" y=\"{y:.1}\" text-anchor=\"end\" dy=\"4\">{yt}</text>",
                right = SIZE - MARGIN,
                below = bottom + 16.0,
                beside = left - 5.0,
                xt = label(share * x_max),
                yt = label(share * y_max),
            );
        }
        if self.diagonal {
            let ((x0, y0), (x1, y1)) = (place(0.0, 0.0), place(x_max, y_max));
            let _ = write!(
                svg,
                "<path class=\"ideal\" d=\"M{x0:.1} {y0:.1}L{x1:.1} {y1:.1}\"/>"
            );
        }
        let places: Vec<(f64, f64)> = self.points.iter().map(|(x, y)| place(*x, *y)).collect();
        let line: Vec<String> = places
            .iter()
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        let _ = write!(
            svg,
            "<polyline class=\"line\" points=\"{}\"/>",
            line.join(" ")
        );
        for (x, y) in places.iter().filter(|_| self.dots) {
            let _ = write!(
                svg,
                "<circle class=\"dot\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"/>"
            );
        }
        let _ = write!(
            svg,
            "<text x=\"{0}\" y=\"{1}\" text-anchor=\"middle\">{2}</text>\
             <text transform=\"translate(12 {0}) rotate(-90)\" text-anchor=\"middle\">{3}</text></svg>",
            SIZE / 2.0,
            SIZE - 8.0,
            escape(self.x),
            escape(self.y),
        );
        svg
    }
}

/// A round number at or above a value.
fn ceiling(value: f64) -> f64 {
    if value <= 0.0 || !value.is_finite() {
        return 1.0;
    }
    let unit = 10f64.powf(value.log10().floor());
    [1.0, 2.0, 4.0, 5.0, 8.0, 10.0]
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

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_land_inside_the_frame_and_text_is_escaped() {
        let points = [(0.0, 0.0), (0.3, 0.18)];
        let plot = Plot {
            title: "a < b",
            x: "p",
            y: "q",
            points: &points,
            diagonal: true,
            dots: true,
        };
        let svg = plot.to_svg();
        assert!(svg.contains("a &lt; b") && svg.contains("prefers-color-scheme"));
        // 0.3 of 0.4 lies at three quarters of the span.
        assert!(svg.contains("cx=\"248.0\""), "{svg}");
    }

    #[test]
    fn ceilings_are_round() {
        assert_eq!([0.18, 0.3, 7.0, 0.0].map(ceiling), [0.2, 0.4, 8.0, 1.0]);
    }
}
