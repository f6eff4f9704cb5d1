//! A sweep: several ways to merge, each tried in memory on the same prompts and the same text.

use super::asking::{Questions, Talk};
use super::engines::{EngineChoice, Engines};
use super::merge::{Held, Merge};
use super::{Error, Settings};
use crate::chat::Tokenizer;
use crate::eval::{self, Choice, Estimate, Keep, Reference, Text, choose, good_conversations};
use crate::gguf::Model;
use crate::pipeline::Observer;
use crate::plan::Recipe;
use crate::vector::{Inputs, Role};

/// Chunks of the text that are scored at most: two pages.
const CHUNKS: usize = 4;

/// How much of the vectors is added, and where.
#[derive(Clone, PartialEq, Debug)]
pub struct Way {
    /// What the ratio of every vector is multiplied by.
    pub ratio: f64,
    /// Presets that are added to those of the recipe.
    pub presets: Vec<String>,
}

/// What each way is asked and held against.
#[derive(Clone, Debug)]
pub struct Sweep {
    /// What is asked. The engine is the built-in one, since no file is there for another.
    pub questions: Questions,
    /// A text of which is compared what each way says with what model and chat say; none for the
    /// prompts themselves.
    pub text: Option<String>,
}

/// What model and chat say of the text.
#[derive(Debug)]
pub struct References {
    /// Of the model that is added to.
    pub model: Result<SaidOf, eval::Error>,
    /// Of the chat model; none if a patch stands for it.
    pub chat: Option<Result<SaidOf, eval::Error>>,
}

/// What a model says of the text.
#[derive(Debug)]
pub struct SaidOf {
    vocabulary: Vec<u8>,
    reference: Reference,
}

/// What came of one way.
#[derive(Clone, Debug)]
pub struct Tried {
    /// The way.
    pub way: Way,
    /// What was answered, and what that shows.
    pub talk: Talk,
    /// Whether each prompt's conversation is good, in the order of prompts.
    pub good: Vec<bool>,
    /// The share of the vector that the output holds; none if nothing was added.
    pub survival: Option<f64>,
    /// Whether rounding took too much of it, by the bounds of the recipe.
    pub is_lost: bool,
    /// KL(model ‖ output) in nats over the text; none where it cannot be had.
    pub kl_from_model: Option<Estimate>,
    /// KL(chat ‖ output).
    pub kl_from_chat: Option<Estimate>,
}

impl Tried {
    /// Conversations that are good.
    pub fn n_good(&self) -> usize {
        self.good.iter().filter(|is_good| **is_good).count()
    }

    /// The interval of the share of good conversations.
    pub fn interval(&self) -> (f64, f64) {
        eval::share_interval(self.n_good(), self.good.len())
    }

    /// Whether the output would be accepted: it chats, and holds the vector.
    pub fn is_accepted(&self) -> bool {
        self.talk.chats() && !self.is_lost
    }
}

/// The best of what was tried, and the one to take, by [`choose`]. Ways that are accepted come
/// before those that are not. None if no conversation is good in any.
pub fn recommend(tried: &[Tried]) -> Option<Choice> {
    let accepted: Vec<usize> = (0..tried.len()).filter(|i| tried[*i].is_accepted()).collect();
    let among = if accepted.is_empty() { (0..tried.len()).collect() } else { accepted };
    let mut order = among;
    // Least change first.
    order.sort_by(|a, b| {
        let key = |i: usize| (tried[i].way.presets.len(), tried[i].way.ratio.abs());
        key(*a).partial_cmp(&key(*b)).unwrap_or(std::cmp::Ordering::Equal)
    });
    let ways: Vec<Vec<bool>> = order.iter().map(|i| tried[*i].good.clone()).collect();
    choose(&ways).map(|choice| Choice { best: order[choice.best], chosen: order[choice.chosen] })
}

impl Sweep {
    /// A sweep whose models are asked in this process.
    pub fn new(questions: Questions, text: Option<String>) -> Self {
        let engines = Engines { choice: EngineChoice::BuiltIn, program: None };
        Sweep { questions: Questions { engines, ..questions }, text }
    }

    /// What model and chat say of the text. `go_on` is asked before each chunk.
    ///
    /// # Errors
    /// Those of the engine; a text that cannot be scored is an error of that model alone.
    pub fn references(
        &self,
        inputs: &Inputs,
        settings: &Settings,
        go_on: &dyn Fn() -> bool,
    ) -> Result<References, Error> {
        let model = inputs.source(inputs.skeleton());
        let chat = inputs.vectors().first().map(|v| v.plus).filter(|id| inputs.role(*id) != Role::Patch);
        Ok(References {
            model: self.said_of(model, model, settings, go_on)?,
            chat: chat.map(|id| self.said_of(inputs.source(id), model, settings, go_on)).transpose()?,
        })
    }

    /// The text that is scored.
    fn text(&self, model: &Model) -> String {
        self.text.clone().unwrap_or_else(|| {
            let (set, _) = self.questions.resolve(model.metadata());
            let turns = set.prompts.iter().flat_map(|prompt| &prompt.messages);
            turns.map(|turn| turn.content.as_str()).collect::<Vec<_>>().join("\n")
        })
    }

    fn tokens(&self, model: &Model, skeleton: &Model) -> Result<Result<Text, eval::Error>, Error> {
        let tokenizer = Tokenizer::from_metadata(model.metadata())?;
        let tokens = tokenizer.encode(&self.text(skeleton), true, false);
        let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
        let n_ctx = Text::DEFAULT_N_CTX.min(self.questions.n_ctx.unwrap_or(usize::MAX));
        Ok(Text::new(tokens, n_ctx, bos).map(|text| text.first_chunks(CHUNKS)))
    }

    fn said_of(
        &self,
        model: &Model,
        skeleton: &Model,
        settings: &Settings,
        go_on: &dyn Fn() -> bool,
    ) -> Result<Result<SaidOf, eval::Error>, Error> {
        let text = match self.tokens(model, skeleton)? {
            Ok(text) => text,
            Err(e) => return Ok(Err(e)),
        };
        let budget = &settings.budget;
        let hosts = self.questions.engines.load(model, &[], budget.threads)?;
        let mut scorer = Stoppable { inner: hosts.reader(text.n_ctx(), budget.memory)?, go_on };
        let reference = Reference::new(&mut scorer, text, Keep::default());
        if !go_on() {
            return Err(crate::infer::Error::Cancelled.into());
        }
        Ok(reference.map(|reference| SaidOf { vocabulary: vocabulary(model), reference }))
    }

    /// Merges one way in memory, and asks and scores the output. `inputs` and `recipe` are those of
    /// this way. `go_on` is told how many prompts were answered, before each token.
    ///
    /// # Errors
    /// Those of [`Merge::prepare_in_memory`] and [`Questions::ask`].
    pub fn try_way(
        &self,
        way: Way,
        (inputs, recipe): (&Inputs, &Recipe),
        references: &References,
        settings: &Settings,
        observer: &dyn Observer,
        go_on: &dyn Fn(usize) -> bool,
    ) -> Result<Tried, Error> {
        let held = Merge::new(inputs, recipe).prepare_in_memory(settings)?.hold(observer)?;
        let Held { model, measured, verdict } = held;
        let talk = self.questions.ask(&model, inputs.templates(), &settings.budget, &|n: usize| go_on(n))?;
        let good = good_conversations(&talk.set, &talk.said.answers, &talk.judgement);
        let n = talk.set.prompts.len();
        let kl = |said: Option<&SaidOf>| -> Result<Option<Estimate>, Error> {
            let Some(said) = said else { return Ok(None) };
            self.divergence(said, &model, inputs.source(inputs.skeleton()), settings, &|| go_on(n))
        };
        let kl_from_model = kl(references.model.as_ref().ok())?;
        let kl_from_chat = kl(references.chat.as_ref().and_then(|chat| chat.as_ref().ok()))?;
        let survival = measured.total.survival();
        Ok(Tried { way, talk, good, survival, is_lost: verdict.is_rejected, kl_from_model, kl_from_chat })
    }

    /// KL(reference ‖ model); none if they have other tokens.
    fn divergence(
        &self,
        said: &SaidOf,
        model: &Model,
        skeleton: &Model,
        settings: &Settings,
        go_on: &dyn Fn() -> bool,
    ) -> Result<Option<Estimate>, Error> {
        if said.vocabulary != vocabulary(model) {
            return Ok(None);
        }
        let Ok(text) = self.tokens(model, skeleton)? else { return Ok(None) };
        let budget = &settings.budget;
        let hosts = self.questions.engines.load(model, &[], budget.threads)?;
        let mut scorer = Stoppable { inner: hosts.reader(text.n_ctx(), budget.memory)?, go_on };
        let compared = said.reference.compare(&mut scorer, &text);
        if !go_on() {
            return Err(crate::infer::Error::Cancelled.into());
        }
        Ok(compared.ok().map(|comparison| comparison.kl.mean))
    }
}

/// The hash of a model's tokens: probabilities over other ones cannot be compared.
fn vocabulary(model: &Model) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    for token in model.metadata().get_strings(crate::chat::TOKENS).into_iter().flat_map(|tokens| tokens.iter()) {
        hasher.update(&(token.len() as u64).to_le_bytes());
        hasher.update(token);
    }
    hasher.finalize().as_bytes().to_vec()
}

/// A reader that ends where it is told to.
struct Stoppable<'a> {
    inner: eval::Reader<'a>,
    go_on: &'a dyn Fn() -> bool,
}

impl eval::Scorer for Stoppable<'_> {
    fn n_vocab(&self) -> usize {
        self.inner.n_vocab()
    }

    fn logits(
        &mut self,
        tokens: &[u32],
        first: usize,
        row: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        if !(self.go_on)() {
            return Err(crate::infer::Error::Cancelled.into());
        }
        self.inner.logits(tokens, first, row)
    }
}
