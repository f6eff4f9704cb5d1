//! What is done about tensors that would lose the vector, and the changes that it makes to a plan.

use std::collections::HashMap;

use super::{Error, LossPolicy, MergePlan, OnLoss, OutputType, Warning, survival::Loss};
use crate::ggml::GgmlType::{self, *};
use crate::gguf::names::{OUTPUT, OUTPUT_SCALE};
use crate::gguf::{Array, StringArray, Value};
use crate::quants;
use crate::survey::{Estimate, Look, Trial};
use crate::vector::{Encoding, Pair, Rounding};

/// Amplitudes of dither that are tried; the first that keeps the vector is taken.
const AMPLITUDES: [f32; 4] = [0.5, 0.75, 0.9, 1.0];

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
    /// The survival that is forecast now; of a tensor that was encoded again, the one that was
    /// measured.
    pub survival: f64,
}

/// The next finer type on the way to F32; of those with blocks of 32 weights, one of the same. None
/// for F32 itself.
///
/// Types whose codes are points on a lattice go to IQ3_S first, which needs no importance matrix,
/// as llama-quantize does.
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
    /// What is to be tried for each tensor at risk, and in which order it is preferred: its own
    /// encoding first, of which the survey may have been too little sure. Nothing for policies that
    /// change nothing.
    pub fn remedies(&self, plan: &MergePlan, pairs: &[Pair], at_risk: &[Loss]) -> Vec<(Pair, Vec<Encoding>)> {
        let by_name: HashMap<&str, &Pair> = pairs.iter().map(|p| (p.name.as_str(), p)).collect();
        let planned: HashMap<&str, Encoding> = plan.tensors().iter().map(|t| (t.name.as_str(), t.encoding())).collect();
        let names = at_risk.iter().filter_map(|loss| loss.tensor.as_deref());
        let of_tensor = |name: &str| {
            let (pair, own) = (*by_name.get(name)?, *planned.get(name)?);
            let remedies = self.ladder(plan, name, own.ty);
            let tried = || std::iter::once(own).chain(remedies.iter().copied()).collect();
            (!remedies.is_empty()).then(|| (pair.clone(), tried()))
        };
        names.filter_map(of_tensor).collect()
    }

    /// The encodings that a tensor which was asked for in this type may get instead, the preferred
    /// ones first.
    pub fn ladder(&self, plan: &MergePlan, name: &str, ty: GgmlType) -> Vec<Encoding> {
        // llama.cpp refuses scales beside an output of any type but NVFP4.
        let is_bound = ty == NVFP4 && name == OUTPUT && plan.tensors().iter().any(|t| t.name == OUTPUT_SCALE);
        let finer = promoted(ty).filter(|_| !is_bound);
        match self.on_loss {
            OnLoss::Warn | OnLoss::Fail => Vec::new(),
            OnLoss::Promote => finer.collect(),
            OnLoss::Dither => dithered(ty).chain(finer).collect(),
        }
    }

    /// The encoding that a trial speaks for: the first that keeps the vector, or, if none does, the
    /// one that keeps most.
    pub fn choose<'a>(&self, trial: &'a Trial) -> Option<&'a (Encoding, Estimate)> {
        let survival = |e: &Estimate| e.moments.survival().unwrap_or(0.0);
        let enough = trial.tried.iter().find(|(_, estimate)| self.look(estimate) == Look::Enough);
        enough.or_else(|| trial.tried.iter().max_by(|a, b| survival(&a.1).total_cmp(&survival(&b.1))))
    }
}

fn dithered(ty: GgmlType) -> impl Iterator<Item = Encoding> {
    let amplitudes = AMPLITUDES.into_iter().filter(move |_| quants::has_grid(ty));
    amplitudes.map(move |amplitude| Encoding { ty, rounding: Rounding::Dithered { amplitude } })
}

fn promoted(ty: GgmlType) -> impl Iterator<Item = Encoding> {
    std::iter::successors(finer(ty), |ty| finer(*ty)).map(|ty| Encoding { ty, rounding: Rounding::Encoder })
}

/// A tensor that gets another encoding.
#[derive(Clone, PartialEq, Debug)]
pub struct Change {
    /// Its position in the plan.
    pub tensor: usize,
    /// The encoding.
    pub encoding: Encoding,
    /// Its survival without that.
    pub survival_before: f64,
    /// Its survival with it.
    pub survival: f64,
}

impl MergePlan {
    /// The plan in which each tensor that was tried has the encoding that [`LossPolicy::choose`]
    /// speaks for.
    ///
    /// # Errors
    /// [`Error::Container`] if no header can be laid out.
    pub fn protect(
        self,
        output: &OutputType,
        policy: &LossPolicy,
        at_risk: &[Loss],
        trials: &[Trial],
    ) -> Result<Self, Error> {
        let before: HashMap<&str, f64> =
            at_risk.iter().filter_map(|loss| Some((loss.tensor.as_deref()?, loss.survival))).collect();
        let trials: HashMap<&str, &Trial> = trials.iter().map(|t| (t.name.as_str(), t)).collect();
        let change = |(i, tensor): (usize, &super::TensorPlan)| {
            let trial = *trials.get(tensor.name.as_str())?;
            let (encoding, estimate) = policy.choose(trial)?;
            let own = trial.tried.iter().find(|(tried, _)| *tried == tensor.encoding());
            let own = own.and_then(|(_, estimate)| estimate.moments.survival());
            let before = own.or(before.get(tensor.name.as_str()).copied()).unwrap_or(f64::NAN);
            let survival = estimate.moments.survival().unwrap_or(0.0);
            let change = Change { tensor: i, encoding: *encoding, survival_before: before, survival };
            (*encoding != tensor.encoding()).then_some(change)
        };
        let changes: Vec<Change> = self.tensors.iter().enumerate().filter_map(change).collect();
        self.with_changes(output, policy, &changes)
    }

    /// The plan in which these tensors have other encodings. What the header and the warning say of
    /// changes is brought up to date.
    ///
    /// # Errors
    /// [`Error::Container`] if no header can be laid out.
    pub fn with_changes(self, output: &OutputType, policy: &LossPolicy, changes: &[Change]) -> Result<Self, Error> {
        if changes.is_empty() {
            return Ok(self);
        }
        let mut all: HashMap<String, Protected> =
            self.protected().iter().map(|earlier| (earlier.tensor.clone(), earlier.clone())).collect();
        let MergePlan { mut tensors, mut warnings, plumbing, special_rows, header } = self;
        for change in changes {
            let (tensor, encoding) = (&mut tensors[change.tensor], change.encoding);
            let name = tensor.name.clone();
            let (from, before) =
                all.get(&name).map_or((tensor.ty, change.survival_before), |all| (all.from, all.survival_before));
            (tensor.ty, tensor.rounding) = (encoding.ty, encoding.rounding);
            let size = from.size_of(tensor.n_weights()).expect("it was planned in that type");
            let more_bytes = tensor.size().saturating_sub(size);
            let Encoding { ty, rounding } = encoding;
            let (survival_before, survival) = (before, change.survival);
            all.insert(
                name.clone(),
                Protected { tensor: name, from, ty, rounding, more_bytes, survival_before, survival },
            );
        }
        let changes: Vec<Protected> = tensors.iter().filter_map(|tensor| all.remove(&tensor.name)).collect();

        let mut metadata = header.metadata().clone();
        let types: Vec<_> = tensors.iter().map(|t| (t.ty, t.n_dims())).collect();
        output.describe(&mut metadata, &types);
        metadata.set("chatvec.on_loss", policy.on_loss.name());
        metadata.retain(|key| ![PROMOTED, DITHERED].contains(&key));
        // gguf-py cannot write a file again that has an array of nothing.
        let mut list = |key: &str, is_wanted: &dyn Fn(&Protected) -> bool| {
            let names: StringArray = changes.iter().filter(|c| is_wanted(c)).map(|c| c.tensor.clone()).collect();
            if !names.is_empty() {
                metadata.set(key, Value::Array(Array::Strings(names)));
            }
        };
        list(PROMOTED, &|c| c.ty != c.from);
        list(DITHERED, &|c| c.rounding != Rounding::Encoder);
        warnings.retain(|warning| !matches!(warning, Warning::Protected { .. }));
        warnings.push(Warning::Protected { changes });
        let plan = Self::from_parts(metadata, tensors, warnings, plumbing)?;
        Ok(MergePlan { special_rows, ..plan })
    }

    /// The tensors that are not written as they would be by the types that were asked for.
    pub fn protected(&self) -> &[Protected] {
        let changes = self.warnings.iter().find_map(|warning| match warning {
            Warning::Protected { changes } => Some(&changes[..]),
            _ => None,
        });
        changes.unwrap_or_default()
    }
}

/// Key: the tensors that have a finer type.
const PROMOTED: &str = "chatvec.promoted";
/// Key: the tensors whose codes are chosen anew.
const DITHERED: &str = "chatvec.dithered";

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
}
