//! What a model answered, and what that says of it.

use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};

use super::{Report, Table, agreement};
use crate::eval::{ALPHA, Agreement, Answer, CheckResult, Conversations, Good, Judgement, Prompt, PromptSet, Verdict};
use crate::gguf::printable;
use crate::job::Talk;

/// A model that was asked the prompts of a set.
pub struct Smoke<'a> {
    /// The file.
    pub file: String,
    /// `general.architecture`.
    pub architecture: &'a str,
    /// What answered.
    pub engine: &'a str,
    /// Adapters that were added to the model, each with its factor.
    pub adapters: &'a [(PathBuf, f32)],
    /// How far another engine is from that along the answers, if one was held against it.
    pub agreement: Option<&'a Agreement>,
    /// The prompts.
    pub set: &'a PromptSet,
    /// The file they are from; none for the built-in ones.
    pub prompts: Option<&'a Path>,
    /// The answers.
    pub said: &'a Conversations,
    /// What they show.
    pub judgement: &'a Judgement,
    /// Tokens of an answer at most.
    pub max_tokens: usize,
    /// Tokens of a conversation at most.
    pub n_ctx: usize,
    /// Whether every answer is shown in the text.
    pub shows_answers: bool,
}

impl<'a> Smoke<'a> {
    /// The report on a model that was asked, whose file is `path` by now.
    pub fn new(talk: &'a Talk, path: &Path, shows_answers: bool) -> Self {
        Smoke {
            file: path.display().to_string(),
            architecture: &talk.architecture,
            engine: &talk.engine,
            adapters: &talk.adapters,
            agreement: talk.agreement.as_ref(),
            set: &talk.set,
            prompts: talk.prompts.as_deref(),
            said: &talk.said,
            judgement: &talk.judgement,
            max_tokens: talk.max_tokens,
            n_ctx: talk.n_ctx,
            shows_answers,
        }
    }
}

impl Report for Smoke<'_> {
    fn has_verdicts(&self) -> bool {
        true
    }

    fn text(&self) -> String {
        let mut text = format!("{}: {}\n\n", printable(&self.file), printable(&self.judgement.conclusion));
        if self.shows_answers {
            text += &self.conversations();
        }
        let mut table = Table::new(&["check", "", ">value", ">answers", "bounds", ">found at", "what it is"]);
        for check in &self.judgement.checks {
            let value = check.value.map_or("–".to_owned(), |v| format!("{v:.3}"));
            let (verdict, n) = (word(check.verdict).to_owned(), check.n.to_string());
            let about = about(check.name).to_owned();
            table.row([check.name.to_owned(), verdict, value, n, bounds(check), power(check), about]);
        }
        text += &table.text();
        let bad = self.judgement.checks.iter().filter(|c| c.verdict > Verdict::Pass);
        for check in bad {
            text += &format!("\n{} {}: {}\n", word(check.verdict), check.name, printable(&check.message));
            for example in &check.examples {
                text += &format!("  {}: {}\n", printable(&example.prompt), printable(&example.excerpt));
            }
        }
        for warning in &self.said.loaded.warnings {
            text += &format!("\nnote: {}\n", printable(warning));
        }
        text += &format!("\n{}\n{}\n{}\n", self.asked(), self.languages(), self.rates());
        if self.said.is_partial {
            let (n, all) = (self.said.answers.len(), self.set.prompts.len());
            text += &format!("interrupted: {n} of {all} prompts were answered, and only these are judged\n");
        }
        if let Some(found) = self.agreement {
            text += &format!("{}\n", agreement(found));
        }
        text + &format!("{}: {}\n", printable(&self.file), word(self.judgement.verdict))
    }

    fn json(&self) -> Json {
        let replies = |answer: &Answer| {
            let prompt = self.set.prompts.get(answer.prompt);
            json!({ "id": prompt.map(|p| &p.id), "messages": prompt.map(|p| &p.messages), "replies": answer.replies })
        };
        let adapter = |(path, factor): &(PathBuf, f32)| json!({ "file": path.to_string_lossy(), "ratio": factor });
        json!({
            "file": self.file,
            "architecture": self.architecture,
            "engine": self.engine,
            "agreement": self.agreement,
            "verdict": self.judgement.verdict,
            "conclusion": self.judgement.conclusion,
            "alpha": ALPHA,
            "partial": self.said.is_partial,
            "asked": {
                "prompts": self.prompts.map(|path| path.to_string_lossy()),
                "adapters": self.adapters.iter().map(adapter).collect::<Vec<_>>(),
                "n_prompts": self.set.prompts.len(),
                "languages": self.set.languages(),
                "max_tokens": self.max_tokens,
                "n_ctx": self.n_ctx,
            },
            "loaded": self.said.loaded,
            "checks": self.judgement.checks,
            "total": self.judgement.total,
            "kinds": self.judgement.kinds,
            "languages": self.judgement.languages,
            "spoken": self.judgement.spoken,
            "marks": self.judgement.replies,
            "answers": self.said.answers.iter().map(replies).collect::<Vec<_>>(),
            "speed": {
                "prompt_tokens": self.said.speed.prompt_tokens,
                "prompt_seconds": self.said.speed.prompt_seconds,
                "prompt_tokens_per_second": self.said.speed.prompt_rate(),
                "decode_tokens": self.said.speed.decode_tokens,
                "decode_seconds": self.said.speed.decode_seconds,
                "decode_tokens_per_second": self.said.speed.decode_rate(),
            },
        })
    }
}

impl Smoke<'_> {
    /// Every prompt with its answers.
    fn conversations(&self) -> String {
        let mut text = String::new();
        for answer in &self.said.answers {
            let Some(prompt) = self.set.prompts.get(answer.prompt) else { continue };
            text += &conversation(prompt, answer);
        }
        text
    }

    /// Which languages were answered in which.
    fn languages(&self) -> String {
        let spoken = self.judgement.spoken.iter().map(|s| {
            let found = s.spoken.found.map_or("undecided".to_owned(), |l| l.code());
            format!("{} → {found} {}", s.spoken.expected.code(), s.n)
        });
        let list: Vec<String> = spoken.collect();
        format!(
            "languages (prompt → answer): {}",
            if list.is_empty() { "none known".to_owned() } else { list.join(", ") }
        )
    }

    /// How many prompts of which languages, and where from.
    fn asked(&self) -> String {
        let n = self.set.prompts.len();
        let word = if n == 1 { "prompt" } else { "prompts" };
        let prompts = match self.prompts {
            None => format!("asked: {n} built-in {word}"),
            Some(path) => format!("asked: {n} {word} of {}", printable(&path.display().to_string())),
        };
        let languages: Vec<String> = self.set.languages().iter().map(|l| l.name()).collect();
        let languages = match languages.split_last() {
            None => ", which name no language".to_owned(),
            Some((last, [])) => format!(" in {last}"),
            Some((last, others)) => format!(" in {} and {last}", others.join(", ")),
        };
        let (max_tokens, n_ctx) = (self.max_tokens, self.n_ctx);
        format!("{prompts}{languages}; at most {max_tokens} tokens an answer, in a context of {n_ctx}")
    }

    fn rates(&self) -> String {
        let rate = |rate: Option<f64>| rate.map_or("–".to_owned(), |r| format!("{r:.1}"));
        let speed = &self.said.speed;
        format!(
            "{} tokens read at {} a second, {} written at {} a second; engine: {}{}",
            speed.prompt_tokens,
            rate(speed.prompt_rate()),
            speed.decode_tokens,
            rate(speed.decode_rate()),
            printable(self.engine),
            self.adapters
                .iter()
                .map(|(path, factor)| format!(", with {}@{factor}", super::shown(path)))
                .collect::<String>(),
        )
    }
}

/// A prompt with its answers, as text with an empty line behind it.
pub fn conversation(prompt: &Prompt, answer: &Answer) -> String {
    let answered: Vec<usize> = prompt.answered().collect();
    let mut text = format!("[{}]\n", printable(&prompt.id));
    for (i, turn) in prompt.messages.iter().enumerate() {
        text += &format!("{}: {}\n", printable(&turn.role), printable(&turn.content));
        let reply = answered.iter().position(|&a| a == i).and_then(|n| answer.replies.get(n));
        if let Some(reply) = reply {
            let said = if reply.raw.is_empty() { &reply.text } else { &reply.raw };
            text += &format!("> {}\n", printable(said.trim()));
        }
    }
    text + "\n"
}

fn about(name: &str) -> &'static str {
    crate::eval::CHECKS.iter().find(|c| c.name == name).map_or("", |c| c.about)
}

/// The bounds of failing and warning.
fn bounds(check: &CheckResult) -> String {
    let sign = if check.good == Good::AtLeast { '≥' } else { '≤' };
    let bound = |name: &str, value: Option<f64>| value.map(|v| format!("{name} {sign} {v}"));
    let (fail, warn) = (bound("must be", check.fail), bound("should be", check.warn));
    let parts: Vec<String> = fail.into_iter().chain(warn.filter(|_| check.fail != check.warn)).collect();
    parts.join(", ")
}

/// The true share from which so many answers find the fault four times in five.
fn power(check: &CheckResult) -> String {
    let sign = if check.good == Good::AtLeast { '≤' } else { '≥' };
    check.power.map_or("–".to_owned(), |power| format!("{sign} {power:.2}"))
}

/// A verdict as it is printed.
fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::NotMeasured => "–",
        Verdict::Pass => "PASS",
        Verdict::Warn => "WARN",
        Verdict::Fail => "FAIL",
    }
}
