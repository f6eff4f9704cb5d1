//! What an adapter holds.

use serde_json::{Value as Json, json};

use super::{Report, Table, bytes, number, percent};
use crate::gguf::printable;
use crate::patch::lora::{Fit, Written};
use crate::vector::part_of;

/// An adapter that was written.
#[derive(Clone, Copy, Debug)]
pub struct Lora<'a> {
    /// The adapter.
    pub written: &'a Written,
    /// Whether it holds what an output lacks of the sum, or the vector itself.
    pub is_residual: bool,
}

impl Lora<'_> {
    /// Sums by part of the model, in the order of the file.
    fn parts(&self) -> Vec<(&str, Vec<Fit>)> {
        let mut parts: Vec<(&str, Vec<Fit>)> = Vec::new();
        for fit in &self.written.fits {
            let name = part_of(&fit.name);
            match parts.iter_mut().find(|(other, _)| *other == name) {
                Some((_, fits)) => fits.push(fit.clone()),
                None => parts.push((name, vec![fit.clone()])),
            }
        }
        parts
    }

    fn measured(&self, fit: &Fit) -> Json {
        let mut json = json!({ "rank": fit.rank, "error": fit.error() });
        if self.is_residual {
            json["survival"] = json!(fit.survival().map(|s| s.0));
            json["survival_without"] = json!(fit.survival().map(|s| s.1));
            json["noise"] = json!(fit.noise().map(|s| s.0));
            json["noise_without"] = json!(fit.noise().map(|s| s.1));
        }
        json
    }
}

impl Report for Lora<'_> {
    fn text(&self) -> String {
        let mut heads = vec!["part", ">tensors", ">rank", ">left out"];
        if self.is_residual {
            heads.extend([">survival", ">without", ">noise", ">without"]);
        }
        let mut table = Table::new(&heads);
        let mut row = |name: &str, fits: &[Fit]| {
            let total = Fit::total(fits);
            let mut cells =
                vec![printable(name), fits.len().to_string(), total.rank.to_string(), percent(total.error())];
            if self.is_residual {
                let (survival, noise) = (total.survival(), total.noise());
                cells.extend(
                    [survival.map(|s| s.0), survival.map(|s| s.1), noise.map(|n| n.0), noise.map(|n| n.1)].map(number),
                );
            }
            table.row(cells);
        };
        for (name, fits) in self.parts() {
            row(name, &fits);
        }
        row("all", &self.written.fits);
        let Written { file, ty, folded, left, .. } = self.written;
        let folded = match folded.len() {
            0 => String::new(),
            n => format!(", {n} norms in the matrices behind them"),
        };
        let left = if left.is_empty() { String::new() } else { format!(", {} tensors left out", left.len()) };
        format!("{}\n{}: {} in {ty}{folded}{left}\n", table.text(), super::shown(&file.path), bytes(file.len))
    }

    fn json(&self) -> Json {
        let Written { file, ty, rank, fits, folded, left } = self.written;
        let tensors: Vec<Json> = fits
            .iter()
            .map(|fit| {
                let mut json = self.measured(fit);
                json["name"] = json!(fit.name);
                json
            })
            .collect();
        json!({
            "output": file.path.to_string_lossy(),
            "output_bytes": file.len,
            "type": ty,
            "rank": rank,
            "total": self.measured(&Fit::total(fits)),
            "tensors": tensors,
            "folded_norms": folded,
            "left_out": left,
        })
    }
}
