//! H = (U + I)·D·(U + I)ᵀ of a small symmetric matrix, in f64: what passes errors on, and solves
//! for least squares.

/// The factors of a positive definite matrix. U is strictly upper triangular.
pub(super) struct Triangular {
    n: usize,
    /// Row by row; the diagonal holds D.
    rows: Vec<f64>,
}

impl Triangular {
    /// Factors a matrix given row by row, of which the upper triangle is read; none if it is not
    /// positive definite.
    pub(super) fn of(mut rows: Vec<f64>, n: usize) -> Option<Self> {
        for j in (0..n).rev() {
            let pivot = rows[j * n + j];
            if !(pivot.is_finite() && pivot > 0.0) {
                return None;
            }
            let column: Vec<f64> = (0..j).map(|i| rows[i * n + j]).collect();
            for i in 0..j {
                let u = column[i] / pivot;
                rows[i * n + j] = u;
                rows[i * n + i..i * n + j].iter_mut().zip(&column[i..]).for_each(|(h, c)| *h -= u * c);
            }
        }
        Some(Triangular { n, rows })
    }

    /// What the error of the j-th number asks of those after it.
    pub(super) fn passed_on(&self, j: usize) -> &[f64] {
        &self.rows[j * self.n + j + 1..(j + 1) * self.n]
    }

    /// Puts the solution x of x·H = y in place of y.
    pub(super) fn solve(&self, y: &mut [f64]) {
        for j in (0..self.n).rev() {
            let known: f64 = self.passed_on(j).iter().zip(&y[j + 1..]).map(|(u, y)| u * y).sum();
            y[j] -= known;
        }
        y.iter_mut().enumerate().for_each(|(j, y)| *y /= self.rows[j * self.n + j]);
        for j in 0..self.n {
            let (x, rest) = (y[j], &mut y[j + 1..]);
            rest.iter_mut().zip(self.passed_on(j)).for_each(|(y, u)| *y -= x * u);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Triangular;

    #[test]
    fn solves_what_it_factored() {
        let h = [4.0, 1.0, 0.5, 1.0, 3.0, -1.0, 0.5, -1.0, 2.0];
        let x = [1.0, -2.0, 0.25];
        let mut y: Vec<f64> = (0..3).map(|j| (0..3).map(|i| x[i] * h[i * 3 + j]).sum()).collect();
        Triangular::of(h.to_vec(), 3).unwrap().solve(&mut y);
        assert!(y.iter().zip(x).all(|(y, x)| (y - x).abs() < 1e-12), "{y:?}");
    }

    #[test]
    fn refuses_what_is_not_positive_definite() {
        for h in [[1.0, 2.0, 2.0, 1.0], [0.0; 4], [f64::NAN; 4]] {
            assert!(Triangular::of(h.to_vec(), 2).is_none(), "{h:?}");
        }
    }
}
