//! Rows of small whole numbers, entropy-coded: zstd frames (RFC 8878) of whole rows, one after the
//! other.
//!
//! Rows of one direction are as large as each other, those of others are not, so a frame, which has
//! one table of code lengths, should hold few; and each costs some 50 bytes. Frames of
//! [`FRAME_BYTES`] are best on the bundled trio.

use std::io;

use crate::pool;

/// Bytes of rows in a frame, at least, of the longer rows one.
const FRAME_BYTES: usize = 3072;

/// Of zstd. The levels below do not weigh what a match costs against what it saves, and are a tenth
/// larger on such numbers.
const LEVEL: i32 = 19;

/// Why bytes are no rows.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The frames hold another number of bytes.
    #[error("the frames hold {found} bytes, expected {expected}")]
    Length {
        /// Bytes of all rows.
        expected: usize,
        /// What the frames say.
        found: u64,
    },
    /// A frame that is broken, or does not say how long it is.
    #[error("the frame at byte {offset} is broken: {reason}")]
    Frame {
        /// Where it begins.
        offset: usize,
        /// What is wrong with it.
        reason: String,
    },
}

/// Compresses rows of `row_len` numbers.
///
/// # Errors
/// Whatever zstd reports, as that memory is short.
pub fn compress(rows: &[i8], row_len: usize) -> io::Result<Vec<u8>> {
    let frame_len = FRAME_BYTES.div_ceil(row_len.max(1)).saturating_mul(row_len).max(1);
    let compressor = || zstd::bulk::Compressor::new(LEVEL);
    let frames = pool::try_map_init(rows.chunks(frame_len).collect(), compressor, |compressor, frame: &[i8]| {
        let bytes: Vec<u8> = frame.iter().map(|x| x.cast_unsigned()).collect();
        match compressor {
            Ok(compressor) => compressor.compress(&bytes),
            Err(e) => Err(io::Error::from(e.kind())),
        }
    });
    Ok(frames?.concat())
}

/// Decompresses `len` numbers. Takes no more memory than they do, whatever the frames say.
///
/// # Errors
/// [`Error::Length`], [`Error::Frame`].
pub fn decompress(frames: &[u8], len: usize) -> Result<Vec<i8>, Error> {
    let found = n_bytes(frames)?;
    if found != len as u64 {
        return Err(Error::Length { expected: len, found });
    }
    let mut decompressor = zstd::bulk::Decompressor::new().map_err(|e| broken(0, e))?;
    let mut out: Vec<u8> = Vec::new();
    out.try_reserve_exact(len).map_err(|e| broken(0, e))?;
    out.resize(len, 0);
    let (mut at, mut filled) = (0, 0);
    while at < frames.len() {
        let size = frame_size(frames, at)?;
        filled +=
            decompressor.decompress_to_buffer(&frames[at..at + size], &mut out[filled..]).map_err(|e| broken(at, e))?;
        at += size;
    }
    match filled == len {
        true => Ok(out.into_iter().map(u8::cast_signed).collect()),
        false => Err(Error::Length { expected: len, found: filled as u64 }),
    }
}

/// Bytes that the frames say they hold.
///
/// # Errors
/// [`Error::Frame`].
fn n_bytes(frames: &[u8]) -> Result<u64, Error> {
    let (mut at, mut sum) = (0, 0u64);
    while at < frames.len() {
        let size = frame_size(frames, at)?;
        let content = zstd::zstd_safe::get_frame_content_size(&frames[at..])
            .map_err(|e| broken(at, e))?
            .ok_or_else(|| broken(at, "it does not say how long it is"))?;
        sum = sum.checked_add(content).ok_or_else(|| broken(at, "it is too long"))?;
        at += size;
    }
    Ok(sum)
}

fn frame_size(frames: &[u8], at: usize) -> Result<usize, Error> {
    let size = zstd::zstd_safe::find_frame_compressed_size(&frames[at..]);
    size.map_err(|code| broken(at, zstd::zstd_safe::get_error_name(code)))
}

fn broken(offset: usize, reason: impl ToString) -> Error {
    Error::Frame { offset, reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<i8> {
        (0..20_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as i8 / 40).collect()
    }

    #[test]
    fn rows_come_back() {
        for (rows, row_len) in [(rows(), 256), (rows(), 10_000), (vec![], 256), (vec![-127, 127], 1)] {
            let frames = compress(&rows, row_len).unwrap();
            assert_eq!(decompress(&frames, rows.len()).unwrap(), rows);
        }
        assert!(compress(&rows(), 256).unwrap().len() < rows().len() / 2);
    }

    #[test]
    fn broken_frames_are_errors() {
        let frames = compress(&rows(), 256).unwrap();
        let n = rows().len();
        assert!(matches!(decompress(&frames, n + 1), Err(Error::Length { .. })));
        assert!(decompress(&frames[..frames.len() - 1], n).is_err());
        assert!(decompress(&[0; 9], 9).is_err());
        for at in 0..frames.len().min(400) {
            let mut spoilt = frames.clone();
            spoilt[at] ^= 0x11;
            // Any answer but a panic; the content has no checksum of its own.
            let _ = decompress(&spoilt, n);
        }
    }
}
