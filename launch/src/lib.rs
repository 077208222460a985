//! The `marquee` front door.
//!
//! A verb is looked up in [`verbs`]. A verb of another program is handed over, arguments and
//! all, by [`dispatch`]: the process becomes that program, so signals and exit codes are its
//! own. The verbs that stay here look at what the others left behind: [`registry_verbs`]
//! (artifacts and channels), [`report`] (the figures of all steps on one page), [`doctor`] (what
//! the machine lacks and the mend), [`completion`] and [`quickstart`]. The [`supervisor`] starts the
//! ranks of a training run and keeps it going.
//!
//! This crate knows files and their keys, not the code that wrote them: it depends on no model,
//! no pipeline and no server.

pub mod verbs;

pub mod args;
pub mod completion;
pub mod dispatch;
pub mod doctor;
pub mod help;
pub mod quickstart;
pub mod registry_verbs;
pub mod report;
pub mod supervisor;
mod text;
