//! Horizontal bars with their names and figures.

use std::fmt::Write;

use super::escape;

/// One bar.
pub(super) struct Bar {
    pub name: String,
    /// Length, in the unit that `bars` is told the largest of.
    pub value: f64,
    /// What stands at its end.
    pub text: String,
    /// Colour: `model`, `best`, `base`, `good` or `bad`.
    pub class: &'static str,
}

/// Bars over one scale from 0 to `most`.
pub(super) fn bars(bars: &[Bar], most: f64) -> String {
    let mut html = "<div class=\"bars\">".to_owned();
    for Bar {
        name,
        value,
        text,
        class,
    } in bars
    {
        let share = if most > 0.0 {
            (100.0 * value / most).clamp(0.0, 100.0)
        } else {
            0.0
        };
        // Writing to a string does not fail.
        let _ = write!(
            html,
            "<span class=\"bar-name\">{}</span><span class=\"track\"><i class=\"{class}\" style=\"width:{share:.2}%\"></i></span>\
             <span class=\"bar-text\">{}</span>",
            escape(name),
            escape(text)
        );
    }
    html + "</div>"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_shares_of_the_largest() {
        let bar = |value| Bar {
            name: "a".into(),
            value,
            text: String::new(),
            class: "model",
        };
        let html = bars(&[bar(1.0), bar(4.0), bar(9.0)], 4.0);
        assert!(
            html.contains("width:25.00%") && html.contains("width:100.00%"),
            "{html}"
        );
        assert!(bars(&[bar(1.0)], 0.0).contains("width:0.00%"));
    }
}
