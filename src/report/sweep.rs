//! What came of several ways to merge.

use serde_json::{Value as Json, json};

use super::{Report, Table, number, percent};
use crate::eval::{CONFIDENCE, Choice, Estimate, Verdict, share_interval};
use crate::gguf::printable;
use crate::job::{Tried, Way};

/// Checks whose values are shown for each way, with their heads.
const SHOWN: [(&str, &str); 6] = [
    ("ends", "ends"),
    ("language", "language"),
    ("keywords", "facts"),
    ("memory", "memory"),
    ("refusal", "refuses"),
    ("harmless", "overly"),
];

/// Columns of a curve.
const WIDTH: usize = 41;

/// Ways to merge, and what came of each.
pub struct Sweep<'a> {
    /// The model that was added to.
    pub model: String,
    /// The ways, in the order in which they were tried.
    pub tried: &'a [Tried],
    /// The best and the recommended one.
    pub choice: Option<Choice>,
    /// Why there is no KL divergence from model or chat.
    pub notes: Vec<String>,
}

/// A way in words.
pub fn way(way: &Way) -> String {
    match &way.presets[..] {
        [] => format!("{}", way.ratio),
        presets => format!("{} {}", way.ratio, presets.join("+")),
    }
}

impl Sweep<'_> {
    fn table(&self) -> String {
        let mut heads = vec!["ratio", ">good"];
        let shown: Vec<String> = SHOWN.iter().map(|(_, head)| format!(">{head}")).collect();
        heads.extend(shown.iter().map(String::as_str));
        heads.extend([">KL(model)", ">KL(chat)", ">survival", "verdict"]);
        let mut table = Table::new(&heads);
        for tried in self.tried {
            let mut row = vec![way(&tried.way), format!("{}/{}", tried.n_good(), tried.good.len())];
            row.extend(SHOWN.iter().map(|(name, _)| {
                let check = tried.talk.judgement.check(name);
                check.and_then(|check| check.value).map_or("–".to_owned(), |value| format!("{value:.2}"))
            }));
            let kl = |estimate: Option<Estimate>| number(estimate.map(|e| e.value));
            row.extend([kl(tried.kl_from_model), kl(tried.kl_from_chat), percent(tried.survival)]);
            row.push(verdict(tried).to_owned());
            table.row(row);
        }
        table.text()
    }

    /// The table and the recommendation.
    pub fn summary(&self) -> String {
        format!("{}\n{}\n", self.table(), self.advice())
    }

    /// A line a way: the share from 0 to 1 and its interval.
    fn curves(&self) -> String {
        let longest = self.tried.iter().map(|t| way(&t.way).chars().count()).max().unwrap_or(0);
        let mut text = String::new();
        let heads = std::iter::once(("good", "conversations that are good")).chain(SHOWN);
        for (name, head) in heads {
            let lines: Vec<String> = self
                .tried
                .iter()
                .filter_map(|tried| {
                    let (hits, n) = share(tried, name)?;
                    let name = way(&tried.way);
                    let pad = " ".repeat(longest - name.chars().count());
                    Some(format!("  {name}{pad} {} {hits} of {n}\n", curve(hits, n)))
                })
                .collect();
            if !lines.is_empty() {
                text += &format!("\n{head}\n{}", lines.concat());
            }
        }
        text
    }

    /// What to do, in a sentence or two.
    fn advice(&self) -> String {
        let Some(choice) = self.choice else {
            return "no way has one good conversation: try larger ratios, and look at the answers (--json)".to_owned();
        };
        let (chosen, best) = (&self.tried[choice.chosen], &self.tried[choice.best]);
        let (low, high) = chosen.interval();
        let n = chosen.good.len();
        let mut text = format!(
            "{}: {} of {n} conversations are good ({:.0} to {:.0} %, at {:.0} % confidence)",
            option(&chosen.way),
            chosen.n_good(),
            low * 100.0,
            high * 100.0,
            CONFIDENCE * 100.0,
        );
        text = match chosen.is_accepted() {
            true => format!("recommended is {text}"),
            false => format!("no way passes; the nearest is {text}"),
        };
        if choice.best != choice.chosen {
            text += &format!("; {} has {}, which is no sure gain", option(&best.way), best.n_good());
        }
        for tried in self.tried.iter().filter(|t| t.way != chosen.way) {
            text += &beside(tried, chosen).map(|words| format!("\n{words}")).unwrap_or_default();
        }
        if !chosen.is_accepted() {
            let failed = chosen.talk.judgement.checks.iter().find(|check| check.verdict == Verdict::Fail);
            text += &failed.map(|check| format!("\n{}: {}", check.name, printable(&check.message))).unwrap_or_default();
            text += "\ntry other ratios, and other --presets";
        }
        text
    }
}

/// How a way is much worse than the one to take, in words.
fn beside(tried: &Tried, chosen: &Tried) -> Option<String> {
    let value = |t: &Tried, name: &str| t.talk.judgement.check(name).and_then(|check| check.value);
    let is_below = |name: &str, by: f64| value(tried, name).zip(value(chosen, name)).is_some_and(|(t, c)| t + by <= c);
    let spoken = tried.talk.judgement.spoken.iter().filter(|s| s.spoken.found.is_some_and(|f| f != s.spoken.expected));
    let most = spoken.max_by_key(|s| s.n);
    let words = match most {
        _ if is_below("ends", 0.3) => "does not end its answers".to_owned(),
        Some(most) if is_below("language", 0.2) => {
            format!("answers in {}", most.spoken.found.map(|l| l.name()).unwrap_or_default())
        }
        _ if 2 * tried.n_good() < chosen.n_good() => "chats badly".to_owned(),
        _ => return None,
    };
    Some(format!("{} {words}: {} of {} are good", option(&tried.way), tried.n_good(), tried.good.len()))
}

/// A way as options.
fn option(way: &Way) -> String {
    let presets = way.presets.iter().map(|preset| format!(" --preset {preset}")).collect::<String>();
    format!("--ratio {}{presets}", way.ratio)
}

fn verdict(tried: &Tried) -> &'static str {
    match tried.talk.judgement.verdict {
        _ if tried.is_lost => "LOST",
        Verdict::Fail => "FAIL",
        Verdict::Warn => "WARN",
        Verdict::Pass => "PASS",
        Verdict::NotMeasured => "–",
    }
}

/// Hits and cases of a check, or of good conversations.
fn share(tried: &Tried, name: &str) -> Option<(usize, usize)> {
    if name == "good" {
        return Some((tried.n_good(), tried.good.len()));
    }
    tried.talk.judgement.check(name).filter(|check| check.value.is_some()).map(|check| (check.hits, check.n))
}

/// A share on a line from 0 to 1, with its interval.
fn curve(hits: usize, n: usize) -> String {
    let at = |share: f64| (share * (WIDTH - 1) as f64).round() as usize;
    let (low, high) = share_interval(hits, n);
    let point = at(if n == 0 { 0.0 } else { hits as f64 / n as f64 });
    let mark = |i: usize| match i {
        _ if i == point => '●',
        _ if (at(low)..=at(high)).contains(&i) => '─',
        _ => '·',
    };
    (0..WIDTH).map(mark).collect()
}

impl Report for Sweep<'_> {
    fn text(&self) -> String {
        let mut text = self.table();
        text += &self.curves();
        for note in &self.notes {
            text += &format!("\nnote: {}", printable(note));
        }
        if !self.notes.is_empty() {
            text.push('\n');
        }
        text + &format!("\n{}: {}\n", printable(&self.model), self.advice())
    }

    fn json(&self) -> Json {
        let way = |way: &Way| json!({ "ratio": way.ratio, "presets": way.presets });
        let row = |tried: &Tried| {
            let (low, high) = tried.interval();
            let talk = &tried.talk;
            let answer = |answer: &crate::eval::Answer| {
                let prompt = talk.set.prompts.get(answer.prompt);
                json!({ "id": prompt.map(|p| &p.id), "good": tried.good.get(answer.prompt), "replies": answer.replies })
            };
            json!({
                "way": way(&tried.way),
                "good": { "n": tried.n_good(), "of": tried.good.len(), "interval": [low, high] },
                "verdict": talk.judgement.verdict,
                "conclusion": talk.judgement.conclusion,
                "is_lost": tried.is_lost,
                "survival": tried.survival,
                "kl_from_model": tried.kl_from_model,
                "kl_from_chat": tried.kl_from_chat,
                "checks": talk.judgement.checks,
                "spoken": talk.judgement.spoken,
                "answers": talk.said.answers.iter().map(answer).collect::<Vec<_>>(),
            })
        };
        let at = |i: usize| way(&self.tried[i].way);
        json!({
            "model": self.model,
            "confidence": CONFIDENCE,
            "ways": self.tried.iter().map(row).collect::<Vec<_>>(),
            "best": self.choice.map(|choice| at(choice.best)),
            "recommended": self.choice.map(|choice| at(choice.chosen)),
            "is_accepted": self.choice.is_some_and(|choice| self.tried[choice.chosen].is_accepted()),
            "advice": self.advice(),
            "notes": self.notes,
        })
    }
}
