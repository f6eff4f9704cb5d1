//! Asking a set: conversations go on side by side, each as if it were alone.

use std::time::Instant;

use super::chatter::{Asking, Chatter, Conversations, Speed, Transcript};
use super::{Answer, End, Listener, Phase, Prompt, PromptSet, Reply};
use crate::chat::{Message, TemplateError};
use crate::infer::{self, Engine, Fed, Host, Sampler};

/// Conversations that go on at once, at most: weights are read once for all of them.
const MOST_AT_ONCE: usize = 32;

/// A beginning that is shorter is computed again rather than waited for.
const WORTH_SHARING: usize = 8;

/// Tokens of a question that are read at a time: whoever wants to stop waits for no more.
const READ_AT_ONCE: usize = 512;

/// Tokens that a template may write around a message, for the guess of how long a conversation
/// gets.
const AROUND_A_MESSAGE: usize = 24;

impl Chatter {
    /// Asks an engine all prompts, as many at once as fit in memory: each is answered as if it were
    /// alone. `listener` is told how it goes on, and may end it.
    ///
    /// A prompt that does not fit in the context is answered with nothing, ended by the context.
    /// One that the template refuses has no answer, and [`Conversations::loaded`] says so: a
    /// warning, or if there is not one answer, an error.
    ///
    /// # Errors
    /// [`infer::Error::Memory`], [`infer::Error::Setting`]; [`infer::Error::Cancelled`] if `listener`
    /// ends it and takes no part, or nothing was answered yet.
    pub fn ask(
        &self,
        host: &dyn Host,
        set: &PromptSet,
        asking: &Asking,
        listener: &dyn Listener,
    ) -> Result<Conversations, infer::Error> {
        listener.begins(Phase::Reading);
        let room =
            Room::of(self, set, asking, |n_tokens| host.largest_number(set.prompts.len(), n_tokens, asking.memory));
        let mut said = Said::default();
        let mut due: Vec<usize> = (0..set.prompts.len()).collect();
        // Those that need more than their share of memory are asked alone.
        for room in [room, Room { n_sequences: 1, n_tokens: asking.n_ctx }] {
            if said.is_partial || due.is_empty() && said.has_begun() {
                break;
            }
            let mut engine = host.sequences(room.n_sequences, asking.n_ctx, room.n_tokens, asking.memory)?;
            listener.begins(Phase::Asking);
            due = Talks::new((self, set, asking), due, &mut *engine, listener).ask(&mut said)?;
        }
        said.finish(self, set)
    }
}

/// A prompt that is being answered.
struct Conversation {
    prompt: usize,
    messages: Vec<Message>,
    /// Messages of the prompt that were told.
    n_told: usize,
    replies: Vec<Reply>,
    transcripts: Vec<Transcript>,
    refusal: Option<TemplateError>,
    answering: Option<Answering>,
    sampler: Sampler,
}

/// An answer so far.
struct Answering {
    /// The conversation before it.
    asked: Vec<u32>,
    answer: Vec<u32>,
    is_finite: bool,
}

impl Answering {
    /// Tokens that have to be fed by now.
    fn tokens(&self) -> impl Iterator<Item = u32> {
        self.asked.iter().chain(&self.answer).copied()
    }

    fn len(&self) -> usize {
        self.asked.len() + self.answer.len()
    }
}

/// What a sequence is fed next.
struct Due {
    sequence: usize,
    tokens: Vec<u32>,
    is_question: bool,
    /// Whether nothing of it is left for a later step.
    is_whole: bool,
}

/// What a conversation made of its latest logits.
struct Step {
    token: u32,
    is_finite: bool,
}

/// How many sequences a set is asked in, and how many tokens fit in each.
struct Room {
    n_sequences: usize,
    n_tokens: usize,
}

impl Room {
    /// What the prompts of a set need, if `fit` sequences of so many tokens fit in memory. Answers
    /// are as long as they may be.
    fn of(chatter: &Chatter, set: &PromptSet, asking: &Asking, fit: impl Fn(usize) -> usize) -> Room {
        let n_tokens = |text: &str| chatter.tokenizer().encode(text, false, false).len();
        // What a template writes at the beginning is the same for all of them.
        let first = set.prompts.first().and_then(|prompt| chatter.question(prompt, &first_question(prompt)).ok());
        let beginning = first.map_or(0, |tokens| tokens.len());
        let guess = |prompt: &Prompt| {
            let texts: usize = prompt.messages.iter().map(|m| n_tokens(&m.content) + AROUND_A_MESSAGE).sum();
            texts + prompt.answered().count() * (asking.max_tokens + AROUND_A_MESSAGE)
        };
        let longest = beginning + set.prompts.iter().map(guess).max().unwrap_or(1);
        let n_tokens = longest.clamp(1, asking.n_ctx);
        // One of them may need all of the context.
        let n_sequences = fit(n_tokens).min(MOST_AT_ONCE).min(set.prompts.len()) * fit(asking.n_ctx).min(1);
        match n_sequences {
            // Alone each has all of it.
            0 | 1 => Room { n_sequences: 1, n_tokens: asking.n_ctx },
            n_sequences => Room { n_sequences, n_tokens },
        }
    }
}

/// The messages of a prompt up to the first that is answered.
fn first_question(prompt: &Prompt) -> Vec<Message> {
    let n = prompt.answered().next().map_or(0, |i| i + 1);
    prompt.messages[..n].to_vec()
}

/// The conversations of a set, some of which are going on.
struct Talks<'a> {
    chatter: &'a Chatter,
    set: &'a PromptSet,
    asking: &'a Asking,
    engine: &'a mut dyn Engine,
    listener: &'a dyn Listener,
    /// One a sequence.
    going_on: Vec<Option<Conversation>>,
    /// Prompts that were not begun, the next one last.
    waiting: Vec<usize>,
    ended: Vec<Conversation>,
    /// Prompts whose conversations outgrew the room that they share with others.
    outgrown: Vec<usize>,
    speed: Speed,
}

impl<'a> Talks<'a> {
    fn new(
        (chatter, set, asking): (&'a Chatter, &'a PromptSet, &'a Asking),
        prompts: Vec<usize>,
        engine: &'a mut dyn Engine,
        listener: &'a dyn Listener,
    ) -> Self {
        let going_on = (0..engine.n_sequences()).map(|_| None).collect();
        let waiting = prompts.into_iter().rev().collect();
        let (ended, outgrown, speed) = (Vec::new(), Vec::new(), Speed::default());
        Talks { chatter, set, asking, engine, listener, going_on, waiting, ended, outgrown, speed }
    }

    /// Asks all of them. Gives those that need a context for themselves.
    ///
    /// # Errors
    /// Those of the engine; [`infer::Error::Cancelled`] if the listener ends it and takes no part.
    fn ask(mut self, said: &mut Said) -> Result<Vec<usize>, infer::Error> {
        loop {
            self.begin()?;
            if !self.listener.go_on(said.conversations.len() + self.ended.len()) {
                if !self.listener.takes_a_part() {
                    return Err(infer::Error::Cancelled);
                }
                // What had not begun has ended already if all was answered.
                said.is_partial = self.going_on.iter().any(Option::is_some) || !self.outgrown.is_empty();
                break;
            }
            if self.going_on.iter().all(Option::is_none) {
                break;
            }
            self.step()?;
        }
        said.has_begun = true;
        said.conversations.extend(self.ended);
        said.speed.add(&self.speed);
        Ok(self.outgrown)
    }

    /// Begins conversations where there is room.
    fn begin(&mut self) -> Result<(), infer::Error> {
        for sequence in 0..self.going_on.len() {
            while self.going_on[sequence].is_none() {
                let Some(prompt) = self.waiting.pop() else { break };
                // An equal seed gives equal tokens, whichever conversations are beside this one.
                let sampler = Sampler::new(self.asking.sampling.clone())?.of_stream(prompt as u64);
                let conversation = Conversation {
                    prompt,
                    messages: Vec::new(),
                    n_told: 0,
                    replies: Vec::new(),
                    transcripts: Vec::new(),
                    refusal: None,
                    answering: None,
                    sampler,
                };
                self.tell(sequence, conversation);
            }
        }
        Ok(())
    }

    /// Tells a conversation what comes next, up to a question that is answered token by token, or
    /// to its end.
    fn tell(&mut self, sequence: usize, mut conversation: Conversation) {
        let prompt = &self.set.prompts[conversation.prompt];
        let answered: Vec<usize> = prompt.answered().collect();
        while let Some(turn) = prompt.messages.get(conversation.n_told) {
            conversation.messages.push(turn.clone());
            conversation.n_told += 1;
            if !answered.contains(&(conversation.n_told - 1)) {
                continue;
            }
            let asked = match self.chatter.question(prompt, &conversation.messages) {
                Ok(asked) => asked,
                Err(e) => {
                    conversation.refusal = Some(e);
                    break;
                }
            };
            if asked.is_empty() || asked.len() >= self.asking.n_ctx {
                let (text, raw) = (String::new(), String::new());
                conversation.hear(Reply { text, raw, end: End::Context, n_tokens: 0, finite: true });
                continue;
            }
            if asked.len() >= self.engine.room() {
                self.outgrown.push(conversation.prompt);
                return;
            }
            conversation.answering = Some(Answering { asked, answer: Vec::new(), is_finite: true });
            self.going_on[sequence] = Some(conversation);
            return;
        }
        if !conversation.is_interrupted() {
            self.listener.hears(prompt, &conversation.answer());
        }
        self.ended.push(conversation);
    }

    /// Computes one token of every conversation, and what is new of their questions.
    fn step(&mut self) -> Result<(), infer::Error> {
        let mut due = Vec::new();
        for sequence in 0..self.going_on.len() {
            due.extend(self.due(sequence)?);
        }
        // Only what comes after the last token is of use.
        let first = |d: &Due| d.tokens.len() - usize::from(d.is_whole);
        let fed = due.iter().map(|d| Fed { sequence: d.sequence, tokens: &d.tokens, first: first(d) });
        let fed: Vec<Fed<'_>> = fed.collect();
        let mut steps: Vec<Option<Step>> = (0..fed.len()).map(|_| None).collect();
        let started = Instant::now();
        let going_on = &mut self.going_on;
        self.engine.feed(&fed, &mut |i, _, logits| {
            let Some(conversation) = &mut going_on[fed[i].sequence] else { return };
            let is_finite = logits.iter().all(|l| l.is_finite());
            steps[i] = Some(Step { token: conversation.sampler.choose(logits), is_finite });
        })?;
        let rows = |is_question| due.iter().filter(|d| d.is_question == is_question).map(|d| d.tokens.len()).sum();
        self.speed.add_step(started.elapsed(), rows(true), rows(false));
        for (due, step) in due.iter().zip(steps) {
            if let Some(step) = step {
                self.hear(due.sequence, &step);
            }
        }
        Ok(())
    }

    /// What has to be fed for the next token of a conversation, and whether it is a question; none
    /// if it waits for another one that begins as it does.
    fn due(&mut self, sequence: usize) -> Result<Option<Due>, infer::Error> {
        let Some(conversation) = &self.going_on[sequence] else { return Ok(None) };
        let Some(answering) = &conversation.answering else { return Ok(None) };
        let is_question = answering.answer.is_empty();
        if is_question && !self.take_beginning(sequence)? {
            return Ok(None);
        }
        let Some(answering) = self.going_on[sequence].as_ref().and_then(|c| c.answering.as_ref()) else {
            return Ok(None);
        };
        let mut tokens: Vec<u32> = answering.tokens().skip(self.engine.tokens(sequence).len()).collect();
        let is_whole = tokens.len() <= READ_AT_ONCE;
        tokens.truncate(READ_AT_ONCE);
        Ok(Some(Due { sequence, tokens, is_question, is_whole }))
    }

    /// Keeps or takes over what is computed of a question's beginning, but for its last token.
    /// False if more of it is about to be computed for another one.
    fn take_beginning(&mut self, sequence: usize) -> Result<bool, infer::Error> {
        let asked = |i: usize| self.going_on[i].as_ref()?.answering.as_ref().map(|a| &a.asked[..]);
        let Some(question) = asked(sequence) else { return Ok(false) };
        let in_common = |other: &[u32]| {
            let n = other.iter().zip(question).take_while(|(a, b)| a == b).count();
            n.min(question.len() - 1)
        };
        let own = in_common(self.engine.tokens(sequence));
        let others = (0..self.going_on.len()).filter(|&i| i != sequence);
        let computed = others.clone().map(|i| (in_common(self.engine.tokens(i)), i)).max();
        let coming = others.filter(|&i| i < sequence).filter_map(asked).map(in_common).max().unwrap_or(0);
        let best = computed.map_or(own, |(n, _)| n.max(own));
        if coming >= best + WORTH_SHARING {
            return Ok(false);
        }
        match computed {
            Some((n, from)) if n >= own + WORTH_SHARING => self.engine.share(from, sequence, n)?,
            _ => self.engine.truncate(sequence, own)?,
        }
        Ok(true)
    }

    /// Takes the next token of an answer.
    fn hear(&mut self, sequence: usize, step: &Step) {
        let Some(mut conversation) = self.going_on[sequence].take() else { return };
        let Some(answering) = &mut conversation.answering else { return };
        answering.is_finite &= step.is_finite;
        let end = if !answering.is_finite || answering.answer.len() == self.asking.max_tokens {
            Some(infer::End::Limit)
        } else if self.chatter.tokenizer().is_end(step.token) {
            Some(infer::End::Token(step.token))
        } else {
            answering.answer.push(step.token);
            if answering.len() > self.asking.n_ctx {
                Some(infer::End::Context)
            } else if answering.answer.len() == self.asking.max_tokens {
                Some(infer::End::Limit)
            } else if answering.len() > self.engine.room() {
                self.outgrown.push(conversation.prompt);
                return;
            } else {
                None
            }
        };
        let Some(end) = end else {
            self.going_on[sequence] = Some(conversation);
            return;
        };
        let ending = if let infer::End::Token(id) = end { Some(id) } else { None };
        let (prompt, n_asked) = (conversation.prompt, answering.asked.len());
        let transcript = Transcript { prompt, n_asked, tokens: answering.tokens().chain(ending).collect() };
        let (tokens, is_finite) = (std::mem::take(&mut answering.answer), answering.is_finite);
        conversation.transcripts.push(transcript);
        conversation.answering = None;
        conversation.hear(self.chatter.reply(&tokens, &end, is_finite));
        self.tell(sequence, conversation);
    }
}

impl Conversation {
    fn hear(&mut self, reply: Reply) {
        self.messages.push(Message { role: "assistant".to_owned(), content: reply.text.trim().to_owned() });
        self.replies.push(reply);
    }

    fn answer(&self) -> Answer {
        Answer { prompt: self.prompt, replies: self.replies.clone() }
    }

    /// Whether its template was not rendered to the end because somebody wants to stop.
    fn is_interrupted(&self) -> bool {
        matches!(self.refusal, Some(TemplateError::Interrupted))
    }
}

/// What was said so far.
#[derive(Default)]
struct Said {
    conversations: Vec<Conversation>,
    speed: Speed,
    has_begun: bool,
    is_partial: bool,
}

impl Said {
    /// Whether anything was asked.
    fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// The answers in the order of the prompts.
    ///
    /// # Errors
    /// [`infer::Error::Cancelled`] if a template was interrupted, or nothing was answered before the
    /// end.
    fn finish(mut self, chatter: &Chatter, set: &PromptSet) -> Result<Conversations, infer::Error> {
        if self.is_partial {
            self.conversations.retain(|c| !c.is_interrupted());
            if self.conversations.is_empty() {
                return Err(infer::Error::Cancelled);
            }
        }
        self.conversations.sort_by_key(|c| c.prompt);
        let (loaded, speed, is_partial) = (chatter.loaded().clone(), self.speed, self.is_partial);
        let mut said = Conversations { loaded, speed, is_partial, ..Conversations::default() };
        let mut refused: Vec<(usize, TemplateError)> = Vec::new();
        for conversation in self.conversations {
            said.answers.push(conversation.answer());
            refused.extend(conversation.refusal.map(|e| (conversation.prompt, e)));
            said.transcripts.extend(conversation.transcripts);
        }
        let Some((prompt, e)) = refused.first() else { return Ok(said) };
        if refused.iter().any(|(_, e)| matches!(e, TemplateError::Interrupted)) {
            return Err(infer::Error::Cancelled);
        }
        if said.answers.iter().all(|answer| answer.replies.is_empty()) {
            said.loaded.template_error.get_or_insert_with(|| e.to_string());
        }
        let (n, all, id) = (refused.len(), set.prompts.len(), &set.prompts[*prompt].id);
        let text = format!("the chat template does not render {n} of {all} prompts, which are not judged; {id}: {e}");
        said.loaded.warnings.push(text);
        Ok(said)
    }
}
