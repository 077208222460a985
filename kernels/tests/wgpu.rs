//! The kernels on Vulkan, which Mesa's lavapipe has without a GPU.

#![cfg(feature = "wgpu")]

use std::sync::OnceLock;

use cubecl::{
    Runtime,
    client::ComputeClient,
    wgpu::{WgpuDevice, WgpuRuntime},
};
use kernels::{Bags, CacheUse, CachedTable, GpuTable, KernelError, Touched, conform};

fn client() -> ComputeClient<WgpuRuntime> {
    static CLIENT: OnceLock<ComputeClient<WgpuRuntime>> = OnceLock::new();
    let client = || {
        let found = std::panic::catch_unwind(|| WgpuRuntime::client(&WgpuDevice::default()));
        found.expect("no Vulkan device here: launch/setup installs Mesa's, which needs no GPU")
    };
    CLIENT.get_or_init(client).clone()
}

#[test]
fn kernels_do_what_the_host_does() {
    for seed in 0..60 {
        conform(&client(), seed).unwrap();
    }
}

const BAGS: Bags<'static> = Bags {
    rows: &[0, 2],
    offsets: &[0, 1, 2],
    scale: None,
};

fn table() -> GpuTable<WgpuRuntime> {
    GpuTable::new(client(), 4, &[1.0; 12], &[0.0; 3]).unwrap()
}

#[test]
fn rows_and_lists_that_cannot_be_are_refused() {
    let refused = |bags: Bags<'_>| table().bags(bags).err().unwrap();
    let rows = &[0, 3];
    let error = refused(Bags { rows, ..BAGS });
    assert_eq!(error, KernelError::Row { row: 3, rows: 3 });
    for offsets in [&[0, 1][..], &[0, 2, 1, 2], &[1, 1, 2], &[]] {
        let error = refused(Bags { offsets, ..BAGS });
        assert_eq!(error, KernelError::Offsets { entries: 2 });
    }
    let error = refused(Bags {
        scale: Some(&[1.0]),
        ..BAGS
    });
    assert_eq!(error.to_string(), "scale has 1 numbers, wanted 2");
    let error = GpuTable::new(client(), 4, &[1.0; 11], &[0.0; 3]);
    let error = error.err().unwrap().to_string();
    assert_eq!(error, "weights has 11 numbers, wanted 12");
}

#[test]
fn gradients_that_are_not_there_and_rows_that_are_there_twice_are_refused() {
    let touched = Touched {
        rows: &[0, 2],
        offsets: &[0, 1, 2],
        gradient_at: &[0, 2],
        scale: None,
    };
    let error = table().touched(touched, 2).unwrap_err();
    assert_eq!(error, KernelError::Row { row: 2, rows: 2 });
    let twice = Touched {
        rows: &[1, 1],
        gradient_at: &[0, 1],
        ..touched
    };
    let error = table().touched(twice, 2).unwrap_err();
    assert_eq!(error, KernelError::Twice { row: 1 });
}

#[test]
fn a_cache_keeps_the_rows_that_were_used_last() {
    let new = |slots| CachedTable::new(client(), 4, vec![1.0; 12], vec![0.0; 3], slots).unwrap();
    let error = new(1).gather_pool(BAGS).err().unwrap();
    let wanted = KernelError::CacheTooSmall {
        wanted: 2,
        slots: 1,
    };
    assert_eq!(error, wanted);
    let mut cached = new(2);
    for rows in [&[0, 2], &[2, 2], &[1, 2], &[2, 1], &[0, 0]] {
        cached.gather_pool(Bags { rows, ..BAGS }).unwrap();
    }
    // 0 goes for 1, and then 2 or 1, which are equally young, for 0.
    let wanted = CacheUse {
        hits: 4,
        misses: 4,
        evictions: 2,
    };
    assert_eq!(cached.used(), wanted);
}
