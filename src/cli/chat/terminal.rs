//! A chat in a terminal.

use std::cell::OnceCell;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anstyle::Style;
use anyhow::{Context as _, Result};

use super::command::{self, Command};
use super::editor::{Editor, Entered};
use super::sampling;
use super::talk::Talk;
use crate::chat::TemplateError;
use crate::cli::progress::{Answering, is_stopping};
use crate::cli::smoke::tell_context_size;
use crate::cli::{Exit, output};
use crate::eval::{Chatter, TurnError, read_conversation, write_conversation};
use crate::infer::{Engine, Host, Sampling};
use crate::job::{Blend, talk_context};

/// Tokens of answers that are compared, unless said otherwise: a model that was not trained to chat
/// does not end them.
const COMPARED: usize = 256;

const PROMPT: &str = "> ";
const HEAD: Style = Style::new().bold();
const ASIDE: Style = Style::new().dimmed();

/// Someone who can be talked to.
pub(super) struct Speaker<'a> {
    pub(super) blend: &'a dyn Blend,
    pub(super) chatter: &'a Chatter,
    /// The file.
    pub(super) name: String,
}

/// What conversations may take.
#[derive(Clone, Copy)]
pub(super) struct Room {
    pub(super) n_ctx: Option<usize>,
    pub(super) memory: u64,
}

/// Why a model is not asked any longer.
enum Next {
    Ratios(Vec<f32>),
    End(Exit),
}

/// Talks until the user ends it. `against` answers beside the model when it is compared; none for
/// the model without its parts.
pub(super) fn talk(
    speaker: &Speaker<'_>,
    against: Option<&Speaker<'_>>,
    talk: Talk,
    sampling: &Sampling,
    room: Room,
) -> Result<Exit> {
    let host = OnceCell::new();
    let mut second = Second::of(speaker, against, &host);
    let mut ratios = speaker.blend.ratios();
    let (mut last_ratios, mut is_first) = (None, true);
    let mut terminal =
        Terminal { talk, speaker, editor: Editor::new()?, ratios: ratios.clone(), saved: Vec::new(), may_end: false };
    loop {
        let host = match (speaker.blend.host(&ratios), last_ratios.take()) {
            // What was said so far is not lost to a ratio that cannot be.
            (Err(e), Some(last)) => {
                output::complain("error", &e.to_string());
                ratios = last;
                continue;
            }
            (host, _) => host?,
        };
        let n_ctx = talk_context(&*host, room.n_ctx, room.memory);
        let mut engine = host.sequences(1, n_ctx, n_ctx, room.memory)?;
        let left = Room { n_ctx: Some(n_ctx), memory: room.memory.saturating_sub(host.bytes_needed(1, n_ctx)) };
        terminal.ratios.clone_from(&ratios);
        if std::mem::take(&mut is_first) {
            terminal.greet(&*host, n_ctx, sampling)?;
            tell_context_size(n_ctx, host.n_ctx_train());
        } else {
            terminal.say(&terminal.name())?;
        }
        match terminal.go_on(&mut *engine, &mut second, left)? {
            Next::Ratios(new) => last_ratios = Some(std::mem::replace(&mut ratios, new)),
            Next::End(exit) => return Ok(exit),
        }
    }
}

/// The one that answers beside the model, made when it is first needed.
struct Second<'b, 'h> {
    /// None where there is nothing to compare with.
    speaker: Option<(&'b dyn Blend, &'b Chatter, String)>,
    host: &'h OnceCell<Box<dyn Host + 'b>>,
    engine: Option<Box<dyn Engine + 'h>>,
}

impl<'b, 'h> Second<'b, 'h> {
    fn of(speaker: &'b Speaker<'_>, against: Option<&'b Speaker<'_>>, host: &'h OnceCell<Box<dyn Host + 'b>>) -> Self {
        let speaker = match against {
            Some(other) => Some((other.blend, other.chatter, other.name.clone())),
            None if speaker.blend.parts().is_empty() => None,
            None => Some((speaker.blend, speaker.chatter, format!("{} alone", speaker.name))),
        };
        Second { speaker, host, engine: None }
    }

    /// Who it is, and its engine; none if there is nobody.
    fn ready(&mut self, room: Room) -> Result<Option<(&'b Chatter, &str, &mut dyn Engine)>> {
        let Some((blend, chatter, name)) = &self.speaker else { return Ok(None) };
        if self.engine.is_none() {
            let host = match self.host.get() {
                Some(host) => host,
                None => {
                    let host = blend.host(&vec![0.0; blend.parts().len()])?;
                    self.host.get_or_init(|| host)
                }
            };
            let n_ctx = talk_context(&**host, room.n_ctx, room.memory);
            self.engine =
                Some(host.sequences(1, n_ctx, n_ctx, room.memory).context("a second model beside the first")?);
        }
        Ok(self.engine.as_deref_mut().map(|engine| (*chatter, name.as_str(), engine as &mut dyn Engine)))
    }
}

struct Terminal<'a> {
    talk: Talk,
    speaker: &'a Speaker<'a>,
    editor: Editor,
    ratios: Vec<f32>,
    /// Files that this chat wrote or read, and may write again.
    saved: Vec<PathBuf>,
    /// Whether the last thing was Ctrl-C: another one ends the chat.
    may_end: bool,
}

impl Terminal<'_> {
    fn greet(&self, host: &dyn Host, n_ctx: usize, sampling: &Sampling) -> Result<()> {
        let text =
            format!("{}; engine: {}; context: {n_ctx} tokens; {}", self.name(), host.name(), sampling::words(sampling));
        output::print_styled(ASIDE, &text)?;
        output::print_styled(ASIDE, "/help lists commands. Ctrl-C stops an answer, Ctrl-D ends.")
    }

    /// The model, with what is added to it.
    fn name(&self) -> String {
        let parts = self.speaker.blend.parts();
        let parts: Vec<String> =
            parts.iter().zip(&self.ratios).map(|(part, ratio)| format!("{part}@{ratio}")).collect();
        let name = self.speaker.name.clone();
        if parts.is_empty() { name } else { format!("{name} with {}", parts.join(", ")) }
    }

    /// Talks to a model until its ratios change, or to the end.
    fn go_on(&mut self, engine: &mut dyn Engine, second: &mut Second<'_, '_>, left: Room) -> Result<Next> {
        loop {
            if self.talk.is_due() {
                self.take_turn(engine)?;
            }
            let line = match self.editor.read(PROMPT, &output::styled(HEAD, PROMPT))? {
                Entered::End => return Ok(Next::End(Exit::Success)),
                Entered::Interrupt if self.may_end => return Ok(Next::End(Exit::Interrupted)),
                Entered::Interrupt => {
                    self.may_end = true;
                    self.say("Ctrl-C again ends the chat; so does Ctrl-D.")?;
                    continue;
                }
                Entered::Line(line) => line,
            };
            self.may_end = false;
            match command::parse(&line) {
                Err(text) => output::complain("error", &text),
                Ok(None) if line.trim().is_empty() => {}
                Ok(None) => self.talk.ask(line.trim()),
                Ok(Some(Command::Quit)) => return Ok(Next::End(Exit::Success)),
                Ok(Some(Command::Ratio(new))) => {
                    if let Some(ratios) = self.new_ratios(&new)? {
                        return Ok(Next::Ratios(ratios));
                    }
                }
                Ok(Some(Command::Compare)) => self.compare(engine, second, left)?,
                Ok(Some(command)) => self.obey(command)?,
            }
        }
    }

    fn say(&self, text: &str) -> Result<()> {
        output::print_styled(ASIDE, text)
    }

    /// Carries out a command that needs no engine.
    fn obey(&mut self, command: Command) -> Result<()> {
        match command {
            Command::System(text) => {
                self.say(if text.is_some() {
                    "It counts from the next answer on."
                } else {
                    "There is no system text now."
                })?;
                self.talk.system = text;
            }
            Command::Clear => {
                self.talk.messages.clear();
                self.say("The conversation begins anew.")?;
            }
            Command::Save(path) => match save(&path, &write_conversation(&self.talk.conversation()), &self.saved) {
                Ok(()) => {
                    self.say(&format!("{} messages are in {}.", self.talk.conversation().len(), path.display()))?;
                    self.saved.push(path);
                }
                Err(e) => output::complain("error", &format!("{e:#}")),
            },
            Command::Load(path) => match read_conversation(&path) {
                Ok(mut messages) => {
                    self.say(&format!("{} messages of {}.", messages.len(), path.display()))?;
                    let has_system = messages.first().is_some_and(|first| first.role == "system");
                    self.talk.system = has_system.then(|| messages.remove(0).content);
                    self.talk.messages = messages;
                    self.saved.push(path);
                }
                Err(e) => output::complain("error", &format!("{:#}", anyhow::Error::new(e))),
            },
            Command::Help => output::print_text(command::HELP)?,
            Command::Ratio(_) | Command::Compare | Command::Quit => {}
        }
        Ok(())
    }

    /// The ratios that are asked for; none if nothing changes.
    fn new_ratios(&self, new: &[f32]) -> Result<Option<Vec<f32>>> {
        let n = self.ratios.len();
        match new {
            _ if n == 0 => {
                output::complain("error", "there is nothing with a ratio here; give --lora FILE or --vector")
            }
            [] => self.say(&self.name())?,
            [one] => return Ok(Some(vec![*one; n])),
            all if all.len() == n => return Ok(Some(all.to_vec())),
            all => {
                output::complain("error", &format!("/ratio has {} numbers, and {n} adapters take one each", all.len()))
            }
        }
        Ok(None)
    }

    /// Answers the last question.
    fn take_turn(&mut self, engine: &mut dyn Engine) -> Result<()> {
        let turn = heard(|show| self.talk.answer(self.speaker.chatter, engine, None, show));
        match turn {
            Ok(turn) if turn.is_stopped => {
                self.may_end = true;
                if turn.reply.text.trim().is_empty() {
                    self.talk.take_back();
                    self.say("Stopped; the question is taken back.")?;
                } else {
                    self.talk.hear(&turn);
                    self.say("Stopped.")?;
                }
            }
            Ok(turn) => {
                self.talk.hear(&turn);
                if let Some((kind, text)) = self.talk.remark(&turn, engine.room()) {
                    output::complain(kind, &text);
                }
            }
            Err(TurnError::Infer(e)) => return Err(e.into()),
            Err(e) => {
                self.may_end = matches!(e, TurnError::Template(TemplateError::Interrupted));
                output::complain("error", &format!("{:#}; the question is taken back", anyhow::Error::new(e)));
                self.talk.take_back();
            }
        }
        Ok(())
    }

    /// Has both answer the last question, one after the other. The conversation stays as it is.
    fn compare(&mut self, engine: &mut dyn Engine, second: &mut Second<'_, '_>, left: Room) -> Result<()> {
        if self.talk.messages.is_empty() {
            output::complain("error", "there is no message to answer; say something first");
            return Ok(());
        }
        let (chatter, name, other) = match second.ready(left) {
            Ok(Some(ready)) => ready,
            Ok(None) => {
                output::complain("error", "there is nothing to compare with; give --lora FILE or --against OTHER.gguf");
                return Ok(());
            }
            Err(e) => {
                output::complain("error", &format!("{e:#}"));
                return Ok(());
            }
        };
        let own = self.name();
        if self.answer_as(&own, self.speaker.chatter, engine)? {
            self.answer_as(name, chatter, other)?;
        }
        Ok(())
    }

    /// Shows what one of two answers. False if the user has enough.
    fn answer_as(&mut self, name: &str, chatter: &Chatter, engine: &mut dyn Engine) -> Result<bool> {
        output::print_styled(HEAD, &format!("[{name}]"))?;
        match heard(|show| self.talk.answer(chatter, engine, Some(COMPARED), show)) {
            Ok(turn) => {
                if let Some((kind, text)) = self.talk.remark(&turn, engine.room()) {
                    output::complain(kind, &text);
                }
                self.may_end = turn.is_stopped;
                return Ok(!turn.is_stopped);
            }
            Err(TurnError::Infer(e)) => return Err(e.into()),
            Err(e) => output::complain("error", &format!("{:#}", anyhow::Error::new(e))),
        }
        Ok(true)
    }
}

/// Shows an answer as it comes, until it ends or the user has enough.
fn heard<T>(answer: impl FnOnce(&mut dyn FnMut(&str) -> bool) -> T) -> T {
    let answering = Answering::begin();
    let mut is_shown = false;
    let answer = answer(&mut |text| {
        is_shown |= !text.is_empty();
        matches!(output::print_part(text), Ok(true)) && !is_stopping()
    });
    if is_shown {
        let _ = output::print_part("\n");
    }
    drop(answering);
    answer
}

/// Writes a conversation, complete or not at all. A file that is there is replaced if this chat knows
/// it.
fn save(path: &Path, text: &str, known: &[PathBuf]) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = || path.display().to_string();
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(name)?;
    file.write_all(text.as_bytes()).with_context(name)?;
    let kept = match known.iter().any(|known| known == path) {
        true => file.persist(path),
        false => file.persist_noclobber(path),
    };
    match kept {
        Ok(_) => Ok(()),
        Err(e) if e.error.kind() == std::io::ErrorKind::AlreadyExists => {
            anyhow::bail!("{}: there is such a file; choose another name", name())
        }
        Err(e) => Err(e.error).with_context(name),
    }
}
