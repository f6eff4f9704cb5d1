//! What looks wrong with a set of inputs, judged from the sampled weights and from the templates.
//!
//! The thresholds leave a wide gap on both sides. Real chat vectors have ‖τ‖/‖W‖ of 1–12 % and
//! continual pre-training goes 3–40 % away; two models trained apart from each other differ by √2
//! times their norm, and so do the query and key weights of one model written by two converters, of
//! which one permutes their rows for rope and the other does not.

use std::fmt;

use super::special::Seen;
use crate::vector::Moments;

/// Above this ‖chat − base‖/‖base‖ the two are no pair. Unrelated models: 1.41; Q2_K noise in both:
/// 0.37.
const UNRELATED_PAIR: f64 = 0.7;
/// Above this ‖model − base‖/‖base‖ the model does not come from the base.
const UNRELATED_MODEL: f64 = 1.0;
/// Query and key weights this far apart, and everything else four times closer: permuted rows.
const PERMUTED: f64 = 0.5;

/// Something the survey noticed.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Finding {
    /// Chat and base hold the same weights, in every sampled row.
    VectorIsZero,
    /// Model and base hold the same weights, in every sampled row.
    ModelIsBase,
    /// The model is nearer to chat than to base.
    NearerToChat {
        /// ⟨τ, model − base⟩ / ‖τ‖²: 0 for an unrelated direction, above 0.5 when nearer to chat.
        overlap: f64,
    },
    /// Chat is nearer to the model than to base.
    NearerToModel {
        /// ⟨chat − base, model − base⟩ / ‖model − base‖²: 0 for an unrelated direction, above 0.5
        /// when nearer to the model.
        overlap: f64,
    },
    /// Special tokens were trained in the model, and are untrained in chat.
    SwappedChatAndModel {
        /// Their texts.
        tokens: Vec<String>,
    },
    /// Nothing says which of chat and model is the one that chats.
    Untold {
        /// What was looked at.
        why: Untold,
    },
    /// Chat does not come from base.
    UnrelatedPair {
        /// ‖chat − base‖ / ‖base‖
        ratio: f64,
    },
    /// The model does not come from base.
    UnrelatedModel {
        /// ‖model − base‖ / ‖base‖
        ratio: f64,
    },
    /// The model is far from the base of a patch, of which there are some rows of the embeddings.
    FarFromBase {
        /// ‖model − base‖ / ‖base‖ there: the median.
        ratio: f64,
    },
    /// Only query and key weights are far apart.
    PermutedQueryKey {
        /// The two that differ.
        between: &'static str,
        /// Their distance in attn_q and attn_k, relative to the base.
        query_key: f64,
        /// Their distance in all other tensors.
        others: f64,
    },
    /// Two files have a table of their own of what belongs together.
    OtherTable {
        /// The tensor.
        tensor: String,
        /// The role of the file that has another one than the model, or than chat.
        role: &'static str,
    },
    /// Base has a chat template and chat has none.
    TemplateOnlyInBase,
    /// The model has a chat template and chat has none.
    TemplateOnlyInModel,
    /// Base has a chat template too.
    TemplateInBase,
    /// What was noticed of another vector than the first.
    OfVector {
        /// Which one, counted from 1.
        vector: usize,
        /// What was noticed.
        finding: Box<Finding>,
    },
}

/// Why chat and model cannot be told apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Untold {
    /// Both have a chat template.
    BothTemplates,
    /// Neither has one.
    NoTemplate,
    /// Neither or both have one, and the model alone ends its answers in another way than base.
    EndOnlyInModel,
}

impl Finding {
    /// Whether a run should stop unless it is forced.
    pub fn is_refusal(&self) -> bool {
        use Finding::*;
        match self {
            NearerToChat { .. } | UnrelatedPair { .. } | UnrelatedModel { .. } | PermutedQueryKey { .. } => true,
            NearerToModel { .. } | SwappedChatAndModel { .. } => true,
            TemplateOnlyInBase | TemplateOnlyInModel | OtherTable { .. } => true,
            VectorIsZero | ModelIsBase | TemplateInBase | FarFromBase { .. } | Untold { .. } => false,
            OfVector { finding, .. } => finding.is_refusal(),
        }
    }
}

impl fmt::Display for Finding {
    #[expect(clippy::too_many_lines, reason = "a list: one arm a finding")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::OfVector { vector, finding } => write!(f, "vector {vector}: {finding}"),
            Finding::VectorIsZero => {
                write!(f, "chat and base hold the same weights in every sampled row: the vector may be zero")
            }
            Finding::ModelIsBase => {
                write!(
                    f,
                    "model and base hold the same weights in every sampled row: the result is a blend of the model and chat \
                     by the ratio, and chat itself where that is 1"
                )
            }
            Finding::NearerToChat { overlap } => write!(
                f,
                "the model is nearer to chat than to base (overlap with the vector {overlap:.2}): base and chat may be \
                 swapped, or the model already has this vector"
            ),
            Finding::NearerToModel { overlap } => write!(
                f,
                "chat is nearer to the model than to base (overlap with what the model learnt {overlap:.2}): what was given as \
                 the model may be the base of the two others, or the model already has a part of this vector"
            ),
            Finding::SwappedChatAndModel { tokens } => write!(
                f,
                "the model was trained on {}, on which chat was not: model and chat may be swapped",
                tokens.join(" ")
            ),
            Finding::Untold { why } => {
                let seen = match why {
                    Untold::BothTemplates => {
                        "both have a chat template, and both or neither moved the rows of its tokens"
                    }
                    Untold::NoTemplate => "neither has a chat template, nor an end token or rows of one that tell",
                    Untold::EndOnlyInModel => "the model alone ends its answers with another token than base",
                };
                write!(
                    f,
                    "which of chat and model is which could not be checked: {seen}; see that they are not swapped"
                )
            }
            Finding::UnrelatedPair { ratio } => write!(
                f,
                "chat is {:.0} % of the weights' norm away from base: it was not made from this base",
                ratio * 100.0
            ),
            Finding::UnrelatedModel { ratio } => write!(
                f,
                "the model is {:.0} % of the weights' norm away from base: it was not made from this base",
                ratio * 100.0
            ),
            Finding::FarFromBase { ratio } => write!(
                f,
                "the model's embeddings are {:.0} % of their norm away from those of the patch's base: it may not have been made \
                 from this base, or its embeddings were made anew",
                ratio * 100.0
            ),
            Finding::PermutedQueryKey { between, query_key, others } => write!(
                f,
                "{between} differ by {:.0} % in attn_q and attn_k but by {:.1} % elsewhere: the files come from \
                 different converters, which order these rows differently; convert both with the same one",
                query_key * 100.0,
                others * 100.0
            ),
            Finding::OtherTable { tensor, role } => write!(
                f,
                "{tensor} is another table in {role}: it says which experts or tokens belong together, so that weights of \
                 these files are of other things"
            ),
            Finding::TemplateOnlyInBase => {
                write!(f, "base has a chat template and chat has none: base and chat may be swapped")
            }
            Finding::TemplateOnlyInModel => {
                write!(f, "the model has a chat template and chat has none: model and chat may be swapped")
            }
            Finding::TemplateInBase => {
                write!(f, "base has a chat template too: it may be a chat model itself, and the vector only a part")
            }
        }
    }
}

/// Distances of a trio, in sums of squares over the same weights.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Distances {
    /// Σ base²
    pub(super) base2: f64,
    /// Σ (chat − base)²
    pub(super) tau2: f64,
    /// Σ (model − base)², where there is a model.
    pub(super) drift2: f64,
    /// Σ (chat − base)·(model − base)
    pub(super) tau_drift: f64,
    /// Whether there is a model.
    pub(super) has_model: bool,
    /// The sides of the triangle of base, chat and model as they were before the files were
    /// rounded; none if the error of a type is not known.
    pub(super) sides: Option<Sides>,
}

/// Squares of the sides of a triangle.
#[derive(Clone, Copy, Default, PartialEq, Debug)]
pub(super) struct Sides {
    /// ‖chat − base‖²
    pub(super) tau2: f64,
    /// ‖model − base‖²
    pub(super) drift2: f64,
    /// ‖chat − model‖²
    pub(super) far2: f64,
}

/// Where less than this share of a distance's square is left when rounding errors are taken away,
/// it says nothing of roles.
const LEAST_TRUE: f64 = 0.1;

/// Above this overlap, chat or model is nearer to the other than to base. In the right order it is
/// cos(τ, drift) times the ratio of their lengths (|−.08| at most in the bundled trio), in every
/// wrong one 1 but for that: .5 is as far from both.
const NEARER: f64 = 0.5;

impl Distances {
    /// The distances by the sums for one vector at ratio 1.
    pub(super) fn new(base2: f64, unit: &Moments, has_model: bool) -> Self {
        let (tau2, drift2, tau_drift) = (unit.delta2, unit.drift2, unit.delta_drift);
        Distances { base2, tau2, drift2, tau_drift, has_model, sides: None }
    }

    /// What is added to: no distance at all.
    pub(super) fn none() -> Self {
        Distances { sides: Some(Sides::default()), ..Distances::default() }
    }

    /// ⟨τ, model − base⟩ over ‖τ‖² and over ‖model − base‖², as they were before rounding; none
    /// where that cannot be said.
    pub(super) fn overlaps(&self) -> Option<(f64, f64)> {
        let (tau2, drift2, inner) = match self.sides {
            None => (self.tau2, self.drift2, self.tau_drift),
            Some(s) if s.tau2 < LEAST_TRUE * self.tau2 || s.drift2 < LEAST_TRUE * self.drift2 => return None,
            Some(s) => (s.tau2, s.drift2, (s.tau2 + s.drift2 - s.far2) / 2.0),
        };
        (self.has_model && tau2 > 0.0 && drift2 > 0.0).then_some((inner / tau2, inner / drift2))
    }

    pub(super) fn add(&mut self, other: Distances) {
        self.base2 += other.base2;
        self.tau2 += other.tau2;
        self.drift2 += other.drift2;
        self.tau_drift += other.tau_drift;
        self.has_model |= other.has_model;
        self.sides = self.sides.zip(other.sides).map(|(a, b)| Sides {
            tau2: a.tau2 + b.tau2,
            drift2: a.drift2 + b.drift2,
            far2: a.far2 + b.far2,
        });
    }
}

/// Standard errors that an overlap of a few rows has to be beyond the bound by. Of two unrelated
/// directions in n dimensions, ⟨a, b⟩ has the standard error ‖a‖·‖b‖ / √n.
const ERRORS: f64 = 4.0;

/// Judges a model by the rows of the embeddings that a patch has of its base, as [`judge_roles`]
/// judges files.
pub(super) fn judge_patch(seen: &Seen) -> Option<Finding> {
    let Seen { tau2, drift2, inner, n, .. } = *seen;
    let error = ERRORS * (tau2 * drift2 / n.max(1) as f64).sqrt();
    if tau2 > 0.0 && drift2 > 0.0 && inner - error > NEARER * tau2.min(drift2) {
        return Some(match tau2 <= drift2 {
            true => Finding::NearerToChat { overlap: inner / tau2 },
            false => Finding::NearerToModel { overlap: inner / drift2 },
        });
    }
    seen.ratio.filter(|ratio| *ratio > UNRELATED_MODEL).map(|ratio| Finding::FarFromBase { ratio })
}

/// Judges the distances of a trio: `query_key` sums over attn_q and attn_k weights, `others` over
/// the rest.
pub(super) fn judge(query_key: &Distances, others: &Distances) -> Vec<Finding> {
    let mut all = *query_key;
    all.add(*others);
    let mut findings = Vec::new();
    let relative = |d2: f64, base2: f64| if base2 > 0.0 { (d2 / base2).sqrt() } else { 0.0 };
    let permuted = |d2: fn(&Distances) -> f64, between| {
        let (qk, rest) = (relative(d2(query_key), query_key.base2), relative(d2(others), others.base2));
        // Without others, because the recipe leaves them out, there is nothing to hold them
        // against.
        (qk > PERMUTED && others.base2 > 0.0 && rest < qk / 4.0).then_some(Finding::PermutedQueryKey {
            between,
            query_key: qk,
            others: rest,
        })
    };
    let permuted: Vec<Finding> =
        [permuted(|d| d.tau2, "chat and base"), permuted(|d| d.drift2, "model and base").filter(|_| all.has_model)]
            .into_iter()
            .flatten()
            .collect();
    // Permuted rows explain every other distance, so nothing else is said then.
    if !permuted.is_empty() {
        return permuted;
    }
    if all.tau2 == 0.0 {
        findings.push(Finding::VectorIsZero);
    }
    let pair = relative(all.tau2, all.base2);
    if pair > UNRELATED_PAIR {
        findings.push(Finding::UnrelatedPair { ratio: pair });
    }
    if all.has_model {
        let drift = relative(all.drift2, all.base2);
        if drift > UNRELATED_MODEL {
            findings.push(Finding::UnrelatedModel { ratio: drift });
        }
        if all.drift2 == 0.0 {
            findings.push(Finding::ModelIsBase);
        }
        if findings.is_empty() {
            findings.extend(judge_roles(&all));
        }
    }
    findings
}

/// Says if another file than the one given as base is the one that both others were made from: the
/// corner of the triangle with the right angle, opposite to its longest side.
fn judge_roles(all: &Distances) -> Option<Finding> {
    let (with_tau, with_drift) = all.overlaps()?;
    match with_tau.max(with_drift) > NEARER {
        false => None,
        true if with_tau >= with_drift => Some(Finding::NearerToChat { overlap: with_tau }),
        true => Some(Finding::NearerToModel { overlap: with_drift }),
    }
}

/// Judges who has a chat template.
pub(super) fn judge_templates(model: bool, base: bool, chat: bool) -> Option<Finding> {
    match (base, chat) {
        (true, false) => Some(Finding::TemplateOnlyInBase),
        (true, true) => Some(Finding::TemplateInBase),
        (false, false) => model.then_some(Finding::TemplateOnlyInModel),
        (false, true) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn d(base2: f64, tau2: f64, drift2: f64, tau_drift: f64) -> Distances {
        Distances { base2, tau2, drift2, tau_drift, has_model: true, sides: None }
    }

    #[test]
    fn a_plausible_trio_has_no_finding() {
        assert_eq!(judge(&d(1.0, 0.002, 0.01, 0.0001), &d(5.0, 0.01, 0.05, 0.001)), []);
    }

    #[test]
    fn swapped_unrelated_and_permuted_inputs_are_told_apart() {
        // Swapped: τ' = −τ and model − base' = (model − base) − τ, so that the overlap is 1 for
        // orthogonal directions.
        let swapped = judge(&d(1.0, 0.002, 0.012, 0.002), &d(5.0, 0.01, 0.06, 0.01));
        assert!(matches!(swapped[..], [Finding::NearerToChat { .. }]), "{swapped:?}");
        // The model is the base: τ' = chat − model and model − base' = −(base' − model).
        let as_model = judge(&d(1.0, 0.012, 0.002, 0.002), &d(5.0, 0.06, 0.01, 0.01));
        assert!(matches!(as_model[..], [Finding::NearerToModel { .. }]), "{as_model:?}");
        let unrelated = judge(&d(1.0, 2.0, 0.01, 0.0), &d(5.0, 10.0, 0.05, 0.0));
        assert!(matches!(unrelated[..], [Finding::UnrelatedPair { .. }]), "{unrelated:?}");
        let foreign = judge(&d(1.0, 0.01, 2.0, 0.0), &d(5.0, 0.05, 10.0, 0.0));
        assert!(matches!(foreign[..], [Finding::UnrelatedModel { .. }]), "{foreign:?}");
        let permuted = judge(&d(1.0, 2.0, 0.01, 0.0), &d(5.0, 0.01, 0.05, 0.0));
        assert!(matches!(permuted[..], [Finding::PermutedQueryKey { between: "chat and base", .. }]), "{permuted:?}");
        assert_eq!(judge(&d(1.0, 0.0, 0.01, 0.0), &d(5.0, 0.0, 0.05, 0.0)), [Finding::VectorIsZero]);
    }
}
