//! What kinds of run that add something find out before they write.

use std::collections::HashMap;

use super::{Caution, Error, LEAST_COSINE, Settings};
use crate::ggml::GgmlType;
use crate::plan::{self, MergePlan, OutputType, Warning};
use crate::survey::{self, SampleSettings, Survey, TypeForecast};
use crate::vector::{Inputs, Pair};

/// The name of a file type, and the types that the output's tensors would have in it.
pub type TypesAs = (&'static str, Vec<GgmlType>);

/// What a survey expects of a plan.
pub fn expected(plan: &MergePlan, survey: &Survey) -> TypeForecast {
    let types: HashMap<&str, GgmlType> = plan.tensors().iter().map(|t| (t.name.as_str(), t.ty)).collect();
    survey.forecast_chosen(|name| types.get(name).copied())
}

/// A plan of which a sample was looked at.
pub(super) struct Looked {
    pub(super) survey: Survey,
    pub(super) types: Vec<TypesAs>,
    /// What is added to each tensor, as the plan has it, of those that something is added to.
    pub(super) pairs: Vec<Pair>,
    pub(super) sample: SampleSettings,
}

/// Looks at a sample of what a plan adds. `pairs` are those that the plan was made of, and `threads`
/// those that it runs in.
pub(super) fn look(
    inputs: &Inputs,
    plan: &MergePlan,
    pairs: Vec<Pair>,
    threads: usize,
    settings: &Settings,
) -> Result<Looked, Error> {
    let types_as = |name| plan.types_as(inputs, &OutputType::parse(name, true)?);
    let others =
        settings.forecast.iter().map(|name| Ok((*name, types_as(name)?))).collect::<Result<Vec<_>, plan::Error>>()?;
    let mut types: Vec<GgmlType> = plan.tensors().iter().map(|t| t.ty).collect();
    types.extend(others.iter().flat_map(|(_, types)| types));
    types.sort();
    types.dedup();
    let matrix = inputs.importance().map_or(0, |matrix| matrix.n_bytes());
    let memory = settings.budget.memory.saturating_sub(matrix);
    let sample = SampleSettings { types, threads, memory, ..SampleSettings::default() };
    // What the recipe leaves out is not looked at: its types may be unreadable, and its size says
    // nothing.
    let added = pairs.into_iter().zip(plan.tensors()).filter(|(_, tensor)| tensor.is_sum());
    let pairs: Vec<Pair> = added
        .map(|(pair, planned)| Pair {
            terms: planned.terms().to_vec(),
            combination: planned.combination().clone(),
            except: planned.taken_rows(),
            ..pair
        })
        .collect();
    let survey = survey::survey(inputs, &pairs, &sample)?;
    Ok(Looked { survey, types: others, pairs, sample })
}

/// What looks wrong and ends a run unless it is forced, in words.
pub(super) fn refusals(survey: &Survey) -> Vec<String> {
    survey.findings.iter().filter(|f| f.is_refusal()).map(ToString::to_string).collect()
}

/// What plan and survey have to say. Where a run is forced, `refusals` are warnings of the plan from
/// then on.
pub(super) fn cautions(plan: &mut MergePlan, survey: &Survey, refusals: &[String], is_forced: bool) -> Vec<Caution> {
    if is_forced {
        plan.warnings.extend(refusals.iter().cloned().map(|finding| Warning::Forced { finding }));
    }
    let findings = survey.findings.iter().filter(|f| !f.is_refusal()).cloned();
    plan.warnings.iter().cloned().map(Caution::Plan).chain(findings.map(Caution::Finding)).collect()
}

/// That of rounding errors in base and chat, if there are many.
pub(super) fn rounding_error(survey: &Survey) -> Option<Caution> {
    survey.cosine.filter(|cosine| *cosine < LEAST_COSINE).map(Caution::RoundingError)
}
