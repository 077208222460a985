//! Plots with two axes as inline SVG, coloured by the page's style.

use std::fmt::Write;

use super::escape;

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 330.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 18.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 50.0;

/// One axis.
pub(super) struct Axis {
    pub label: &'static str,
    pub from: f64,
    pub to: f64,
    pub logarithmic: bool,
    /// How a tick is written.
    pub text: fn(f64) -> String,
}

impl Axis {
    pub fn linear(label: &'static str, from: f64, to: f64, text: fn(f64) -> String) -> Self {
        // An axis without extent would divide by zero.
        let to = if to > from { to } else { from + 1.0 };
        Self {
            label,
            from,
            to,
            logarithmic: false,
            text,
        }
    }

    pub fn logarithmic(label: &'static str, from: f64, to: f64, text: fn(f64) -> String) -> Self {
        let from = from.max(1e-9);
        Self {
            logarithmic: true,
            ..Self::linear(label, from, to.max(from * 2.0), text)
        }
    }

    /// Place of a value, 0 at the start of the axis and 1 at its end.
    fn share(&self, value: f64) -> f64 {
        let place = if self.logarithmic {
            (value.max(self.from) / self.from).ln() / (self.to / self.from).ln()
        } else {
            (value - self.from) / (self.to - self.from)
        };
        place.clamp(-0.02, 1.02)
    }

    fn ticks(&self) -> Vec<f64> {
        if self.logarithmic {
            let steps =
                [1.0, 2.0, 5.0].map(|step| (-6..7).map(move |power| step * 10f64.powi(power)));
            let mut ticks: Vec<f64> = steps.into_iter().flatten().collect();
            ticks.retain(|tick| (self.from..=self.to).contains(tick));
            ticks.sort_by(f64::total_cmp);
            return ticks;
        }
        let step = nice_step((self.to - self.from) / 5.0);
        let first = (self.from / step).ceil() as i64;
        let last = (self.to / step + 1e-9).floor() as i64;
        (first..=last).map(|at| at as f64 * step).collect()
    }
}

/// 1, 2 or 5 times a power of ten, near `rough`.
fn nice_step(rough: f64) -> f64 {
    let power = 10f64.powf(rough.log10().floor());
    let factor = match rough / power {
        share if share < 1.5 => 1.0,
        share if share < 3.5 => 2.0,
        share if share < 7.5 => 5.0,
        _ => 10.0,
    };
    factor * power
}

/// A plot in the making.
pub(super) struct Plot {
    x: Axis,
    y: Axis,
    svg: String,
}

// Writing to a string does not fail: results of `write!` are dropped.
impl Plot {
    /// Axes and grid; `told` says in words what is to be seen.
    pub fn new(x: Axis, y: Axis, told: &str) -> Self {
        let told = escape(told);
        let mut plot = Self {
            x,
            y,
            svg: format!(
                "<svg class=\"plot\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{told}\">"
            ),
        };
        plot.grid();
        plot
    }

    fn grid(&mut self) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for tick in self.y.ticks() {
            let y = self.at_y(tick);
            let text = (self.y.text)(tick);
            let _ = write!(
                self.svg,
                "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{right}\"/>\
                 <text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
                LEFT - 9.0,
                y + 4.0
            );
        }
        for tick in self.x.ticks() {
            let x = self.at_x(tick);
            let text = (self.x.text)(tick);
            let _ = write!(
                self.svg,
                "<path class=\"axis\" d=\"M{x:.1} {bottom}v5\"/>\
                 <text class=\"tick\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{text}</text>",
                bottom + 20.0
            );
        }
        let _ = write!(
            self.svg,
            "<path class=\"axis\" d=\"M{LEFT} {bottom}H{right}\"/>\
             <text class=\"label\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
             <text class=\"label\" transform=\"translate(13 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            (LEFT + right) / 2.0,
            HEIGHT - 8.0,
            escape(self.x.label),
            (TOP + bottom) / 2.0,
            escape(self.y.label),
        );
    }

    fn at_x(&self, value: f64) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * self.x.share(value)
    }

    fn at_y(&self, value: f64) -> f64 {
        HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * self.y.share(value)
    }

    /// A line through points.
    pub fn line(&mut self, points: &[(f64, f64)], class: &str) {
        let path: Vec<String> = points
            .iter()
            .map(|&(x, y)| format!("{:.1} {:.1}", self.at_x(x), self.at_y(y)))
            .collect();
        if !path.is_empty() {
            let _ = write!(
                self.svg,
                "<path class=\"{class}\" d=\"M{}\"/>",
                path.join("L")
            );
        }
    }

    /// A dot that tells about itself.
    pub fn dot(&mut self, x: f64, y: f64, radius: f64, class: &str, told: &str) {
        let _ = write!(
            self.svg,
            "<circle class=\"{class}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"{radius:.1}\"><title>{}</title></circle>",
            self.at_x(x),
            self.at_y(y),
            escape(told)
        );
    }

    /// A bar from the horizontal axis up to `y`.
    pub fn bar(&mut self, from: f64, to: f64, y: f64, class: &str, told: &str) {
        let (left, right, top) = (self.at_x(from), self.at_x(to), self.at_y(y));
        let _ = write!(
            self.svg,
            "<rect class=\"{class}\" x=\"{:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"2\"><title>{}</title></rect>",
            left + 1.0,
            (right - left - 2.0).max(1.0),
            (HEIGHT - BOTTOM - top).max(0.0),
            escape(told)
        );
    }

    /// A horizontal rule with its name at the right, above or below the rule.
    pub fn level(&mut self, y: f64, class: &str, name: &str, above: bool) {
        let (at, right) = (self.at_y(y), WIDTH - RIGHT);
        let beside = if above { at - 6.0 } else { at + 15.0 };
        let _ = write!(
            self.svg,
            "<path class=\"{class}\" d=\"M{LEFT} {at:.1}H{right}\"/>\
             <text class=\"note\" x=\"{right}\" y=\"{beside:.1}\" text-anchor=\"end\">{}</text>",
            escape(name)
        );
    }

    /// A vertical rule with its name beside its upper end, `row` lines down.
    pub fn mark(&mut self, x: f64, class: &str, name: &str, row: u32) {
        let (at, bottom) = (self.at_x(x), HEIGHT - BOTTOM);
        let (anchor, shift) = if at > WIDTH - 140.0 {
            ("end", -6.0)
        } else {
            ("start", 6.0)
        };
        let _ = write!(
            self.svg,
            "<path class=\"{class}\" d=\"M{at:.1} {TOP}V{bottom}\"/>\
             <text class=\"note\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
            at + shift,
            TOP + 11.0 + 17.0 * f64::from(row),
            escape(name)
        );
    }

    /// The finished SVG.
    pub fn finish(self) -> String {
        self.svg + "</svg>"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: f64) -> String {
        format!("{value:.1}")
    }

    #[test]
    fn ticks_are_round_and_inside() {
        let check = |axis: Axis, expected: &[f64]| {
            let ticks = axis.ticks();
            assert_eq!(ticks.len(), expected.len(), "{ticks:?}");
            for (tick, expected) in ticks.iter().zip(expected) {
                assert!((tick - expected).abs() < 1e-9, "{ticks:?}");
            }
        };
        check(
            Axis::linear("", 0.0, 1.0, text),
            &[0.0, 0.2, 0.4, 0.6, 0.8, 1.0],
        );
        check(
            Axis::linear("", 0.31, 0.36, text),
            &[0.31, 0.32, 0.33, 0.34, 0.35, 0.36],
        );
        check(
            Axis::logarithmic("", 0.4, 12.0, text),
            &[0.5, 1.0, 2.0, 5.0, 10.0],
        );
    }

    #[test]
    fn an_axis_without_extent_still_draws() {
        let axis = || Axis::linear("", 3.0, 3.0, text);
        let mut plot = Plot::new(axis(), axis(), "one point");
        plot.dot(3.0, 3.0, 2.0, "dot", "");
        assert!(!plot.finish().contains("NaN"));
    }
}
