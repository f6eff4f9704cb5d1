//! The legacy form, little-endian throughout:
//!
//! | field | bytes |
//! |---|---|
//! | entries | i32 |
//! | for each: name | i32 length, bytes |
//! | calls | i32 |
//! | values | i32 count, f32 each |
//! | chunks, the text's name (both may be absent) | i32; i32 length, bytes |

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;

use super::{Error, Unchecked};

/// The fewest bytes of an entry: a name's length, calls, one value.
const MIN_ENTRY: u64 = 4 + 4 + 4 + 4;

/// Bytes of memory that an entry takes besides its name and values: of a table that is half empty.
const ENTRY_BYTES: u64 = 192;

/// Bytes of the longest name: a tensor has at most 63, a text has a path.
const LONGEST_NAME: i32 = 4096;

/// Bytes of values that are read at once.
const PIECE: u64 = 64 << 10;

/// Reads means as `common_imatrix_load_legacy` and `load_imatrix` compute them: value / calls in
/// f32, the value as it is where there is no positive number of calls. Of two entries of one name
/// the last counts.
pub(super) fn read(path: &Path, mut file: File, memory: u64) -> Result<Unchecked, Error> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let len = file.metadata().map_err(io)?.len();
    file.rewind().map_err(io)?;
    let mut reader = Reader { path, file: BufReader::new(file), left: len };

    let n_entries = match reader.left {
        0..4 => None,
        _ => Some(reader.i32("the number of entries")?).filter(|&n| n >= 1 && n as u64 <= reader.left / MIN_ENTRY),
    };
    let Some(n_entries) = n_entries else {
        return Err(Error::NotAMatrix {
            path: path.to_owned(),
            place: "its beginning",
            expected: "GGUF, or the number of entries of the legacy form",
            found: format!("neither, in a file of {len} bytes"),
        });
    };
    let mut entries = BTreeMap::new();
    let mut needed = 0;
    for i in 1..=n_entries {
        let place = format!("entry {i} of {n_entries}");
        let name = reader.name(&place)?;
        let place = format!("{place} ({name})");
        let n_calls = reader.i32(&place)?;
        let n_values = reader.i32(&place)?;
        if n_values < 1 {
            return Err(reader.malformed(place, "at least one value", n_values.to_string()));
        }
        let n_bytes = 4 * n_values as u64;
        needed += n_bytes + ENTRY_BYTES + name.len() as u64;
        if needed > memory {
            return Err(Error::Memory { path: path.to_owned(), needed, allowed: memory });
        }
        let mut values = reader.floats(n_bytes, &place)?;
        if n_calls > 0 {
            values.iter_mut().for_each(|v| *v /= n_calls as f32);
        }
        entries.insert(name, values);
    }
    let n_chunks = if reader.left > 0 { reader.i32("the number of chunks")?.max(0) as u32 } else { 0 };
    let dataset = if reader.left > 0 { reader.name("the name of the text")? } else { String::new() };
    let datasets = if dataset.is_empty() { Vec::new() } else { vec![dataset] };
    Ok(Unchecked { datasets, n_chunks, entries })
}

/// A file, and how much of it is left: nothing is taken that is not there.
struct Reader<'a> {
    path: &'a Path,
    file: BufReader<File>,
    left: u64,
}

impl Reader<'_> {
    fn malformed(&self, place: String, expected: &str, found: String) -> Error {
        Error::Malformed { path: self.path.to_owned(), place, expected: expected.to_owned(), found }
    }

    fn fill(&mut self, bytes: &mut [u8], place: &str) -> Result<(), Error> {
        self.require(bytes.len() as u64, place)?;
        self.left -= bytes.len() as u64;
        self.file.read_exact(bytes).map_err(|source| Error::Io { path: self.path.to_owned(), source })
    }

    fn require(&self, n_bytes: u64, place: &str) -> Result<(), Error> {
        match n_bytes <= self.left {
            true => Ok(()),
            false => {
                let found = format!("{} until the end of the file", self.left);
                Err(self.malformed(place.to_owned(), &format!("{n_bytes} bytes more"), found))
            }
        }
    }

    fn i32(&mut self, place: &str) -> Result<i32, Error> {
        let mut bytes = [0; 4];
        self.fill(&mut bytes, place)?;
        Ok(i32::from_le_bytes(bytes))
    }

    /// A name up to its first NUL, where it ends for llama.cpp too.
    fn name(&mut self, place: &str) -> Result<String, Error> {
        let len = self.i32(place)?;
        if !(0..=LONGEST_NAME).contains(&len) {
            let expected = format!("a name of at most {LONGEST_NAME} bytes");
            return Err(self.malformed(place.to_owned(), &expected, format!("a length of {len}")));
        }
        let mut bytes = vec![0; len as usize];
        self.fill(&mut bytes, place)?;
        let name = bytes.split(|b| *b == 0).next().unwrap_or_default();
        match std::str::from_utf8(name) {
            Ok(name) => Ok(name.to_owned()),
            Err(_) => {
                let found = format!("'{}'", bytes[..bytes.len().min(64)].escape_ascii());
                Err(self.malformed(place.to_owned(), "a name in UTF-8", found))
            }
        }
    }

    fn floats(&mut self, n_bytes: u64, place: &str) -> Result<Vec<f32>, Error> {
        self.require(n_bytes, place)?;
        let mut values = Vec::with_capacity((n_bytes / 4) as usize);
        let mut piece = vec![0; PIECE.min(n_bytes) as usize];
        let mut left = n_bytes;
        while left > 0 {
            let bytes = &mut piece[..PIECE.min(left) as usize];
            self.fill(bytes, place)?;
            values.extend(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)));
            left -= bytes.len() as u64;
        }
        Ok(values)
    }
}
