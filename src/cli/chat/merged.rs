//! A merge that is talked to while its ratios change: it stays in memory.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use clap::Args;

use crate::cli::recipe_args::{self, parse_vector};
use crate::cli::template_process::templates;
use crate::cli::{Global, merging, output};
use crate::gguf::Model;
use crate::infer::Host;
use crate::job::{Blend, EngineChoice, Engines, Error, Merge, Settings};
use crate::plan::{Recipe, RecipeFile, VectorFile};
use crate::vector::Inputs;

/// Vectors that are added to the model in memory.
#[derive(Args, Clone, Debug)]
pub(super) struct VectorArgs {
    /// Add the vector of --chat to the model in memory, before it is talked to; /ratio changes how
    /// much of it
    #[arg(long, value_name = "FILE", requires = "chat")]
    base: Option<PathBuf>,
    /// The chat model that was made from the base
    #[arg(long, value_name = "FILE", requires = "base")]
    chat: Option<PathBuf>,
    /// Add a vector to the model in memory: base and chat, or a patch, as merge takes it; several
    /// times for several
    #[arg(long, value_name = "BASE:CHAT[@R] | PATCH[@R]")]
    vector: Vec<PathBuf>,
}

/// A model with vectors in its weights.
pub(super) struct Merged {
    inputs: RefCell<Inputs>,
    recipe: Recipe,
    names: Vec<String>,
    ratios: Vec<f32>,
    settings: Settings,
    /// The last one that was made, with its ratios.
    last: RefCell<Option<(Vec<f32>, Arc<Model>)>>,
}

impl Merged {
    /// Opens the files; none if there are no vectors.
    pub(super) fn new(model: &Path, args: &VectorArgs, global: &Global) -> Result<Option<Self>> {
        let mut vectors = Vec::new();
        if let (Some(base), Some(chat)) = (&args.base, &args.chat) {
            vectors.push(VectorFile::pair(base.clone(), chat.clone(), 1.0));
        }
        for arg in &args.vector {
            vectors.push(parse_vector(arg).context("--vector")?);
        }
        if vectors.is_empty() {
            return Ok(None);
        }
        let name = |vector: &VectorFile| {
            let path = vector.patch.as_ref().or(vector.chat.as_ref());
            path.map(|path| path.display().to_string()).unwrap_or_default()
        };
        let names = vectors.iter().map(name).collect();
        let ratios = vectors.iter().map(|vector| vector.plain_ratio() as f32).collect();
        let file = RecipeFile { model: model.to_owned(), vectors, ..RecipeFile::default() };
        let recipe = file.recipe()?;
        let inputs = recipe_args::open(&file, false, global)?.with_templates(templates());
        let settings = Settings { limits: global.limits(), ..Settings::new(global.budget()) };
        let merged = Merged { inputs: RefCell::new(inputs), recipe, names, ratios, settings, last: RefCell::default() };
        let inputs = merged.inputs.borrow();
        let prepared = Merge::new(&inputs, &merged.recipe).prepare_in_memory(&merged.settings)?;
        merging::tell(prepared.cautions());
        let held = bytesize::ByteSize::b(prepared.n_bytes()).display().iec().to_string();
        output::complain("note", &format!("the merged model is held in memory: {held}"));
        drop(prepared);
        drop(inputs);
        Ok(Some(merged))
    }

    /// The merge in these ratios.
    pub(super) fn model(&self, ratios: &[f32]) -> Result<Arc<Model>, Error> {
        if let Some((_, model)) = self.last.borrow().as_ref().filter(|(last, _)| last == ratios) {
            return Ok(Arc::clone(model));
        }
        // Two merges at once might not fit.
        self.last.take();
        let mut inputs = self.inputs.borrow_mut();
        inputs.set_ratios(ratios.iter().map(|ratio| f64::from(*ratio)));
        let held = Merge::new(&inputs, &self.recipe).prepare_in_memory(&self.settings)?.hold(&())?;
        let model = Arc::new(held.model);
        *self.last.borrow_mut() = Some((ratios.to_vec(), Arc::clone(&model)));
        Ok(model)
    }
}

impl Blend for Merged {
    fn parts(&self) -> Vec<String> {
        self.names.clone()
    }

    fn ratios(&self) -> Vec<f32> {
        self.ratios.clone()
    }

    fn host(&self, ratios: &[f32]) -> Result<Box<dyn Host + '_>, Error> {
        let engines = Engines { choice: EngineChoice::BuiltIn, program: None };
        Ok(engines.load(&*self.model(ratios)?, &[], self.settings.budget.threads)?.first)
    }
}
