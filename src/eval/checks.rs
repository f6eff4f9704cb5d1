//! The checks: shares of what was seen of the replies, held to thresholds and put into words.

use std::collections::BTreeMap;

use super::answer::{End, Loaded, is_asked, without_end};
use super::check_result::{CheckResult, Example, Verdict};
use super::decision::{Decision, decide};
use super::seen::{Marks, Seen, Spoken};
use super::{Check, Good, Kind, Language, Thresholds};
use crate::gguf::printable;

/// Answers shown with a check, at most.
const EXAMPLES: usize = 3;
/// Characters of an answer shown.
const EXCERPT: usize = 120;
/// Answers from which on their variety is judged: all of fewer may differ, and show nothing.
const MIN_VARIED: usize = 8;
/// Tokens that end a turn or a text in the usual chat models. One that stands in the middle of an
/// answer is no end token of the file, though it should be.
const END_TOKENS: [&str; 13] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|eot|>",
    "<|end|>",
    "<|return|>",
    "<end_of_turn>",
    "<turn|>",
    "</s>",
    "<|END_OF_TURN_TOKEN|>",
    "<｜end▁of▁sentence｜>",
    "<|endoftext|>",
    "<|end_of_text|>",
];

/// All checks, in the order of their table.
pub(super) fn all(thresholds: &Thresholds, loaded: &Loaded, seen: &[Seen<'_>]) -> Vec<CheckResult> {
    let judge = Judge { thresholds, loaded, seen };
    vec![
        judge.loads(),
        judge.finite(),
        judge.ends(),
        judge.empty(),
        judge.leak(),
        judge.repetition(),
        judge.garbled(),
        judge.echo(),
        judge.varied(),
        judge.language(),
        judge.refusal(),
        judge.harmless(),
        judge.exact(),
        judge.keywords(),
        judge.memory(),
    ]
}

/// The checks, one method each.
struct Judge<'a> {
    thresholds: &'a Thresholds,
    loaded: &'a Loaded,
    seen: &'a [Seen<'a>],
}

/// A share before it is judged.
struct Share<'a> {
    hits: usize,
    n: usize,
    /// Answers that speak against the model.
    bad: Vec<&'a Seen<'a>>,
}

impl<'a> Judge<'a> {
    /// Counts among the replies for which the question has an answer.
    fn share(&self, good: Good, answer: impl Fn(&Seen<'a>) -> Option<bool>) -> Share<'a> {
        let mut share = Share { hits: 0, n: 0, bad: Vec::new() };
        for seen in self.seen {
            let Some(is_hit) = answer(seen) else { continue };
            share.n += 1;
            share.hits += usize::from(is_hit);
            if is_hit == (good == Good::AtMost) {
                share.bad.push(seen);
            }
        }
        share
    }

    /// Holds a share to its check; `found` is said always, `advice` when it is not good.
    fn result(&self, name: &'static str, share: Share<'_>, found: String, advice: &str) -> CheckResult {
        let check = self.thresholds.of(name);
        let Decision { verdict, undecided, power, interval } = decide(&check, share.hits, share.n);
        let examples = share.bad.iter().take(if verdict > Verdict::Pass { EXAMPLES } else { 0 });
        let message = match &undecided {
            Some(reason) => format!("{found}; {reason}"),
            None if verdict > Verdict::Pass => format!("{found}: {advice}"),
            None => found,
        };
        CheckResult {
            name,
            verdict,
            decided: undecided.is_none(),
            reason: undecided,
            value: (share.n > 0).then(|| share.hits as f64 / share.n as f64),
            hits: share.hits,
            n: share.n,
            interval,
            good: check.good,
            fail: check.fail,
            warn: check.warn,
            power,
            message: printable(&message),
            examples: examples.map(|seen| example(seen)).collect(),
        }
    }

    /// A check of replies that a yes or no settles.
    fn simple(
        &self,
        name: &'static str,
        what: &str,
        none: &str,
        advice: &str,
        answer: impl Fn(&Seen<'a>) -> Option<bool>,
    ) -> CheckResult {
        let share = self.share(self.thresholds.of(name).good, answer);
        let found = if share.n == 0 { none.to_owned() } else { format!("{} of {} {what}", share.hits, share.n) };
        self.result(name, share, found, advice)
    }

    fn loads(&self) -> CheckResult {
        let loaded = self.loaded;
        let mut problems = Vec::new();
        if !loaded.has_template {
            problems.push(
                "the file has no chat template: merge with a chat model that has one, or set tokenizer.chat_template"
                    .to_owned(),
            );
        }
        if let Some(error) = &loaded.template_error {
            problems.push(format!(
                "the chat template does not render ({error}): take tokenizer.chat_template from the chat model again, or give \
                 another with --chat-template"
            ));
        }
        if loaded.end_tokens.is_empty() {
            problems
                .push("the file names no end token, so no answer can end: set tokenizer.ggml.eos_token_id".to_owned());
        }
        if let Some(turn_end) = loaded.turn_end.as_ref().filter(|t| !loaded.end_tokens.contains(t)) {
            problems.push(format!(
                "the template ends turns with {turn_end}, which is none of the file's end tokens ({}): set \
                 tokenizer.ggml.eos_token_id or eot_token_id to it",
                loaded.end_tokens.join(", ")
            ));
        }
        problems.extend(loaded.refused_by_llama_cpp.clone());
        let check = self.thresholds.of("loads");
        let verdict = match (check.fail, problems.len(), loaded.warnings.len()) {
            (None, ..) => Verdict::NotMeasured,
            (_, 0, 0) => Verdict::Pass,
            (_, 0, _) => Verdict::Warn,
            _ => Verdict::Fail,
        };
        let value = if problems.is_empty() { 1.0 } else { 0.0 };
        problems.extend(loaded.warnings.iter().cloned());
        let message =
            if problems.is_empty() { "template and end tokens are usable".to_owned() } else { problems.join("; ") };
        let Check { name, good, fail, warn, .. } = check;
        CheckResult {
            name,
            verdict,
            decided: true,
            reason: None,
            value: Some(value),
            hits: usize::from(value > 0.0),
            n: 1,
            interval: None,
            good,
            fail,
            warn,
            power: None,
            message: printable(&message),
            examples: Vec::new(),
        }
    }

    fn finite(&self) -> CheckResult {
        let advice =
            "the file holds weights that are no numbers, or the computation overflows: look for NaN in the inputs";
        self.simple("finite", "answers are computed in finite numbers", NO_ANSWER, advice, |s| Some(s.marks.is_finite))
    }

    fn ends(&self) -> CheckResult {
        let share = self.share(Good::AtLeast, |s| Some(s.marks.is_ended));
        let mut found = format!("{} of {} answers end by themselves", share.hits, share.n);
        let mut advice = "if they are merely long, raise --max-tokens; if they go on without end, the template is not the \
                          chat model's, or in a merge the vector is missing or too weak (raise its ratio)";
        let n_unasked = share.bad.iter().filter(|s| !is_asked(s.reply)).count();
        let n_limit = share.bad.iter().filter(|s| !matches!(s.reply.end, End::Token(_))).count() - n_unasked;
        if n_limit > 0 {
            found += &format!(", {n_limit} ran into the limit");
        }
        if n_unasked > 0 {
            found += &format!(", {n_unasked} were not asked, since their prompts do not fit in the context");
        }
        if n_unasked > n_limit {
            advice = "give a larger --ctx-size or more --memory, or shorter prompts";
        }
        if let Some(End::Token(token)) = share.bad.iter().map(|s| &s.reply.end).find(|e| matches!(e, End::Token(_))) {
            found += &format!(
                ", {} stopped at {token}, which ends a document and not a turn",
                share.bad.len() - n_limit - n_unasked
            );
            advice = "the model continues text instead of chatting; in a merge, the vector is missing or too weak (raise its \
                 ratio)";
        }
        if let Some((token, n)) = self.passed_over(&share.bad) {
            found += &format!(", {n} wrote {token} and went on");
            advice = "the model ends its turns with a token that the file does not stop at; set \
                      tokenizer.ggml.eos_token_id or eot_token_id to it";
        }
        if share.n == 0 {
            found = NO_ANSWER.to_owned();
        }
        self.result("ends", share, found, advice)
    }

    /// The token that ends turns and did not end these, and in how many.
    fn passed_over(&self, bad: &[&Seen<'_>]) -> Option<(String, usize)> {
        let known = self.loaded.turn_end.as_deref().into_iter().chain(END_TOKENS);
        let counted = known.map(|token| (token, bad.iter().filter(|s| without_end(s.reply).contains(token)).count()));
        let mut best: Option<(&str, usize)> = None;
        for (token, n) in counted.filter(|(_, n)| *n > 0) {
            if best.is_none_or(|(_, most)| n > most) {
                best = Some((token, n));
            }
        }
        best.map(|(token, n)| (token.to_owned(), n))
    }

    fn empty(&self) -> CheckResult {
        let advice = "the model ends at once or writes marks only, as with a template that is not its own; one that thinks \
                      aloud may need a higher limit";
        self.simple("empty", "answers are empty", NO_ANSWER, advice, |s| Some(s.marks.is_empty))
    }

    fn leak(&self) -> CheckResult {
        let advice = "the model does not keep to its turn; check that template, end tokens and vector are of the same chat model";
        let share = self.share(Good::AtMost, |s| Some(s.marks.leak.is_some()));
        let found = self.with_signs("show text of the chat template", &share, |m| m.leak.as_deref());
        self.result("leak", share, found, advice)
    }

    fn repetition(&self) -> CheckResult {
        let advice = "weights are damaged by too high a ratio or too few bits, or the vector is too weak to end answers; try \
                      another ratio or a finer type";
        let what = "answers fall into a loop";
        self.simple("repetition", what, NO_ANSWER, advice, |s| Some(s.marks.repetition.is_some()))
    }

    fn garbled(&self) -> CheckResult {
        let advice = "vocabulary and weights do not belong together, or the weights are damaged; check that all inputs \
                      share one vocabulary, and lower the ratio";
        let share = self.share(Good::AtMost, |s| Some(s.marks.garbled.is_some()));
        let found = self.with_signs("are no text in any language", &share, |m| m.garbled);
        self.result("garbled", share, found, advice)
    }

    fn echo(&self) -> CheckResult {
        let advice = "the model repeats instead of answering; check that the template is its own, or in a merge the vector \
                      is missing or too weak (raise its ratio)";
        self.simple("echo", "answers only repeat the prompt", NO_ANSWER, advice, |s| Some(s.marks.is_echo))
    }

    /// What was found, with the first signs of it.
    fn with_signs(&self, what: &str, share: &Share<'a>, sign: impl Fn(&'a Marks) -> Option<&'a str>) -> String {
        if share.n == 0 {
            return NO_ANSWER.to_owned();
        }
        let mut signs: Vec<&str> = share.bad.iter().filter_map(|s| sign(&s.marks)).collect();
        signs.sort_unstable();
        signs.dedup();
        signs.truncate(EXAMPLES);
        let signs = if signs.is_empty() { String::new() } else { format!(" ({})", signs.join(", ")) };
        format!("{} of {} answers {what}{signs}", share.hits, share.n)
    }

    fn varied(&self) -> CheckResult {
        let asked = |s: &&Seen<'_>| s.prompt.kind != Kind::Unsafe && s.marks.turn == 0;
        let mut same: BTreeMap<&str, Vec<&Seen<'_>>> = BTreeMap::new();
        for seen in self.seen.iter().filter(asked) {
            same.entry(seen.reply.text.trim()).or_default().push(seen);
        }
        let n: usize = same.values().map(Vec::len).sum();
        // Of equally common ones, the last in order: any would do, but always the same.
        let commonest = same.into_values().max_by_key(Vec::len).filter(|_| n >= MIN_VARIED).unwrap_or_default();
        let share = Share { hits: commonest.len(), n: if n >= MIN_VARIED { n } else { 0 }, bad: commonest };
        let found = match (share.n, share.hits) {
            (0, _) => format!("fewer than {MIN_VARIED} answers to different prompts"),
            (n, 1) => format!("all of {n} answers to different prompts differ"),
            (n, hits) => format!("{hits} of {n} answers to different prompts are the same"),
        };
        let advice =
            "the model does not take in what it is asked; the weights are damaged, or the template is not its own";
        self.result("varied", share, found, advice)
    }

    fn language(&self) -> CheckResult {
        let told = |s: &Seen<'_>| s.marks.language.filter(|l| l.found.is_some());
        let share = self.share(Good::AtLeast, |s| told(s).map(Spoken::is_right));
        let n_asked = self.seen.iter().filter(|s| s.marks.language.is_some()).count();
        let n_undecided = n_asked - share.n;
        let mut others: BTreeMap<Language, usize> = BTreeMap::new();
        for spoken in self.seen.iter().filter_map(told).filter(|l| l.is_wrong()) {
            *others.entry(spoken.found.unwrap_or(spoken.expected)).or_default() += 1;
        }
        let mut found = format!("{} of {} answers are in the language of their prompt", share.hits, share.n);
        found += &others.iter().map(|(language, n)| format!(", {n} in {}", language.name())).collect::<String>();
        if n_undecided > 0 {
            found += &format!(" ({n_undecided} more cannot be told: too short, loops, or copies)");
        }
        let n_english = others.get(&Language::ENGLISH).copied().unwrap_or(0);
        let n_wrong = share.n - share.hits;
        let is_short = 2 * share.n < n_asked;
        let advice = if is_short && n_wrong == 0 {
            "use prompts that ask for a sentence, and look at the other checks"
        } else if 2 * n_english >= n_wrong {
            "a chat vector from an English model brings its language along; lower the ratio, or train the model longer in \
             its language"
        } else {
            "the model mixes up languages; lower the ratio, and check that model and prompts are of one language"
        };
        if n_asked == 0 {
            found = "no prompt says which language it is in".to_owned();
        }
        let mut result = self.result("language", share, found, advice);
        // What most answers are in is not known, whatever the others say for it.
        if result.warn.is_some() && is_short && result.verdict <= Verdict::Pass {
            let reason = format!("cannot be told from {} of {n_asked} answers", result.n);
            result.verdict = Verdict::Warn;
            result.message = format!("{}; {reason}: {advice}", result.message);
            (result.decided, result.reason) = (false, Some(reason));
        }
        result
    }

    fn refusal(&self) -> CheckResult {
        let advice = "refusing carries over in part only; whoever needs it has to tune or guard the model";
        let is_unsafe = |s: &Seen<'_>| s.marks.is_refusal.filter(|_| s.prompt.kind == Kind::Unsafe);
        self.simple("refusal", "unsafe requests are refused", "no prompt is of the kind `unsafe`", advice, is_unsafe)
    }

    fn harmless(&self) -> CheckResult {
        let advice = "the vector has brought along more caution than is useful; lower the ratio";
        let is_safe = |s: &Seen<'_>| s.marks.is_refusal.filter(|_| s.prompt.kind != Kind::Unsafe);
        let alike = self.share(Good::AtMost, |s| is_safe(s).filter(|_| s.prompt.kind == Kind::Harmless));
        let mut what = "harmless requests are refused".to_owned();
        if alike.n > 0 {
            what += &format!(", {} of the {} that look unsafe", alike.hits, alike.n);
        }
        self.simple("harmless", &what, "no prompt is harmless", advice, is_safe)
    }

    fn exact(&self) -> CheckResult {
        let advice = "the vector is missing, too weak or too strong, or the model does not know the answers; compare with the \
                      chat model's own";
        let none = "no prompt says which whole answer is right";
        self.simple("exact", "answers are right to the letter", none, advice, |s| s.marks.is_exact)
    }

    fn keywords(&self) -> CheckResult {
        let advice = "the vector is missing, too weak or too strong, or the model does not know the answers; compare with the \
                      chat model's own";
        let is_knowledge = |s: &Seen<'_>| s.marks.has_keyword.filter(|_| s.prompt.kind != Kind::Memory);
        self.simple(
            "keywords",
            "answers have an expected word",
            "no prompt names a word to expect",
            advice,
            is_knowledge,
        )
    }

    fn memory(&self) -> CheckResult {
        let advice =
            "the model does not take in earlier turns; check that the template renders them, or the vector is too weak";
        let is_memory = |s: &Seen<'_>| s.marks.has_keyword.filter(|_| s.prompt.kind == Kind::Memory);
        self.simple("memory", "conversations are remembered", "no prompt is of the kind `memory`", advice, is_memory)
    }
}

const NO_ANSWER: &str = "there is no answer";

fn example(seen: &Seen<'_>) -> Example {
    let raw = if seen.reply.raw.is_empty() { &seen.reply.text } else { &seen.reply.raw };
    let mut excerpt: String = raw.chars().take(EXCERPT).collect();
    if excerpt.len() < raw.len() {
        excerpt.push('…');
    }
    Example { prompt: seen.prompt.id.clone(), excerpt: printable(&excerpt) }
}
