//! The GGUF form: two tensors an entry.

use std::collections::BTreeMap;
use std::path::Path;

use super::{CHUNK_COUNT, CHUNK_SIZE, COUNTS, DATASETS, Error, SUMS, TYPE, Unchecked};
use crate::ggml::GgmlType;
use crate::gguf::{Limits, Model, TensorId, Value};

/// Bytes of a tensor that are read at once.
const PIECE: usize = 64 << 10;

/// Reads means as `common_imatrix_load` and `load_imatrix` compute them: counts rounded to
/// integers, half away from zero, then sum / count in f32, and 1 where the count is 0.
pub(super) fn read(path: &Path, memory: u64) -> Result<Unchecked, Error> {
    let model = Model::open(path, &Limits::within(memory))?;
    let metadata = model.metadata();
    if let Some(found) = metadata.get("general.type").map(Value::summary).filter(|t| t != TYPE) {
        let found = format!("{found:?}");
        return Err(Error::NotAMatrix {
            path: path.to_owned(),
            place: "key general.type",
            expected: "\"imatrix\"",
            found,
        });
    }
    model.require_little_endian()?;
    let malformed = |place: String, expected: &str, found: String| malformed(path, place, expected, found);
    if let Some(&key) = [DATASETS, CHUNK_COUNT, CHUNK_SIZE].iter().find(|key| metadata.get(key).is_none()) {
        let (path, found) = (path.to_owned(), format!("no key {key}"));
        let expected = "imatrix.datasets, imatrix.chunk_count and imatrix.chunk_size";
        return Err(Error::NotAMatrix { path, place: "keys", expected, found });
    }
    let n_chunks = metadata.get_u64(CHUNK_COUNT).and_then(|n| u32::try_from(n).ok()).ok_or_else(|| {
        let found = metadata.get(CHUNK_COUNT).map_or_else(String::new, Value::summary);
        malformed(format!("key {CHUNK_COUNT}"), "a non-negative 32-bit integer", found)
    })?;
    let datasets = metadata.get_strings(DATASETS).map_or_else(Vec::new, |d| d.iter().map(|s| s.to_string()).collect());

    let mut parts: BTreeMap<&str, [Option<TensorId>; 2]> = BTreeMap::new();
    for (id, tensor) in model.tensors().enumerate() {
        for (i, suffix) in [SUMS, COUNTS].iter().enumerate() {
            if let Some(name) = tensor.name().strip_suffix(suffix) {
                parts.entry(name).or_default()[i] = Some(id);
            }
        }
    }
    if parts.is_empty() {
        let found = format!("{} other tensors", model.n_tensors());
        return Err(malformed("tensors".to_owned(), "sums (.in_sum2) and counts (.counts)", found));
    }
    let needed: u64 = parts.values().filter_map(|p| p[0]).map(|id| model.tensor(id).size()).sum();
    if needed > memory {
        return Err(Error::Memory { path: path.to_owned(), needed, allowed: memory });
    }
    let mut entries = BTreeMap::new();
    for (name, part) in parts {
        let [Some(sums), Some(counts)] = part else {
            let found = format!("no {}", if part[0].is_none() { SUMS } else { COUNTS });
            return Err(malformed(format!("entry {name}"), "a tensor each of sums and counts", found));
        };
        entries.insert(name.to_owned(), means(path, &model, name, [sums, counts])?);
    }
    Ok(Unchecked { datasets, n_chunks, entries })
}

/// The means of an entry: its sums by its counts, one for each matrix of a stack.
fn means(path: &Path, model: &Model, name: &str, [sums, counts]: [TensorId; 2]) -> Result<Vec<f32>, Error> {
    let malformed = |place: String, expected: &str, found: String| malformed(path, place, expected, found);
    for id in [sums, counts] {
        let tensor = model.tensor(id);
        if tensor.ty() != GgmlType::F32 {
            return Err(malformed(format!("tensor {}", tensor.name()), "F32", tensor.ty().to_string()));
        }
    }
    let (n_values, n_counts) = (model.tensor(sums).n_weights(), model.tensor(counts).n_weights());
    if n_values == 0 || n_counts == 0 || !n_values.is_multiple_of(n_counts) {
        let found = format!("{n_values} sums and {n_counts} counts");
        return Err(malformed(format!("entry {name}"), "a count for each matrix of sums", found));
    }
    let (mut values, counts) = (floats(model, sums)?, floats(model, counts)?);
    for (i, (values, count)) in values.chunks_exact_mut((n_values / n_counts) as usize).zip(counts).enumerate() {
        if !(0.0..i64::MAX as f32).contains(&count) {
            return Err(malformed(format!("entry {name}, count {i}"), "a number from 0 on", count.to_string()));
        }
        match count.round() {
            0.0 => values.fill(1.0),
            count => values.iter_mut().for_each(|v| *v /= count),
        }
    }
    Ok(values)
}

fn malformed(path: &Path, place: String, expected: &str, found: String) -> Error {
    Error::Malformed { path: path.to_owned(), place, expected: expected.to_owned(), found }
}

/// All of an F32 tensor. That its bytes are in the file was checked when that was opened.
fn floats(model: &Model, id: TensorId) -> Result<Vec<f32>, Error> {
    let n = model.tensor(id).n_weights() as usize;
    let mut values = Vec::with_capacity(n);
    let mut piece = vec![0; PIECE.min(4 * n)];
    while values.len() < n {
        let bytes = &mut piece[..PIECE.min(4 * (n - values.len()))];
        model.read(id, 4 * values.len() as u64, bytes)?;
        values.extend(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)));
    }
    Ok(values)
}
