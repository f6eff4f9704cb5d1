//! Chat templates: a conversation becomes the text of a prompt.
//!
//! `tokenizer.chat_template` is Jinja as Hugging Face transformers renders it
//! (`render_jinja_template` in utils/chat_template_utils.py): blocks trimmed, no escaping, Python's
//! methods, and a few names that only chat templates know. What of this the engine does not do
//! itself is in `python`; what it cannot parse is rewritten in `source`.
//!
//! A template comes with a file and is not trusted. It reads no files and no other templates. What
//! it may cost is counted in the engine's fuel, which pays for instructions and for every byte that
//! they make, and it runs on a stack of its own that is deep enough for whatever
//! [`MAX_SOURCE_BYTES`] can nest.
//!
//! What the engine does not count is the size of shared values: a list that holds one long string
//! many times, or lists that hold one list twice, are small until something walks them. Printing,
//! `string`, `join`, `tojson`, `escape`, methods and assignment to a namespace pay for the walk
//! here. `~`, comparisons, `in`, tests, indices, slices of slices and the remaining filters cannot
//! be reached from outside the engine: a template written for the purpose can still take time, and
//! by the text of lists (`[s, s] ~ ''`) memory, without bound. It cannot do more than that.
//!
//! So whoever must not be held up has templates rendered by a process that can be ended:
//! [`Templates::by`] takes a [`TemplateRunner`], and everything in this crate that renders takes
//! [`Templates`]. The command does so, with a bound of wall-clock time and, on Linux, of memory.
//! Without a runner templates are rendered in this process, with the bounds above and no others.

mod llama;
mod python;
mod runner;
mod source;

use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior, context};
use serde::{Deserialize, Serialize};

use crate::chat::Tokenizer;
use crate::gguf::Metadata;

pub use runner::{Conversation, TemplateRequest, TemplateRunner, Templates};

/// The longest source taken. The longest of llama.cpp's 70 (models/templates) has 17 KB.
pub const MAX_SOURCE_BYTES: usize = 64 << 10;

/// Stack of the thread that parses or renders. Lists nested as deep as a source of
/// [`MAX_SOURCE_BYTES`] can say it, 30,000 levels, took 8 MB of it to print, compare and drop.
const STACK_BYTES: usize = 64 << 20;

/// Frames of loops, `with` blocks and macros. Templates nest about ten.
const MAX_RECURSION: usize = 200;

/// Fuel for what does not depend on the conversation, for each message, for each pair of messages,
/// and for each byte of text in them.
///
/// For 201 messages with 81 KB, 67 of the 69 templates of llama.cpp that take them needed less than
/// 50,000, and the two that look at every message for each message 180,000 and 677,000, which is 17
/// a pair.
const FUEL: u64 = 50_000;
const FUEL_PER_MESSAGE: u64 = 4_000;
const FUEL_PER_PAIR: u64 = 40;
const FUEL_PER_BYTE: u64 = 1;

/// Longest prompt, beyond ten times the text of the conversation. The fuel would allow more.
const MAX_OUTPUT_BYTES: usize = 1 << 20;

/// The name under which the engine knows the template; it shows in no message.
const NAME: &str = "chat_template";

/// llama.cpp's template for models that bring none (`CHATML_TEMPLATE_SRC` in common/chat.cpp does
/// the same).
const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{{ '\\n' }}{% endfor %}\
                      {% if add_generation_prompt %}<|im_start|>assistant{{ '\\n' }}{% endif %}";

/// One turn of a conversation.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// `system`, `user`, `assistant`, or whatever else the template knows.
    pub role: String,
    /// Its text.
    pub content: String,
}

/// What a template is told besides the messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RenderOptions<'a> {
    /// Whether the prompt ends with the beginning of an answer.
    pub add_generation_prompt: bool,
    /// Text of the token that begins a text; empty if there is none.
    pub bos_token: &'a str,
    /// Text of the token that ends one; empty if there is none.
    pub eos_token: &'a str,
}

impl<'a> RenderOptions<'a> {
    /// Options with the tokens that begin and end a text in this vocabulary, if they are UTF-8.
    pub fn new(tokenizer: Option<&'a Tokenizer>, add_generation_prompt: bool) -> Self {
        let text = |id: fn(&Tokenizer) -> Option<u32>| {
            let text = tokenizer.and_then(|tokenizer| tokenizer.text(id(tokenizer)?));
            text.and_then(|text| std::str::from_utf8(text).ok()).unwrap_or_default()
        };
        RenderOptions { add_generation_prompt, bos_token: text(Tokenizer::bos), eos_token: text(Tokenizer::eos) }
    }
}

/// As whom a template is rendered.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RenderAs {
    /// As transformers does, by jinja2.
    #[default]
    Transformers,
    /// As llama.cpp does, as far as [`dialect::Finding::is_emulated`](crate::chat::dialect::Finding::is_emulated).
    LlamaCpp,
}

/// Whether a construct of [`crate::chat::dialect`] renders as in llama.cpp by [`RenderAs::LlamaCpp`].
pub(super) fn is_emulated(construct: &str) -> bool {
    llama::EMULATED.contains(&construct)
}

/// A chat template, parsed.
#[derive(Clone, Debug)]
pub struct Template {
    engine: Engine,
}

/// Who renders it.
#[derive(Clone, Debug)]
enum Engine {
    /// This process, which has parsed it.
    Here(Box<Environment<'static>>),
    /// A runner, which has found that it can be parsed.
    Sent { source: Arc<str>, render_as: RenderAs, runner: Arc<dyn TemplateRunner> },
}

/// Why a template cannot be parsed or rendered.
#[derive(thiserror::Error, Serialize, Deserialize, Debug)]
#[non_exhaustive]
pub enum TemplateError {
    /// The metadata hold something else than text.
    #[error("`{key}` is not UTF-8 from byte {offset} on")]
    NotUtf8 {
        /// The key.
        key: String,
        /// The first byte that is wrong.
        offset: usize,
    },
    /// The source is longer than [`MAX_SOURCE_BYTES`].
    #[error("the chat template has {len} bytes; at most {MAX_SOURCE_BYTES} are read")]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// The source is not Jinja.
    #[error("line {line} of the chat template: {message}")]
    Syntax {
        /// The line, from 1.
        line: usize,
        /// What the parser says.
        message: String,
    },
    /// The template refuses the conversation, by `raise_exception`.
    #[error("the chat template refuses the conversation: {message}")]
    Raised {
        /// The template's own words.
        message: String,
    },
    /// The template takes more steps, or makes more text, than a conversation of this size can
    /// need.
    #[error("line {line} of the chat template: more work than this conversation can need")]
    OutOfFuel {
        /// Where it was, from 1; 0 if that is not known.
        line: usize,
    },
    /// The prompt is far longer than the conversation.
    #[error("the chat template makes a prompt of more than {limit} bytes")]
    OutputTooLong {
        /// Bytes that this conversation may have become.
        limit: usize,
    },
    /// Macros or loops call themselves without end.
    #[error("line {line} of the chat template: more than {MAX_RECURSION} levels of loops and macros")]
    Recursion {
        /// Where it was, from 1; 0 if that is not known.
        line: usize,
    },
    /// Anything else that goes wrong in a template: an undefined value, an unknown filter, a wrong
    /// type.
    #[error("line {line} of the chat template: {message}")]
    Render {
        /// Where it was, from 1; 0 if that is not known.
        line: usize,
        /// What the engine says.
        message: String,
    },
    /// The engine has a defect that the template meets.
    #[error("the template engine breaks down over the chat template")]
    Broken,
    /// No thread could be started to run the template on.
    #[error("no stack for the chat template: {0}")]
    Stack(
        #[source]
        #[serde(with = "as_text")]
        io::Error,
    ),
    /// A runner ended it at its bound of time.
    #[error("the chat template takes more than {} s and was stopped; those in use take milliseconds", limit.as_secs_f64())]
    Time {
        /// What it may take, by the clock on the wall.
        limit: Duration,
    },
    /// A runner ended it at its bound of memory.
    #[error("the chat template takes more than {} MiB of memory and was stopped; those in use take a few", limit >> 20)]
    Memory {
        /// Bytes that it may take.
        limit: u64,
    },
    /// A runner has no process to render in, or lost it.
    #[error("the process that renders chat templates {reason}")]
    Process {
        /// What became of it, as the end of a sentence.
        reason: String,
    },
    /// The user wants it to end.
    #[error("the chat template was interrupted")]
    Interrupted,
    /// Nothing is rendered, because that was asked for.
    #[error("the chat template is not rendered (--no-template)")]
    Skipped,
}

impl TemplateError {
    /// Whether a runner gave up on the template, so that nothing is known of it, and the same
    /// template will do no better with another conversation.
    pub fn is_given_up(&self) -> bool {
        use TemplateError::*;
        matches!(self, Time { .. } | Memory { .. } | Process { .. } | Interrupted | Skipped)
    }

    /// Whether the template met a bound that no template in use meets, here or in a runner, or was
    /// not rendered at all.
    pub fn is_bound(&self) -> bool {
        use TemplateError::*;
        self.is_given_up()
            || matches!(self, OutOfFuel { .. } | OutputTooLong { .. } | Recursion { .. } | Broken | Stack(_))
    }
}

/// Errors of the system as text: another process has no use for their numbers.
mod as_text {
    use std::io;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(error: &io::Error, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(error)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<io::Error, D::Error> {
        Ok(io::Error::other(String::deserialize(deserializer)?))
    }
}

impl Template {
    /// Parses a template.
    ///
    /// # Errors
    ///
    /// [`TemplateError::TooLong`], [`TemplateError::Syntax`], [`TemplateError::Broken`] and
    /// [`TemplateError::Stack`].
    pub fn parse(source: &str) -> Result<Self, TemplateError> {
        Self::parse_as(source, RenderAs::default())
    }

    /// [`Template::parse`], to be rendered as another engine does.
    ///
    /// # Errors
    ///
    /// As [`Template::parse`].
    pub fn parse_as(source: &str, render_as: RenderAs) -> Result<Self, TemplateError> {
        if source.len() > MAX_SOURCE_BYTES {
            return Err(TemplateError::TooLong { len: source.len() });
        }
        on_deep_stack(|| Self::parse_here(source, render_as))
    }

    /// Parses on the stack at hand.
    fn parse_here(source: &str, render_as: RenderAs) -> Result<Self, TemplateError> {
        let mut environment = environment();
        if render_as == RenderAs::LlamaCpp {
            llama::install(&mut environment);
        }
        let source = source::rewrite(source).map_err(|line| TemplateError::Syntax {
            line,
            message: format!("more than {} bytes of code in one tag", source::MAX_TAG_BYTES),
        })?;
        let added = environment.add_template_owned(NAME, source);
        added.map_err(|e| TemplateError::Syntax { line: e.line().unwrap_or(0), message: message(&e) })?;
        Ok(Self { engine: Engine::Here(Box::new(environment)) })
    }

    /// Has a runner parse a template, which it will render.
    fn sent(source: &str, render_as: RenderAs, runner: Arc<dyn TemplateRunner>) -> Result<Self, TemplateError> {
        // What is too long is not even sent.
        if source.len() > MAX_SOURCE_BYTES {
            return Err(TemplateError::TooLong { len: source.len() });
        }
        runner.run(&TemplateRequest { source: source.to_owned(), render_as, conversation: None })?;
        Ok(Self { engine: Engine::Sent { source: source.into(), render_as, runner } })
    }

    /// Parses `tokenizer.chat_template`: none if the metadata have none, or an empty one.
    ///
    /// # Errors
    ///
    /// [`TemplateError::NotUtf8`], and those of [`Template::parse`].
    pub fn from_metadata(metadata: &Metadata) -> Result<Option<Self>, TemplateError> {
        Templates::default().of(metadata)
    }

    /// The template that llama.cpp falls back to: ChatML (common/chat.cpp,
    /// `common_chat_templates_init`).
    pub fn chatml() -> Self {
        Self::parse_here(CHATML, RenderAs::default()).expect("it is written above, and a test renders it")
    }

    /// The prompt of a conversation, without tools or documents; the date, if the template asks for
    /// it, is that of now in UTC.
    ///
    /// The prompt is to be tokenised with special tokens parsed. Many templates write the
    /// beginning-of-text token themselves: a caller whose tokenizer adds one too must leave that
    /// out if the prompt begins with it, as llama.cpp does (`common_chat_templates_apply_jinja` in
    /// common/chat.cpp).
    ///
    /// Memory is bounded by the fuel, but for what the source of this module names: 3 MB, 0.3 MB
    /// more a message, 64 bytes more a byte of text, and 2.5 KB more a pair of messages. A template
    /// of [`Templates::by`] is rendered by its runner, within that one's bounds.
    ///
    /// # Errors
    ///
    /// Every [`TemplateError`] but those of parsing.
    pub fn render(&self, messages: &[Message], options: &RenderOptions<'_>) -> Result<String, TemplateError> {
        self.render_at(messages, options, SystemTime::now())
    }

    /// [`Template::render`] with the time that `strftime_now` tells, which is the only thing a
    /// prompt depends on besides the arguments.
    ///
    /// # Errors
    ///
    /// As [`Template::render`].
    pub fn render_at(
        &self,
        messages: &[Message],
        options: &RenderOptions<'_>,
        now: SystemTime,
    ) -> Result<String, TemplateError> {
        let environment = match &self.engine {
            Engine::Here(environment) => environment,
            Engine::Sent { source, render_as, runner } => {
                let conversation = Some(Conversation::new(messages, options, now));
                let (source, render_as) = (source.to_string(), *render_as);
                return runner.run(&TemplateRequest { source, render_as, conversation });
            }
        };
        let len = messages.iter().map(|m| m.role.len() + m.content.len()).sum::<usize>();
        let n = messages.len() as u64;
        let per_message = FUEL_PER_PAIR.saturating_mul(n).saturating_add(FUEL_PER_MESSAGE);
        let fuel = FUEL.saturating_add(n.saturating_mul(per_message)).saturating_add(len as u64 * FUEL_PER_BYTE);
        let mut prompt = LimitedText { text: Vec::new(), limit: max_output_bytes(len) };

        let mut environment = environment.clone();
        environment.set_fuel(Some(fuel));
        environment.add_function("strftime_now", move |format: &str| python::strftime(now, format));
        let rendered = on_deep_stack(|| {
            let context = context! {
                messages => Serde(messages),
                tools => (),
                documents => (),
                add_generation_prompt => options.add_generation_prompt,
                bos_token => options.bos_token,
                eos_token => options.eos_token,
            };
            let template = environment.get_template(NAME).map_err(|e| failure(&e))?;
            template.render_captured_to(context, &mut prompt).map(drop).map_err(|e| failure(&e))
        });
        match rendered {
            Err(TemplateError::OutputTooLong { .. }) => Err(TemplateError::OutputTooLong { limit: prompt.limit }),
            Err(error) => Err(error),
            Ok(()) => Ok(String::from_utf8(prompt.text).expect("the engine writes whole strings")),
        }
    }
}

/// The longest prompt that a conversation with so many bytes of text may become.
pub fn max_output_bytes(len: usize) -> usize {
    MAX_OUTPUT_BYTES.saturating_add(len.saturating_mul(10))
}

/// The engine set up as transformers does (`_cached_compile_jinja_template`), with everything that
/// is no business of a template taken out.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the delimiters are Jinja's own"));
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_recursion_limit(MAX_RECURSION);
    // Debug information would hold the text of every variable.
    environment.set_debug(false);
    environment.remove_global("debug");
    python::install(&mut environment);
    environment
}

/// Runs something that recurses as deep as its input says.
///
/// A panic of the engine becomes an error: minijinja 3.1 slices format strings by bytes where they
/// name a value, and so falls over a name that is not ASCII, as in `'%(é'|format(1)`.
fn on_deep_stack<T: Send>(f: impl FnOnce() -> Result<T, TemplateError> + Send) -> Result<T, TemplateError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("chat template".to_owned()).stack_size(STACK_BYTES);
        let thread = thread.spawn_scoped(scope, f).map_err(TemplateError::Stack)?;
        thread.join().unwrap_or(Err(TemplateError::Broken))
    })
}

/// The prompt as it grows, no further than to its limit.
struct LimitedText {
    text: Vec<u8>,
    limit: usize,
}

impl Write for LimitedText {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.limit - self.text.len() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sorts an error of the engine, which may be the end of a chain.
fn failure(error: &minijinja::Error) -> TemplateError {
    let mut line = 0;
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    let mut innermost = error;
    while let Some(cause) = next {
        if let Some(python::Raised(message)) = cause.downcast_ref() {
            return TemplateError::Raised { message: message.clone() };
        }
        if let Some(cause) = cause.downcast_ref::<minijinja::Error>() {
            innermost = cause;
            line = cause.line().unwrap_or(line);
        }
        next = cause.source();
    }
    match innermost.kind() {
        ErrorKind::OutOfFuel => TemplateError::OutOfFuel { line },
        ErrorKind::WriteFailure => TemplateError::OutputTooLong { limit: 0 },
        _ if innermost.detail() == Some("recursion limit exceeded") => TemplateError::Recursion { line },
        _ => TemplateError::Render { line, message: message(innermost) },
    }
}

/// What the engine says, without the name and line that it adds.
fn message(error: &minijinja::Error) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    }
}
