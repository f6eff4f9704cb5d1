//! Reading matrices that are stored as quantised decompositions ([`super::encode`]).

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use super::encode::{self, Codes};
use super::error::Error;
use super::format::{SVD_A, SVD_B, SVD_SCALES, SVD_SHAPES, SVD_TENSORS, decomposed_name};
use crate::ggml::GgmlType;
use crate::gguf::{self, File, Model, TensorInfo};

/// Numbers that a byte of a frame stands for, at most: rows with a number here and there take one
/// for some hundreds.
const MOST_EXPANSION: u64 = 4096;

/// Columns of a part of a row that are multiplied together.
const COLUMNS: usize = 256;

/// Where the parts of a matrix lie.
#[derive(Clone, Debug)]
pub(super) struct Decomposed {
    pub(super) row_len: u64,
    pub(super) n_rows: u64,
    /// Scales and both factors, each with the file it is in.
    parts: [(usize, TensorInfo); 3],
}

/// The matrix that was read last, with its name: rows are asked for one chunk after the other.
#[derive(Default, Debug)]
pub(super) struct Latest(Mutex<Option<(String, Arc<Decoded>)>>);

#[derive(Debug)]
struct Decoded {
    codes: Codes,
    /// The factor of the inputs in f32, as [`Codes::scaled_a`] makes it.
    a: Vec<f32>,
}

/// The matrices of a patch that are decomposed, by name. `file_of` gives the position of the file
/// that a tensor is in.
///
/// # Errors
/// [`Error::Key`], [`Error::Stored`] where parts are missing or do not fit the shapes that the
/// header lists.
pub(super) fn find(model: &Model, file_of: impl Fn(usize) -> usize) -> Result<HashMap<String, Decomposed>, Error> {
    let shapes = shapes(model)?;
    for info in model.tensors() {
        if let Some(name) = decomposed_name(info.name()).filter(|name| !shapes.contains_key(*name)) {
            return Err(Error::stored(model, info.name(), &format!("{name} to be listed in {SVD_TENSORS}"), "none"));
        }
    }
    let mut found = HashMap::new();
    for (name, (row_len, n_rows)) in shapes {
        let part = |end: &str| {
            let id = model.find(&format!("{name}{end}"));
            let id = id.ok_or_else(|| Error::stored(model, &name, &format!("also {name}{end}"), "none"))?;
            Ok::<_, Error>((file_of(id), model.tensor(id).clone()))
        };
        let parts = [part(SVD_SCALES)?, part(SVD_A)?, part(SVD_B)?];
        for ((_, info), ty) in parts.iter().zip([GgmlType::F32, GgmlType::I8, GgmlType::I8]) {
            if info.ty() != ty || info.n_dims() > 1 {
                let found = format!("{:?} of {}", info.ne(), info.ty());
                return Err(Error::stored(model, info.name(), &format!("one dimension of {ty}"), &found));
            }
        }
        let (rank, most) = (parts[0].1.n_weights(), row_len.min(n_rows));
        // A frame that says little says it in some bytes: more would be a bomb.
        for ((_, info), len) in parts[1..].iter().zip([row_len, n_rows]) {
            let most = info.n_weights().saturating_mul(MOST_EXPANSION);
            if rank.saturating_mul(len) > most {
                let expected = format!("at most {most} numbers in {} bytes", info.n_weights());
                return Err(Error::stored(model, info.name(), &expected, &rank.saturating_mul(len).to_string()));
            }
        }
        if rank == 0 || rank > most {
            let expected = format!("1 to {most} directions");
            return Err(Error::stored(model, parts[0].1.name(), &expected, &rank.to_string()));
        }
        found.insert(name, Decomposed { row_len, n_rows, parts });
    }
    Ok(found)
}

/// Weights in a row and rows of the matrices that are decomposed.
pub(super) fn shapes(model: &Model) -> Result<HashMap<String, (u64, u64)>, Error> {
    let metadata = model.metadata();
    let Some(names) = metadata.get_strings(SVD_TENSORS) else { return Ok(HashMap::new()) };
    let shapes = metadata.get(SVD_SHAPES).and_then(|value| value.as_array());
    let shapes: Option<Vec<u64>> = shapes.and_then(|shapes| shapes.iter().map(|n| n.as_u64()).collect());
    let shapes = shapes.filter(|shapes| shapes.len() == 2 * names.len() && !shapes.contains(&0));
    let shapes = shapes.ok_or_else(|| Error::Key {
        path: model.path().to_owned(),
        key: SVD_SHAPES.to_owned(),
        expected: format!("weights in a row and rows for each of the {} names in {SVD_TENSORS}", names.len()),
    })?;
    Ok(names.iter().map(ToString::to_string).zip(shapes.as_chunks().0.iter().map(|[n, rows]| (*n, *rows))).collect())
}

impl Decomposed {
    /// How many directions there are.
    pub(super) fn rank(&self) -> u64 {
        self.parts[0].1.n_weights()
    }

    /// Bytes that [`Decomposed::add`] takes for as many weights: the codes, one factor in f32, rows
    /// of the other, and the sum.
    pub(super) fn scratch(&self, n_weights: u64) -> u64 {
        let rank = self.rank();
        let stored: u64 = self.parts.iter().map(|(_, info)| info.size()).sum();
        let decoded = rank.saturating_mul(self.n_rows.saturating_add(self.row_len.saturating_mul(5)));
        let rows = (n_weights / self.row_len).max(1).saturating_mul(rank.saturating_mul(4));
        let sum = n_weights.saturating_mul(4).saturating_add(rank.saturating_mul(4 * COLUMNS as u64));
        decoded.saturating_add(stored).saturating_add(rows).saturating_add(sum)
    }

    /// Adds to `out` the weights `columns` of `rows`: of whole rows, or a part of one.
    pub(super) fn add(
        &self,
        name: &str,
        latest: &Latest,
        files: &[File],
        rows: Range<u64>,
        columns: Range<u64>,
        out: &mut [f32],
    ) -> Result<(), gguf::Error> {
        let decoded = latest.get(name, || self.decode(files))?;
        let rows = rows.start as usize..rows.end as usize;
        let mut sum = vec![0.0; out.len()];
        if columns == (0..self.row_len) {
            decoded.codes.multiply(&decoded.a, self.n_rows as usize, rows, &mut sum);
        } else {
            // A part of one row, some columns at a time: a copy of the whole factor would take as
            // much as itself.
            for (start, sum) in (columns.start as usize..).step_by(COLUMNS).zip(sum.chunks_mut(COLUMNS)) {
                let columns = start..start + sum.len();
                let a = decoded.a.chunks_exact(self.row_len as usize);
                let a: Vec<f32> = a.flat_map(|row| &row[columns.clone()]).copied().collect();
                decoded.codes.multiply(&a, self.n_rows as usize, rows.clone(), sum);
            }
        }
        out.iter_mut().zip(sum).for_each(|(out, x)| *out += x);
        Ok(())
    }

    fn decode(&self, files: &[File]) -> Result<Decoded, gguf::Error> {
        let read = |(file, info): &(usize, TensorInfo)| {
            let mut bytes = vec![0; info.size() as usize];
            files[*file].read(info, 0, &mut bytes)?;
            Ok::<_, gguf::Error>(bytes)
        };
        let [scales, a, b] = &self.parts;
        let scales: Vec<f32> = read(scales)?.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let rank = scales.len() as u64;
        let codes = |part: &(usize, TensorInfo), row_len: u64| {
            let broken = |reason: String| {
                let path = files[part.0].path().to_owned();
                let source = io::Error::new(io::ErrorKind::InvalidData, format!("tensor {}: {reason}", part.1.name()));
                gguf::Error::Io { path, action: "decode the patch", source }
            };
            let n = rank.checked_mul(row_len).and_then(|n| usize::try_from(n).ok());
            let n = n.ok_or_else(|| broken("it is too long".to_owned()))?;
            encode::decompress(&read(part)?, n).map_err(|e| broken(e.to_string()))
        };
        let codes = Codes { a: codes(a, self.row_len)?, b: codes(b, self.n_rows)?, scales };
        let a = codes.scaled_a(self.row_len as usize);
        Ok(Decoded { codes, a })
    }
}

impl Latest {
    fn get(
        &self,
        name: &str,
        decode: impl FnOnce() -> Result<Decoded, gguf::Error>,
    ) -> Result<Arc<Decoded>, gguf::Error> {
        // Held while it is decoded: who asks for the same meanwhile waits rather than doing it,
        // too.
        let mut latest = self.0.lock().unwrap_or_else(|e| e.into_inner());
        if let Some((_, decoded)) = latest.as_ref().filter(|(latest, _)| latest == name) {
            return Ok(decoded.clone());
        }
        // The one before goes first.
        *latest = None;
        let decoded = Arc::new(decode()?);
        *latest = Some((name.to_owned(), decoded.clone()));
        Ok(decoded)
    }
}
