//! Which tensor of which file is subtracted from which, and added to which.

use super::combine::Combination;
use super::error::Error;
use super::inputs::{Inputs, Vector, find};
use super::names::{has_row_per_token, is_by_token};
use super::nature::{Nature, nature};
use super::stored::require_space;
use super::term::{SourceId, TensorRef, Term, operands};
use crate::ggml::GgmlType;
use crate::gguf::TensorInfo;
use crate::gguf::names::{OUTPUT, OUTPUT_BIAS, TOKEN_EMBEDDINGS};

/// Why a tensor takes no part in the arithmetic.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kept {
    /// It is no weight: rope frequencies and factors belong to the model's own context length, tables
    /// and statistics to its own data ([`nature`]), and scales of weights that lie beside them say
    /// what those weights are, in one file.
    NotAWeight,
    /// Its type has no arithmetic.
    NoArithmetic,
    /// There is no vector.
    NoVector,
    /// No vector has a tensor of this name.
    NoPartner,
    /// A patch says that its vector is zero there.
    Zero,
    /// The recipe leaves it out.
    Skipped,
    /// It has a number for each token, and the vocabularies differ.
    ByToken,
    /// The recipe gives it of every vector a ratio of 0.
    RatioZero,
}

/// An output tensor and what it is made of.
#[derive(Clone, PartialEq, Debug)]
pub struct Pair {
    /// Its name.
    pub name: String,
    /// The tensor that is added to; none when a vector is extracted.
    pub model: Option<TensorRef>,
    /// What is added, in order; empty exactly if `kept` says why.
    pub terms: Vec<Term>,
    /// How the terms are combined.
    pub combination: Combination,
    /// Why nothing is added.
    pub kept: Option<Kept>,
    /// Whether an `output.weight` of its own meets the tied `token_embd.weight` of another file.
    pub tied: bool,
    /// Rows that are no sums, sorted: the plan takes them from elsewhere. None before there is a
    /// plan.
    pub except: Vec<u32>,
}

/// Finds for every tensor of the output what it is made of: by name, and `output.weight` from
/// `token_embd.weight` in files whose embeddings are tied. A vector that is extracted has an
/// `output.weight` if either side has one.
///
/// # Errors
/// [`Error::Shape`], [`Error::OneSided`], [`Error::NoPlace`], [`Error::Folded`],
/// [`Error::FoldKey`], [`Error::PatchSpace`], and [`Error::Container`] for a big-endian file.
pub fn pair(inputs: &Inputs) -> Result<Vec<Pair>, Error> {
    inputs.require_little_endian()?;
    let skeleton = inputs.skeleton();
    let chat = inputs.source(skeleton);
    let mut own: Vec<(&str, TensorRef)> = Vec::new();
    for (tensor, info) in chat.tensors().enumerate() {
        own.push((info.name(), TensorRef { source: skeleton, tensor }));
    }
    if inputs.model().is_none() && chat.find(OUTPUT).is_none() {
        // The rows are chat's, whose embeddings are tied, also where base alone has the tensor.
        let is_untied = inputs.vectors()[0].minus.is_some_and(|base| inputs.source(base).find(OUTPUT).is_some());
        let tied = chat.find(TOKEN_EMBEDDINGS).filter(|_| is_untied);
        own.extend(tied.map(|tensor| (OUTPUT, TensorRef { source: skeleton, tensor })));
    }
    let mut pairs = Vec::new();
    for (name, own) in own {
        let mut pair = Pair {
            name: name.to_owned(),
            model: inputs.model().map(|_| own),
            terms: Vec::new(),
            combination: Combination::default(),
            kept: kept_by_nature(inputs, own),
            tied: false,
            except: Vec::new(),
        };
        if name == OUTPUT_BIAS && inputs.vocabularies_differ() {
            pair.kept = Some(Kept::ByToken);
        }
        if pair.kept.is_none() {
            for (number, vector) in inputs.vectors().iter().enumerate() {
                add_vector(inputs, name, own, (number, vector), &mut pair)?;
            }
            if pair.terms.is_empty() {
                let is_zero = |vector: &Vector| inputs.is_zero(vector.plus, name);
                pair.kept = Some(match inputs.vectors() {
                    [] => Kept::NoVector,
                    vectors if vectors.iter().any(is_zero) => Kept::Zero,
                    _ => Kept::NoPartner,
                });
            }
        }
        // What is no weight has no place in a vector either.
        if pair.model.is_some() || pair.kept.is_none() {
            pairs.push(pair);
        }
    }
    for vector in inputs.vectors() {
        check_places(inputs, vector)?;
    }
    if !inputs.vectors().is_empty() {
        check_coordinates(inputs, &pairs)?;
    }
    Ok(pairs)
}

/// Refuses sums of numbers that do not belong together: tensors that are folded in ways between
/// which no turn is known, and differences in a patch that are of other numbers than those that are
/// added.
fn check_coordinates(inputs: &Inputs, pairs: &[Pair]) -> Result<(), Error> {
    for (pair, term) in pairs.iter().flat_map(|pair| pair.terms.iter().map(move |term| (pair, term))) {
        if let Some(stored) = inputs.stored(term.plus.source) {
            require_space(stored.model().path(), &pair.name, stored.space(&pair.name))?;
        }
    }
    // Rows of tokens are taken also where a tensor has no vector.
    for pair in pairs.iter().filter(|pair| pair.kept.is_none() || has_row_per_token(&pair.name)) {
        let parts: Vec<TensorRef> = operands(pair.model, &pair.terms).map(|operand| operand.at).collect();
        if let Some(&own) = parts.first() {
            inputs.check_turns(own, parts)?;
        }
    }
    Ok(())
}

fn kept_by_nature(inputs: &Inputs, at: TensorRef) -> Option<Kept> {
    let model = inputs.source(at.source);
    let info = model.tensor(at.tensor);
    let architecture = model.metadata().architecture().unwrap_or_default();
    match nature(architecture, info.name(), info.n_dims()) {
        Nature::NoWeight => Some(Kept::NotAWeight),
        Nature::Table if info.ty().is_weight_type() => Some(Kept::NotAWeight),
        _ if inputs.stored(at.source).is_some_and(|stored| stored.is_beside(info.name())) => Some(Kept::NotAWeight),
        _ if model.is_scale(at.tensor) => Some(Kept::NotAWeight),
        _ if !info.ty().is_weight_type() => Some(Kept::NoArithmetic),
        _ => None,
    }
}

fn add_vector(
    inputs: &Inputs,
    name: &str,
    own: TensorRef,
    (number, vector): (usize, &Vector),
    pair: &mut Pair,
) -> Result<(), Error> {
    let info = inputs.source(own.source).tensor(own.tensor);
    let (plus, plus_tied) = find(inputs, vector.plus, name);
    let (minus, minus_tied) = match vector.minus {
        Some(minus) => find(inputs, minus, name),
        None => (None, false),
    };
    if let Some(minus_id) = vector.minus {
        let one_sided = |has: SourceId, lacks: SourceId| Error::OneSided {
            tensor: name.to_owned(),
            has: inputs.source(has).path().to_owned(),
            lacks: inputs.source(lacks).path().to_owned(),
        };
        match (plus, minus) {
            (Some(_), None) => return Err(one_sided(vector.plus, minus_id)),
            (None, Some(_)) => return Err(one_sided(minus_id, vector.plus)),
            _ => {}
        }
    }
    let Some(plus) = plus else { return Ok(()) };
    for other in [Some(plus), minus].into_iter().flatten() {
        let found = inputs.source(other.source).tensor(other.tensor);
        if !fits(inputs, own, other) {
            return Err(Error::Shape {
                tensor: name.to_owned(),
                expected: info.ne().to_vec(),
                expected_in: inputs.source(own.source).path().to_owned(),
                found: found.ne().to_vec(),
                found_in: inputs.source(other.source).path().to_owned(),
            });
        }
    }
    pair.tied |= plus_tied || minus_tied;
    pair.terms.push(Term { vector: number, ratio: vector.ratio as f32, plus, minus });
    Ok(())
}

/// Whether the rows of two tensors belong together: by their tokens where those differ, else by
/// their shape.
fn fits(inputs: &Inputs, own: TensorRef, other: TensorRef) -> bool {
    let info = |at: TensorRef| inputs.source(at.source).tensor(at.tensor);
    let is_mapped = |at: TensorRef| is_by_token(inputs.source(at.source), at.tensor);
    let differ = inputs.token_map(other.source).is_some_and(|map| !map.is_identity());
    match differ && has_row_per_token(info(own).name()) {
        true => info(own).row_len() == info(other).row_len() && is_mapped(own) && is_mapped(other),
        false => info(own).same_shape(info(other)),
    }
}

/// Refuses a vector with tensors that the output lacks, an untied `output.weight` aside, which the
/// plan reports.
fn check_places(inputs: &Inputs, vector: &Vector) -> Result<(), Error> {
    let (plus, own) = (inputs.source(vector.plus), inputs.source(inputs.skeleton()));
    let names = |source: SourceId| -> Vec<String> {
        let has_no_place = |(tensor, t): &(usize, &TensorInfo)| {
            let is_weight = kept_by_nature(inputs, TensorRef { source, tensor: *tensor }).is_none();
            is_weight && t.name() != OUTPUT && own.find(t.name()).is_none()
        };
        let tensors = inputs.source(source).tensors().enumerate();
        tensors.filter(has_no_place).map(|(_, t)| t.name().to_owned()).collect()
    };
    let tensors = names(vector.plus);
    if !tensors.is_empty() {
        return Err(Error::NoPlace { tensors, vector: plus.path().to_owned(), model: own.path().to_owned() });
    }
    let Some(minus) = vector.minus else { return Ok(()) };
    match names(minus).into_iter().next() {
        None => Ok(()),
        Some(tensor) => {
            let (has, lacks) = (inputs.source(minus).path().to_owned(), plus.path().to_owned());
            Err(Error::OneSided { tensor, has, lacks })
        }
    }
}

impl Pair {
    /// The type of the tensor that is added to.
    pub fn model_type(&self, inputs: &Inputs) -> Option<GgmlType> {
        self.model.map(|r| inputs.source(r.source).tensor(r.tensor).ty())
    }

    /// What is known of the tensor's shape: that of the model, or of what is extracted.
    ///
    /// # Panics
    /// If the pair was not made for these inputs.
    pub fn info<'a>(&self, inputs: &'a Inputs) -> &'a TensorInfo {
        let at = self.model.unwrap_or_else(|| self.terms[0].plus);
        inputs.source(at.source).tensor(at.tensor)
    }
}
