//! Ratios and methods, tensor by tensor.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::ratios::Ratios;
use super::setting::{Place, Setting, in_f32, is_filter_of, n_layers};
use super::{Error, Warning};
use crate::chat;
use crate::vector::{Combination, Inputs, Kept, Mask, Method, Pair, Part, SourceId, has_row_per_token, part_of};

/// How vectors are combined, and how much of each every tensor gets.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct Merging {
    /// The method.
    pub method: Method,
    /// What all ratios are multiplied by.
    pub ratios: Ratios,
    /// What is particular to each vector, in the order of the inputs; vectors beyond them have
    /// nothing.
    pub vectors: Vec<VectorSettings>,
    /// Whether ratios are divided by their sum; the method's own way if none.
    pub normalize: Option<Setting<bool>>,
    /// Whether selected weights are scaled up; the method's own way if none.
    pub rescale: Option<Setting<bool>>,
    /// What the sum is multiplied by, 1 if none.
    pub lambda: Option<Setting<f64>>,
    /// Where weights are drawn by chance, which ones.
    pub seed: u64,
    /// Instead of a seed.
    pub masks: Option<Masks>,
    /// How many layers the model must have, if that matters.
    pub n_layers: Option<u64>,
}

/// A ratio beyond this is said. On the bundled trio `merge` and `smoke` find .62 of the answers
/// right at 1, .33 at 2, and none from 3 on; what is published adds .5 to 1.5.
const LARGEST_USUAL_RATIO: f32 = 3.0;

/// Where the tensors are, and how many layers there are.
fn places(inputs: &Inputs, pairs: &[Pair]) -> (Vec<Place>, u64) {
    let metadata = inputs.source(inputs.skeleton()).metadata();
    let architecture = metadata.architecture().unwrap_or_default();
    let named = n_layers(pairs.iter().map(|pair| pair.name.as_str()));
    let n_layers = metadata.get_u64(&format!("{architecture}.block_count")).unwrap_or(named);
    (pairs.iter().map(|pair| Place::new(architecture, &pair.name, n_layers)).collect(), n_layers)
}

/// Which vectors reach which tensors: those whose ratio there is not 0. Of a vector that reaches
/// none nothing is taken.
pub(super) struct Reach {
    by_tensor: HashMap<String, Vec<usize>>,
    heard: BTreeSet<usize>,
}

impl Reach {
    /// Whether a vector that ends in this source reaches a tensor.
    pub(super) fn reaches(&self, inputs: &Inputs, source: SourceId, tensor: &str) -> bool {
        self.by_tensor.get(tensor).is_some_and(|all| all.iter().any(|v| inputs.vectors()[*v].plus == source))
    }

    /// The source whose chat the output has: that of the first vector with a template, or else of
    /// the first, of those that reach a tensor.
    pub(super) fn talker(&self, inputs: &Inputs) -> Option<SourceId> {
        let mut sources = self.heard.iter().map(|vector| inputs.vectors()[*vector].plus);
        let first = sources.clone().next();
        sources.find(|id| chat::has_template(inputs.source(*id).metadata())).or(first)
    }

    /// The vectors that reach no tensor, by their positions.
    pub(super) fn silent(&self, inputs: &Inputs) -> impl Iterator<Item = usize> {
        (0..inputs.vectors().len()).filter(|vector| !self.heard.contains(vector))
    }
}

/// Which weights are drawn, by the vector's position and the tensor's name: one byte each.
pub type Masks = HashMap<(usize, String), Arc<[u8]>>;

/// What is particular to a vector.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct VectorSettings {
    /// What its ratio is multiplied by.
    pub weight: Option<Setting<f64>>,
    /// The share of weights that is selected, 1 if none.
    pub density: Option<Setting<f64>>,
}

impl Merging {
    /// Gives the terms of all pairs their ratios and their combination. Terms of ratio 0 go away,
    /// and tensors without another are kept.
    ///
    /// # Errors
    /// [`Error::Ratio`], [`Error::NoWeight`], [`Error::NothingMatches`], [`Error::Layers`],
    /// [`Error::LinearGap`], [`Error::LinearZero`].
    pub(super) fn apply(&self, inputs: &Inputs, pairs: &mut [Pair], warnings: &mut Vec<Warning>) -> Result<(), Error> {
        let (places, n_layers) = places(inputs, pairs);
        if let Some(expected) = self.n_layers.filter(|n| *n != n_layers) {
            return Err(Error::Layers { expected, found: n_layers });
        }
        let no_match = |pattern: &str| {
            let parts: BTreeSet<&str> = pairs.iter().map(|pair| part_of(&pair.name)).collect();
            (pattern.to_owned(), parts.into_iter().collect::<Vec<_>>().join(", "))
        };
        if let Some(pattern) = self.ratios.idle_rule(&places) {
            let (pattern, known) = no_match(pattern);
            return Err(Error::NothingMatches { pattern, known });
        }
        let idle: BTreeSet<&str> = self.filters().filter(|filter| !is_filter_of(filter, &places)).collect();
        for filter in idle {
            let (filter, known) = no_match(filter);
            warnings.push(Warning::IdleFilter { filter, known });
        }
        for (pair, place) in pairs.iter_mut().zip(&places).filter(|(pair, _)| pair.kept.is_none()) {
            self.apply_to(inputs, pair, place)?;
        }
        let added = pairs.iter().filter(|pair| !pair.combination.normalize);
        let ratios = added.flat_map(|pair| pair.terms.iter().map(|term| term.ratio * pair.combination.lambda));
        if let Some(ratio) = ratios.max_by(|a, b| a.abs().total_cmp(&b.abs())).filter(|r| r.abs() > LARGEST_USUAL_RATIO)
        {
            warnings.push(Warning::LargeRatio { ratio });
        }
        Ok(())
    }

    /// The vectors of which something reaches the output, tensor by tensor. `pairs` are as
    /// [`crate::vector::pair`] found them.
    pub(super) fn reach(&self, inputs: &Inputs, pairs: &[Pair]) -> Reach {
        let (places, _) = places(inputs, pairs);
        let mut reach = Reach { by_tensor: HashMap::new(), heard: BTreeSet::new() };
        for (pair, place) in pairs.iter().zip(&places) {
            let reaching = (0..inputs.vectors().len()).filter(|vector| self.reaches(inputs, *vector, place));
            let reaching: Vec<usize> = reaching.collect();
            // What a patch says is zero is part of its vector; what a vector has no tensor for is
            // not.
            let has_part = |v: &usize| pair.kept == Some(Kept::Zero) || pair.terms.iter().any(|term| term.vector == *v);
            reach.heard.extend(reaching.iter().copied().filter(has_part));
            reach.by_tensor.insert(pair.name.clone(), reaching);
        }
        reach
    }

    /// Whether a vector's ratio at a place is another than 0, and what all is multiplied by too.
    fn reaches(&self, inputs: &Inputs, vector: usize, place: &Place) -> bool {
        let settings = self.vectors.get(vector);
        let density = settings.and_then(|settings| settings.density.as_ref()?.at(place)).unwrap_or(1.0);
        let is_selected = !self.method.is_sparse() || density > 0.0;
        let is_added = self.method == Method::Linear || self.lambda_at(place) != 0.0;
        self.factors(inputs, vector, place).is_some_and(|factors| !factors.contains(&0.0)) && is_selected && is_added
    }

    /// What the ratio of a vector at a place is the product of; none where the recipe gives it no
    /// weight.
    fn factors(&self, inputs: &Inputs, vector: usize, place: &Place) -> Option<[f64; 3]> {
        let weight = match self.vectors.get(vector).and_then(|settings| settings.weight.as_ref()) {
            Some(weight) => weight.at(place)?,
            None => 1.0,
        };
        Some([inputs.vectors()[vector].ratio, weight, self.ratios.factor(place)])
    }

    fn lambda_at(&self, place: &Place) -> f64 {
        self.lambda.as_ref().and_then(|lambda| lambda.at(place)).unwrap_or(1.0)
    }

    fn filters(&self) -> impl Iterator<Item = &str> {
        let of_vectors = self.vectors.iter().flat_map(|v| [&v.weight, &v.density]).chain([&self.lambda]).flatten();
        let shared = [&self.normalize, &self.rescale].into_iter().flatten();
        of_vectors.flat_map(Setting::filters).chain(shared.flat_map(Setting::filters))
    }

    fn apply_to(&self, inputs: &Inputs, pair: &mut Pair, place: &Place) -> Result<(), Error> {
        let is_linear = self.method == Method::Linear;
        // A row that a model lacks has no place in a mean.
        let is_by_token = has_row_per_token(&pair.name) && inputs.vocabularies_differ();
        if is_linear && (pair.terms.len() != inputs.vectors().len() || is_by_token) {
            return Err(Error::LinearGap { tensor: pair.name.clone() });
        }
        for term in &mut pair.terms {
            let no_weight = || Error::NoWeight { tensor: pair.name.clone(), vector: term.vector + 1 };
            term.ratio = product(self.factors(inputs, term.vector, place).ok_or_else(no_weight)?)?;
        }
        let lambda = self.lambda_at(place);
        pair.terms.retain(|term| term.ratio != 0.0 && (is_linear || lambda != 0.0));
        let value = |setting: &Option<Setting<bool>>, default| {
            setting.as_ref().and_then(|setting| setting.at(place)).unwrap_or(default)
        };
        let normalize = value(&self.normalize, self.method.normalizes());
        if pair.terms.is_empty() || (is_linear && normalize && pair.terms.iter().map(|t| t.ratio).sum::<f32>() == 0.0) {
            if is_linear {
                return Err(Error::LinearZero { tensor: pair.name.clone() });
            }
            pair.kept = Some(Kept::RatioZero);
            return Ok(());
        }
        if normalize {
            let all = pair.terms.iter().map(|term| f64::from(term.ratio));
            if !pair.terms.iter().map(|term| term.ratio).sum::<f32>().is_finite() {
                return Err(Error::Ratio { ratio: all.sum() });
            }
        }
        let part = |vector: usize| {
            let density = self.vectors.get(vector).and_then(|vector| vector.density.as_ref()?.at(place)).unwrap_or(1.0);
            if density > 0.0 && density < self.method.least_density() {
                return Err(at_place("density", density, place));
            }
            Ok(Part { density, mask: self.mask(&pair.name, vector) })
        };
        let parts = match self.method.is_sparse() {
            true => pair.terms.iter().map(|term| part(term.vector)).collect::<Result<_, _>>()?,
            false => Vec::new(),
        };
        pair.combination = Combination {
            method: self.method,
            parts,
            normalize,
            rescale: value(&self.rescale, self.method.rescales()),
            lambda: in_f32(lambda).ok_or_else(|| at_place("lambda", lambda, place))?,
        };
        Ok(())
    }

    fn mask(&self, tensor: &str, vector: usize) -> Mask {
        match &self.masks {
            None => Mask::seeded(self.seed, tensor, vector),
            Some(masks) => {
                Mask::List(masks.get(&(vector, tensor.to_owned())).cloned().unwrap_or_else(|| Arc::from([])))
            }
        }
    }
}

/// The product of ratios in f32. One that is 0 has a factor that is.
fn product(factors: [f64; 3]) -> Result<f32, Error> {
    let ratio: f64 = factors.into_iter().product();
    match in_f32(ratio) {
        Some(rounded) if ratio != 0.0 || factors.contains(&0.0) => Ok(rounded),
        // The factor itself says more than a product of 0.
        Some(_) => Err(Error::Ratio {
            ratio: factors.into_iter().fold(1.0, |least, f| if f.abs() < least { f } else { least }),
        }),
        None => Err(Error::Ratio { ratio }),
    }
}

/// The error for a number that comes to nothing where this tensor is.
fn at_place(key: &str, value: f64, place: &Place) -> Error {
    let tensor = place.names_for_rules().next().unwrap_or_default();
    Error::RecipeKey {
        key: key.to_owned(),
        reason: format!(
            "{value:e}, for tensor {tensor}, is too small or too large: it would be taken for 0 or infinity"
        ),
    }
}
