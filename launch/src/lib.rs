//! The marquee front door: dispatches verbs to the programs, checks the machine, writes the report
