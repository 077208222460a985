//! Any bytes are an event or none; an event comes through the age gate, and what may be stored of it names
//! nobody who is restricted.

#![no_main]

use libfuzzer_sys::fuzz_target;
use prost::Message;
use wire::{
    events::Event,
    gate::{admit, stripped},
};

fuzz_target!(|bytes: &[u8]| {
    let Ok(mut event) = Event::decode(bytes) else {
        return;
    };
    let stored = stripped(&event).unwrap_or_else(|| event.clone());
    let again = Event::decode(stored.encode_to_vec().as_slice()).expect("what was encoded decodes");
    assert_eq!(again.encoded_len(), stored.encoded_len());
    assert!(stripped(&stored).is_none(), "what was stripped may be stored");

    let subject = admit(&mut event);
    assert!(event.user_id.is_empty(), "the gate left the id");
    assert!(subject.is_personal() || stored.user_id.is_empty(), "a restricted id was stored");
});
