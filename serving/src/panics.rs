//! Panics of libraries on damaged files, as errors.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
};

/// A panic that was caught.
#[derive(Debug, thiserror::Error)]
#[error("it panicked: {message}")]
pub struct Panicked {
    message: String,
}

/// Does some work; a panic in it is an error. What the work was changing may be half done then:
/// the caller drops it, or knows that it is whole.
///
/// # Errors
/// [`Panicked`].
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| Panicked {
        message: message(payload.as_ref()),
    })
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("without a message").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_with_its_message() {
        assert_eq!(caught(|| 7).unwrap(), 7);
        let told = |work: fn()| caught(work).unwrap_err().to_string();
        assert_eq!(told(|| panic!("plain")), "it panicked: plain");
        let formatted = || panic!("page {}", std::hint::black_box(3));
        assert_eq!(told(formatted), "it panicked: page 3");
        assert_eq!(
            told(|| std::panic::panic_any(7)),
            "it panicked: without a message"
        );
    }
}
