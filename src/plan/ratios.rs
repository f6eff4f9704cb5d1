//! How much of the vectors each tensor gets: rules by name, presets of such rules, and a gradient
//! over the layers.

use std::fmt;

use regex::{Regex, RegexBuilder};

use super::Error;
use super::setting::{Place, gradient};

/// A factor for the tensors whose name contains a match.
#[derive(Clone)]
pub struct Rule {
    regex: Regex,
    factor: f64,
}

/// Bytes that a compiled expression may take.
const REGEX_BYTES: usize = 1 << 20;

impl Rule {
    /// Reads `REGEX=R`. The expression is tried on the tensor's name, and on the name with the
    /// layer counted from the end (`blk.-1.attn_q.weight` in the last one); a match anywhere is a
    /// match.
    ///
    /// # Errors
    /// [`Error::RatioRule`].
    pub fn parse(text: &str) -> Result<Self, Error> {
        let error = |reason: String| Error::RatioRule { text: text.to_owned(), reason };
        let (pattern, factor) = text.rsplit_once('=').ok_or_else(|| error("there is no =".to_owned()))?;
        if pattern.is_empty() {
            return Err(error("there is nothing before the =".to_owned()));
        }
        let number = factor.trim().parse::<f64>().ok().filter(|factor| factor.is_finite());
        let factor = number.ok_or_else(|| error(format!("{factor:?} is no number")))?;
        let regex = RegexBuilder::new(pattern).size_limit(REGEX_BYTES).build();
        Ok(Rule { regex: regex.map_err(|e| error(e.to_string()))?, factor })
    }

    fn matches(&self, place: &Place) -> bool {
        place.names_for_rules().any(|name| self.regex.is_match(name))
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.regex, self.factor)
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rule({self})")
    }
}

impl PartialEq for Rule {
    fn eq(&self, other: &Self) -> bool {
        (self.regex.as_str(), self.factor) == (other.regex.as_str(), other.factor)
    }
}

/// A list of rules with a name.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Preset {
    /// The name.
    pub name: &'static str,
    /// What it is for, and where it comes from.
    pub about: &'static str,
    /// Its rules, of which the first that matches counts.
    pub rules: &'static [&'static str],
}

/// Every preset.
pub const PRESETS: [Preset; 5] = [
    Preset {
        name: "keep-language-ends",
        about: "the embeddings, the output and the first and last two layers stay the model's: they are nearest to the \
                language (layer swapping, arXiv 2410.01335)",
        rules: &[r"^(token_embd|output)\.=0", r"^blk\.(0|1|-2|-1)\.=0"],
    },
    Preset {
        name: "attention-only",
        about: "only attention matrices take part: chat is said to sit there (1bit-Merging, arXiv 2502.10743)",
        rules: &[r"\.attn_(q|k|v|qkv|kv|output)(_a|_b|_a_mqa)?\.(weight|bias)$=1", ".=0"],
    },
    Preset {
        name: "skip-norms",
        about: "norms stay the model's, as in most scripts for chat vectors",
        rules: &[r"norm(_\d+)?\.(weight|bias)$=0"],
    },
    Preset {
        name: "skip-embeddings",
        about: "the embeddings and the output stay the model's, as in most scripts for models with another vocabulary",
        rules: &[r"^(token_embd|output|per_layer_token_embd)\.=0"],
    },
    Preset {
        name: "elchat-ends",
        about: "of the first and last two layers alone, 0.3 0.5 … 0.5 0.3: with a vector MODEL:CHAT, a blend of the model \
                with the chat model (ElChat, arXiv 2412.11704)",
        rules: &[r"^blk\.(0|-1)\.=0.3", r"^blk\.(1|-2)\.=0.5", ".=0"],
    },
];

impl Preset {
    /// The preset of this name.
    ///
    /// # Errors
    /// [`Error::UnknownPreset`].
    pub fn named(name: &str) -> Result<&'static Preset, Error> {
        PRESETS.iter().find(|preset| preset.name == name).ok_or_else(|| Error::UnknownPreset {
            name: name.to_owned(),
            known: PRESETS.map(|preset| preset.name).join(", "),
        })
    }
}

/// What ratios are multiplied by, tensor by tensor.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct Ratios {
    rules: Vec<Rule>,
    presets: Vec<Vec<Rule>>,
    gradient: Vec<f64>,
}

impl Ratios {
    /// From rules (`REGEX=R`), a gradient (empty for none), and names of presets.
    ///
    /// # Errors
    /// [`Error::RatioRule`], [`Error::UnknownPreset`], [`Error::Gradient`].
    pub fn new(rules: &[String], gradient: &[f64], presets: &[String]) -> Result<Self, Error> {
        let parse = |rules: &[&str]| rules.iter().map(|rule| Rule::parse(rule)).collect::<Result<Vec<_>, _>>();
        if let Some(value) = gradient.iter().find(|value| !value.is_finite()) {
            return Err(Error::Gradient { value: *value });
        }
        let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
        let presets: Result<_, Error> = presets.iter().map(|name| parse(Preset::named(name)?.rules)).collect();
        Ok(Ratios { rules: parse(&rules)?, presets: presets?, gradient: gradient.to_vec() })
    }

    /// The factor for a tensor: that of the first rule that matches; where none does, the
    /// gradient's times that of each preset.
    pub fn factor(&self, place: &Place) -> f64 {
        let first = |rules: &[Rule]| rules.iter().find(|rule| rule.matches(place)).map(|rule| rule.factor);
        first(&self.rules).unwrap_or_else(|| {
            let presets = self.presets.iter().map(|rules| first(rules).unwrap_or(1.0));
            presets.fold(gradient(&self.gradient, place), |product, factor| product * factor)
        })
    }

    /// A rule that no tensor's name matches, those of presets aside.
    pub(super) fn idle_rule(&self, places: &[Place]) -> Option<&str> {
        self.rules.iter().find(|rule| !places.iter().any(|place| rule.matches(place))).map(|rule| rule.regex.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn factor(rules: &[&str], gradient: &[f64], presets: &[&str], name: &str) -> f64 {
        let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let ratios = Ratios::new(&owned(rules), gradient, &owned(presets)).unwrap_or_else(|e| panic!("{e}"));
        ratios.factor(&Place::new("llama", name, 8))
    }

    #[test]
    fn a_rule_stands_before_gradient_and_presets_which_multiply() {
        let all =
            |name: &str| factor(&["ffn_up=0.25", "ffn=3"], &[0.0, 1.0], &["skip-norms", "keep-language-ends"], name);
        assert_eq!(all("blk.7.ffn_up.weight"), 0.25);
        assert_eq!(all("blk.3.ffn_down.weight"), 3.0);
        assert_eq!(all("blk.7.attn_q.weight"), 0.0);
        assert_eq!(all("blk.4.attn_q.weight"), 4.0 / 7.0);
        assert_eq!(all("blk.4.attn_norm.weight"), 0.0);
    }

    #[test]
    fn presets_count_layers_from_both_ends() {
        let elchat = |name: &str| factor(&[], &[], &["elchat-ends"], name);
        let found = [0, 1, 2, 5, 6, 7].map(|layer| elchat(&format!("blk.{layer}.attn_q.weight")));
        assert_eq!(found, [0.3, 0.5, 0.0, 0.0, 0.5, 0.3]);
        assert_eq!(elchat("output.weight"), 0.0);
        let attention = |name: &str| factor(&[], &[], &["attention-only"], name);
        assert_eq!((attention("blk.2.attn_q.bias"), attention("blk.2.attn_norm.weight")), (1.0, 0.0));
    }

    #[test]
    fn what_is_no_rule_is_refused() {
        for text in ["attn", "=1", "attn=x", "attn=inf", "(=1", "(a{1000}){1000}=1"] {
            assert!(matches!(Rule::parse(text), Err(Error::RatioRule { .. })), "{text}");
        }
        assert!(matches!(Preset::named("attn"), Err(Error::UnknownPreset { .. })));
    }
}
