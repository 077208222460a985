//! Kernels that a process has compiled for its GPU, kept for the next one.
//!
//! CubeCL compiles a kernel when it is first run. All those of a training step take some twenty seconds,
//! which a trainer that is preempted every hour need not give each time.

use std::{path::PathBuf, sync::Arc};

use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig, cache::CacheConfig};

/// Keeps compiled kernels in the user's cache folder (`$XDG_CACHE_HOME/marquee/kernels/<rank>`, else
/// below `~/.cache`), where the next process finds them; gives the folder. To be called before a device
/// is opened: later, or without a home, it does nothing. Where a `cubecl.toml` says something else, that
/// holds.
pub fn keep_compiled(local_rank: usize) -> Option<PathBuf> {
    let caches = match std::env::var_os("XDG_CACHE_HOME") {
        Some(folder) => PathBuf::from(folder),
        None => std::env::home_dir()?.join(".cache"),
    };
    // Ranks would write to the same files.
    let folder = caches.join("marquee/kernels").join(local_rank.to_string());
    let mut current = CubeClRuntimeConfig::storage().lock();
    if current.is_some() {
        return None;
    }
    let mut config = CubeClRuntimeConfig::from_current_dir().override_from_env();
    let kept = || CacheConfig::File(folder.clone());
    config.compilation.cache.get_or_insert_with(kept);
    *current = Some(Arc::new(config));
    Some(folder)
}
