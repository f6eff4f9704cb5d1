//! Who parses and renders templates: this process, or one that can be ended.
//!
//! A caller that must not be held up, nor lose its memory, gives a [`TemplateRunner`] that sends
//! requests elsewhere. The command has one: a process of its own with limits,
//! [`crate::cli::TemplateProcess`], which serves all who bring the program along. A library that
//! did the same by itself would start a process that nobody asked for. So its default stays here,
//! within the bounds that [`super`] states.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::{Message, RenderAs, RenderOptions, Template, TemplateError};
use crate::chat::TEMPLATE;
use crate::gguf::Metadata;

/// Parses and renders templates for others.
pub trait TemplateRunner: fmt::Debug + Send + Sync {
    /// Does what [`TemplateRequest::run`] does, with the same result, or gives up.
    ///
    /// # Errors
    /// Those of [`TemplateRequest::run`], and [`TemplateError::Time`], [`TemplateError::Memory`],
    /// [`TemplateError::Process`], [`TemplateError::Interrupted`] or [`TemplateError::Skipped`]
    /// where it gives up.
    fn run(&self, request: &TemplateRequest) -> Result<String, TemplateError>;
}

/// What a runner is asked.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TemplateRequest {
    /// The template.
    pub source: String,
    /// As whom it is rendered.
    #[serde(default)]
    pub render_as: RenderAs,
    /// What is rendered; none if the template is only to be parsed.
    pub conversation: Option<Conversation>,
}

/// A conversation with all that a template is told of it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conversation {
    /// The turns.
    pub messages: Vec<Message>,
    /// See [`RenderOptions`].
    pub add_generation_prompt: bool,
    /// See [`RenderOptions`].
    pub bos_token: String,
    /// See [`RenderOptions`].
    pub eos_token: String,
    /// What `strftime_now` tells.
    pub now: SystemTime,
}

impl Conversation {
    /// A conversation at this time.
    pub fn new(messages: &[Message], options: &RenderOptions<'_>, now: SystemTime) -> Self {
        Conversation {
            messages: messages.to_vec(),
            add_generation_prompt: options.add_generation_prompt,
            bos_token: options.bos_token.to_owned(),
            eos_token: options.eos_token.to_owned(),
            now,
        }
    }

    /// Bytes of its texts.
    pub fn len(&self) -> usize {
        self.messages.iter().map(|m| m.role.len() + m.content.len()).sum()
    }

    /// Whether nothing is said in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl TemplateRequest {
    /// Parses the template and renders the conversation, if there is one, in this process. `parsed`
    /// is the last template, which is parsed once for many requests. The answer to a request
    /// without a conversation is empty.
    ///
    /// # Errors
    /// Those of [`Template::parse`] and [`Template::render_at`].
    pub fn run(&self, parsed: &mut Option<(String, RenderAs, Template)>) -> Result<String, TemplateError> {
        let template = match parsed {
            Some((source, by, template)) if *source == self.source && *by == self.render_as => template,
            _ => {
                let template = Template::parse_as(&self.source, self.render_as)?;
                &parsed.insert((self.source.clone(), self.render_as, template)).2
            }
        };
        let Some(conversation) = &self.conversation else { return Ok(String::new()) };
        let Conversation { messages, add_generation_prompt, bos_token, eos_token, now } = conversation;
        let options = RenderOptions { add_generation_prompt: *add_generation_prompt, bos_token, eos_token };
        template.render_at(messages, &options, *now)
    }
}

/// Where templates are parsed and rendered; by default in this process.
#[derive(Clone, Default, Debug)]
pub struct Templates {
    runner: Option<Arc<dyn TemplateRunner>>,
}

impl Templates {
    /// Templates that this runner parses and renders.
    pub fn by(runner: Arc<dyn TemplateRunner>) -> Self {
        Templates { runner: Some(runner) }
    }

    /// Parses a template, which is then rendered where it was parsed.
    ///
    /// # Errors
    /// Those of [`Template::parse`] and of the runner.
    pub fn parse(&self, source: &str) -> Result<Template, TemplateError> {
        self.parse_as(source, RenderAs::default())
    }

    /// [`Templates::parse`], to be rendered as another engine does.
    ///
    /// # Errors
    /// As [`Templates::parse`].
    pub fn parse_as(&self, source: &str, render_as: RenderAs) -> Result<Template, TemplateError> {
        match &self.runner {
            None => Template::parse_as(source, render_as),
            Some(runner) => Template::sent(source, render_as, runner.clone()),
        }
    }

    /// Parses `tokenizer.chat_template`: none if the metadata have none, or an empty one.
    ///
    /// # Errors
    /// [`TemplateError::NotUtf8`], and those of [`Templates::parse`].
    pub fn of(&self, metadata: &Metadata) -> Result<Option<Template>, TemplateError> {
        self.of_as(metadata, RenderAs::default())
    }

    /// [`Templates::of`], to be rendered as another engine does.
    ///
    /// # Errors
    /// As [`Templates::of`].
    pub fn of_as(&self, metadata: &Metadata, render_as: RenderAs) -> Result<Option<Template>, TemplateError> {
        let Some(source) = metadata.get_str(TEMPLATE).filter(|s| !s.trim_ascii().is_empty()) else { return Ok(None) };
        let source = std::str::from_utf8(source)
            .map_err(|e| TemplateError::NotUtf8 { key: TEMPLATE.to_owned(), offset: e.valid_up_to() })?;
        self.parse_as(source, render_as).map(Some)
    }
}
