//! How a matrix of τ is stored in a patch, and how its rows are had from that.
//!
//! τ of `NAME` is the sum of what the file has of it (docs/PATCH.md):
//!
//! - `NAME` itself, in any type;
//! - the rows of `NAME.rows`, for the tokens that a key lists;
//! - the product of `NAME.lora_b` and `NAME.lora_a`;
//! - a quantised decomposition (`NAME.svd_d`, `NAME.svd_a.zstd`, `NAME.svd_b.zstd`).
//!
//! Where there is more than `NAME`, the tensor is presented as one of f32 whose rows are computed
//! when they are read.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;

use super::decomposed::{self, Decomposed, Latest};
use super::error::Error;
use super::format::{LOW_RANK_A, LOW_RANK_B, MOVED_ROWS, decomposed_name, part};
use super::product::AddProduct;
use super::tokens;
use crate::gguf::{self, ComputedTensors, File, Limits, MAX_DIMS, Model, TensorInfo};
use crate::quants;

/// Rows of the factor *a* that are decoded at a time: what is multiplied with many rows of *b*
/// stays in the cache.
const SLICE: u64 = 16;

/// Weights of some rows that are read at a time, if one is no longer.
const ROWS_WEIGHTS: u64 = 1 << 16;

/// A tensor as it lies in a file.
#[derive(Clone, Debug)]
struct Payload {
    file: usize,
    info: TensorInfo,
}

impl Payload {
    /// Weights from the `first` on.
    fn read(&self, files: &[File], first: u64, out: &mut [f32]) -> Result<(), gguf::Error> {
        let ty = self.info.ty();
        let block_len = ty.block_len() as u64;
        let end = first + out.len() as u64;
        let (from, to) = (first / block_len * block_len, end.next_multiple_of(block_len));
        let size = |n: u64| ty.size_of(n).expect("it is part of a tensor that has a size");
        let mut blocks = vec![0; size(to - from) as usize];
        files[self.file].read(&self.info, size(from), &mut blocks)?;
        let decode = |out: &mut [f32]| quants::dequantize_row(ty, &blocks, out).expect("looked at when it was opened");
        if (from, to) == (first, end) {
            decode(out);
        } else {
            let mut whole = vec![0.0; (to - from) as usize];
            decode(&mut whole);
            out.copy_from_slice(&whole[(first - from) as usize..][..out.len()]);
        }
        Ok(())
    }
}

/// A matrix, or a stack of them, as the sum of its parts.
#[derive(Clone, Default, Debug)]
struct Matrix {
    ne: [u64; MAX_DIMS],
    dense: Option<Payload>,
    /// Rows of some tokens. Each token has the number of its row, by the token.
    rows: Option<(Payload, Vec<(u64, u64)>)>,
    a: Option<Payload>,
    b: Option<Payload>,
    svd: Option<Decomposed>,
}

impl Matrix {
    fn row_len(&self) -> u64 {
        self.ne[0]
    }

    /// Rows of some tokens that are read at a time.
    fn rows_at_once(&self) -> u64 {
        (ROWS_WEIGHTS / self.row_len()).max(1)
    }

    /// Operations that computing all of it takes: each weight, and each product that is added to
    /// it.
    fn work(&self) -> u64 {
        let n_weights = self.ne.iter().fold(1, |n: u64, ne| n.saturating_mul(*ne));
        let rank = self.b.as_ref().map_or(0, |b| b.info.row_len());
        let rank = rank.saturating_add(self.svd.as_ref().map_or(0, Decomposed::rank));
        n_weights.saturating_mul(rank.saturating_add(1))
    }

    /// Adds to `out` the weights `columns` of `rows`, all of one matrix of the stack.
    fn add(
        &self,
        (files, latest, name): (&[File], &Latest, &str),
        rows: Range<u64>,
        columns: Range<u64>,
        out: &mut [f32],
    ) -> Result<(), gguf::Error> {
        let n_columns = (columns.end - columns.start) as usize;
        if let Some(dense) = &self.dense {
            dense.read(files, rows.start * self.row_len() + columns.start, out)?;
        }
        if let Some(svd) = &self.svd {
            svd.add(name, latest, files, rows.clone(), columns.clone(), out)?;
        }
        if let Some((payload, places)) = &self.rows {
            let from = places.partition_point(|(place, _)| *place < rows.start);
            let to = places.partition_point(|(place, _)| *place < rows.end);
            // Rows of neighbours lie one behind the other.
            let at_once = if columns == (0..self.row_len()) { self.rows_at_once() } else { 1 };
            let mut weights = Vec::new();
            for places in places[from..to].chunks(at_once as usize) {
                weights.resize(places.len() * n_columns, 0.0);
                payload.read(files, places[0].1 * self.row_len() + columns.start, &mut weights)?;
                for ((place, _), row) in places.iter().zip(weights.chunks_exact(n_columns)) {
                    let out = &mut out[(place - rows.start) as usize * n_columns..][..n_columns];
                    out.iter_mut().zip(row).for_each(|(out, w)| *out += w);
                }
            }
        }
        let (Some(a), Some(b)) = (&self.a, &self.b) else { return Ok(()) };
        let rank = b.info.row_len();
        let first_of_a = rows.start / self.ne[1] * rank;
        let mut left = vec![0.0; ((rows.end - rows.start) * rank) as usize];
        b.read(files, rows.start * rank, &mut left)?;
        let mut right = vec![0.0; SLICE.min(rank) as usize * n_columns];
        for start in (0..rank).step_by(SLICE as usize) {
            let slice = start..(start + SLICE).min(rank);
            let n = (slice.end - slice.start) as usize;
            if columns == (0..self.row_len()) {
                a.read(files, (first_of_a + slice.start) * self.row_len(), &mut right[..n * n_columns])?;
            } else {
                for (row, right) in slice.clone().zip(right.chunks_exact_mut(n_columns)) {
                    a.read(files, (first_of_a + row) * self.row_len() + columns.start, right)?;
                }
            }
            for (out, left) in out.chunks_exact_mut(n_columns).zip(left.chunks_exact(rank as usize)) {
                let left = &left[slice.start as usize..slice.end as usize];
                quants::vectorized(AddProduct { out, left, right: &right[..n * n_columns], rank: n });
            }
        }
        Ok(())
    }
}

/// The matrices of a patch that are computed.
#[derive(Debug)]
struct Matrices {
    matrices: Vec<(String, Matrix)>,
    latest: Latest,
}

impl ComputedTensors for Matrices {
    fn read(&self, files: &[File], index: usize, first: u64, out: &mut [f32]) -> Result<(), gguf::Error> {
        let (name, matrix) = &self.matrices[index];
        let (row_len, n_rows) = (matrix.row_len(), matrix.ne[1]);
        let mut at = first;
        let mut rest = out;
        // Whole rows of one matrix of the stack together; what begins or ends within a row by
        // itself.
        while !rest.is_empty() {
            let (row, column) = (at / row_len, at % row_len);
            let n_left = rest.len() as u64;
            let whole = if column == 0 { (n_left / row_len).min(n_rows - row % n_rows) } else { 0 };
            let (rows, columns) = match whole {
                0 => (row..row + 1, column..row_len.min(column + n_left)),
                whole => (row..row + whole, 0..row_len),
            };
            let n = (rows.end - rows.start) * (columns.end - columns.start);
            let (now, after) = rest.split_at_mut(n as usize);
            now.fill(0.0);
            matrix.add((files, &self.latest, name), rows, columns, now)?;
            rest = after;
            at += n;
        }
        Ok(())
    }

    fn scratch(&self, index: usize, n_weights: u64) -> u64 {
        let (_, matrix) = &self.matrices[index];
        let row_len = matrix.row_len();
        let dense = matrix.dense.as_ref().map_or(0, |_| n_weights.saturating_mul(PAYLOAD));
        let of_rows = matrix.rows_at_once().saturating_mul(row_len).min(n_weights.max(row_len));
        let rows = matrix.rows.as_ref().map_or(0, |_| of_rows.saturating_mul(4 + PAYLOAD));
        let factors = matrix.b.as_ref().map_or(0, |b| {
            let rank = b.info.row_len();
            let left = (n_weights / row_len).saturating_mul(rank).saturating_mul(4 + PAYLOAD);
            left.saturating_add((SLICE.min(rank) * (4 + PAYLOAD)).saturating_mul(row_len))
        });
        let svd = matrix.svd.as_ref().map_or(0, |svd| svd.scratch(n_weights));
        dense.max(rows).max(factors).max(svd)
    }
}

/// Bytes of a decoded block's neighbours, or of what is read of a payload, for each weight.
const PAYLOAD: u64 = 8;

/// The patch as tensors of τ by the names of the model's, whatever they are stored as.
///
/// # Errors
/// [`Error::Stored`] where parts do not fit together, or cannot be decoded; [`Error::Memory`] and
/// [`Error::Work`] where computing them takes more than the limits allow.
pub(super) fn assembled(model: Model, limits: &Limits) -> Result<Model, Error> {
    let files: HashMap<&Path, usize> = model.paths().enumerate().map(|(i, path)| (path, i)).collect();
    let payload = |id: usize| Payload { file: files[model.path_of(id)], info: model.tensor(id).clone() };
    let mut matrices: BTreeMap<String, Matrix> = BTreeMap::new();
    for (id, info) in model.tensors().enumerate() {
        let Some((name, end)) = part(info.name()) else { continue };
        if !quants::is_supported(info.ty()) {
            return Err(Error::stored(&model, info.name(), "a type that can be decoded", info.ty().name()));
        }
        let matrix = matrices.entry(name.to_owned()).or_default();
        match end {
            LOW_RANK_A => matrix.a = Some(payload(id)),
            LOW_RANK_B => matrix.b = Some(payload(id)),
            _ => matrix.rows = Some((payload(id), Vec::new())),
        }
    }
    for (name, svd) in decomposed::find(&model, |id| files[model.path_of(id)])? {
        matrices.entry(name).or_default().svd = Some(svd);
    }
    for (name, matrix) in &mut matrices {
        matrix.dense = model.find(name).map(payload);
        if let Some(dense) = matrix.dense.as_ref().filter(|dense| !quants::is_supported(dense.info.ty())) {
            return Err(Error::stored(&model, name, "a type that can be decoded", dense.info.ty().name()));
        }
        find_shape(&model, name, matrix)?;
    }
    if matrices.is_empty() {
        return Ok(model);
    }
    check_work(&model, &matrices, limits)?;
    let shapes = matrices.iter().map(|(name, matrix)| (name.clone(), matrix.ne)).collect();
    let is_part = |name: &str| part(name).is_some() || decomposed_name(name).is_some() || matrices.contains_key(name);
    let matrices: Vec<(String, Matrix)> = matrices.clone().into_iter().collect();
    let model = model.with_computed(is_part, shapes, Box::new(Matrices { matrices, latest: Latest::default() }))?;
    check_memory(&model, limits)?;
    Ok(model)
}

/// Refuses matrices that claim more weights, and products for them, than a file of this size is
/// worth.
fn check_work(model: &Model, matrices: &BTreeMap<String, Matrix>, limits: &Limits) -> Result<(), Error> {
    let n_bytes = model.files().iter().fold(0, |sum: u64, file| sum.saturating_add(file.n_bytes()));
    let allowed = n_bytes.saturating_mul(limits.max_work_per_byte);
    let found = matrices.values().map(Matrix::work).fold(0, u64::saturating_add);
    let most = matrices.iter().max_by_key(|(_, matrix)| matrix.work());
    match most.filter(|_| found > allowed) {
        None => Ok(()),
        Some((tensor, _)) => {
            Err(Error::Work { path: model.path().to_owned(), tensor: tensor.clone(), n_bytes, allowed, found })
        }
    }
}

/// Refuses tensors of which no part can be computed in the memory that there is.
fn check_memory(model: &Model, limits: &Limits) -> Result<(), Error> {
    let allowed = limits.max_tensor_memory;
    match (0..model.n_tensors()).max_by_key(|id| model.scratch_of(*id)) {
        Some(id) if model.scratch_of(id) > allowed => {
            let (path, tensor) = (model.path().to_owned(), model.tensor(id).name().to_owned());
            Err(Error::Memory { path, tensor, needed: model.scratch_of(id), allowed })
        }
        _ => Ok(()),
    }
}

/// Finds the shape that all parts of a matrix say it has.
fn find_shape(model: &Model, name: &str, matrix: &mut Matrix) -> Result<(), Error> {
    let padded = |info: &TensorInfo| {
        let mut ne = [1; MAX_DIMS];
        ne[..info.ne().len()].copy_from_slice(info.ne());
        ne
    };
    let mut shapes = Vec::new();
    shapes.extend(matrix.dense.as_ref().map(|dense| padded(&dense.info)));
    shapes.extend(matrix.svd.as_ref().map(|svd| [svd.row_len, svd.n_rows, 1, 1]));
    match (&matrix.a, &matrix.b) {
        (Some(a), Some(b)) => {
            let (a, b) = (padded(&a.info), padded(&b.info));
            if a[1] != b[0] || a[2..] != b[2..] || a[1] == 0 {
                let expected = format!("the ranks of {name}{LOW_RANK_A} {a:?} and {name}{LOW_RANK_B} to be the same");
                return Err(Error::stored(model, name, &expected, &format!("{b:?}")));
            }
            shapes.push([a[0], b[1], a[2], a[3]]);
        }
        (None, None) => {}
        (Some(_), None) => return Err(Error::stored(model, name, &format!("also {name}{LOW_RANK_B}"), "none")),
        (None, Some(_)) => return Err(Error::stored(model, name, &format!("also {name}{LOW_RANK_A}"), "none")),
    }
    if let Some((rows, places)) = &mut matrix.rows {
        let (n_tokens, tokens) = tokens::of_rows(model, name)?;
        let [row_len, n_rows, ..] = padded(&rows.info);
        if rows.info.n_rows() != tokens.len() as u64 || n_rows != rows.info.n_rows() {
            let expected = format!("{} rows, one for each token that is listed", tokens.len());
            return Err(Error::stored(
                model,
                &format!("{name}{MOVED_ROWS}"),
                &expected,
                &format!("{:?}", rows.info.ne()),
            ));
        }
        *places = tokens.into_iter().map(u64::from).zip(0..).collect();
        shapes.push([row_len, n_tokens, 1, 1]);
    }
    let shape = shapes[0];
    if let Some(other) = shapes.iter().find(|other| **other != shape) {
        return Err(Error::stored(model, name, &format!("parts of one shape, as {shape:?}"), &format!("{other:?}")));
    }
    if shape.contains(&0) {
        return Err(Error::stored(model, name, "weights", &format!("{shape:?}")));
    }
    matrix.ne = shape;
    Ok(())
}
