//! Hands a verb over to its program.

use std::{
    env,
    ffi::OsString,
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
};

use crate::verbs::{Program, nearest};

/// Why a verb could not be handed over.
#[derive(Debug, thiserror::Error)]
pub enum DispatchError {
    /// No program has this verb.
    #[error("unknown verb `{name}`{}; `marquee help` lists all", hint(name))]
    UnknownVerb {
        /// What was typed.
        name: String,
    },
    /// The program is neither beside `marquee` nor on the PATH.
    #[error(
        "program `{program}` is neither in {} nor on the PATH: build it with `cargo build --release -p {program}`",
        beside.display()
    )]
    NoProgram {
        /// The binary.
        program: &'static str,
        /// The folder of `marquee`.
        beside: PathBuf,
    },
    /// The system refused to start the program.
    #[error("starting {}", path.display())]
    Start {
        /// The binary.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

fn hint(name: &str) -> String {
    nearest(name).map_or_else(String::new, |verb| {
        format!(": did you mean `{}`?", verb.name)
    })
}

/// Becomes the program, with these arguments from the verb on. Returns only if that fails.
pub fn hand_over(program: Program, args: &[OsString]) -> DispatchError {
    let beside = own_folder();
    let Some(path) = locate(program.binary(), &beside, env::var_os("PATH")) else {
        return DispatchError::NoProgram {
            program: program.binary(),
            beside,
        };
    };
    let source = Command::new(&path).args(args).exec();
    DispatchError::Start { path, source }
}

/// Where a program is: beside `marquee`, else on the PATH.
pub fn find_program(program: Program) -> Option<PathBuf> {
    locate(program.binary(), &own_folder(), env::var_os("PATH"))
}

fn own_folder() -> PathBuf {
    env::current_exe()
        .ok()
        .and_then(|path| path.parent().map(Path::to_owned))
        .unwrap_or_default()
}

fn locate(binary: &str, beside: &Path, path: Option<OsString>) -> Option<PathBuf> {
    let on_path = path.iter().flat_map(env::split_paths).collect::<Vec<_>>();
    std::iter::once(beside.to_owned())
        .chain(on_path)
        .map(|folder| folder.join(binary))
        .find(|candidate| candidate.is_file())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_program_beside_wins_over_the_one_on_the_path() {
        let (beside, far) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(far.path().join("p"), "").unwrap();
        let path = Some(far.path().as_os_str().to_owned());
        let found = |path| locate("p", beside.path(), path);
        assert_eq!(found(path.clone()), Some(far.path().join("p")));
        fs::write(beside.path().join("p"), "").unwrap();
        assert_eq!(found(path), Some(beside.path().join("p")));
        assert_eq!(found(None), Some(beside.path().join("p")));
    }

    #[test]
    fn a_program_that_is_nowhere_is_not_found() {
        assert_eq!(
            locate("marquee-nowhere", Path::new("/nonexistent"), None),
            None
        );
    }
}
