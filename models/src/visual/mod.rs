//! The visual tower: pictures in, vectors of unit length out.
//!
//! [`picture`] decodes and prepares pixels; [`vit`] is a small vision transformer over patches;
//! [`network`] puts two projections on it, one for creatives and one for scenes, so that a
//! scene's vector lies near the creatives that are clicked there and not near those that look
//! like it; [`contrast`] is the loss that teaches this; [`artifact`] is a trained tower as files.

pub mod artifact;
pub mod contrast;
pub mod network;
pub mod picture;
pub mod vit;

pub use artifact::{VisualModel, VisualModelError};
pub use contrast::{ContrastBatch, info_nce};
pub use network::{EMBEDDING_DIM, VisualConfig, VisualConfigError, VisualNetwork};
pub use picture::{Picture, PictureError};
pub use vit::{Pooling, Vit, VitConfig};
