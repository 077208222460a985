//! What all HTML pages of the trainer begin with.

use crate::plot::escape;

const STYLE: &str = "body{font:14px system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:#222;background:#fff}\
table{border-collapse:collapse;margin:1rem 0}td,th{border-bottom:1px solid #8884;padding:.3rem .8rem;text-align:left}\
td+td{font-variant-numeric:tabular-nums}.plots{display:flex;flex-wrap:wrap;gap:1rem}svg{width:24rem}\
.passed{color:#087f23}.refused{color:#b00020}\
@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}.passed{color:#6fdc8c}.refused{color:#ff8389}}";

/// A page up to its heading.
pub(crate) fn begin(title: &str) -> String {
    let title = escape(title);
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title><style>{STYLE}</style><h1>{title}</h1>"
    )
}
