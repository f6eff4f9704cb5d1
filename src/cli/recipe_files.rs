//! The files of a merge, as merge and sweep take them.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::Global;
use super::recipe_args::{RecipeArgs, parse_vector, read};
use crate::plan::{RecipeFile, VectorFile};
use crate::vector::Method;

/// Base and chat, patches, the model, or a recipe that names them.
#[derive(Args, Clone, Debug)]
pub(super) struct RecipeFiles {
    /// The base model that chat and model were both trained from
    #[arg(long, value_name = "FILE", requires = "chat")]
    pub(super) base: Option<PathBuf>,
    /// The chat model that was made from the base
    #[arg(long, value_name = "FILE", requires = "base", required_unless_present_any = ["vector", "recipe"])]
    chat: Option<PathBuf>,
    /// A vector: base and chat, or a patch; can be given several times. They part where both are
    /// files, else at the last colon that is no drive's
    #[arg(long, value_name = "BASE:CHAT[@R] | PATCH[@R]")]
    vector: Vec<PathBuf>,
    /// The continual-pretrained model that is to chat
    #[arg(long, value_name = "FILE", required_unless_present = "recipe")]
    model: Option<PathBuf>,
    /// A recipe: TOML of chatvec's, mergekit's YAML, or an output to be made again. Options given
    /// beside it win
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,
}

impl RecipeFiles {
    /// The recipe file, with the files that were given in place of its own.
    pub(super) fn file(&self, how: &RecipeArgs, global: &Global) -> Result<RecipeFile> {
        let mut file = match &self.recipe {
            Some(path) => read(path, global)?,
            None => RecipeFile::default(),
        };
        file.model = self.model.clone().unwrap_or(file.model);
        let mut vectors = Vec::new();
        if let (Some(base), Some(chat)) = (&self.base, &self.chat) {
            vectors.push(VectorFile::pair(base.clone(), chat.clone(), 1.0));
        }
        for arg in &self.vector {
            let mut vector = parse_vector(arg)?;
            // What would be a patch elsewhere is a model where models are averaged.
            if how.method().unwrap_or(file.method) == Method::Linear && vector.patch.is_some() {
                vector.chat = vector.patch.take();
            }
            vectors.push(vector);
        }
        if !vectors.is_empty() {
            file.vectors = vectors;
        }
        Ok(file)
    }
}
