//! What is wanted of an output.

use super::{LossPolicy, Merging, OutputType, SpecialTokens};
use crate::vector::{Inputs, Pair, SourceId};

/// How much the errors of weights count where no matrix says it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Importance {
    /// Each as much as any other, in tensors of the types that gain by it
    /// ([`FlatFor::Gaining`](crate::imatrix::FlatFor::Gaining)).
    Auto,
    /// Each as much as any other.
    Flat,
    /// As ggml's encoders have it.
    None,
}

/// Which rows of the tensors with a row for each token take part: `token_embd`, `output`,
/// `per_layer_token_embd`.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Embeddings {
    /// [`Embeddings::All`] where every token of the model is in all other files, else
    /// [`Embeddings::Shared`].
    #[default]
    Auto,
    /// Every row; a token of the model that another file lacks is an error.
    All,
    /// The rows of tokens that base and chat have too; others stay the model's.
    Shared,
    /// No row: they stay the model's.
    Skip,
}

impl Embeddings {
    /// The word for it on the command line and in provenance.
    pub fn name(self) -> &'static str {
        match self {
            Embeddings::Auto => "auto",
            Embeddings::All => "all",
            Embeddings::Shared => "shared",
            Embeddings::Skip => "skip",
        }
    }
}

/// What is wanted of an output.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Recipe {
    /// The types of its tensors.
    pub output: OutputType,
    /// What becomes of the embeddings.
    pub embeddings: Embeddings,
    /// Whose rows are taken from the chat model.
    pub special_tokens: SpecialTokens,
    /// Whether the model gets tokens that the chat needs and it lacks.
    pub add_missing_tokens: bool,
    /// What is done where rounding would take the vector.
    pub loss: LossPolicy,
    /// How vectors are combined, and how much of each every tensor gets.
    pub merging: Merging,
    /// The recipe in words, for the output's metadata ([`super::RecipeFile::recipe`]).
    pub text: Option<String>,
}

impl Recipe {
    /// The source whose chat the output has: that of the first vector with a template, or else of
    /// the first. Vectors whose ratio is 0 in every tensor do not count; none if there is no other.
    /// `pairs` are as [`crate::vector::pair`] found them.
    pub fn talker(&self, inputs: &Inputs, pairs: &[Pair]) -> Option<SourceId> {
        self.merging.reach(inputs, pairs).talker(inputs)
    }
}
