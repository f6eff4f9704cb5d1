//! Splitting a file into shards, as `gguf-split --split-max-size` does: names, keys and which
//! tensor goes where.

use std::path::{Path, PathBuf};

use super::error::Error;
use super::{DEFAULT_ALIGNMENT, Header, Metadata, TensorSpec, Value};

/// One shard of an output.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) header: Header,
    /// The whole output's number of its first tensor.
    pub(super) first_tensor: usize,
}

/// Cuts a file into shards whose tensors take `max_size` bytes at most, padding included; a tensor
/// that is larger alone has a shard of its own. One that would be the only shard stays as it is,
/// without the keys of a split.
///
/// All metadata are in the first shard. The others have the three keys of
/// tools/gguf-split/gguf-split.cpp, and the alignment where it is not the default: a reader looks
/// for it in each file.
///
/// # Errors
/// [`Error::Layout`], [`Error::TooManyShards`].
pub(super) fn split(header: Header, max_size: Option<u64>) -> Result<Vec<Shard>, Error> {
    let whole = |header| Ok(vec![Shard { header, first_tensor: 0 }]);
    let Some(max_size) = max_size else { return whole(header) };
    let mut starts = vec![0];
    let mut start_offset = 0;
    for (i, tensor) in header.tensors().iter().enumerate() {
        // Offsets are padded: up to the end of this tensor, from the start of the shard.
        if i > starts[starts.len() - 1] && tensor.offset() + tensor.size() - start_offset > max_size {
            starts.push(i);
            start_offset = tensor.offset();
        }
    }
    let n_shards = starts.len();
    if n_shards == 1 {
        return whole(header);
    }
    // `split.count` and `split.no` are 16 bits wide.
    let count = u16::try_from(n_shards).map_err(|_| Error::TooManyShards { n_shards, max_size })?;
    let n_tensors = header.tensors().len();
    let shard = |(no, &start): (usize, &usize)| {
        let mut metadata = match no {
            0 => header.metadata().clone(),
            _ => Metadata::default(),
        };
        if no > 0 && header.alignment() != DEFAULT_ALIGNMENT {
            metadata.set("general.alignment", Value::U32(header.alignment() as u32));
        }
        metadata.set("split.no", Value::U16(no as u16));
        metadata.set("split.count", Value::U16(count));
        metadata.set("split.tensors.count", Value::I32(n_tensors as i32));
        let end = starts.get(no + 1).copied().unwrap_or(n_tensors);
        let specs = header.tensors()[start..end].iter();
        let specs = specs.map(|t| TensorSpec { name: t.name().to_owned(), ne: t.ne().to_vec(), ty: t.ty() });
        Ok(Shard { header: Header::new(metadata, specs)?, first_tensor: start })
    };
    starts.iter().enumerate().map(shard).collect()
}

/// The name of a shard, counted from 1, of the output `path` (`llama_split_path` of src/llama.cpp):
/// `model.gguf` becomes `model-00001-of-00003.gguf`.
pub(super) fn shard_of(path: &Path, no: usize, count: usize) -> PathBuf {
    let name = path.file_name().unwrap_or_default();
    let name = name.as_encoded_bytes();
    let prefix = name.strip_suffix(b".gguf").unwrap_or(name);
    // A name that is not UTF-8 is kept as far as it can be shown.
    shard_path(path, &String::from_utf8_lossy(prefix), no as u64, count as u64)
}

/// The name's part before `-%05d-of-%05d.gguf`, the number of the shard from 1, and the number of
/// shards.
pub(super) fn parse_shard_name(path: &Path) -> Option<(&str, u64, u64)> {
    let stem = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (prefix, no) = rest.rsplit_once('-')?;
    let number = |s: &str| (s.len() >= 5 && s.bytes().all(|b| b.is_ascii_digit())).then(|| s.parse().ok())?;
    Some((prefix, number(no)?, number(count)?))
}

/// The neighbour of `path` that is shard `no` of `count`, counted from 1.
pub(super) fn shard_path(path: &Path, prefix: &str, no: u64, count: u64) -> PathBuf {
    path.with_file_name(format!("{prefix}-{no:05}-of-{count:05}.gguf"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ggml::GgmlType::F32;

    #[test]
    fn shard_names_follow_llama_split_path() {
        let path = Path::new("dir/my-model-00002-of-00003.gguf");
        assert_eq!(parse_shard_name(path), Some(("my-model", 2, 3)));
        assert_eq!(shard_path(path, "my-model", 1, 3), Path::new("dir/my-model-00001-of-00003.gguf"));
        assert_eq!(shard_of(Path::new("dir/a.b.gguf"), 2, 3), Path::new("dir/a.b-00002-of-00003.gguf"));
        assert_eq!(shard_of(Path::new("a"), 1, 2), Path::new("a-00001-of-00002.gguf"));
        for other in ["a.gguf", "a-1-of-3.gguf", "a-00001-of-00003.bin", "a-0000x-of-00003.gguf"] {
            assert_eq!(parse_shard_name(Path::new(other)), None, "{other}");
        }
    }

    #[test]
    fn shards_end_before_they_are_too_large() {
        let header = |rows: &[u64]| {
            let spec = |(i, &n): (usize, &u64)| TensorSpec { name: i.to_string(), ne: vec![8, n], ty: F32 };
            Header::new(Metadata::default(), rows.iter().enumerate().map(spec)).unwrap()
        };
        let lens = |rows: &[u64], max| -> Vec<usize> {
            let shards = split(header(rows), Some(max)).unwrap();
            assert!(shards.windows(2).all(|w| w[0].first_tensor + w[0].header.tensors().len() == w[1].first_tensor));
            shards.iter().map(|s| s.header.tensors().len()).collect()
        };
        assert_eq!(lens(&[1, 1, 1, 1], 64), [2, 2]);
        assert_eq!(lens(&[1, 1, 1, 1], 127), [3, 1]);
        assert_eq!(lens(&[1, 5, 1, 1], 64), [1, 1, 2]);
        assert_eq!(lens(&[5, 1], 64), [1, 1]);
        assert_eq!(lens(&[1, 1], 64), [2]);
        assert_eq!(lens(&[], 64), [0]);
        let rows = vec![1; 65_536];
        assert!(matches!(split(header(&rows), Some(32)), Err(Error::TooManyShards { n_shards: 65_536, .. })));
    }
}
