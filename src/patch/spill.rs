//! What does not fit in memory while a patch is made: singular vectors of all matrices, and what
//! they were encoded as.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use super::low_rank::LowRank;

/// Numbers that are converted at a time.
const PIECE: usize = 1 << 16;

/// A nameless temporary file beside an output.
pub(super) struct Spill {
    file: File,
    len: u64,
}

impl Spill {
    /// The folder of the temporary file of an output of this name.
    pub(super) fn folder(output: &Path) -> PathBuf {
        let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty());
        folder.unwrap_or(Path::new(".")).to_owned()
    }

    pub(super) fn beside(output: &Path) -> io::Result<Self> {
        Ok(Spill { file: tempfile::tempfile_in(Self::folder(output))?, len: 0 })
    }

    /// Takes the factors of a decomposition. Gives their position.
    pub(super) fn push(&mut self, low: &mut LowRank) -> io::Result<u64> {
        let at = self.len;
        for factor in [std::mem::take(&mut low.a), std::mem::take(&mut low.b)] {
            for piece in factor.chunks(PIECE) {
                let bytes: Vec<u8> = piece.iter().flat_map(|x| x.to_le_bytes()).collect();
                self.file.write_all(&bytes)?;
                self.len += bytes.len() as u64;
            }
        }
        Ok(at)
    }

    /// The decomposition of a matrix with its factors, which lie at this position.
    pub(super) fn read(&mut self, low: &LowRank, (row_len, n_rows): (usize, usize), at: u64) -> io::Result<LowRank> {
        self.file.seek(SeekFrom::Start(at))?;
        let (a, b) = (self.numbers(low.rank * row_len)?, self.numbers(low.rank * n_rows)?);
        Ok(LowRank { a, b, ..low.clone() })
    }

    /// Takes bytes, behind those that there are.
    pub(super) fn push_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// From now on bytes are read from the start.
    pub(super) fn rewind(&mut self) -> io::Result<()> {
        self.file.rewind()
    }

    /// The next bytes, so many.
    pub(super) fn next_bytes(&mut self, n: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; n as usize];
        self.file.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn numbers(&mut self, n: usize) -> io::Result<Vec<f32>> {
        let mut numbers = Vec::with_capacity(n);
        let mut bytes = vec![0; 4 * PIECE.min(n)];
        while numbers.len() < n {
            let piece = &mut bytes[..4 * (n - numbers.len()).min(PIECE)];
            self.file.read_exact(piece)?;
            numbers.extend(piece.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)));
        }
        Ok(numbers)
    }
}
