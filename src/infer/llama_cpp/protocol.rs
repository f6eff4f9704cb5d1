//! What is said between this process and one that runs llama.cpp.
//!
//! A message is a byte that says what it is, its length in four bytes, and so many bytes. Numbers
//! are little-endian. The first bytes of answers are no ASCII: text that a library prints in
//! between is found out at once.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Bytes of an answer other than a row: there is a sentence in it at most.
const ANSWER_BYTES: usize = 4096;

/// What the process is asked for.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Request {
    /// Load a model. Answered by [`Answer::Opened`].
    Open(Opening),
    /// Begin with so many empty sequences of so many tokens. Answered by [`Answer::Done`].
    Context { n_sequences: u32, room: u32 },
    /// Forget all tokens of a sequence but the first `n`. Answered by [`Answer::Done`].
    Truncate { sequence: u32, n: u32 },
    /// Make the first `n` tokens of a sequence those of another one. Answered by [`Answer::Done`].
    Share { from: u32, to: u32, n: u32 },
    /// Feed tokens. Answered by [`Answer::Row`] for each that is asked for, then by
    /// [`Answer::Done`].
    Feed(Vec<Portion>),
}

/// A model that is to be loaded.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Opening {
    pub(super) path: PathBuf,
    /// Threads to compute with.
    pub(super) threads: u32,
    /// Whether the header is enough.
    pub(super) is_header_only: bool,
    /// Adapters with their factors.
    pub(super) loras: Vec<(PathBuf, f32)>,
}

/// Tokens for a sequence, as [`super::super::Fed`].
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Portion {
    pub(super) sequence: u32,
    pub(super) first: u32,
    pub(super) tokens: Vec<u32>,
}

/// What the process says.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Answer {
    Opened(Opened),
    Done,
    /// The logits after a token of a portion.
    Row {
        portion: u32,
        index: u32,
        logits: Vec<f32>,
    },
    /// Why it does not do what it was asked for.
    Refused(String),
}

/// A model that was loaded.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Opened {
    /// Tokens of the vocabulary.
    pub(super) n_vocab: u32,
    /// Tokens that the model was trained on at once.
    pub(super) n_ctx_train: u32,
    /// That of llama.cpp.
    pub(super) version: String,
}

impl Request {
    pub(super) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut bytes = Vec::new();
        let tag = match self {
            Request::Open(opening) => {
                put_path(&mut bytes, &opening.path)?;
                put(&mut bytes, opening.threads);
                put(&mut bytes, opening.is_header_only.into());
                put_len(&mut bytes, opening.loras.len())?;
                for (path, factor) in &opening.loras {
                    put_path(&mut bytes, path)?;
                    put(&mut bytes, factor.to_bits());
                }
                0x01
            }
            Request::Context { n_sequences, room } => {
                [*n_sequences, *room].into_iter().for_each(|n| put(&mut bytes, n));
                0x02
            }
            Request::Truncate { sequence, n } => {
                [*sequence, *n].into_iter().for_each(|n| put(&mut bytes, n));
                0x03
            }
            Request::Share { from, to, n } => {
                [*from, *to, *n].into_iter().for_each(|n| put(&mut bytes, n));
                0x04
            }
            Request::Feed(portions) => {
                put_len(&mut bytes, portions.len())?;
                for portion in portions {
                    [portion.sequence, portion.first].into_iter().for_each(|n| put(&mut bytes, n));
                    put_len(&mut bytes, portion.tokens.len())?;
                    portion.tokens.iter().for_each(|&token| put(&mut bytes, token));
                }
                0x05
            }
        };
        write_message(out, tag, &bytes)
    }

    /// The next one; none where there are no more.
    #[cfg(any(test, feature = "llama-cpp"))]
    pub(super) fn read(from: &mut dyn Read) -> io::Result<Option<Self>> {
        let Some((tag, bytes)) = read_message(from, |_| usize::MAX)? else { return Ok(None) };
        let mut rest = Fields(&bytes);
        let request = match tag {
            0x01 => {
                let (path, threads, is_header_only) = (rest.path()?, rest.number()?, rest.number()? != 0);
                let n = rest.number()?;
                let loras = (0..n).map(|_| Ok((rest.path()?, f32::from_bits(rest.number()?))));
                let loras = loras.collect::<io::Result<_>>()?;
                Request::Open(Opening { path, threads, is_header_only, loras })
            }
            0x02 => Request::Context { n_sequences: rest.number()?, room: rest.number()? },
            0x03 => Request::Truncate { sequence: rest.number()?, n: rest.number()? },
            0x04 => Request::Share { from: rest.number()?, to: rest.number()?, n: rest.number()? },
            0x05 => {
                let n = rest.number()?;
                let portions = (0..n).map(|_| {
                    let (sequence, first) = (rest.number()?, rest.number()?);
                    Ok(Portion { sequence, first, tokens: rest.numbers()? })
                });
                Request::Feed(portions.collect::<io::Result<_>>()?)
            }
            tag => return Err(odd(&format!("a request of kind {tag:#04x}"))),
        };
        rest.end()?;
        Ok(Some(request))
    }
}

impl Answer {
    #[cfg(any(test, feature = "llama-cpp"))]
    pub(super) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut bytes = Vec::new();
        let tag = match self {
            Answer::Opened(opened) => {
                [opened.n_vocab, opened.n_ctx_train].into_iter().for_each(|n| put(&mut bytes, n));
                bytes.extend(opened.version.as_bytes());
                0x81
            }
            Answer::Done => 0x82,
            Answer::Row { portion, index, logits } => {
                [*portion, *index].into_iter().for_each(|n| put(&mut bytes, n));
                logits.iter().for_each(|logit| put(&mut bytes, logit.to_bits()));
                0x83
            }
            Answer::Refused(text) => {
                let text: String = text.chars().take(ANSWER_BYTES / 4).collect();
                bytes.extend(text.as_bytes());
                0x84
            }
        };
        write_message(out, tag, &bytes)
    }

    /// The next one, in which a row has at most `n_vocab` logits.
    pub(super) fn read(from: &mut dyn Read, n_vocab: usize) -> io::Result<Self> {
        let limit = |tag| if tag == 0x83 { 8 + n_vocab * 4 } else { ANSWER_BYTES };
        let (tag, bytes) = read_message(from, limit)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let mut rest = Fields(&bytes);
        let answer = match tag {
            0x81 => {
                let (n_vocab, n_ctx_train) = (rest.number()?, rest.number()?);
                Answer::Opened(Opened { n_vocab, n_ctx_train, version: rest.text() })
            }
            0x82 => Answer::Done,
            0x83 => {
                let (portion, index) = (rest.number()?, rest.number()?);
                let logits = std::mem::take(&mut rest.0);
                let logits = logits.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                Answer::Row { portion, index, logits: logits.collect() }
            }
            0x84 => Answer::Refused(rest.text()),
            tag => return Err(odd(&format!("an answer of kind {tag:#04x}"))),
        };
        rest.end()?;
        Ok(answer)
    }
}

fn odd(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what}, which there is not"))
}

fn put(bytes: &mut Vec<u8>, number: u32) {
    bytes.extend(number.to_le_bytes());
}

fn put_len(bytes: &mut Vec<u8>, len: usize) -> io::Result<()> {
    put(bytes, u32::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?);
    Ok(())
}

fn put_path(bytes: &mut Vec<u8>, path: &Path) -> io::Result<()> {
    let path = path.as_os_str().as_encoded_bytes();
    put_len(bytes, path.len())?;
    bytes.extend(path);
    Ok(())
}

fn write_message(out: &mut dyn Write, tag: u8, bytes: &[u8]) -> io::Result<()> {
    let mut head = vec![tag];
    put_len(&mut head, bytes.len())?;
    out.write_all(&head)?;
    out.write_all(bytes)?;
    out.flush()
}

/// What a message is, and its bytes, which memory is taken for as they arrive; none at the end of
/// the pipe.
fn read_message(from: &mut dyn Read, limit: impl Fn(u8) -> usize) -> io::Result<Option<(u8, Vec<u8>)>> {
    let mut tag = [0];
    match from.read_exact(&mut tag) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    // A byte that is none of ours is not waited behind.
    if !matches!(tag[0], 0x01..=0x05 | 0x81..=0x84) {
        return Err(odd(&format!("a message of kind {:#04x}", tag[0])));
    }
    let mut len = [0; 4];
    from.read_exact(&mut len)?;
    let (len, limit) = (u32::from_le_bytes(len) as usize, limit(tag[0]));
    if len > limit {
        return Err(io::Error::other(format!("a message of {len} bytes, where at most {limit} are taken")));
    }
    let mut bytes = Vec::new();
    from.take(len as u64).read_to_end(&mut bytes)?;
    if bytes.len() < len { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(Some((tag[0], bytes))) }
}

/// What is left of a message.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn number(&mut self) -> io::Result<u32> {
        let (number, rest) = self.0.split_first_chunk().ok_or_else(|| odd("a message that ends early"))?;
        self.0 = rest;
        Ok(u32::from_le_bytes(*number))
    }

    /// All that is left.
    fn text(&mut self) -> String {
        String::from_utf8_lossy(std::mem::take(&mut self.0)).into_owned()
    }

    fn end(&self) -> io::Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(odd("a message that goes on behind its end")) }
    }
}

#[cfg(any(test, feature = "llama-cpp"))]
impl Fields<'_> {
    fn numbers(&mut self) -> io::Result<Vec<u32>> {
        let n = self.number()? as usize;
        let (numbers, rest) = n
            .checked_mul(4)
            .and_then(|len| self.0.split_at_checked(len))
            .ok_or_else(|| odd("a message that ends early"))?;
        self.0 = rest;
        Ok(numbers.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }

    fn path(&mut self) -> io::Result<PathBuf> {
        let len = self.number()? as usize;
        let (path, rest) = self.0.split_at_checked(len).ok_or_else(|| odd("a message that ends early"))?;
        self.0 = rest;
        #[cfg(unix)]
        return Ok(<std::ffi::OsString as std::os::unix::ffi::OsStringExt>::from_vec(path.to_vec()).into());
        #[cfg(not(unix))]
        return Ok(String::from_utf8_lossy(path).into_owned().into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests() -> Vec<Request> {
        let loras = vec![(PathBuf::from("a lora.gguf"), -0.5)];
        vec![
            Request::Open(Opening { path: "ä/b.gguf".into(), threads: 3, is_header_only: true, loras }),
            Request::Context { n_sequences: 4, room: 77 },
            Request::Truncate { sequence: 2, n: 0 },
            Request::Share { from: 0, to: 3, n: 12 },
            Request::Feed(vec![
                Portion { sequence: 1, first: 2, tokens: vec![5, 6, 7] },
                Portion { sequence: 0, first: 0, tokens: Vec::new() },
            ]),
        ]
    }

    fn answers() -> Vec<Answer> {
        vec![
            Answer::Opened(Opened { n_vocab: 3, n_ctx_train: 256, version: "0.8".to_owned() }),
            Answer::Row { portion: 1, index: 2, logits: vec![0.5, -1.0, f32::INFINITY] },
            Answer::Done,
            Answer::Refused("no such file".to_owned()),
        ]
    }

    #[test]
    fn messages_are_read_as_they_were_written() {
        let mut pipe = Vec::new();
        requests().iter().for_each(|request| request.write(&mut pipe).unwrap());
        let mut from = &pipe[..];
        for request in requests() {
            assert_eq!(Request::read(&mut from).unwrap(), Some(request));
        }
        assert_eq!(Request::read(&mut from).unwrap(), None);

        let mut pipe = Vec::new();
        answers().iter().for_each(|answer| answer.write(&mut pipe).unwrap());
        let mut from = &pipe[..];
        for answer in answers() {
            assert_eq!(Answer::read(&mut from, 3).unwrap(), answer);
        }
        assert!(Answer::read(&mut from, 3).is_err(), "the process has ended");
    }

    #[test]
    fn what_is_cut_or_too_long_is_refused() {
        for request in requests() {
            let mut pipe = Vec::new();
            request.write(&mut pipe).unwrap();
            (1..pipe.len()).for_each(|n| assert!(Request::read(&mut &pipe[..n]).is_err(), "{request:?}, {n} bytes"));
            // One byte less in the length, too: fields are not taken from beyond it.
            let len = u32::from_le_bytes([pipe[1], pipe[2], pipe[3], pipe[4]]) - 1;
            pipe[1..5].copy_from_slice(&len.to_le_bytes());
            assert!(Request::read(&mut &pipe[..]).is_err(), "{request:?}");
        }
        let mut row = Vec::new();
        answers()[1].write(&mut row).unwrap();
        assert!(Answer::read(&mut &row[..], 2).is_err(), "more logits than tokens");
        assert!(Answer::read(&mut &b"\x83\xff\xff\xff\xff"[..], 3).is_err(), "4 GiB are not taken for a claim");
        assert!(Answer::read(&mut &b"ggml"[..], 3).is_err(), "a library that prints");
    }
}
