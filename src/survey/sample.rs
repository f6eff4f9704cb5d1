//! Reading a sample of rows and adding up.

use std::collections::{BTreeMap, BTreeSet};

use super::bench::Bench;
use super::estimate::{Estimate, Tried};
use super::findings::{Distances, Finding, Sides, judge, judge_patch, judge_templates};
use super::roles;
use super::rounding::true_square;
use super::special::seen_by_patch;
use crate::chat;
use crate::ggml::GgmlType;
use crate::pool;
use crate::quants;
use crate::vector::{
    self, Coordinates, Encoder, Encoding, Error, Inputs, Moments, PIECE_WEIGHTS, Pair, Pieces, Rounding, Selector,
    Space, Spread, Sum, TensorRef, Term, Weights, check_finite, operands, part_of, share_out,
};

/// How much a survey looks at, and with what.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SampleSettings {
    /// Weights to look at in all, about. Small models are read whole.
    pub n_weights: u64,
    /// Types to try on the merged rows, besides the model's own.
    pub types: Vec<GgmlType>,
    /// Threads; fewer run if `memory` does not hold their buffers.
    pub threads: usize,
    /// Bytes of buffers of all threads together; one thread always runs, in 608 KiB.
    pub memory: u64,
}

impl Default for SampleSettings {
    /// Four million weights, a thread for each processor, 1 GiB.
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        SampleSettings { n_weights: 4 << 20, types: Vec::new(), threads, memory: 1 << 30 }
    }
}

/// What became of a sample in one type.
#[derive(Clone, Copy, PartialEq, Debug, serde::Serialize)]
pub struct TypeForecast {
    /// ⟨q − m, δ⟩ / ⟨δ, δ⟩, none where the vector is zero.
    pub survival: Option<f64>,
    /// ‖q − o‖ / ‖δ‖, none where the vector is zero.
    pub noise: Option<f64>,
}

/// What the sample says of one tensor; sums are estimates for all of it.
#[derive(Clone, PartialEq, Debug)]
pub struct TensorSurvey {
    /// The tensor.
    pub name: String,
    /// Pieces looked at: rows, or parts of very long rows.
    pub n_sampled: u64,
    /// Pieces in all.
    pub n_pieces: u64,
    /// Norms and cosines, as if every weight were stored as it is wanted.
    pub moments: Moments,
    /// What came of every type that was tried: sums with `kept` and `error2`.
    pub by_type: BTreeMap<GgmlType, Estimate>,
    /// What came of the encoding that the tensor will have, where it was tried by itself.
    pub chosen: Option<Estimate>,
}

impl TensorSurvey {
    /// What is expected of the tensor, which is planned in this type.
    pub fn expected(&self, ty: GgmlType) -> Option<&Estimate> {
        self.chosen.as_ref().or(self.by_type.get(&ty))
    }
}

/// What a sample of rows says about the inputs of a run.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct Survey {
    /// One entry for each tensor that something is added to, in the order of the pairs.
    pub tensors: Vec<TensorSurvey>,
    /// cos(τ̂, τ), about: how much of the vector that is read from quantised files is vector rather
    /// than rounding error. None for a patch, a zero vector, or types whose error is not known.
    pub cosine: Option<f64>,
    /// What looks wrong.
    pub findings: Vec<Finding>,
}

impl Survey {
    /// Sums over all tensors.
    pub fn total(&self) -> Moments {
        let mut total = Moments::default();
        self.tensors.iter().for_each(|t| total += t.moments);
        total
    }

    /// Adds what was found of the vector of this number. Of another vector than the first, what is odd
    /// but no mistake is not worth a line.
    fn add(&mut self, number: usize, findings: Vec<Finding>) {
        if number == 0 {
            self.findings.extend(findings);
            return;
        }
        let of_vector = |finding| Finding::OfVector { vector: number + 1, finding: Box::new(finding) };
        self.findings.extend(findings.into_iter().filter(Finding::is_refusal).map(of_vector));
    }

    /// What becomes of the vector if each tensor is written in the encoding that was chosen for it,
    /// and tensors without one in the type that `ty_of` names.
    pub fn forecast_chosen(&self, ty_of: impl Fn(&str) -> Option<GgmlType>) -> TypeForecast {
        let mut total = Moments::default();
        for t in &self.tensors {
            let by_type = || ty_of(&t.name).and_then(|ty| t.by_type.get(&ty));
            total += t.chosen.as_ref().or_else(by_type).copied().unwrap_or_default().moments;
        }
        TypeForecast { survival: total.survival(), noise: total.noise() }
    }

    /// What becomes of the vector if each tensor is written in the type that `ty_of` names; tensors
    /// without a type, or with one that was not tried, are left out.
    pub fn forecast(&self, ty_of: impl Fn(&str) -> Option<GgmlType>) -> TypeForecast {
        let mut total = Moments::default();
        for t in &self.tensors {
            if let Some(estimate) = ty_of(&t.name).and_then(|ty| t.by_type.get(&ty)) {
                total += estimate.moments;
            }
        }
        TypeForecast { survival: total.survival(), noise: total.noise() }
    }
}

/// Bytes of buffers that each thread uses at most: those of a sum, τ, decoded blocks and raw ones
/// of one piece, and what rows are computed in.
fn thread_bytes(inputs: &Inputs, pairs: &[&Pair]) -> u64 {
    let sums = pairs.iter().map(|pair| Sum::bytes_per_weight(pair.terms.len(), &pair.combination));
    let selector = if pairs.iter().any(|pair| pair.combination.n_passes() > 1) { Selector::N_BYTES } else { 0 };
    let coordinates = pairs.iter().map(|pair| 2 * Coordinates::bytes_per_weight(Space::of(&pair.name)));
    let scratch = |term: &Term| inputs.source(term.plus.source).scratch_of(term.plus.tensor);
    let scratch = pairs.iter().flat_map(|pair| &pair.terms).map(scratch).max().unwrap_or(0);
    let of_piece =
        (sums.max().unwrap_or(0) + coordinates.max().unwrap_or(0) + 2 * 4 + Bench::BYTES_PER_WEIGHT) * PIECE_WEIGHTS;
    (of_piece + selector).saturating_add(scratch)
}

/// Tensors that a sum is made of.
pub(super) fn n_operands(pair: &Pair) -> u64 {
    operands(pair.model, &pair.terms).count() as u64
}

/// Samples rows of every tensor that something is added to, evenly spread over it, and measures, in
/// a pool of its own.
///
/// # Errors
/// [`Error::Container`], [`Error::Type`], [`Error::NotFinite`] in a sampled row,
/// [`Error::Threads`].
pub fn survey(inputs: &Inputs, pairs: &[Pair], settings: &SampleSettings) -> Result<Survey, Error> {
    let added: Vec<&Pair> = pairs.iter().filter(|p| p.kept.is_none()).collect();
    let n_weights: u64 = added.iter().map(|p| p.info(inputs).n_weights()).sum();
    let share = settings.n_weights as f64 / n_weights.max(1) as f64;
    let n_operands = added.iter().map(|pair| n_operands(pair)).max().unwrap_or(0);
    let (threads, ahead) = share_out(settings.memory, settings.threads, thread_bytes(inputs, &added), n_operands);
    let added_vectors: BTreeSet<usize> = added.iter().flat_map(|p| p.terms.iter().map(|t| t.vector)).collect();
    let samples = pool::try_map_on(threads, added, |pair| sample(inputs, pair, (share, ahead), &settings.types))?;

    let mut survey = Survey::default();
    let has_template = |id| chat::has_template(inputs.source(id).metadata());
    let model_has_template = inputs.model().is_some_and(has_template);
    for (number, vector) in inputs.vectors().iter().enumerate() {
        // A vector that is added to no tensor, since its ratio is 0, is nothing to judge.
        if !added_vectors.contains(&number) {
            continue;
        }
        let Some(base) = vector.minus else {
            let mut findings: Vec<Finding> = judge_patch(&seen_by_patch(inputs, vector.plus)?).into_iter().collect();
            findings.extend(judge_templates(model_has_template, false, has_template(vector.plus)));
            survey.add(number, findings);
            continue;
        };
        let (mut query_key, mut others) = (Distances::none(), Distances::none());
        let (mut found2, mut true2) = (0.0, Some(0.0));
        for s in &samples {
            let Some(seen) = s.vectors.iter().find(|seen| seen.vector == number) else { continue };
            match part_of(&s.tensor.name) {
                "attn_q" | "attn_k" => query_key.add(seen.distances),
                _ => others.add(seen.distances),
            }
            found2 += seen.distances.tau2;
            true2 = true2.zip(seen.true2).map(|(a, b): (f64, f64)| a + b);
        }
        // A model that vectors are taken from, as in mergekit's recipes, is no further away from
        // itself than it should be.
        if inputs.vectors().len() > 1 && Some(base) == inputs.model() {
            (query_key.has_model, others.has_model) = (false, false);
        }
        let mut findings = judge(&query_key, &others);
        let is_trio = query_key.has_model || others.has_model;
        // Of files that are no trio, or whose base is not the base, there is nothing more to tell.
        if is_trio && findings.is_empty() {
            findings.extend(roles::tell(inputs, vector)?);
        }
        findings.extend(judge_templates(model_has_template, has_template(base), has_template(vector.plus)));
        survey.add(number, findings);
        if number == 0 {
            // τ̂ is right on average, so its product with τ is ‖τ‖².
            let cosine = true2.filter(|_| found2 > 0.0).map(|true2| (true2 / found2).sqrt());
            survey.cosine = cosine.filter(|c| c.is_finite());
        }
    }
    survey.findings.extend(
        vector::other_table(inputs)?
            .map(|table| Finding::OtherTable { tensor: table.tensor, role: inputs.role(table.other).name() }),
    );
    survey.tensors = samples.into_iter().map(|s| s.tensor).collect();
    Ok(survey)
}

struct Sample {
    tensor: TensorSurvey,
    vectors: Vec<SeenVector>,
}

/// What was seen of a vector that is a difference.
struct SeenVector {
    /// Its position among those of the inputs.
    vector: usize,
    distances: Distances,
    /// ‖τ‖² as it was before base and chat were rounded, none if a type's error is not known.
    true2: Option<f64>,
}

/// Sums over the sample of one term.
#[derive(Clone, Copy, Default)]
struct TermSums {
    unit: Moments,
    base2: f64,
}

fn sample(inputs: &Inputs, pair: &Pair, (share, ahead): (f64, u64), types: &[GgmlType]) -> Result<Sample, Error> {
    let info = pair.info(inputs);
    let row_len = info.row_len();
    let spread = Spread::new(info, share);
    let mut bench = Bench::new(inputs);
    let (mut sum, mut unit, mut got) = (Sum::default(), Vec::new(), Vec::new());
    let mut moments = Moments::default();
    let mut terms = vec![TermSums::default(); pair.terms.len()];
    let mut by_type: BTreeMap<GgmlType, Tried> =
        candidates(inputs, pair, types).into_iter().map(|ty| (ty, Tried::default())).collect();
    let mut useless = Vec::new();
    let mut sources = Pieces::new(inputs, pair.model, &pair.terms, &pair.combination, &pair.except, row_len, ahead);
    sources.select(spread, (&mut unit, &mut got))?;
    for piece in spread.pieces() {
        sources.compute(&mut sum, piece)?;
        moments.add(&sum.weights(sum.wanted()));
        for (term, seen) in pair.terms.iter().zip(&mut terms) {
            if term.minus.is_none() {
                continue;
            }
            sources.tau(term, piece, (&mut unit, &mut got))?;
            let base = &got;
            seen.unit.add(&Weights { delta: &unit, base: Some(base), ..sum.weights(sum.wanted()) });
            seen.base2 += square_norm(base);
        }
        for (&ty, tried) in &mut by_type {
            let encoding = Encoding { ty, rounding: Rounding::Encoder };
            let importance = inputs.importance_of(&pair.name, info.ne(), ty).filter(|_| quants::uses_importance(ty));
            let encoder = Encoder { encoding, row_len, importance, grid: None };
            bench.encode(pair, &encoder, piece, &mut sources, &sum, &mut got)?;
            match check_finite(&got) {
                None => {
                    let mut piece = Moments::default();
                    piece.add(&sum.weights(&got));
                    tried.add(piece);
                }
                // Nothing can be forecast of a type that has no number for a weight.
                Some(_) => useless.push(ty),
            }
        }
    }
    by_type.retain(|ty, _| !useless.contains(ty));

    let n_seen = spread.n_weights();
    let factor = if n_seen > 0 { info.n_weights() as f64 / n_seen as f64 } else { 1.0 };
    let seen = |(term, sums): (&Term, &TermSums)| seen_vector(inputs, pair, term, sums, (n_seen, factor));
    let vectors = pair.terms.iter().zip(&terms).filter_map(seen).collect();
    let by_type = by_type.into_iter().map(|(ty, tried)| (ty, tried.estimate(spread.n_pieces, factor))).collect();
    let tensor = TensorSurvey {
        name: pair.name.clone(),
        n_sampled: spread.n_sampled,
        n_pieces: spread.n_pieces,
        moments: moments.scaled(factor),
        by_type,
        chosen: None,
    };
    Ok(Sample { tensor, vectors })
}

/// The types that are tried: those asked for and the model's own, as far as the codec has them.
fn candidates(inputs: &Inputs, pair: &Pair, types: &[GgmlType]) -> Vec<GgmlType> {
    let info = pair.info(inputs);
    let mut candidates: Vec<GgmlType> = types.to_vec();
    candidates.extend(pair.model_type(inputs));
    candidates.sort();
    candidates.dedup();
    candidates.retain(|&ty| {
        let has_importance = || inputs.importance_of(&pair.name, info.ne(), ty).is_some();
        let is_possible = !quants::requires_importance(ty) || has_importance();
        is_possible && quants::is_supported(ty) && info.row_len().is_multiple_of(ty.block_len() as u64)
    });
    candidates
}

/// What was seen of a vector, if it is a difference: `n_seen` weights, of which a tensor has
/// `factor` times as many.
fn seen_vector(
    inputs: &Inputs,
    pair: &Pair,
    term: &Term,
    sums: &TermSums,
    (n_seen, factor): (u64, f64),
) -> Option<SeenVector> {
    let minus = term.minus?;
    let info = pair.info(inputs);
    let type_of = |r: TensorRef| inputs.source(r.source).tensor(r.tensor).ty();
    let n = n_seen.max(1) as f64;
    let [base, chat] = [minus, term.plus].map(type_of);
    let true_of = |found2: f64, one, other| {
        let true2 = true_square(found2 / n, sums.base2 / n, one, other);
        true2.map(|true2| true2 * info.n_weights() as f64)
    };
    let true2 = true_of(sums.unit.delta2, base, chat);
    let mut distances = Distances::new(sums.base2 * factor, &sums.unit.scaled(factor), pair.model.is_some());
    distances.sides = match pair.model_type(inputs) {
        // Of norms and biases there are few, and all files learn alike in them: they say
        // nothing of roles.
        _ if info.n_rows() == 1 => Some(Sides::default()),
        None => None,
        Some(model) => {
            let Moments { delta2, drift2, delta_drift, .. } = sums.unit;
            let far2 = (delta2 + drift2 - 2.0 * delta_drift).max(0.0);
            let others = true_of(drift2, base, model).zip(true_of(far2, chat, model));
            true2.zip(others).map(|(tau2, (drift2, far2))| Sides { tau2, drift2, far2 })
        }
    };
    Some(SeenVector { vector: term.vector, distances, true2 })
}

fn square_norm(weights: &[f32]) -> f64 {
    weights.iter().map(|w| f64::from(*w) * f64::from(*w)).sum()
}
