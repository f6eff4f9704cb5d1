//! Looking at weights before deciding.
//!
//! [`survey`] reads a sample of rows and measures: how large the vector is against the model, how
//! much of it will survive each type, and what looks wrong. [`try_encodings`] tries ways to encode
//! tensors that would be lost, and [`special_tokens`] tells which tokens nobody trained the model
//! on. It writes nothing and decides nothing; [`crate::plan`] does.

mod bench;
mod estimate;
mod findings;
mod roles;
mod rounding;
mod sample;
mod special;
mod trial;

pub use estimate::Estimate;
pub use findings::Finding;
pub use sample::{SampleSettings, Survey, TensorSurvey, TypeForecast, survey};
pub use special::{SpecialToken, SpecialTokens, special_tokens};
pub use trial::{Look, Trial, try_encodings};
