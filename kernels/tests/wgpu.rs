//! The kernels on Vulkan, which Mesa's lavapipe has without a GPU.

#![cfg(feature = "wgpu")]

use std::sync::OnceLock;

use cubecl::{
    Runtime,
    client::ComputeClient,
    wgpu::{WgpuDevice, WgpuRuntime},
};
use kernels::{
    CacheUse, CachedTable, Device, GpuTable, KernelError, RowwiseAdagrad, Sums, Touched, Vectors,
    conform,
};

fn device() -> Device<WgpuRuntime> {
    static CLIENT: OnceLock<ComputeClient<WgpuRuntime>> = OnceLock::new();
    let client = || {
        let found = std::panic::catch_unwind(|| WgpuRuntime::client(&WgpuDevice::default()));
        found.expect("no Vulkan device here: launch/setup installs Mesa's, which needs no GPU")
    };
    Device::new(CLIENT.get_or_init(client).clone())
}

#[test]
fn kernels_do_what_the_host_does() {
    for seed in 0..60 {
        conform(&device(), seed).unwrap();
    }
}

const SUMS: Sums<'static> = Sums {
    source_at: &[0, 2],
    offsets: &[0, 1, 2],
    scale: None,
    target_at: &[0, 1],
};

const ADAGRAD: RowwiseAdagrad = RowwiseAdagrad {
    learning_rate: 0.1,
    eps: 1e-8,
    weight_decay: 0.0,
};

fn table() -> GpuTable<WgpuRuntime> {
    GpuTable::new(device(), 4, &[1.0; 12], &[0.0; 3]).unwrap()
}

#[test]
fn rows_and_lists_that_cannot_be_are_refused() {
    let refused = |sums: Sums<'_>| {
        let room = device().room(8);
        let target = Vectors {
            buffer: &room,
            step: 4,
        };
        let sums = device().sums(sums);
        let looked_up = sums.and_then(|sums| table().lookup(&sums, target));
        looked_up.unwrap_err()
    };
    let error = refused(Sums {
        source_at: &[0, 3],
        ..SUMS
    });
    let wanted = "source 3 of 4 numbers, in steps of 4, in a buffer of 12";
    assert_eq!(error.to_string(), wanted);
    let error = refused(Sums {
        target_at: &[2, 0],
        ..SUMS
    });
    let wanted = "target 2 of 4 numbers, in steps of 4, in a buffer of 8";
    assert_eq!(error.to_string(), wanted);
    for offsets in [&[0, 1][..], &[0, 2, 1, 2], &[1, 1, 2], &[]] {
        let error = refused(Sums { offsets, ..SUMS });
        assert_eq!(error, KernelError::Offsets { entries: 2 });
    }
    let error = refused(Sums {
        scale: Some(&[1.0]),
        ..SUMS
    });
    assert_eq!(error.to_string(), "scale has 1 numbers, wanted 2");
    let error = refused(Sums {
        target_at: &[0],
        ..SUMS
    });
    assert_eq!(error.to_string(), "target_at has 1 numbers, wanted 2");
    let error = GpuTable::new(device(), 4, &[1.0; 11], &[0.0; 3]);
    let error = error.err().unwrap().to_string();
    assert_eq!(error, "weights has 11 numbers, wanted 12");
    let error = table().write_rows(&[1], &[1.0; 3], &[0.0]).unwrap_err();
    assert_eq!(error.to_string(), "rows to write has 3 numbers, wanted 4");
}

#[test]
fn gradients_that_are_not_there_and_rows_that_are_there_twice_are_refused() {
    let touched = Touched {
        rows: &[0, 2],
        offsets: &[0, 1, 2],
        gradient_at: &[0, 2],
        scale: None,
    };
    let refused = |touched: Touched<'_>| {
        let (mut table, room) = (table(), device().room(8));
        let gradients = Vectors {
            buffer: &room,
            step: 4,
        };
        let touched = table.touched(touched)?;
        table.update(&touched, gradients, ADAGRAD)
    };
    let error = refused(touched).unwrap_err().to_string();
    let wanted = "gradient 2 of 4 numbers, in steps of 4, in a buffer of 8";
    assert_eq!(error, wanted);
    let twice = Touched {
        rows: &[1, 1],
        gradient_at: &[0, 1],
        ..touched
    };
    let error = refused(twice).unwrap_err();
    assert_eq!(error, KernelError::NotRising { row: 1 });
    let beyond = Touched {
        rows: &[1, 3],
        gradient_at: &[0, 1],
        ..touched
    };
    let error = refused(beyond).unwrap_err().to_string();
    assert!(error.starts_with("touched row 3"), "{error}");
}

#[test]
fn a_cache_keeps_the_rows_that_were_used_last() {
    let new = |slots| CachedTable::new(device(), 4, vec![1.0; 12], vec![0.0; 3], slots).unwrap();
    let room = device().room(8);
    let target = Vectors {
        buffer: &room,
        step: 4,
    };
    // Two bags go one after the other; a bag goes in one piece.
    new(1).lookup(SUMS, target).unwrap();
    let bag = Sums {
        offsets: &[0, 2],
        target_at: &[0],
        ..SUMS
    };
    let error = new(1).lookup(bag, target).err().unwrap();
    let wanted = KernelError::CacheTooSmall {
        wanted: 2,
        slots: 1,
    };
    assert_eq!(error, wanted);
    let mut cached = new(2);
    for rows in [&[0, 2], &[2, 2], &[1, 2], &[2, 1], &[0, 0]] {
        let sums = Sums {
            source_at: rows,
            ..SUMS
        };
        cached.lookup(sums, target).unwrap();
    }
    // 0 goes for 1, and then 2 or 1, which are equally young, for 0.
    let wanted = CacheUse {
        hits: 4,
        misses: 4,
        evictions: 2,
    };
    assert_eq!(cached.used(), wanted);
    // A row that is written is written wherever it lies.
    cached.write_rows(&[2], &[7.0; 4], &[3.0]).unwrap();
    let (weights, state) = cached.read().unwrap();
    assert_eq!(
        (&weights[8..], state),
        (&[7.0; 4][..], &[0.0, 0.0, 3.0][..])
    );
}
