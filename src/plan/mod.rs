//! The planner: headers and a recipe → a [`MergePlan`] that says everything about the output before
//! a weight is read.
//!
//! It is pure: it looks at headers and nothing else, opens nothing and writes nothing. The same
//! plan is printed by a dry run and carried out by [`crate::pipeline`].

mod compat;
mod error;
mod file_type;
mod importance;
mod loads;
mod mergekit;
mod merge_plan;
mod merging;
mod metadata;
pub mod mixture;
mod output_type;
mod protect;
mod ratios;
mod recipe;
mod recipe_file;
mod setting;
mod special;
mod survival;
mod tensor;
mod types;
mod warning;

pub use compat::{check, pairing_warnings, unrendered};
pub use error::Error;
pub use file_type::{FileType, QUANTIZATION_VERSION};
pub use merge_plan::MergePlan;
pub use merging::{Masks, Merging, VectorSettings};
pub use metadata::{MEASURED_KEYS, RECIPE_KEY, base_models, fill_measured};
pub use output_type::OutputType;
pub use protect::{Change, Protected, finer};
pub use ratios::{PRESETS, Preset, Ratios, Rule};
pub use recipe::{Embeddings, Importance, Recipe};
pub use recipe_file::{MAX_BYTES as MAX_RECIPE_BYTES, RecipeFile, VectorFile};
pub use setting::{Place, Scalar, Setting, in_f32};
pub use special::{SpecialRow, SpecialTokens};
pub use survival::{Held, Loss, LossPolicy, OnLoss, Verdict, listed};
pub use tensor::{Content, PlannedSum, Taken, TensorPlan};
pub use types::{fallback, is_quantizable, requires_importance};
pub use warning::Warning;
