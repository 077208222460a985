//! Any bytes are a picture or an error; a picture has as many bytes as its size says, and not more pixels than
//! are allowed.

#![no_main]

use libfuzzer_sys::fuzz_target;
use models::visual::{Picture, picture::MAX_PIXELS};

fuzz_target!(|bytes: &[u8]| {
    let Ok(picture) = Picture::decode(bytes) else {
        return;
    };
    let pixels = picture.width() * picture.height();
    assert!(pixels as u64 <= MAX_PIXELS);
    assert_eq!(picture.rgb().len(), pixels * 3);
});
