//! Asking a model some prompts, and judging what it says.

use std::path::PathBuf;
use std::sync::Arc;

use super::Error;
use super::engines::{Engines, Hosts};
use crate::chat::{Template, Templates};
use crate::eval::{
    Agreement, Asking, Chatter, Conversations, Judgement, Language, Listener, Phase, PromptSet, Thresholds, Verdict,
    judge,
};
use crate::gguf::{Metadata, Model};
use crate::infer::{self, LoraFile, Sampling};
use crate::pipeline::Budget;

/// Tokens of a conversation, if memory and model allow and nothing else is said: two pages.
const CONTEXT: usize = 2048;

/// What a model is asked, how, and what is expected.
#[derive(Clone, Debug)]
pub struct Questions {
    /// The prompts; none for the built-in ones, in the languages expected.
    pub set: Option<PromptSet>,
    /// The file or option they are from, for reports.
    pub prompts: Option<PathBuf>,
    /// Languages the model should speak; if empty, those of the prompts, or of the built-in ones
    /// those of its `general.languages`, or English.
    pub languages: Vec<Language>,
    /// Whether a quarter of them is asked, spread evenly over kinds and languages.
    pub is_quick: bool,
    /// Prompts at most, spread evenly over the set.
    pub limit: Option<usize>,
    /// Bounds of the checks.
    pub thresholds: Thresholds,
    /// Whether a model that is warned of does not chat.
    pub is_strict: bool,
    /// The template to talk in; none for the model's own.
    pub template: Option<Template>,
    /// Tokens of an answer at most.
    pub max_tokens: usize,
    /// Tokens of a conversation at most; none for what most conversations fit in.
    pub n_ctx: Option<usize>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Adapters that are added to the model while it answers, each with a factor.
    pub loras: Vec<(Arc<Model>, f32)>,
    /// What it is asked in.
    pub engines: Engines,
}

impl Default for Questions {
    /// The built-in prompts, answered by the most probable tokens, 256 at most.
    fn default() -> Self {
        Questions {
            set: None,
            prompts: None,
            languages: Vec::new(),
            is_quick: false,
            limit: None,
            thresholds: Thresholds::default(),
            is_strict: false,
            template: None,
            max_tokens: 256,
            n_ctx: None,
            sampling: Sampling::Greedy,
            loras: Vec::new(),
            engines: Engines::default(),
        }
    }
}

impl Questions {
    /// The prompts for a model with these metadata, and the languages it should speak.
    pub(super) fn resolve(&self, metadata: &Metadata) -> (PromptSet, Vec<Language>) {
        let (mut set, languages) = match &self.set {
            Some(set) => (set.clone(), self.languages.clone()),
            None => {
                let own = || languages_of(metadata);
                let languages = if self.languages.is_empty() { own() } else { self.languages.clone() };
                (PromptSet::builtin(Some(&languages)), languages)
            }
        };
        if self.is_quick {
            set.quarter();
        }
        if let Some(limit) = self.limit {
            set.thin_out(limit);
        }
        (set, languages)
    }

    /// Prompts that a model with these metadata is asked.
    pub fn n_prompts(&self, metadata: &Metadata) -> usize {
        self.resolve(metadata).0.prompts.len()
    }

    /// Finds out whether a model of this shape can be asked at all, with so many bytes for a
    /// conversation.
    ///
    /// # Errors
    /// [`infer::Error`].
    pub fn check(&self, model: &Model, memory: u64) -> Result<(), infer::Error> {
        let hosts = self.engines.load(model, &[], 1)?;
        hosts.require_room(model, context_size(&hosts, self.n_ctx, memory), memory).map(drop)
    }

    /// Asks a model all of it. `templates` renders its own template, and `listener` is told how it
    /// goes on, and may end it: what was answered is judged then, if it takes a part.
    ///
    /// # Errors
    /// [`Error::Chatter`], [`Error::Judge`]; [`Error::Infer`] with [`infer::Error::Cancelled`] if
    /// `listener` ends it and takes no part.
    pub fn ask(
        &self,
        model: &Model,
        templates: &Templates,
        budget: &Budget,
        listener: &dyn Listener,
    ) -> Result<Talk, Error> {
        listener.begins(Phase::Reading);
        let (set, languages) = self.resolve(model.metadata());
        let loras = self.loras.iter().map(|(model, factor)| LoraFile { model, factor: *factor });
        let hosts = self.engines.load(model, &loras.collect::<Vec<_>>(), budget.threads)?;
        let chatter = Chatter::load(model, self.template.clone(), templates)?;
        let n_ctx = context_size(&hosts, self.n_ctx, budget.memory);
        let (max_tokens, sampling) = (self.max_tokens, self.sampling.clone());
        let asking = Asking { max_tokens, n_ctx, memory: budget.memory, sampling };
        let said = chatter.ask(&*hosts.first, &set, &asking, listener)?;
        let n = set.prompts.len();
        let agreement = match hosts.agreement(&said.transcripts, n_ctx, budget.memory, &|| listener.go_on(n)) {
            // The answers are there; it is the other engine that was not asked.
            Err(infer::Error::Cancelled) if listener.takes_a_part() => None,
            agreement => agreement?,
        };
        listener.begins(Phase::Judging);
        let judgement = judge(&set, &said.answers, &languages, &self.thresholds, &said.loaded)?;
        let architecture = model.metadata().get_str("general.architecture").map(ToString::to_string);
        Ok(Talk {
            architecture: architecture.unwrap_or_default(),
            engine: hosts.first.name(),
            adapters: self.loras.iter().map(|(model, factor)| (model.path().to_owned(), *factor)).collect(),
            agreement,
            n_ctx_train: hosts.first.n_ctx_train(),
            set,
            prompts: self.prompts.clone(),
            said,
            judgement,
            is_strict: self.is_strict,
            max_tokens,
            n_ctx,
        })
    }
}

/// A model that was asked, and what it said. It holds nothing of the model's file, which may get
/// another name.
#[derive(Clone, Debug)]
pub struct Talk {
    /// `general.architecture`.
    pub architecture: String,
    /// What answered.
    pub engine: String,
    /// Adapters that were added to the model, each with its factor.
    pub adapters: Vec<(PathBuf, f32)>,
    /// How far another engine is from that along the answers, if one was held against it.
    pub agreement: Option<Agreement>,
    /// Tokens that it was trained on at once.
    pub n_ctx_train: usize,
    /// What was asked.
    pub set: PromptSet,
    /// The file or option that is from; none for the built-in prompts.
    pub prompts: Option<PathBuf>,
    /// What was answered.
    pub said: Conversations,
    /// What that shows.
    pub judgement: Judgement,
    /// Whether a warning counts as a failure.
    pub is_strict: bool,
    /// Tokens of an answer at most.
    pub max_tokens: usize,
    /// Tokens of a conversation at most.
    pub n_ctx: usize,
}

impl Talk {
    /// Whether no check of the answers failed, or if that was asked for, none warned either.
    pub fn chats(&self) -> bool {
        self.judgement.verdict < if self.is_strict { Verdict::Warn } else { Verdict::Fail }
    }

    /// The last message of a prompt, and what was answered to it, with special tokens.
    pub fn reply_to(&self, id: &str) -> Option<(&str, &str)> {
        let i = self.set.prompts.iter().position(|p| p.id == id)?;
        let reply = self.said.answers.iter().find(|a| a.prompt == i)?.replies.last()?;
        Some((&self.set.prompts[i].messages.last()?.content, &reply.raw))
    }
}

/// The context asked for, or one of a size that most conversations fit in.
fn context_size(hosts: &Hosts, asked: Option<usize>, memory: u64) -> usize {
    context_of(asked, hosts.first.n_ctx_train(), |most| hosts.largest_context(most, memory))
}

/// The same for what was trained on so many tokens at once; `largest` is told the most that is
/// wanted, and says what there is room for.
pub(super) fn context_of(asked: Option<usize>, n_ctx_train: usize, largest: impl Fn(usize) -> usize) -> usize {
    let most = n_ctx_train.min(CONTEXT);
    // If not even a short one fits, the error says what it would take.
    asked.unwrap_or_else(|| largest(most).max(most.min(256)))
}

/// Those of `general.languages` that there are prompts in, or English.
fn languages_of(metadata: &Metadata) -> Vec<Language> {
    let codes = metadata.get_strings("general.languages").into_iter().flat_map(|codes| codes.iter());
    let asked = PromptSet::builtin_languages();
    let known = codes.filter_map(|code| Language::parse(&code.to_string()).ok()).filter(|l| asked.contains(l));
    let known: Vec<Language> = known.collect();
    if known.is_empty() { vec![Language::ENGLISH] } else { known }
}
