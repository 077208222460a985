//! Any bytes are the weights of a vision transformer or an error.

#![no_main]

use libfuzzer_sys::fuzz_target;
use models::{
    Cpu,
    visual::{Pretrained, PretrainedConfig},
};

fuzz_target!(|bytes: &[u8]| {
    let wanted = PretrainedConfig { num_heads: 2, ..PretrainedConfig::default() };
    if let Ok(found) = Pretrained::<Cpu>::from_bytes(bytes, &wanted, &Default::default()) {
        found.config.check().expect("a shape that was checked");
    }
});
