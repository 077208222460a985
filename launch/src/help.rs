//! `marquee help`.

use std::fmt::Write;

use crate::verbs::GROUPS;

/// The help page: all verbs in data-flow order, the flags they share, and the exit codes.
pub fn page() -> String {
    let mut page = "\
Marquee: visual ads in immersive worlds, from the event log to the auction.

Usage: marquee VERB [ARGUMENTS]
"
    .to_owned();
    for group in GROUPS {
        // Writing to a string does not fail.
        let _ = writeln!(page, "\n{}", group.title);
        for verb in group.verbs {
            let _ = writeln!(page, "  {:<11} {}", verb.name, verb.about);
            if !verb.subverbs.is_empty() {
                let names: Vec<&str> = verb.subverbs.iter().map(|(name, _)| *name).collect();
                let _ = writeln!(page, "  {:<11}   {}", "", names.join(" | "));
            }
        }
    }
    page += "
Flags that verbs share
  CONFIG, --config PATH  configuration file (TOML), for example configs/ctr.toml
  --set a.b=VALUE        override one key (repeatable)
  --print-config         print the configuration as it would be used, and stop
  --seed N               seed of every random stream
  --root DIR             data folder [env MARQUEE_ROOT, default data]
  --json                 results as JSON, no progress bars
  -v, -vv                more log lines on stderr
  --help                 flags of a verb: `marquee help VERB`

Exit codes
  0   done
  1   failed; stderr says why
  2   wrong command line or configuration
  3   a gate refused the result
  75  preempted with its state saved: run the same command again to go on

Start here: `marquee doctor`, then `launch/quickstart`.";
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_names_every_verb_in_data_flow_order() {
        let page = page();
        let mut from = 0;
        for verb in crate::verbs::all() {
            let line = format!("\n  {:<11} {}", verb.name, verb.about);
            let at = page[from..].find(&line);
            from += at.unwrap_or_else(|| panic!("{} is missing or out of order", verb.name));
        }
    }

    #[test]
    fn the_page_names_every_exit_code() {
        use cli::exit::{FAILURE, GATE, OK, RESUME, USAGE};
        for code in [OK, FAILURE, USAGE, GATE, RESUME] {
            assert!(page().contains(&format!("\n  {code:<3} ")), "{code}");
        }
    }
}
