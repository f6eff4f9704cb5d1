//! Reading a tensor from its beginning to its end, or here and there, in few reads.

use super::error::Error;
use super::fold::Turn;
use super::source::{TensorSource, decode};
use crate::gguf;
use crate::gguf::TensorId;

/// Bytes between two places that are read, too, rather than asking the system twice: that costs as
/// much as some of them.
const GAP: u64 = 16 << 10;

/// Bytes of a tensor that were read together. Who asks for places in their order is given more and
/// more at a time; who asks for one here and one there is given those, or [`GAP`] bytes.
#[derive(Default, Debug)]
pub(super) struct Ahead {
    start: u64,
    bytes: Vec<u8>,
    most: usize,
}

impl Ahead {
    /// The bytes of a tensor of which nothing is read yet; `most` of them are held at most.
    pub(super) fn new(most: usize) -> Self {
        Ahead { most, ..Ahead::default() }
    }

    /// Whether so many bytes are worth keeping more of.
    pub(super) fn takes(&self, n: usize) -> bool {
        2 * n <= self.most
    }

    /// `n` bytes of a tensor, the same one each time, from `offset` on.
    ///
    /// # Errors
    /// Whatever the source reports.
    pub(super) fn read(
        &mut self,
        source: &dyn TensorSource,
        id: TensorId,
        offset: u64,
        n: usize,
    ) -> Result<&[u8], gguf::Error> {
        let end = self.start + self.bytes.len() as u64;
        if offset < self.start || offset + n as u64 > end {
            let is_next = !self.bytes.is_empty() && (self.start..=end + GAP).contains(&offset);
            let wanted = if is_next { 2 * self.bytes.len() } else { GAP as usize }.min(self.most);
            let info = source.tensor(id);
            let left = info.size() - offset;
            // What is computed row by row is not begun within one.
            let whole = wanted as u64 / info.row_size().max(1) * info.row_size();
            let wanted = whole.min(left).max(n as u64) as usize;
            if self.bytes.capacity() < wanted {
                self.bytes = Vec::new();
                self.bytes.reserve_exact(wanted);
            }
            self.bytes.resize(wanted, 0);
            let read = source.read(id, offset, &mut self.bytes);
            self.start = offset;
            if read.is_err() {
                self.bytes.clear();
            }
            read?;
        }
        let from = (offset - self.start) as usize;
        Ok(&self.bytes[from..from + n])
    }
}

/// Rows of a tensor, one by one.
pub struct RowReader<'a> {
    source: &'a dyn TensorSource,
    id: TensorId,
    ahead: Ahead,
    turn: Option<Turn<'a>>,
}

impl<'a> RowReader<'a> {
    /// Bytes that a reader keeps at most, if a row is not longer.
    const MOST: usize = 256 << 10;

    /// The rows of this tensor.
    pub fn new(source: &'a dyn TensorSource, id: TensorId) -> Self {
        RowReader { source, id, ahead: Ahead::new(Self::MOST), turn: None }
    }

    /// The rows in other coordinates.
    #[must_use]
    pub fn turned(self, turn: Option<Turn<'a>>) -> Self {
        RowReader { turn, ..self }
    }

    /// Reads a row: cheaply, if it comes not far behind the one before.
    ///
    /// # Errors
    /// Those of [`decode`], and whatever the container reports, as of a row that is not there.
    pub fn read(&mut self, row: u64) -> Result<Vec<f32>, Error> {
        let info = self.source.tensor(self.id);
        let mut weights = vec![0.0; info.row_len() as usize];
        let blocks = self.ahead.read(self.source, self.id, row * info.row_size(), info.row_size() as usize)?;
        decode(self.source, self.id, row * info.row_len(), blocks, &mut weights)?;
        if let Some(turn) = self.turn {
            turn.apply(0, &mut weights);
        }
        Ok(weights)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Mutex;

    use super::*;
    use crate::ggml::GgmlType;
    use crate::gguf::{Header, Metadata, TensorInfo, TensorSpec};

    /// A tensor of bytes that follow from their places, and how much was read of it at a time.
    struct Counted {
        info: TensorInfo,
        reads: Mutex<Vec<usize>>,
    }

    impl Counted {
        fn new(row_len: u64, n_rows: u64) -> Self {
            let spec = TensorSpec { name: "x".to_owned(), ne: vec![row_len, n_rows], ty: GgmlType::F16 };
            let header = Header::new(Metadata::default(), [spec]).unwrap();
            Counted { info: header.tensors()[0].clone(), reads: Mutex::default() }
        }

        fn byte(at: u64) -> u8 {
            (at.wrapping_mul(0x9e37_79b9) >> 13) as u8
        }
    }

    impl TensorSource for Counted {
        fn tensor(&self, _id: TensorId) -> &TensorInfo {
            &self.info
        }

        fn path_of(&self, _id: TensorId) -> &Path {
            Path::new("x")
        }

        fn scale_of(&self, _id: TensorId) -> Option<TensorId> {
            None
        }

        fn read(&self, _id: TensorId, offset: u64, buf: &mut [u8]) -> Result<(), gguf::Error> {
            assert!(offset + buf.len() as u64 <= self.info.size(), "beyond the tensor");
            self.reads.lock().unwrap().push(buf.len());
            buf.iter_mut().zip(offset..).for_each(|(byte, at)| *byte = Self::byte(at));
            Ok(())
        }
    }

    #[test]
    fn rows_in_their_order_are_read_in_few_reads_and_others_alone() {
        let most = 256 << 10;
        let (row_size, n_rows) = (512, 40_000);
        for step in [1, 2, 7, 30, 100, 999] {
            let source = Counted::new(256, n_rows);
            let mut ahead = Ahead::new(most);
            for row in (0..n_rows).step_by(step) {
                let at = row * row_size;
                let bytes = ahead.read(&source, 0, at, row_size as usize).unwrap();
                assert!(bytes.iter().zip(at..).all(|(byte, at)| *byte == Counted::byte(at)), "{step} {row}");
            }
            let reads = source.reads.into_inner().unwrap();
            assert!(reads.iter().all(|n| *n <= most), "{step}");
            let (n, bytes) = (reads.len() as u64, reads.iter().sum::<usize>() as u64);
            let extent = n_rows * row_size;
            if (step as u64 - 1) * row_size <= GAP {
                assert!(n <= extent / most as u64 + 8 && bytes <= extent, "{step}: {n} reads of {bytes}");
            } else {
                assert!(n <= n_rows / step as u64 + 1 && bytes <= n * GAP, "{step}: {n} reads of {bytes}");
            }
        }
    }

    #[test]
    fn rows_in_any_order_are_those_asked_for() {
        let source = Counted::new(1000, 300);
        let mut ahead = Ahead::new(20_000);
        for i in 0..2000u64 {
            let (row, start) = (i * i * 31 % 300, i * 7 % 900);
            let (at, n) = (row * 2000 + 2 * start, 2 * (1 + i % 100));
            let bytes = ahead.read(&source, 0, at, n as usize).unwrap();
            assert!(bytes.iter().zip(at..).all(|(byte, at)| *byte == Counted::byte(at)), "{i}");
        }
    }
}
