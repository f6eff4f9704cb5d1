//! Products of factors, in one order of adding up on every machine.

use crate::quants::Loops;

/// out += left · right in f32: to each number of `out` the products are added one after the other,
/// each rounded before. So the result is the same bits whatever the processor, and however rows and
/// columns are cut.
pub(super) struct AddProduct<'a> {
    /// Rows of as many numbers as `right` has in a row.
    pub(super) out: &'a mut [f32],
    /// A row of `rank` numbers for each of `out`.
    pub(super) left: &'a [f32],
    /// `rank` rows.
    pub(super) right: &'a [f32],
    /// More than 0.
    pub(super) rank: usize,
}

/// Rows of `right` that are added while a number of `out` is at hand.
const AT_A_TIME: usize = 8;

impl Loops for AddProduct<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let n = self.right.len() / self.rank;
        if n == 0 {
            return;
        }
        for (out, left) in self.out.chunks_exact_mut(n).zip(self.left.chunks_exact(self.rank)) {
            let (lefts, left_rest) = left.as_chunks::<AT_A_TIME>();
            let mut rights = self.right.chunks_exact(n * AT_A_TIME);
            for (left, right) in lefts.iter().zip(&mut rights) {
                add_eight(out, left, right);
            }
            for (left, right) in left_rest.iter().zip(self.right[lefts.len() * AT_A_TIME * n..].chunks_exact(n)) {
                for (out, right) in out.iter_mut().zip(right) {
                    *out += left * right;
                }
            }
        }
    }
}

#[inline(always)]
fn add_eight(out: &mut [f32], left: &[f32; AT_A_TIME], right: &[f32]) {
    let n = out.len();
    let (r0, rest) = right.split_at(n);
    let (r1, rest) = rest.split_at(n);
    let (r2, rest) = rest.split_at(n);
    let (r3, rest) = rest.split_at(n);
    let (r4, rest) = rest.split_at(n);
    let (r5, rest) = rest.split_at(n);
    let (r6, r7) = rest.split_at(n);
    let (r4, r5, r6, r7) = (&r4[..n], &r5[..n], &r6[..n], &r7[..n]);
    for i in 0..n {
        let mut sum = out[i];
        sum += left[0] * r0[i];
        sum += left[1] * r1[i];
        sum += left[2] * r2[i];
        sum += left[3] * r3[i];
        sum += left[4] * r4[i];
        sum += left[5] * r5[i];
        sum += left[6] * r6[i];
        sum += left[7] * r7[i];
        out[i] = sum;
    }
}

#[cfg(test)]
mod tests {
    use super::AddProduct;
    use crate::quants;

    #[test]
    fn products_are_added_one_after_the_other() {
        let numbers = |n: u32, seed: u32| -> Vec<f32> {
            (0..n).map(|i| (i.wrapping_mul(2_654_435_761) ^ seed) as f32 / u32::MAX as f32 - 0.4).collect()
        };
        for (rows, rank, n) in [(3, 1, 5), (2, 8, 256), (4, 19, 33), (1, 16, 1)] {
            let (left, right) = (numbers(rows * rank, 3), numbers(rank * n, 99));
            let (rows, rank, n) = (rows as usize, rank as usize, n as usize);
            let start = numbers((rows * n) as u32, 7);
            let mut expected = start.clone();
            for (i, out) in expected.iter_mut().enumerate() {
                (0..rank).for_each(|k| *out += left[i / n * rank + k] * right[k * n + i % n]);
            }
            let mut out = start;
            quants::vectorized(AddProduct { out: &mut out, left: &left, right: &right, rank });
            assert_eq!(out, expected);
        }
    }
}
