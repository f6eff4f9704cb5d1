//! A model that is talked to, in ratios that may change meanwhile.

use std::sync::Arc;

use super::Error;
use super::asking::context_of;
use super::engines::{EngineChoice, Engines};
use crate::gguf::Model;
use crate::infer::{Host, LoraFile};

/// A model whose parts can be had in other ratios while it is talked to: adapters beside it, or
/// vectors in its weights.
///
/// A ratio of 0 is without the part, to the bit. Nothing is kept between two hosts: whoever talks
/// feeds the conversation again.
pub trait Blend {
    /// What the ratios are of, a name for each, as a user knows them; none where nothing can be
    /// changed.
    fn parts(&self) -> Vec<String>;

    /// The ratios that were asked for at first, one for each part.
    fn ratios(&self) -> Vec<f32>;

    /// The model with its parts in these ratios.
    ///
    /// # Errors
    /// What keeps it from being run.
    fn host(&self, ratios: &[f32]) -> Result<Box<dyn Host + '_>, Error>;
}

/// A model in a file, with adapters beside it.
#[derive(Clone, Debug)]
pub struct WithAdapters {
    /// The model.
    pub model: Arc<Model>,
    /// Adapters, each with its ratio at first.
    pub loras: Vec<(Arc<Model>, f32)>,
    /// What it is run in; of two engines the first.
    pub engines: Engines,
    /// Threads to compute with.
    pub threads: usize,
}

impl Blend for WithAdapters {
    fn parts(&self) -> Vec<String> {
        self.loras.iter().map(|(lora, _)| lora.path().display().to_string()).collect()
    }

    fn ratios(&self) -> Vec<f32> {
        self.loras.iter().map(|(_, ratio)| *ratio).collect()
    }

    fn host(&self, ratios: &[f32]) -> Result<Box<dyn Host + '_>, Error> {
        // Weights stay mapped, and only names and shapes are looked at again.
        let files = self.loras.iter().zip(ratios).map(|((model, _), &factor)| LoraFile { model, factor });
        let files: Vec<LoraFile<'_>> = files.filter(|file| file.factor != 0.0).collect();
        let choice = match self.engines.choice {
            EngineChoice::Both => EngineChoice::BuiltIn,
            choice => choice,
        };
        let engines = Engines { choice, ..self.engines.clone() };
        Ok(engines.load(&self.model, &files, self.threads)?.first)
    }
}

/// Tokens of a conversation in this host: as many as are asked for, or as most conversations need
/// and `memory` allows.
pub fn talk_context(host: &dyn Host, asked: Option<usize>, memory: u64) -> usize {
    context_of(asked, host.n_ctx_train(), |most| host.largest_context(most, memory))
}
