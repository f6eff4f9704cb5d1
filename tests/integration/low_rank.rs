//! Low-rank parts of a vector: as near as any of their rank can be.

use std::fs;
use std::path::Path;

use chatvec::patch::low_rank::{Error, LowRank, Rows, Settings, decompose};
use serde_json::Value as Json;

use crate::trio::{bundled, name, read, weights};

/// chat − base of the bundled trio, in f32, with its row length.
fn tau(tensor: &str) -> (Vec<f32>, usize) {
    let [base, chat] = ["base", "chat"].map(|file| {
        let draft = read(&bundled(file));
        let found = draft.tensors.iter().find(|t| name(t) == tensor).unwrap();
        (weights(found), found.ne[0] as usize)
    });
    (chat.0.iter().zip(&base.0).map(|(c, b)| c - b).collect(), chat.1)
}

/// √Σ w·(matrix − b·a)², in f64.
fn error(matrix: &[f32], row_len: usize, found: &LowRank, weight: impl Fn(usize) -> f64) -> f64 {
    let mut sum = 0.0;
    for (row, expected) in matrix.chunks_exact(row_len).enumerate() {
        let b = &found.b[row * found.rank..(row + 1) * found.rank];
        for (column, expected) in expected.iter().enumerate() {
            let products = b.iter().enumerate().map(|(j, b)| f64::from(*b) * f64::from(found.a[j * row_len + column]));
            let got: f64 = products.sum();
            sum += weight(column) * (f64::from(*expected) - got).powi(2);
        }
    }
    sum.sqrt()
}

#[test]
fn no_approximation_of_that_rank_is_one_percent_nearer() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/low_rank/optimum.json");
    let optimum: Json = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let ranks: Vec<usize> = optimum["ranks"].as_array().unwrap().iter().map(|r| r.as_u64().unwrap() as usize).collect();
    for entry in optimum["matrices"].as_array().unwrap() {
        let tensor = entry["tensor"].as_str().unwrap();
        let (matrix, row_len) = tau(tensor);
        let norm = entry["norm"].as_f64().unwrap();
        let by_column: Vec<f32> = (0..row_len).map(|column| (1 + column % 7) as f32).collect();
        for (i, rank) in ranks.iter().enumerate() {
            for (least, weights) in [("least", None), ("least_weighted", Some(&by_column[..]))] {
                let least = entry[least][i].as_f64().unwrap();
                let rows = (&matrix[..], row_len);
                let found = decompose(&rows, &Settings { weights, ..Settings::new(*rank) }).unwrap();
                assert_eq!(found.rank, *rank);
                assert!((found.norm2.sqrt() / norm - 1.0).abs() < 1e-6, "{tensor}");
                let weight = |column: usize| weights.map_or(1.0, |w| f64::from(w[column]));
                let error = error(&matrix, row_len, &found, weight);
                assert!(error >= least * 0.99999 && error <= least * 1.01, "{tensor} {rank}: {error} for {least}");
                let expected = least * least / (found.weighted_norm2 * scale(weights));
                let claimed = 1.0 - found.energy();
                assert!((claimed - expected).abs() <= 0.021 * expected + 1e-6, "{tensor} {rank}: {claimed} {expected}");
            }
        }
    }
}

/// What weights are divided by before they count.
fn scale(weights: Option<&[f32]>) -> f64 {
    weights.map_or(1.0, |w| w.iter().map(|w| f64::from(*w)).sum::<f64>() / w.len() as f64)
}

#[test]
fn a_rank_beyond_the_matrix_gives_the_matrix() {
    for (tensor, rank) in [("blk.1.attn_v.weight", 1000), ("blk.1.attn_v.weight", 128), ("blk.1.ffn_down.weight", 250)]
    {
        let (matrix, row_len) = tau(tensor);
        let found = decompose(&(&matrix[..], row_len), &Settings::new(rank)).unwrap();
        assert_eq!(found.rank, rank.min(row_len).min(matrix.len() / row_len));
        let error = error(&matrix, row_len, &found, |_| 1.0);
        let least = if rank < 256 { 0.02 } else { 2e-6 };
        let exact = found.rank == matrix.len() / row_len;
        assert!(error <= if exact { 2e-6 } else { least } * found.norm2.sqrt(), "{tensor} {rank}: {error}");
    }
}

#[test]
fn the_first_columns_are_the_approximation_of_a_lower_rank() {
    let (matrix, row_len) = tau("blk.0.attn_q.weight");
    let whole = decompose(&(&matrix[..], row_len), &Settings::new(256)).unwrap();
    let cut = whole.clone().truncated(20);
    let lost = whole.singular_values[20..].iter().map(|s| s * s).sum::<f64>().sqrt();
    let error = error(&matrix, row_len, &cut, |_| 1.0);
    assert!((error / lost - 1.0).abs() < 1e-3, "{error} {lost}");
    assert_eq!((cut.rank, cut.a.len(), cut.b.len()), (20, 20 * row_len, 20 * (matrix.len() / row_len)));
    let enough = whole.rank_for(0.9);
    assert!(whole.clone().truncated(enough).energy() >= 0.9 && whole.truncated(enough - 1).energy() < 0.9);
}

#[test]
fn nothing_is_made_of_nothing() {
    let zero = decompose(&(&[0.0f32; 40 * 60][..], 60), &Settings::new(8)).unwrap();
    assert!(zero.a.iter().chain(&zero.b).all(|x| *x == 0.0));
    assert_eq!((zero.rank, zero.norm2, zero.energy()), (8, 0.0, 1.0));
    for (len, row_len, rank) in [(0, 60, 4), (2400, 60, 0), (0, 0, 4)] {
        let none = decompose(&(&vec![1.0f32; len][..], row_len), &Settings::new(rank)).unwrap();
        assert_eq!((none.rank, none.a.len(), none.b.len()), (0, 0, 0));
    }
}

#[test]
fn what_is_no_number_is_refused() {
    let mut matrix = vec![1.0f32; 40 * 60];
    matrix[7 * 60 + 3] = f32::NAN;
    let refused = decompose(&(&matrix[..], 60), &Settings::new(8));
    assert!(matches!(refused, Err(Error::NotFinite { row: 7, column: 3, .. })), "{refused:?}");
    matrix[7 * 60 + 3] = 3e38;
    let refused = decompose(&(&matrix[..], 60), &Settings::new(8));
    assert!(matches!(refused, Err(Error::Overflow { .. })), "{refused:?}");
    matrix[7 * 60 + 3] = 0.0;
    for weights in [vec![1.0; 59], vec![-1.0; 60], vec![f32::INFINITY; 60]] {
        decompose(&(&matrix[..], 60), &Settings { weights: Some(&weights), ..Settings::new(8) }).unwrap_err();
    }
    decompose(&(&matrix[..], 60), &Settings { weights: Some(&[0.0; 60]), ..Settings::new(8) }).unwrap();
}

/// A matrix that is made as it is read.
struct Made;

impl Rows for Made {
    type Error = u64;

    fn n_rows(&self) -> u64 {
        9001
    }

    fn row_len(&self) -> usize {
        700
    }

    fn read(&self, first: u64, out: &mut [f32]) -> Result<(), u64> {
        for (row, numbers) in (first..).zip(out.chunks_mut(700)) {
            let bits = |i: u64| (row * 700 + i).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
            numbers.iter_mut().zip(0..).for_each(|(x, i)| *x = bits(i) as f32 / 1e9 + ((row * i) as f32).sin() / 50.0);
        }
        Ok(())
    }
}

#[test]
fn the_bits_do_not_depend_on_the_number_of_threads() {
    let on = |n: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
        pool.install(|| decompose(&Made, &Settings::new(6)).unwrap())
    };
    let (one, three) = (on(1), on(3));
    assert!(one == three);
    assert!(one.energy() > 0.1 && one.singular_values.is_sorted_by(|a, b| a >= b), "{one:?}");
}
