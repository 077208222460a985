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

/// Several lines with a legend, and axes from the least to the greatest value.
#[derive(Debug, Clone)]
pub struct Lines<'a> {
    /// Above the plot.
    pub title: &'a str,
    /// Below the horizontal axis.
    pub x: &'a str,
    /// Names and points (x, y), by rising x.
    pub lines: &'a [(&'a str, &'a [(f64, f64)])],
}

/// Colours that are told apart with any eyes, on dark and on light. Source: Okabe and Ito, "Color
/// Universal Design" (2008).
const COLOURS: [&str; 7] = [
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999999",
];

impl Lines<'_> {
    /// The plot as an SVG document.
    pub fn to_svg(&self) -> String {
        let points = || self.lines.iter().flat_map(|(_, points)| points.iter());
        let range = |of: fn(&(f64, f64)) -> f64| {
            let values = || points().map(of).filter(|value| value.is_finite());
            let least = values().fold(f64::INFINITY, f64::min);
            let greatest = values().fold(f64::NEG_INFINITY, f64::max);
            match greatest > least {
                true => (least, greatest),
                false if least.is_finite() => (least - 0.5, least + 0.5),
                false => (0.0, 1.0),
            }
        };
        let ((x_min, x_max), (y_min, y_max)) = (range(|point| point.0), range(|point| point.1));
        let legend = 18.0 * self.lines.len() as f64;
        let (left, right) = (MARGIN + 16.0, SIZE - 16.0);
        let (top, bottom) = (36.0, SIZE - MARGIN);
        let place = |(x, y): (f64, f64)| {
            let across = (x - x_min) / (x_max - x_min);
            let up = (y - y_min) / (y_max - y_min);
            (left + (right - left) * across, bottom - (bottom - top) * up)
        };
        let height = SIZE + legend;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {SIZE} {height}\" role=\"img\"><title>{0}</title><style>{STYLE}</style>\
             <text x=\"{1}\" y=\"20\" text-anchor=\"middle\" font-weight=\"600\">{0}</text>\
             <text x=\"{1}\" y=\"{2}\" text-anchor=\"middle\">{3}</text>",
            escape(self.title),
            SIZE / 2.0,
            SIZE - 8.0,
            escape(self.x),
        );
        for tick in 0..=4 {
            let share = f64::from(tick) / 4.0;
            let value = (
                x_min + share * (x_max - x_min),
                y_min + share * (y_max - y_min),
            );
            let (x, y) = place(value);
            // Writing to a string does not fail.
            let _ = write!(
                svg,
                "<path class=\"grid\" d=\"M{left} {y:.1}H{right}\"/>\
                 <text x=\"{x:.1}\" y=\"{below}\" text-anchor=\"middle\">{xt}</text>\
                 <text x=\"{beside}\" y=\"{y:.1}\" text-anchor=\"end\" dy=\"4\">{yt:.4}</text>",
                below = bottom + 16.0,
                beside = left - 4.0,
                xt = label(value.0),
                yt = value.1,
            );
        }
        for (at, (name, points)) in self.lines.iter().enumerate() {
            let colour = COLOURS[at % COLOURS.len()];
            let finite = points.iter().filter(|point| point.1.is_finite());
            let line: Vec<String> = finite
                .map(|point| place(*point))
                .map(|(x, y)| format!("{x:.1},{y:.1}"))
                .collect();
            let _ = write!(
                svg,
                "<polyline fill=\"none\" stroke-width=\"2\" stroke=\"{colour}\" points=\"{points}\"/>\
                 <path stroke-width=\"4\" stroke=\"{colour}\" d=\"M{left} {y}h18\"/>\
                 <text x=\"{x}\" y=\"{y}\" dy=\"4\">{name}</text>",
                points = line.join(" "),
                x = left + 26.0,
                y = SIZE + 18.0 * at as f64 + 6.0,
                name = escape(name),
            );
        }
        svg + "</svg>"
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

pub(crate) fn escape(text: &str) -> String {
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
    fn lines_reach_from_corner_to_corner_and_are_named() {
        let rising = [(10.0, 1.0), (20.0, 3.0)];
        let flat = [(10.0, 2.0), (20.0, 2.0), (20.0, f64::NAN)];
        let lines = Lines {
            title: "loss",
            x: "step",
            lines: &[("one", &rising), ("t&o", &flat)],
        };
        let svg = lines.to_svg();
        assert!(svg.contains("points=\"60.0,316.0 344.0,36.0\""), "{svg}");
        assert!(svg.contains("points=\"60.0,176.0 344.0,176.0\""), "{svg}");
        assert!(svg.contains(">one</text>") && svg.contains(">t&amp;o</text>"));
        let nothing = Lines {
            lines: &[],
            ..lines
        };
        assert!(nothing.to_svg().ends_with("</svg>"));
    }

    #[test]
    fn ceilings_are_round() {
        assert_eq!([0.18, 0.3, 7.0, 0.0].map(ceiling), [0.2, 0.4, 8.0, 1.0]);
    }
}
