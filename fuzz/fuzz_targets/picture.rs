//! Any bytes are a picture or an error; a picture has as many bytes as its size says, not more pixels than
//! are allowed, and a middle of the size that a network wants.

#![no_main]

use std::{panic, sync::Once};

use libfuzzer_sys::fuzz_target;
use models::visual::{Centre, Filter, Picture, Resize, picture::MAX_PIXELS};

/// A panic that is caught is an error: the harness's own hook would end the process at it.
static HOOK: Once = Once::new();

fuzz_target!(|bytes: &[u8]| {
    HOOK.call_once(|| panic::set_hook(Box::new(|_| ())));
    let Ok(picture) = Picture::decode(bytes) else {
        return;
    };
    let pixels = picture.width() * picture.height();
    assert!(pixels as u64 <= MAX_PIXELS);
    assert_eq!(picture.rgb().len(), pixels * 3);
    let crop = Resize::Crop {
        filter: Filter::Bicubic,
        short_side: 32,
        centre: Centre::HalfEven,
    };
    assert_eq!(crop.square(&picture, 28).rgb().len(), 28 * 28 * 3);
});
