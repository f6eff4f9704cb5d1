//! Folded weights: files that hold W·D·H in place of W.
//!
//! Since version 0.8 llama.cpp reads files whose matrices are multiplied by signs D and by a
//! block-diagonal Hadamard matrix H along their rows; the engine transforms the activations to
//! match. Keys say which (src/llama-model.cpp, `load_hparams_hadamard` and
//! `load_tensors_hadamard`), each behind `prism.hadamard.`:
//!
//! | key | what it says |
//! |---|---|
//! | `version` | 1, or 2 where the output is tied (`tied_output`) |
//! | `block_size` | weights of a block of H, a power of two |
//! | `transform`, `axis` | `normalized-sylvester-walsh-hadamard`, `input-last-dimension`: what H is, and that it is for rows |
//! | `sign_mode` | `identity`, or `explicit`: then `sign_values` has ±1 for each of `sign_widths` weights, width by width |
//! | `weight_names` | the matrices that are folded |
//! | `inverse_weight_names` | folded tables whose rows are looked up: `token_embd.weight` |
//! | `gdn_v_grouped` | `ssm_out` was folded with its value heads in another order |
//!
//! A fold is one linear map F for all rows of a matrix, so that F(m) + r·(F(c) − F(b)) = F(m + r·(c
//! − b)): where all files fold a tensor alike, it is added as it stands and the output is folded
//! like them. F keeps lengths and angles, so that norms, cosines and survival are those of plain
//! weights. Where files fold a tensor differently, rows are [turned](Turn) into the
//! coordinates of the output's, which are the model's, or the chat's where a vector is extracted.
//!
//! Refused is what no turn is known for: a form that is not in this table, even where files agree
//! in every key, since what it does to weights is not known, and may hang on more than keys; heads
//! that one file groups and another does not; and blocks of different folds that are longer than a
//! piece of a row.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::Path;

use super::error::Error;
use super::hadamard::{LONGEST_BLOCK, flip, rotate};
use super::names::{FOLD_KEYS, row_per_token_name};
use crate::gguf::names::TOKEN_EMBEDDINGS;
use crate::gguf::{Metadata, Model, TensorId, Value};

/// Which tensors of a file are folded, and how.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Folding {
    block_size: u64,
    /// Whether a sign is −, by the number of weights in a row; none where all signs are +.
    signs: Option<BTreeMap<u64, Vec<bool>>>,
    names: HashSet<String>,
    has_grouped_heads: bool,
}

/// How one tensor is folded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fold<'a> {
    block_size: u64,
    /// Whether the sign of a column is −; none where all are +.
    signs: Option<&'a [bool]>,
    has_grouped_heads: bool,
}

/// The first of a file's keys that say it is folded.
pub fn fold_key(metadata: &Metadata) -> Option<&str> {
    metadata.iter().map(|(key, _)| key).find(|key| key.starts_with(FOLD_KEYS))
}

impl Folding {
    /// What a file says; none if it says nothing of folds.
    ///
    /// # Errors
    /// [`Error::FoldKey`] for what is not in the table of this module, or makes no sense.
    pub fn read(model: &Model) -> Result<Option<Self>, Error> {
        let metadata = model.metadata();
        if fold_key(metadata).is_none() {
            return Ok(None);
        }
        let keys = FoldKeys { metadata, path: model.path() };
        keys.refuse_unknown()?;
        let version = keys.number("version", "1 or 2", |n| n == 1 || n == 2)?;
        let tied = keys.get("tied_output").map_or(Some(false), Value::as_bool);
        if tied != Some(version == 2) {
            return Err(keys.wrong("tied_output", if version == 2 { "true" } else { "false, or no such key" }));
        }
        let block_size = keys.number("block_size", "a power of two", u64::is_power_of_two)?;
        keys.word("transform", &["normalized-sylvester-walsh-hadamard"])?;
        keys.word("axis", &["input-last-dimension"])?;
        let signs = match keys.word("sign_mode", &["identity", "explicit"])? {
            0 => None,
            _ => Some(keys.signs(block_size)?),
        };
        let mut names = keys.names("weight_names")?;
        if metadata.get(&format!("{FOLD_KEYS}inverse_weight_names")).is_some() {
            let inverse = keys.names("inverse_weight_names")?;
            // No other table is unfolded where it is looked up.
            if inverse.iter().any(|name| name != TOKEN_EMBEDDINGS) {
                return Err(keys.wrong("inverse_weight_names", TOKEN_EMBEDDINGS));
            }
            names.extend(inverse);
        }
        let is_matrix = |name: &String| model.find(name).is_none_or(|id| model.tensor(id).ne().len() > 1);
        if let Some(name) = names.iter().find(|name| !is_matrix(name)) {
            return Err(keys.error("weight_names", "names of matrices", &format!("{name}, which is none")));
        }
        let grouped = metadata.get(&format!("{FOLD_KEYS}gdn_v_grouped"));
        let has_grouped_heads = match grouped.map(|value| value.as_bool().ok_or(value)) {
            None => false,
            Some(Ok(is_grouped)) => is_grouped,
            Some(Err(value)) => return Err(keys.error("gdn_v_grouped", "true or false", &value.summary())),
        };
        Ok(Some(Folding { block_size, signs, names, has_grouped_heads }))
    }

    /// Whether the tensor of this name is folded.
    pub fn has(&self, tensor: &str) -> bool {
        self.names.contains(tensor)
    }

    /// How the tensor of this name, with rows of this length, is folded; none if it is not.
    ///
    /// # Errors
    /// The key that does not fit the tensor, and what it should have been.
    pub fn of(&self, name: &str, row_len: u64) -> Result<Option<Fold<'_>>, (&'static str, String)> {
        if !self.has(name) {
            return Ok(None);
        }
        if !row_len.is_multiple_of(self.block_size) {
            return Err(("block_size", format!("a divisor of {row_len}, the row length of {name}")));
        }
        let signs = match &self.signs {
            None => None,
            Some(signs) => match signs.get(&row_len) {
                Some(signs) => Some(&signs[..]).filter(|signs| signs.contains(&true)),
                None => return Err(("sign_widths", format!("also {row_len}, the row length of {name}"))),
            },
        };
        // As llama.cpp finds it.
        let has_grouped_heads = self.has_grouped_heads && name.contains(".ssm_out.");
        Ok(Some(Fold { block_size: self.block_size, signs, has_grouped_heads }))
    }
}

impl fmt::Display for Fold<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "folded in blocks of {}", self.block_size)?;
        if let Some(signs) = self.signs {
            write!(f, " with {} of {} signs negative", signs.iter().filter(|sign| **sign).count(), signs.len())?;
        }
        if self.has_grouped_heads {
            write!(f, " with its heads grouped")?;
        }
        Ok(())
    }
}

/// The way of rows from the coordinates in which one file folds them into another's: a row is
/// unfolded by H and then D, and folded by D and then H.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Turn<'a> {
    from: Option<Fold<'a>>,
    to: Option<Fold<'a>>,
}

impl<'a> Turn<'a> {
    /// From one fold to another; none is a plain row. No turn at all where they are the same.
    fn new(from: Option<Fold<'a>>, to: Option<Fold<'a>>) -> Option<Self> {
        (from != to).then_some(Turn { from, to })
    }

    /// The way of activations to a matrix that is folded so: what goes into a plain matrix is
    /// turned as its rows are.
    pub fn fold(to: Fold<'a>) -> Self {
        Turn { from: None, to: Some(to) }
    }

    /// The way back from a fold to plain weights.
    pub fn unfold(from: Fold<'a>) -> Self {
        Turn { from: Some(from), to: None }
    }

    /// Turns weights, whole blocks of both folds. `first` is the index of the first of them in its
    /// row, or in a tensor of such rows.
    pub fn apply(&self, first: u64, weights: &mut [f32]) {
        if let Some(from) = self.from {
            rotate(from.block_size, weights);
            flip(from.signs, first, weights);
        }
        if let Some(to) = self.to {
            flip(to.signs, first, weights);
            rotate(to.block_size, weights);
        }
    }
}

/// The keys of a fold.
struct FoldKeys<'a> {
    metadata: &'a Metadata,
    path: &'a Path,
}

/// The last words of the keys.
const KNOWN: [&str; 11] = [
    "version",
    "block_size",
    "transform",
    "axis",
    "sign_mode",
    "sign_widths",
    "sign_values",
    "weight_names",
    "inverse_weight_names",
    "gdn_v_grouped",
    "tied_output",
];

impl FoldKeys<'_> {
    fn refuse_unknown(&self) -> Result<(), Error> {
        let mut words = self.metadata.iter().filter_map(|(key, _)| key.strip_prefix(FOLD_KEYS));
        match words.find(|word| !KNOWN.contains(word)) {
            None => Ok(()),
            Some(word) => Err(self.wrong(word, "no key of this name")),
        }
    }

    fn get(&self, word: &str) -> Option<&Value> {
        self.metadata.get(&format!("{FOLD_KEYS}{word}"))
    }

    fn error(&self, word: &str, expected: &str, found: &str) -> Error {
        let (key, expected, found) = (format!("{FOLD_KEYS}{word}"), expected.to_owned(), found.to_owned());
        Error::FoldKey { path: self.path.to_owned(), key, expected, found }
    }

    /// The error of a key whose value is not what it should be.
    fn wrong(&self, word: &str, expected: &str) -> Error {
        self.error(word, expected, &self.get(word).map_or("no such key".to_owned(), Value::summary))
    }

    fn number(&self, word: &str, expected: &str, is_right: impl Fn(u64) -> bool) -> Result<u64, Error> {
        let number = self.get(word).and_then(Value::as_u64).filter(|n| is_right(*n));
        number.ok_or_else(|| self.wrong(word, expected))
    }

    /// Which of these words it is.
    fn word(&self, word: &str, known: &[&str]) -> Result<usize, Error> {
        let found = self.get(word).and_then(Value::as_str);
        let found = found.and_then(|found| known.iter().position(|known| found == *known));
        found.ok_or_else(|| self.wrong(word, &known.join(" or ")))
    }

    fn names(&self, word: &str) -> Result<HashSet<String>, Error> {
        let names = self.get(word).and_then(|value| value.as_array()?.as_strings());
        let names = names.ok_or_else(|| self.wrong(word, "names of tensors"))?;
        Ok(names.iter().map(ToString::to_string).collect())
    }

    fn numbers(&self, word: &str, expected: &str) -> Result<Vec<f64>, Error> {
        let numbers = self.get(word).and_then(|value| value.as_array()?.iter().map(|n| n.as_f64()).collect());
        numbers.ok_or_else(|| self.wrong(word, expected))
    }

    /// Whether a sign is −, by the width.
    fn signs(&self, block_size: u64) -> Result<BTreeMap<u64, Vec<bool>>, Error> {
        let expected = format!("different multiples of {block_size} that sum up to the length of sign_values");
        let mut values = &self.numbers("sign_values", "1 and -1")?[..];
        if values.iter().any(|sign| sign.abs() != 1.0) {
            return Err(self.wrong("sign_values", "1 and -1"));
        }
        let mut signs = BTreeMap::new();
        for width in self.numbers("sign_widths", &expected)? {
            let n = width as u64;
            let fits = n > 0 && n as f64 == width && n.is_multiple_of(block_size) && n <= values.len() as u64;
            if !fits || signs.contains_key(&n) {
                return Err(self.wrong("sign_widths", &expected));
            }
            let (of_width, rest) = values.split_at(n as usize);
            signs.insert(n, of_width.iter().map(|sign| *sign < 0.0).collect());
            values = rest;
        }
        match values.is_empty() && !signs.is_empty() {
            true => Ok(signs),
            false => Err(self.wrong("sign_widths", &expected)),
        }
    }
}

/// A tensor of a file whose folds are known.
#[derive(Clone, Copy)]
pub struct FoldedTensor<'a> {
    /// The file.
    pub model: &'a Model,
    /// Its folds.
    pub folding: Option<&'a Folding>,
    /// The name by which the keys call the tensor.
    pub name: &'a str,
    /// Weights in a row.
    pub row_len: u64,
}

impl<'a> FoldedTensor<'a> {
    /// A tensor by its place. Some rows of a tensor are folded as all of them are.
    pub fn new(model: &'a Model, folding: Option<&'a Folding>, id: TensorId) -> Self {
        let info = model.tensor(id);
        let name = row_per_token_name(info.name()).unwrap_or(info.name());
        FoldedTensor { model, folding, name, row_len: info.row_len() }
    }

    /// How it is folded; none if it is not.
    ///
    /// # Errors
    /// [`Error::FoldKey`].
    pub fn fold(self) -> Result<Option<Fold<'a>>, Error> {
        let Some(folding) = self.folding else { return Ok(None) };
        folding.of(self.name, self.row_len).map_err(|(word, expected)| self.wrong(word, &expected))
    }

    /// How its rows become rows that are folded as another's; none if they are so already.
    ///
    /// # Errors
    /// [`Error::FoldKey`], [`Error::Folded`].
    pub fn turn(self, to: FoldedTensor<'a>) -> Result<Option<Turn<'a>>, Error> {
        let (fold, other) = (self.fold()?, to.fold()?);
        let Some(turn) = Turn::new(fold, other) else { return Ok(None) };
        let is_grouped = |fold: Option<Fold<'_>>| fold.is_some_and(|fold| fold.has_grouped_heads);
        if is_grouped(fold) != is_grouped(other) {
            let shown = |fold: Option<Fold<'_>>| fold.map_or("not folded".to_owned(), |fold| fold.to_string());
            return Err(Error::Folded {
                tensor: to.name.to_owned(),
                key: format!("{FOLD_KEYS}gdn_v_grouped"),
                expected: shown(other),
                expected_in: to.model.path().to_owned(),
                found: shown(fold),
                found_in: self.model.path().to_owned(),
            });
        }
        let is_long = |fold: Option<Fold<'_>>| fold.is_some_and(|fold| fold.block_size > LONGEST_BLOCK);
        let long = [(self, fold), (to, other)].into_iter().find(|(_, fold)| is_long(*fold));
        match long {
            None => Ok(Some(turn)),
            Some((tensor, _)) => {
                let expected = format!("at most {LONGEST_BLOCK}, where files are folded differently");
                Err(tensor.wrong("block_size", &expected))
            }
        }
    }

    fn wrong(self, word: &str, expected: &str) -> Error {
        FoldKeys { metadata: self.model.metadata(), path: self.model.path() }.wrong(word, expected)
    }
}
