//! Programs, libraries and data that building and the quickstart need.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::Check;
use crate::{dispatch::find_program, quickstart::checkout_around, verbs::Program};

/// LightGBM's build asks for it.
const CMAKE: (u32, u32) = (3, 28);
const PHOTOS: &str = "/usr/share/datasets/fashion-mnist";

pub(super) fn checks() -> Vec<Check> {
    let checkout = env::current_dir()
        .ok()
        .and_then(|here| checkout_around(&here));
    let mut checks = vec![programs()];
    match &checkout {
        Some(checkout) => checks.extend([
            toolchain(checkout),
            compiler(),
            cmake(checkout),
            libclang(),
            nextest(checkout),
            cargo_deny(checkout),
        ]),
        None => checks.push(Check::optional(
            "checkout",
            "the current directory is in no checkout: what building needs was not looked at",
            "change into a checkout of Marquee",
        )),
    }
    checks.extend([python(), photos(Path::new(PHOTOS))]);
    checks
}

fn programs() -> Check {
    let name = "programs";
    let missing: Vec<&str> = Program::OTHERS
        .into_iter()
        .filter(|program| find_program(*program).is_none())
        .map(Program::binary)
        .collect();
    if missing.is_empty() {
        let all = Program::OTHERS.map(Program::binary).join(", ");
        Check::ok(name, all)
    } else {
        let found = format!("without {}", missing.join(", "));
        Check::missing(name, found, "cargo build --release --workspace --bins")
    }
}

/// First line that a program prints about its version.
fn version(program: &Path, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().next()?.trim().to_owned();
    (output.status.success() && !line.is_empty()).then_some(line)
}

/// The first `major.minor` in a text.
fn major_minor(text: &str) -> Option<(u32, u32)> {
    text.split_whitespace().find_map(|word| {
        let mut numbers = word.split('.').map_while(|part| {
            let digits: String = part.chars().take_while(char::is_ascii_digit).collect();
            digits.parse().ok()
        });
        Some((numbers.next()?, numbers.next()?))
    })
}

fn toolchain(checkout: &Path) -> Check {
    let name = "rust toolchain";
    let wanted = fs::read_to_string(checkout.join("rust-toolchain.toml"))
        .ok()
        .and_then(|text| text.parse::<toml::Table>().ok())
        .and_then(|table| Some(table.get("toolchain")?.get("channel")?.as_str()?.to_owned()))
        .unwrap_or_default();
    let mend = format!("rustup toolchain install {wanted}");
    match version(Path::new("rustc"), &["--version"]) {
        Some(found) if major_minor(&found) >= major_minor(&wanted) => Check::ok(name, found),
        Some(found) => Check::missing(name, format!("{found}, wanted {wanted}"), mend),
        None => Check::missing(name, format!("no rustc, wanted {wanted}"), mend),
    }
}

fn compiler() -> Check {
    let name = "c++ compiler";
    version(Path::new("c++"), &["--version"]).map_or_else(
        || Check::missing(name, "no c++", "apt-get install build-essential"),
        |found| Check::ok(name, found),
    )
}

fn cmake(checkout: &Path) -> Check {
    let name = "cmake";
    let path = checkout.join(".venv/bin/cmake");
    match version(&path, &["--version"]) {
        Some(found) if major_minor(&found) >= Some(CMAKE) => {
            Check::ok(name, format!("{found} in .venv"))
        }
        Some(found) => Check::missing(
            name,
            format!("{found} in .venv, wanted {}.{}", CMAKE.0, CMAKE.1),
            "launch/setup",
        ),
        None => Check::missing(name, "no .venv/bin/cmake that runs", "launch/setup"),
    }
}

fn libclang() -> Check {
    let name = "libclang";
    let mut folders: Vec<PathBuf> = env::var_os("LIBCLANG_PATH")
        .into_iter()
        .map(PathBuf::from)
        .collect();
    folders.extend(
        children(Path::new("/usr/lib"))
            .into_iter()
            .map(|folder| folder.join("lib")),
    );
    folders.extend(
        [
            "/usr/lib",
            "/usr/lib64",
            "/usr/local/lib",
            "/usr/lib/x86_64-linux-gnu",
            "/usr/lib/aarch64-linux-gnu",
        ]
        .map(PathBuf::from),
    );
    // The development package's link: a bare `libclang-14.so.1` comes without the headers.
    let is_library = |path: &PathBuf| path.ends_with("libclang.so");
    let found = folders
        .iter()
        .flat_map(|folder| children(folder))
        .find(is_library);
    found.map_or_else(
        || Check::missing(name, "no libclang.so", "apt-get install libclang-dev"),
        |path| Check::ok(name, path.display().to_string()),
    )
}

/// What lies in a folder, sorted; nothing if it is not there.
fn children(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn nextest(checkout: &Path) -> Check {
    let name = "cargo-nextest";
    tool(checkout, "cargo-nextest", &["nextest", "--version"]).map_or_else(
        || Check::optional(name, "not there", "launch/test installs it"),
        |found| Check::ok(name, found),
    )
}

fn cargo_deny(checkout: &Path) -> Check {
    let name = "cargo-deny";
    tool(checkout, "cargo-deny", &["--version"]).map_or_else(
        || Check::optional(name, "not there", "launch/test installs it"),
        |found| Check::ok(name, found),
    )
}

fn tool(checkout: &Path, binary: &str, args: &[&str]) -> Option<String> {
    let own = checkout.join("target/tools/bin").join(binary);
    version(Path::new(binary), args).or_else(|| version(&own, args))
}

fn python() -> Check {
    let name = "python3";
    let mend = "apt-get install python3 python3-venv";
    match version(Path::new("python3"), &["--version"]) {
        Some(found) if major_minor(&found) >= Some((3, 9)) => Check::ok(name, found),
        Some(found) => Check::missing(name, format!("{found}, wanted 3.9"), mend),
        None => Check::missing(name, "no python3", mend),
    }
}

fn photos(folder: &Path) -> Check {
    let name = "product photos";
    if folder.is_dir() {
        Check::ok(name, folder.display().to_string())
    } else {
        Check::missing(
            name,
            format!("no {}", folder.display()),
            "apt-get install dataset-fashion-mnist, or use configs/world-procedural.toml",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_programs_print() {
        let check = |text, expected| assert_eq!(major_minor(text), expected, "{text}");
        check("cmake version 3.31.6", Some((3, 31)));
        check("rustc 1.95.0 (59807616e 2026-03-21)", Some((1, 95)));
        check("Python 3.11.7", Some((3, 11)));
        check("1.95.0", Some((1, 95)));
        check("nothing here", None);
    }

    #[test]
    fn a_missing_photo_folder_comes_with_its_mend() {
        let check = photos(Path::new("/nonexistent"));
        assert_eq!(check.state, super::super::State::Missing);
        assert!(check.mend.unwrap().contains("dataset-fashion-mnist"));
    }
}
