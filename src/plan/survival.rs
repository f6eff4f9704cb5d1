//! What is done about a vector that rounding would take: the policy, its verdict, and the changes it makes to a plan.
//!
//! A tensor is *lost* if less of the vector is in it than [`LossPolicy::min_survival`], or rounding error is more than
//! [`LossPolicy::max_noise`] times the vector. The same is asked of all tensors together. Numbers are those of a survey before
//! anything is written, and those measured afterwards.
//!
//! docs/SURVIVAL.md has the study behind the defaults.

use std::collections::HashMap;
use std::fmt;

use super::{Error, MergePlan, OutputType, Warning};
use crate::ggml::GgmlType::{self, *};
use crate::gguf::{Array, StringArray, Value};
use crate::quants;
use crate::survey::{Encoding, Moments, Pair, Rounding, Survey, Trial};

/// What is done about tensors that would lose the vector.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnLoss {
    /// Codes are chosen anew on the grid, so that the size stays; where that cannot be or does not help, a finer type.
    #[default]
    Dither,
    /// The next finer type that keeps the vector.
    Promote,
    /// Nothing; it is said.
    Warn,
    /// Nothing; the run fails, before anything is written where it can be known.
    Fail,
}

impl OnLoss {
    /// The word for it on the command line and in provenance.
    pub fn name(self) -> &'static str {
        match self {
            OnLoss::Dither => "dither",
            OnLoss::Promote => "promote",
            OnLoss::Warn => "warn",
            OnLoss::Fail => "fail",
        }
    }
}

/// When a vector counts as lost, and what is done then.
#[derive(Clone, Copy, PartialEq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct LossPolicy {
    /// What is done.
    pub on_loss: OnLoss,
    /// The least share of the vector that a tensor has to hold.
    pub min_survival: f64,
    /// The most rounding error that a tensor may have, in units of the vector.
    pub max_noise: f64,
}

impl Default for LossPolicy {
    /// Dither below 0.9 of the vector, or above 8 times as much noise as vector.
    fn default() -> Self {
        LossPolicy { on_loss: OnLoss::Dither, min_survival: 0.9, max_noise: 8.0 }
    }
}

/// A tensor whose vector is less than this part of the model's mean, relative to its weights, has no verdict of its own: to
/// lose it changes next to nothing, and to keep it would take noise that does.
const NEGLIGIBLE: f64 = 0.05;

/// What a forecast has to have to spare where only a part of a tensor was looked at: a sample of a twentieth is mostly within
/// this of all rows.
const MARGIN: f64 = 0.02;

/// Amplitudes of dither that are tried; the first that keeps the vector is taken.
const AMPLITUDES: [f32; 4] = [0.5, 0.75, 0.9, 1.0];

/// A tensor that lost the vector, or all of them.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct Loss {
    /// The tensor; none for all together.
    pub tensor: Option<String>,
    /// ⟨q − m, δ⟩ / ⟨δ, δ⟩
    pub survival: f64,
    /// ‖q − o‖ / ‖δ‖
    pub noise: f64,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = self.tensor.as_deref().unwrap_or("all tensors together");
        write!(f, "{what} ({:.0} % of the vector, noise {:.1})", self.survival * 100.0, self.noise)
    }
}

/// A tensor that is not written as it would be by the types that were asked for.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct Protected {
    /// The tensor.
    pub tensor: String,
    /// Its type by what was asked for.
    pub from: GgmlType,
    /// Its type now.
    #[serde(rename = "type")]
    pub ty: GgmlType,
    /// How its codes are found.
    pub rounding: Rounding,
    /// Bytes that it takes more.
    pub more_bytes: u64,
    /// The survival that was forecast without that.
    pub survival_before: f64,
    /// The survival that is forecast now.
    pub survival: f64,
    /// The sums behind that forecast.
    #[serde(skip)]
    pub moments: Moments,
}

/// The next finer type on the way to F32; of those with blocks of 32 weights, one of the same. None for F32 itself.
///
/// Types whose codes are points on a lattice go to IQ3_S first, which needs no importance matrix, as llama-quantize does.
pub fn finer(ty: GgmlType) -> Option<GgmlType> {
    Some(match ty {
        IQ1_S | IQ1_M | IQ2_XXS | IQ2_XS | IQ2_S | IQ3_XXS | TQ1_0 | TQ2_0 => IQ3_S,
        Q2_K => Q3_K,
        IQ3_S => IQ4_XS,
        Q3_K => Q4_K,
        Q1_0 | Q2_0 => Q4_0,
        Q4_K | IQ4_XS => Q5_K,
        Q4_0 | IQ4_NL | MXFP4 | NVFP4 => Q5_0,
        Q4_1 => Q5_1,
        Q5_K => Q6_K,
        Q5_0 | Q5_1 | Q6_K => Q8_0,
        Q8_0 => F16,
        F16 | BF16 => F32,
        _ => return None,
    })
}

impl LossPolicy {
    /// The tensors among these that are lost, and all together if they are.
    pub fn lost<'a>(&self, tensors: impl IntoIterator<Item = (&'a str, Moments)>) -> Vec<Loss> {
        self.lost_by(tensors, |_| 0.0)
    }

    /// As [`lost`](Self::lost), where each tensor has to have a margin.
    fn lost_by<'a>(
        &self,
        tensors: impl IntoIterator<Item = (&'a str, Moments)>,
        margin: impl Fn(&str) -> f64,
    ) -> Vec<Loss> {
        let tensors: Vec<(&str, Moments)> = tensors.into_iter().collect();
        let mut total = Moments::default();
        tensors.iter().for_each(|(_, moments)| total += *moments);
        let counts = |m: &Moments| match (m.delta_ratio(), total.delta_ratio()) {
            (Some(own), Some(all)) => own >= NEGLIGIBLE * all,
            _ => true,
        };
        let of = |tensor: Option<&str>, moments: &Moments, margin: f64| {
            let (survival, noise) = (moments.survival()?, moments.noise()?);
            let loss = Loss { tensor: tensor.map(str::to_owned), survival, noise };
            self.is_lost(survival - margin, noise).then_some(loss)
        };
        let each = tensors.iter().filter(|(_, m)| counts(m)).filter_map(|(name, m)| of(Some(name), m, margin(name)));
        each.chain(of(None, &total, 0.0)).collect()
    }

    fn is_lost(&self, survival: f64, noise: f64) -> bool {
        // What is no number is no success.
        !(survival >= self.min_survival && noise <= self.max_noise)
    }

    /// The tensors of a plan that a survey expects to be lost.
    pub fn expected(&self, plan: &MergePlan, survey: &Survey) -> Vec<Loss> {
        let surveyed: HashMap<&str, _> = survey.tensors.iter().map(|t| (t.name.as_str(), t)).collect();
        let by_name = plan.tensors().iter().filter_map(|t| {
            let found = surveyed.get(t.name.as_str())?;
            let moments = *found.chosen.as_ref().or(found.by_type.get(&t.ty))?;
            // A type that cannot hold the sum is another matter: the run says which weight it is.
            (moments.kept.is_finite() && moments.error2.is_finite()).then_some((t.name.as_str(), moments))
        });
        self.lost_by(by_name, |name| match surveyed[name].n_sampled < surveyed[name].n_pieces {
            true => MARGIN,
            false => 0.0,
        })
    }

    /// What is to be tried for each lost tensor, and in which order it is preferred; nothing for policies that change nothing.
    pub fn remedies(&self, plan: &MergePlan, pairs: &[Pair], lost: &[Loss]) -> Vec<(Pair, Vec<Encoding>)> {
        let by_name: HashMap<&str, &Pair> = pairs.iter().map(|p| (p.name.as_str(), p)).collect();
        let lost = lost.iter().filter_map(|loss| loss.tensor.as_deref());
        let types: HashMap<&str, GgmlType> = plan.tensors().iter().map(|t| (t.name.as_str(), t.ty)).collect();
        let has_output_scale = types.contains_key("output.scale");
        lost.filter_map(|name| {
            let (pair, ty) = (*by_name.get(name)?, *types.get(name)?);
            // llama.cpp refuses scales beside an output of any type but NVFP4.
            let finer = promoted(ty).filter(|_| !(has_output_scale && ty == NVFP4 && name == "output.weight"));
            let remedies = match self.on_loss {
                OnLoss::Warn | OnLoss::Fail => return None,
                OnLoss::Promote => finer.collect(),
                OnLoss::Dither => dithered(ty).chain(finer).collect(),
            };
            Some((pair.clone(), remedies))
        })
        .collect()
    }
}

fn dithered(ty: GgmlType) -> impl Iterator<Item = Encoding> {
    let amplitudes = AMPLITUDES.into_iter().filter(move |_| quants::has_grid(ty));
    amplitudes.map(move |amplitude| Encoding { ty, rounding: Rounding::Dithered { amplitude } })
}

fn promoted(ty: GgmlType) -> impl Iterator<Item = Encoding> {
    std::iter::successors(finer(ty), |ty| finer(*ty)).map(|ty| Encoding { ty, rounding: Rounding::Encoder })
}

impl MergePlan {
    /// The plan in which each tensor that was tried has the first encoding that keeps the vector, or, if none does, the one that
    /// keeps most; with what has changed.
    ///
    /// # Errors
    /// [`Error::Container`] if no header can be laid out.
    pub fn protect(
        self,
        output: &OutputType,
        policy: &LossPolicy,
        lost: &[Loss],
        trials: &[Trial],
    ) -> Result<(Self, Vec<Protected>), Error> {
        let before: HashMap<&str, f64> =
            lost.iter().filter_map(|loss| Some((loss.tensor.as_deref()?, loss.survival))).collect();
        let trials: HashMap<&str, &Trial> = trials.iter().map(|t| (t.name.as_str(), t)).collect();
        let MergePlan { mut tensors, mut warnings, plumbing, special_rows, header } = self;
        let mut changes = Vec::new();
        for tensor in &mut tensors {
            let Some(trial) = trials.get(tensor.name.as_str()) else { continue };
            let margin = if trial.is_whole { 0.0 } else { MARGIN };
            let survival = |m: &Moments| m.survival().unwrap_or(0.0);
            let keeps = |m: &Moments| !policy.is_lost(survival(m) - margin, m.noise().unwrap_or(f64::INFINITY));
            let best = trial.tried.iter().max_by(|a, b| survival(&a.1).total_cmp(&survival(&b.1)));
            let Some((encoding, moments)) = trial.tried.iter().find(|(_, m)| keeps(m)).or(best) else { continue };
            let (from, size) = (tensor.ty, tensor.size());
            (tensor.ty, tensor.rounding) = (encoding.ty, encoding.rounding);
            changes.push(Protected {
                tensor: tensor.name.clone(),
                from,
                ty: encoding.ty,
                rounding: encoding.rounding,
                more_bytes: tensor.size().saturating_sub(size),
                survival_before: before.get(tensor.name.as_str()).copied().unwrap_or(f64::NAN),
                survival: survival(moments),
                moments: *moments,
            });
        }
        let mut metadata = header.metadata().clone();
        if !changes.is_empty() {
            let types: Vec<_> = tensors.iter().map(|t| (t.ty, t.n_dims())).collect();
            output.describe(&mut metadata, &types);
            metadata.set("chatvec.on_loss", policy.on_loss.name());
            // gguf-py cannot write a file again that has an array of nothing.
            let mut list = |key: &str, is_wanted: &dyn Fn(&Protected) -> bool| {
                let names: StringArray = changes.iter().filter(|c| is_wanted(c)).map(|c| c.tensor.clone()).collect();
                if !names.is_empty() {
                    metadata.set(key, Value::Array(Array::Strings(names)));
                }
            };
            list("chatvec.promoted", &|c| c.ty != c.from);
            list("chatvec.dithered", &|c| c.rounding != Rounding::Encoder);
            warnings.push(Warning::Protected { changes: changes.clone() });
        }
        let plan = Self::from_parts(metadata, tensors, warnings, plumbing)?;
        Ok((MergePlan { special_rows, ..plan }, changes))
    }
}

#[cfg(test)]
mod tests {
    use super::super::types;
    use super::*;

    #[test]
    fn every_weight_type_climbs_to_f32_by_steps_that_are_finer_and_divide_the_same_rows() {
        for ty in quants::supported().filter(|ty| *ty != F32) {
            let mut at = ty;
            let mut n = 0;
            while let Some(next) = finer(at) {
                assert!(next.bits_per_weight() > at.bits_per_weight(), "{at} {next}");
                assert!(at.block_len().is_multiple_of(next.block_len()), "{at} {next}");
                assert!(
                    !quants::requires_importance(next) && !types::requires_importance("x", next, &OutputType::Keep)
                );
                (at, n) = (next, n + 1);
                assert!(n < 12, "{ty}");
            }
            assert_eq!(at, F32, "{ty}");
        }
    }

    fn moments(survival: f64, noise: f64, delta: f64) -> Moments {
        let delta2 = delta * delta;
        let (kept, error2) = (survival * delta2, noise * noise * delta2);
        Moments { delta2, model2: 1.0, kept, error2, ..Moments::default() }
    }

    #[test]
    fn a_tensor_is_lost_by_survival_or_noise_unless_its_vector_is_negligible() {
        let policy = LossPolicy::default();
        let names = |tensors: &[(&str, Moments)]| -> Vec<Option<String>> {
            policy.lost(tensors.iter().copied()).into_iter().map(|loss| loss.tensor).collect()
        };
        let good = ("good", moments(0.95, 2.0, 0.05));
        assert_eq!(names(&[good]), []);
        assert_eq!(names(&[good, ("drowned", moments(1.0, 9.0, 0.05))]), [Some("drowned".to_owned())]);
        assert_eq!(names(&[good, ("lost", moments(0.86, 1.0, 0.05))]), [Some("lost".to_owned())]);
        assert_eq!(names(&[good, ("worse", moments(0.1, 1.0, 0.05))]), [Some("worse".to_owned()), None]);
        assert_eq!(names(&[good, ("negligible", moments(0.1, 1.0, 0.001))]), []);
        assert_eq!(names(&[("zero", Moments::default())]), []);
        assert_eq!(names(&[("alone", moments(0.1, 1.0, 0.001))]), [Some("alone".to_owned()), None]);
    }
}
