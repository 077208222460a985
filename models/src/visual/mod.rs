//! The visual tower: pictures in, vectors of unit length out.
//!
//! [`picture`] decodes pixels, [`preprocess`] makes numbers of them with the filters of [`resample`];
//! [`vit`] is a vision transformer over patches, [`pretrained`] fills one with published weights;
//! [`network`] puts two projections on it, one for creatives and one for scenes, so that a
//! scene's vector lies near the creatives that are clicked there and not near those that look
//! like it; [`contrast`] is the loss that teaches this; [`artifact`] is a trained tower as files.

pub mod artifact;
pub mod contrast;
pub mod network;
pub mod picture;
pub mod preprocess;
pub mod pretrained;
pub mod resample;
pub mod vit;

pub use artifact::{VisualModel, VisualModelError};
pub use contrast::{ContrastBatch, info_nce};
pub use network::{EMBEDDING_DIM, VisualConfig, VisualConfigError, VisualNetwork};
pub use picture::{Picture, PictureError};
pub use preprocess::{Centre, Resize};
pub use pretrained::{Pretrained, PretrainedConfig, PretrainedError};
pub use resample::Filter;
pub use vit::{Pooling, Tokens, Vit, VitConfig};
