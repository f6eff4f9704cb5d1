//! Two models side by side.

use serde_json::{Value as Json, json};

use super::{Report, Table, agreement, number, percent};
use crate::eval::{Agreement, Comparison, Difference, Estimate, Reason, TensorTable};
use crate::gguf::printable;

/// The weights of two models, and what they say on a text.
pub struct Compare<'a> {
    /// The file whose distribution is the truth.
    pub a: String,
    /// The file that is held against it.
    pub b: String,
    /// Whether the two are patches, of which vectors were compared.
    pub are_patches: bool,
    /// Tensor by tensor.
    pub tensors: &'a TensorTable,
    /// Token by token, if a text was given.
    pub said: Option<&'a SaidOfText>,
}

/// What two models say of a text.
pub struct SaidOfText {
    /// Token by token.
    pub comparison: Comparison,
    /// What ran A, and B.
    pub engines: [String; 2],
    /// How far another engine is from that for A, and B, if one was held against it.
    pub agreements: [Option<Agreement>; 2],
}

impl SaidOfText {
    /// The agreements that there are, with A or B.
    pub fn agreements(&self) -> impl Iterator<Item = (&'static str, &Agreement)> {
        ["A", "B"].into_iter().zip(&self.agreements).filter_map(|(of, found)| Some((of, found.as_ref()?)))
    }
}

impl Report for Compare<'_> {
    fn text(&self) -> String {
        let mut text = self.weights();
        if let Some(of_text) = self.said {
            text.push('\n');
            text += &said(&of_text.comparison);
            text += &match &of_text.engines {
                [a, b] if a == b => format!("engine: {}\n", printable(a)),
                [a, b] => format!("engine of A: {}, of B: {}\n", printable(a), printable(b)),
            };
            of_text.agreements().for_each(|(of, found)| text += &format!("of {of} {}\n", agreement(found)));
        }
        text
    }

    fn json(&self) -> Json {
        let difference = |d: &Difference| {
            json!({
                "norm_a": d.norm_a(),
                "norm_b": d.norm_b(),
                "relative": d.relative(),
                "cosine": d.cosine(),
                "max": d.max,
                "survival": d.survival(),
            })
        };
        let tensors = self.tensors.tensors.iter().map(|t| {
            let mut json = difference(&t.difference);
            json["name"] = json!(t.name);
            json["type_a"] = json!(t.type_a.name());
            json["type_b"] = json!(t.type_b.name());
            json
        });
        let parts = self.tensors.parts.iter().map(|p| {
            let mut json = difference(&p.difference);
            json["part"] = json!(p.part);
            json["tensors"] = json!(p.n_tensors);
            json
        });
        json!({
            "a": self.a,
            "b": self.b,
            "tensors": tensors.collect::<Vec<_>>(),
            "parts": parts.collect::<Vec<_>>(),
            "whole": self.tensors.is_whole(),
            "total": if self.tensors.is_whole() { difference(&self.tensors.total) } else { Json::Null },
            "compared": difference(&self.tensors.total),
            "not_compared": self.tensors.not_compared,
            "logits": self.said.map(|said| &said.comparison),
            "engines": self.said.map(|said| &said.engines),
            "agreements": self.said.map(|said| &said.agreements),
        })
    }
}

impl Compare<'_> {
    fn weights(&self) -> String {
        let has_tau = self.tensors.tensors.iter().any(|t| t.has_tau);
        let mut heads = vec!["part", ">tensors", ">‖A‖", ">‖B‖", ">‖B − A‖/‖A‖", ">cos(A, B)", ">max |B − A|"];
        if has_tau {
            heads.push(">survival");
        }
        let mut table = Table::new(&heads);
        let mut row = |name: &str, n: usize, d: &Difference| {
            let mut cells =
                vec![printable(name), n.to_string(), format!("{:.3}", d.norm_a()), format!("{:.3}", d.norm_b())];
            cells.extend([percent(d.relative()), number(d.cosine()), format!("{:.2e}", d.max)]);
            cells.extend(has_tau.then(|| number(d.survival())));
            table.row(cells);
        };
        for part in &self.tensors.parts {
            row(&part.part, part.n_tensors, &part.difference);
        }
        let all = if self.tensors.is_whole() { "all" } else { "what was compared" };
        row(all, self.tensors.tensors.len(), &self.tensors.total);
        let mut text = format!("A = {}\nB = {}\n\n{}", printable(&self.a), printable(&self.b), table.text());
        for left_out in &self.tensors.not_compared {
            let reason = match &left_out.reason {
                Reason::OnlyInA => "only in A".to_owned(),
                Reason::OnlyInB => "only in B".to_owned(),
                Reason::Shape { a, b } => format!("{} in A, {} in B", super::shape(a), super::shape(b)),
                Reason::Type(ty) => format!("{ty} cannot be read"),
            };
            text += &format!("not compared: {} ({reason})\n", printable(&left_out.name));
        }
        if self.are_patches {
            text += "compared is the vector as apply reads it: rows by their tokens, zero where a patch leaves them out; rows of special \
                     tokens, templates and end tokens are no part of it\n";
        }
        text
    }
}

/// The comparison of logits, in the words of llama-perplexity.
fn said(c: &Comparison) -> String {
    let mut table = Table::new(&["", ">", ""]);
    let mut row = |name: &str, value: String, error: Option<f64>| {
        table.row([name.to_owned(), value, error.map_or(String::new(), |e| format!("± {}", digits(e)))]);
    };
    let mut estimate = |name: &str, e: Estimate| row(name, digits(e.value), e.error);
    estimate("perplexity of A", c.perplexity_a);
    estimate("perplexity of B", c.perplexity_b);
    estimate("ln(perplexity of B / perplexity of A)", c.ln_ratio);
    estimate("mean KL(A‖B)", c.kl.mean);
    row("median KL", digits(c.kl.median), None);
    row("99 % of KL below", digits(c.kl.p99), None);
    row("99.9 % of KL below", digits(c.kl.p999), None);
    row("largest KL", digits(c.kl.max), None);
    let share = |e: Estimate| (format!("{:.2} %", e.value * 100.0), e.error.map(|e| e * 100.0));
    for (name, e) in [("same most probable token", c.same_top), ("RMS Δp of the next token", c.delta_p_rms)] {
        let (value, error) = share(e);
        row(name, value, error);
    }
    let mut text = table.text();
    if c.kl.drawing_error > 0.0 || c.kl.mean_upper - c.kl.mean_lower > NOTHING {
        text += &format!(
            "of the error of the mean KL, {} comes from the improbable tokens that were not kept; bounds that always hold: {} to {}\n",
            digits(c.kl.drawing_error),
            digits(c.kl.mean_lower),
            digits(c.kl.mean_upper)
        );
    }
    text += &format!("{} tokens scored, the second half of each of {} chunks of {}\n", c.n_scored, c.n_chunks, c.n_ctx);
    if c.is_short {
        text += "the text is one chunk only: take these figures with care\n";
    }
    text
}

/// Below this a figure is what is left of sums in f64.
const NOTHING: f64 = 1e-12;

/// A number with four significant digits.
fn digits(value: f64) -> String {
    if value.abs() < NOTHING {
        return "0".to_owned();
    }
    if !value.is_finite() {
        return value.to_string();
    }
    let before = value.abs().log10().floor() as i32 + 1;
    match before {
        -3.. => format!("{value:.*}", (4 - before).clamp(0, 8) as usize),
        _ => format!("{value:.3e}"),
    }
}
