//! Which weights make up for the rounding error of which others.
//!
//! A row w of a matrix acts on inputs x by ⟨w, x⟩. With errors e the output is off by ⟨e, x⟩, in
//! the mean square by e·H·eᵀ, where H is the mean of x·xᵀ. If weights are rounded one after the
//! other and each is first moved by what its predecessors' errors ask for, that sum becomes less
//! than by rounding each to the nearest value (Frantar et al., GPTQ, 2022). With the factors
//! `H = (U + I)·D·(U + I)ᵀ`, U strictly upper triangular and D diagonal, the move of weight k is
//! Σ e_j·U_jk over j before it (Chee et al., QuIP, 2023, theorem 1: no other linear move does
//! better).
//!
//! Nobody has the inputs at hand when a vector is added. But training moves a row along the inputs
//! it sees, so that the vector's own rows span what the model will be fed as a chat model: H is
//! taken to be δᵀδ, summed over rows, and a small multiple of the identity that stands for all
//! other inputs. docs/SURVIVAL.md has what that is worth.
//!
//! H is cut into squares of [`Feedback::GROUP`] weights on the diagonal, so that its size grows
//! with the row and not with its square.

/// H of a tensor while rows are added to it.
#[derive(Clone, Debug)]
pub struct Gram {
    row_len: usize,
    /// The upper triangle of each square, row by row.
    groups: Vec<Vec<f32>>,
}

/// How errors are passed on within each group of a row.
#[derive(Clone, PartialEq, Debug)]
pub struct Feedback {
    row_len: usize,
    /// U of each group as its upper triangle, row by row, without the diagonal.
    groups: Vec<Vec<f32>>,
}

/// U of one group of [`Feedback`], row by row, without the diagonal.
#[derive(Clone, Copy)]
pub(super) struct UpperTriangle<'a> {
    n: usize,
    upper: &'a [f32],
}

/// How much all inputs that the vector does not know of count, against the mean of those it knows.
/// The bundled trio does not tell 0.01 to 0.2 apart; 1 is worse (docs/SURVIVAL.md).
const RIDGE: f64 = 0.1;

impl Gram {
    /// The matrix of no rows: zero.
    pub fn new(row_len: usize) -> Self {
        let groups = lengths(row_len).map(|n| vec![0.0; n * (n + 1) / 2]).collect();
        Gram { row_len, groups }
    }

    /// Adds a row of the vector.
    ///
    /// # Panics
    /// If it has another length.
    pub fn add_row(&mut self, row: &[f32]) {
        assert_eq!(row.len(), self.row_len, "rows have one length");
        for (group, row) in self.groups.iter_mut().zip(row.chunks(Feedback::GROUP)) {
            let mut rest = &mut group[..];
            for (j, &d) in row.iter().enumerate() {
                let (line, after) = std::mem::take(&mut rest).split_at_mut(row.len() - j);
                line.iter_mut().zip(&row[j..]).for_each(|(h, other)| *h += d * other);
                rest = after;
            }
        }
    }

    /// The feedback that is best for these rows.
    pub fn feedback(&self) -> Feedback {
        self.feedback_with(None)
    }

    /// The feedback that is best for these rows, if inputs that the vector does not know of are as
    /// large as `importance` says. It has a number for each weight of a row, in any unit.
    ///
    /// # Panics
    /// If `importance` has another length than a row.
    pub fn feedback_with(&self, importance: Option<&[f64]>) -> Feedback {
        assert!(importance.is_none_or(|i| i.len() == self.row_len), "each weight has an importance");
        let mut start = 0;
        let groups = self.groups.iter().zip(lengths(self.row_len)).map(|(group, n)| {
            let importance = importance.map(|importance| &importance[start..start + n]);
            start += n;
            factor(group, n, importance)
        });
        Feedback { row_len: self.row_len, groups: groups.collect() }
    }
}

/// U of H and its ridge; of no use, all zero, where H is zero or too large for f32.
fn factor(upper: &[f32], n: usize, importance: Option<&[f64]>) -> Vec<f32> {
    // Where line j of the triangle begins, less j.
    let line = |j: usize| j * (2 * n - j - 1) / 2;
    let mut h: Vec<f64> = upper.iter().map(|h| f64::from(*h)).collect();
    let trace: f64 = (0..n).map(|j| h[line(j) + j]).sum();
    if !(trace.is_finite() && trace > 0.0) {
        return vec![0.0; n * (n - 1) / 2];
    }
    let scale = n as f64 / trace;
    h.iter_mut().for_each(|h| *h *= scale);
    let mean = importance.map_or(0.0, |importance| importance.iter().sum::<f64>() / n as f64);
    let share = |j: usize| importance.filter(|_| mean > 0.0).map_or(1.0, |importance| importance[j] / mean);
    (0..n).for_each(|j| h[line(j) + j] += RIDGE * share(j));

    let mut column = vec![0.0; n];
    for j in (0..n).rev() {
        let pivot = h[line(j) + j];
        for (i, c) in column[..j].iter_mut().enumerate() {
            *c = h[line(i) + j];
        }
        for i in 0..j {
            let u = column[i] / pivot;
            h[line(i) + j] = u;
            let rest = &mut h[line(i) + i..line(i) + j];
            rest.iter_mut().zip(&column[i..j]).for_each(|(h, c)| *h -= u * c);
        }
    }
    let u: Vec<f32> = (0..n).flat_map(|j| h[line(j) + j + 1..line(j) + n].iter().map(|u| *u as f32)).collect();
    if u.iter().all(|u| u.is_finite()) { u } else { vec![0.0; u.len()] }
}

/// Weights in each group of a row.
fn lengths(row_len: usize) -> impl Iterator<Item = usize> {
    (0..row_len).step_by(Feedback::GROUP).map(move |start| Feedback::GROUP.min(row_len - start))
}

impl Feedback {
    /// Weights that pass errors on among each other: the longest block of any type with a grid.
    pub const GROUP: usize = 256;

    /// Feedback that passes nothing on: every weight is rounded by itself.
    pub fn none(row_len: usize) -> Self {
        let groups = lengths(row_len).map(|n| vec![0.0; n * (n - 1) / 2]).collect();
        Feedback { row_len, groups }
    }

    /// Rounds a row to whole multiples of a step, at most 127 of them in either direction.
    ///
    /// # Panics
    /// If the row or the codes have another length.
    pub fn round(&self, row: &[f32], step: f32, codes: &mut [i8]) {
        assert_eq!((row.len(), codes.len()), (self.row_len, self.row_len), "rows have one length");
        let groups = row.chunks(Self::GROUP).zip(codes.chunks_mut(Self::GROUP)).enumerate();
        for (i, (row, codes)) in groups {
            let group = self.group(i);
            let mut moved = [0.0; Self::GROUP];
            moved[..row.len()].copy_from_slice(row);
            for (j, (wanted, code)) in row.iter().zip(codes).enumerate() {
                let rounded = (moved[j] / step).round().clamp(-127.0, 127.0);
                *code = rounded as i8;
                group.pass_on(j, wanted - rounded * step, &mut moved);
            }
        }
    }

    /// Weights in a row.
    pub fn row_len(&self) -> usize {
        self.row_len
    }

    /// Bytes that it takes for rows of this length, with those of the [`Gram`] it is made from and
    /// of making it.
    pub fn bytes_to_make(row_len: u64) -> u64 {
        let group = Self::GROUP as u64;
        let square = |n: u64| n * (n + 1) / 2 * 4;
        let groups = (row_len / group).saturating_mul(square(group)).saturating_add(square(row_len % group));
        groups.saturating_mul(2).saturating_add(square(group) * 2)
    }

    pub(super) fn group(&self, index: usize) -> UpperTriangle<'_> {
        let n = Self::GROUP.min(self.row_len - index * Self::GROUP);
        UpperTriangle { n, upper: &self.groups[index] }
    }
}

impl UpperTriangle<'_> {
    /// Moves the weights after the `j`-th by what its error asks for.
    #[inline]
    pub(super) fn pass_on(&self, j: usize, error: f32, weights: &mut [f32; Feedback::GROUP]) {
        let start = j * (2 * self.n - j - 1) / 2;
        let line = &self.upper[start..start + self.n - j - 1];
        weights[j + 1..].iter_mut().zip(line).for_each(|(w, u)| *w += error * u);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small whole numbers that look random.
    fn number(i: usize, j: usize) -> f32 {
        ((i * 7919 + j * 104_729 + i * j * 31) % 23) as f32 - 11.0
    }

    #[test]
    fn factors_give_the_matrix_back() {
        let n = 12;
        let rows: Vec<Vec<f32>> = (0..5).map(|i| (0..n).map(|j| number(i, j)).collect()).collect();
        let mut gram = Gram::new(n);
        rows.iter().for_each(|row| gram.add_row(row));
        let feedback = gram.feedback();
        let mut h = vec![vec![0.0; n]; n];
        for (i, j) in (0..n).flat_map(|i| (0..n).map(move |j| (i, j))) {
            h[i][j] = rows.iter().map(|r| f64::from(r[i]) * f64::from(r[j])).sum::<f64>();
        }
        let trace: f64 = (0..n).map(|i| h[i][i]).sum();
        let mut u = vec![vec![0.0; n]; n];
        let mut upper = feedback.groups[0].iter();
        for (i, j) in (0..n).flat_map(|i| (i..n).map(move |j| (i, j))) {
            u[i][j] = if i == j { 1.0 } else { f64::from(*upper.next().unwrap()) };
        }
        assert!(upper.next().is_none());
        // D follows from U: solve from the last row up.
        let wanted = |i: usize, j: usize| h[i][j] * n as f64 / trace + if i == j { RIDGE } else { 0.0 };
        let mut d = vec![0.0; n];
        for i in (0..n).rev() {
            d[i] = wanted(i, i) - (i + 1..n).map(|k| u[i][k] * u[i][k] * d[k]).sum::<f64>();
        }
        for (i, j) in (0..n).flat_map(|i| (0..n).map(move |j| (i, j))) {
            let found: f64 = (0..n).map(|k| u[i][k] * d[k] * u[j][k]).sum();
            assert!((found - wanted(i, j)).abs() < 1e-4, "{i} {j}: {found}, expected {}", wanted(i, j));
        }
        assert!(d.iter().all(|d| *d > 0.0));
    }

    #[test]
    fn rows_longer_than_a_group_are_cut() {
        let mut gram = Gram::new(300);
        gram.add_row(&[1.0; 300]);
        let feedback = gram.feedback();
        assert_eq!(feedback.groups.iter().map(Vec::len).collect::<Vec<_>>(), [256 * 255 / 2, 44 * 43 / 2]);
        assert_eq!((feedback.group(0).n, feedback.group(1).n), (256, 44));
    }

    #[test]
    fn nothing_and_too_much_are_no_feedback() {
        for x in [0.0, 1e30, f32::NAN, f32::INFINITY] {
            let mut gram = Gram::new(40);
            gram.add_row(&[x; 40]);
            assert_eq!(gram.feedback(), Feedback::none(40), "{x}");
        }
    }
}
