//! What every Marquee binary shares: configuration, logging, exit codes, data folder layout
