//! `marquee quickstart`: becomes the script `launch/quickstart` of the checkout around us.

use std::{
    env,
    ffi::OsString,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context;

/// Flags of `marquee quickstart`.
#[derive(Debug, clap::Args)]
pub struct QuickstartArgs {
    /// Flags of launch/quickstart: --small, --skip-build, --root DIR
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "FLAGS"
    )]
    flags: Vec<OsString>,
}

/// Becomes the script.
///
/// # Errors
/// If the current directory is in no checkout, or the script cannot be started.
pub fn run(args: QuickstartArgs) -> anyhow::Result<()> {
    let here = env::current_dir().context("finding the current directory")?;
    let checkout = checkout_around(&here).with_context(|| {
        let here = here.display();
        format!(
            "looking for launch/quickstart from {here} upwards: change into a checkout of Marquee"
        )
    })?;
    let script = checkout.join("launch/quickstart");
    let error = Command::new(&script).args(args.flags).exec();
    Err(error).with_context(|| format!("starting {}", script.display()))
}

/// The nearest folder at or above `from` that is a checkout of Marquee.
pub fn checkout_around(from: &Path) -> Option<PathBuf> {
    let is_checkout = |folder: &&Path| folder.join("launch/quickstart").is_file();
    from.ancestors().find(is_checkout).map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_checkout_is_found_from_a_folder_inside_it() {
        let top = tempfile::tempdir().unwrap();
        let inside = top.path().join("configs/movielens");
        fs::create_dir_all(&inside).unwrap();
        assert_eq!(checkout_around(&inside), None);
        fs::create_dir_all(top.path().join("launch")).unwrap();
        fs::write(top.path().join("launch/quickstart"), "").unwrap();
        assert_eq!(checkout_around(&inside), Some(top.path().to_owned()));
    }
}
