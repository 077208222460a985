//! Disk, memory, cores, ports and GPU.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
};

use super::Check;
use crate::text::bytes;

/// A build folder and a quickstart's data.
const DISK_BYTES: u64 = 12 << 30;
/// The linker of the pipeline is the hungriest step.
const MEMORY_BYTES: u64 = 4 << 30;

pub(super) fn checks(root: &Path) -> Vec<Check> {
    let mut checks = vec![cores(), memory(), disk(root)];
    checks.extend(ports(Path::new("configs/serving.toml")));
    checks.push(gpu());
    checks
}

fn cores() -> Check {
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    Check::ok("cores", count.to_string())
}

fn memory() -> Check {
    let name = "memory";
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    match meminfo(&text, "MemAvailable") {
        Some(free) if free >= MEMORY_BYTES => Check::ok(name, format!("{} free", bytes(free))),
        Some(free) => Check::missing(
            name,
            format!("{} free, wanted {}", bytes(free), bytes(MEMORY_BYTES)),
            "end other programs, or build with CARGO_BUILD_JOBS=1",
        ),
        None => Check::optional(name, "/proc/meminfo does not tell", "none needed"),
    }
}

/// One line of /proc/meminfo in bytes.
fn meminfo(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(key))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

fn disk(root: &Path) -> Check {
    let name = "disk";
    let Some((folder, free)) = free_space(root) else {
        return Check::optional(name, "the system does not tell", "none needed");
    };
    let found = format!("{} free at {}", bytes(free), folder.display());
    if free >= DISK_BYTES {
        Check::ok(name, found)
    } else {
        let found = format!("{found}, wanted {}", bytes(DISK_BYTES));
        Check::missing(
            name,
            found,
            "free some space, or name another folder with --root",
        )
    }
}

/// Free bytes on the file system of a folder, or of the nearest folder above it that is there.
fn free_space(root: &Path) -> Option<(PathBuf, u64)> {
    let root = std::path::absolute(root).ok()?;
    let folder = root.ancestors().find(|folder| folder.is_dir())?;
    let stat = rustix::fs::statvfs(folder).ok()?;
    Some((folder.to_owned(), stat.f_bavail * stat.f_frsize))
}

fn ports(config: &Path) -> Vec<Check> {
    let table = fs::read_to_string(config)
        .ok()
        .and_then(|text| text.parse::<toml::Table>().ok())
        .unwrap_or_default();
    let port = |name, key: &str, default: &str| {
        let address = table
            .get(key)
            .and_then(toml::Value::as_str)
            .unwrap_or(default);
        is_free(name, key, address)
    };
    vec![
        port("port of ads", "listen", "127.0.0.1:7700"),
        port("port of metrics", "http_listen", "127.0.0.1:7701"),
    ]
}

fn is_free(name: &'static str, key: &str, address: &str) -> Check {
    let mend = format!("`marquee serve --set {key}=127.0.0.1:0` takes a free one");
    let Ok(parsed) = address.parse::<SocketAddr>() else {
        return Check::missing(name, format!("`{address}` is not host:port"), mend);
    };
    match TcpListener::bind(parsed) {
        Ok(_) => Check::ok(name, format!("{address} is free")),
        Err(error) => Check::optional(name, format!("{address}: {error}"), mend),
    }
}

fn gpu() -> Check {
    let name = "gpu";
    let query = [
        "--query-gpu=name,memory.total,driver_version",
        "--format=csv,noheader",
    ];
    let told = Command::new("nvidia-smi").args(query).output().ok();
    let told = told.filter(|output| output.status.success());
    let text = told.map(|output| {
        String::from_utf8_lossy(&output.stdout)
            .trim()
            .replace('\n', "; ")
    });
    let library = [
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib64",
        "/usr/lib/wsl/lib",
        "/usr/local/nvidia/lib64",
    ]
    .map(|folder| Path::new(folder).join("libcuda.so.1"))
    .into_iter()
    .find(|path| path.exists());
    match (text.filter(|text| !text.is_empty()), library) {
        (Some(text), _) => Check::ok(name, text),
        (None, Some(library)) => Check::ok(name, library.display().to_string()),
        (None, None) => Check::optional(
            name,
            "none: neither nvidia-smi nor libcuda.so.1",
            "none needed: everything runs on the CPU; for a GPU install NVIDIA's driver and build with --features cuda",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State;

    #[test]
    fn memory_is_read_in_bytes() {
        let text = "MemTotal:       24000000 kB\nMemAvailable:   16000000 kB\n";
        assert_eq!(meminfo(text, "MemAvailable"), Some(16_384_000_000));
        assert_eq!(meminfo(text, "SwapFree"), None);
    }

    #[test]
    fn a_taken_port_is_seen_and_a_free_one_too() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        assert_eq!(is_free("port", "listen", &address).state, State::Optional);
        drop(taken);
        assert_eq!(is_free("port", "listen", &address).state, State::Ok);
        assert_eq!(is_free("port", "listen", "nonsense").state, State::Missing);
    }

    #[test]
    fn free_space_of_a_folder_to_come_is_that_of_its_parent() {
        let top = tempfile::tempdir().unwrap();
        let (folder, free) = free_space(&top.path().join("a/b")).unwrap();
        assert_eq!(folder, top.path());
        assert!(free > 0);
    }
}
