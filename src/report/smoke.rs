//! What a model answered, and what that says of it.

use serde_json::{Value as Json, json};

use super::{Report, Table};
use crate::eval::{Answer, CheckResult, Good, Judgement, Loaded, PromptSet, Speed, Verdict};
use crate::gguf::printable;
use crate::infer::Hyperparameters;

/// A model that was asked the prompts of a set.
pub struct Smoke<'a> {
    /// The file.
    pub file: String,
    /// The shape of the network.
    pub hyperparameters: &'a Hyperparameters,
    /// What is known of the file before it answers.
    pub loaded: &'a Loaded,
    /// The prompts.
    pub set: &'a PromptSet,
    /// The answers.
    pub answers: &'a [Answer],
    /// What they show.
    pub judgement: &'a Judgement,
    /// How fast they came.
    pub speed: Speed,
    /// Whether every answer is shown in the text.
    pub shows_answers: bool,
}

impl Report for Smoke<'_> {
    fn text(&self) -> String {
        let mut text = String::new();
        if self.shows_answers {
            text += &self.conversations();
        }
        let mut table = Table::new(&["check", "", ">value", ">answers", "bounds", "what it is"]);
        for check in &self.judgement.checks {
            let value = check.value.map_or("–".to_owned(), |v| format!("{v:.3}"));
            let (verdict, n) = (word(check.verdict).to_owned(), check.n.to_string());
            table.row([check.name.to_owned(), verdict, value, n, bounds(check), about(check.name).to_owned()]);
        }
        text += &table.text();
        let bad = self.judgement.checks.iter().filter(|c| c.verdict > Verdict::Pass);
        for check in bad {
            text += &format!("\n{} {}: {}\n", word(check.verdict), check.name, printable(&check.message));
            for example in &check.examples {
                text += &format!("  {}: {}\n", printable(&example.prompt), printable(&example.excerpt));
            }
        }
        for warning in &self.loaded.warnings {
            text += &format!("\nnote: {}\n", printable(warning));
        }
        text += &format!("\n{}\n{}\n", self.languages(), self.rates());
        text + &format!("{}: {}\n", printable(&self.file), word(self.judgement.verdict))
    }

    fn json(&self) -> Json {
        let replies = |answer: &Answer| {
            let prompt = self.set.prompts.get(answer.prompt);
            json!({ "id": prompt.map(|p| &p.id), "replies": answer.replies })
        };
        json!({
            "file": self.file,
            "architecture": self.hyperparameters.architecture,
            "verdict": self.judgement.verdict,
            "loaded": self.loaded,
            "checks": self.judgement.checks,
            "total": self.judgement.total,
            "kinds": self.judgement.kinds,
            "languages": self.judgement.languages,
            "spoken": self.judgement.spoken,
            "marks": self.judgement.replies,
            "answers": self.answers.iter().map(replies).collect::<Vec<_>>(),
            "speed": {
                "prompt_tokens": self.speed.prompt_tokens,
                "prompt_seconds": self.speed.prompt_seconds,
                "prompt_tokens_per_second": self.speed.prompt_rate(),
                "decode_tokens": self.speed.decode_tokens,
                "decode_seconds": self.speed.decode_seconds,
                "decode_tokens_per_second": self.speed.decode_rate(),
            },
        })
    }
}

impl Smoke<'_> {
    /// Every prompt with its answers.
    fn conversations(&self) -> String {
        let mut text = String::new();
        for answer in self.answers {
            let Some(prompt) = self.set.prompts.get(answer.prompt) else { continue };
            let answered: Vec<usize> = prompt.answered().collect();
            text += &format!("[{}]\n", printable(&prompt.id));
            for (i, turn) in prompt.messages.iter().enumerate() {
                text += &format!("{}: {}\n", printable(&turn.role), printable(&turn.content));
                let reply = answered.iter().position(|&a| a == i).and_then(|n| answer.replies.get(n));
                if let Some(reply) = reply {
                    let said = if reply.raw.is_empty() { &reply.text } else { &reply.raw };
                    text += &format!("> {}\n", printable(said.trim()));
                }
            }
            text.push('\n');
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

    fn rates(&self) -> String {
        let rate = |rate: Option<f64>| rate.map_or("–".to_owned(), |r| format!("{r:.1}"));
        format!(
            "{} prompts; {} tokens read at {} a second, {} written at {} a second",
            self.answers.len(),
            self.speed.prompt_tokens,
            rate(self.speed.prompt_rate()),
            self.speed.decode_tokens,
            rate(self.speed.decode_rate()),
        )
    }
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

/// A verdict as it is printed.
fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::NotMeasured => "–",
        Verdict::Pass => "PASS",
        Verdict::Warn => "WARN",
        Verdict::Fail => "FAIL",
    }
}
