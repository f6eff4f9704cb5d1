//! The singular vectors of each matrix.

use super::error::Error;
use super::extractor::Extractor;
use super::matrix::Matrix;
use super::target::Target;
use crate::ggml::GgmlType;
use crate::patch::encode::{self, Metric};
use crate::patch::low_rank::{self, LowRank, Settings as RankSettings};
use crate::patch::rows::Tau;
use crate::patch::spill::Spill;

/// A matrix whose singular vectors are known.
pub(super) struct Found<'a> {
    pub(super) matrix: Matrix<'a>,
    /// The decomposition without its factors.
    pub(super) low: LowRank,
    pub(super) metric: Metric,
    /// Where its factors are in the temporary file.
    pub(super) at: u64,
}

/// The rank of a matrix is looked for in steps. The first is this part of the largest rank that the
/// bits could be spent on.
const FIRST_RANK: usize = 3;

/// The least rank that is tried, where the matrix has as many.
const LEAST_RANK: usize = 16;

impl Extractor<'_> {
    pub(super) fn decompose<'m>(&self, matrix: Matrix<'m>, spill: &mut Spill) -> Result<Found<'m>, Error> {
        let tau = Tau { sums: &self.sums, tensor: matrix.tensor, observer: self.observer };
        let importance = self.inputs.importance_of(matrix.name, &self.plan.tensors()[matrix.tensor].ne, GgmlType::F32);
        let failed = |source| match source {
            low_rank::Error::Rows(e) => Error::Pipeline(e),
            source => Error::Decomposition { tensor: matrix.name.to_owned(), source },
        };
        let find = |rank| {
            let weights = importance.map(|i| i.of_row(0)).filter(|_| matches!(self.parts.target, Target::Rank(_)));
            let settings = RankSettings { weights, ..RankSettings::new(rank) };
            let low = low_rank::decompose(&tau, &settings).map_err(failed)?;
            let metric = Metric::of(&low, matrix.row_len, importance.map(|i| i.of_row(0))).map_err(failed)?;
            Ok::<_, Error>((low, metric))
        };
        let mut rank = match self.parts.target {
            Target::Rank(rank) => rank.min(matrix.rank),
            _ => (matrix.rank / FIRST_RANK).max(LEAST_RANK).min(matrix.rank),
        };
        let (mut low, mut metric) = find(rank)?;
        while rank < matrix.rank && encode::is_spent_on_all(&low, matrix.shape(), &metric, matrix.most_bits) {
            rank = (2 * rank).min(matrix.rank);
            (low.a, low.b) = (Vec::new(), Vec::new());
            (low, metric) = find(rank)?;
        }
        let at = spill.push(&mut low).map_err(|e| self.spill_error(e))?;
        Ok(Found { matrix, low, metric, at })
    }

    pub(super) fn unspill(&self, found: &Found<'_>, spill: &mut Spill) -> Result<LowRank, Error> {
        spill.read(&found.low, found.matrix.shape(), found.at).map_err(|e| self.spill_error(e))
    }
}
