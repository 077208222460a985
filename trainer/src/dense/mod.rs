//! The dense half's weights and gradients as flat vectors, and the optimizer over them.
//!
//! Flat, a network's gradients travel between ranks in one piece and are cut as a whole, its
//! optimizer is one pass over memory, and its checkpoint is three vectors.

mod adam;
mod flat;

pub use adam::Adam;
pub(crate) use flat::{add_gradients, clip, flatten_weights, load_weights, to_vec};
