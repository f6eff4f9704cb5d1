//! Pieces of rows of the tensors that a sum is made of.

use super::ahead::Ahead;
use super::combine::{Combination, Selection};
use super::error::Error;
use super::hadamard::LONGEST_BLOCK;
use super::inputs::Inputs;
use super::rows::{Absent, Rows};
use super::source::{TensorSource, decode};
use super::space::{Coordinates, Space};
use super::sum::{Sum, resize};
use super::term::{Operand, TensorRef, Term, operands};
use crate::gguf::{TensorId, TensorInfo};

/// A piece of a row: the row, its first weight there, and how many.
pub(crate) type Piece = (u64, u64, u64);

/// Weights in a piece: a row, or a part of a longer one. A multiple of 256 is whole blocks of every
/// type.
pub(crate) const PIECE_WEIGHTS: u64 = 1 << 14;

const _: () = assert!(PIECE_WEIGHTS.is_multiple_of(LONGEST_BLOCK), "pieces hold whole blocks of folds");

/// Pieces of a tensor that are looked at, if there are as many: the standard error of fewer would
/// say little.
const LEAST_PIECES: u64 = 8;

/// Pieces of a tensor, evenly spread over it.
#[derive(Clone, Copy)]
pub(crate) struct Spread {
    row_len: u64,
    /// How many there are in all, and how many of them are looked at.
    pub(crate) n_pieces: u64,
    pub(crate) n_sampled: u64,
}

impl Spread {
    /// About this share of a tensor's pieces: some at least, so that the sample tells how far it
    /// may be off.
    pub(crate) fn new(info: &TensorInfo, share: f64) -> Self {
        let row_len = info.row_len();
        let n_pieces = info.n_rows() * row_len.div_ceil(PIECE_WEIGHTS);
        let n_sampled = ((n_pieces as f64 * share).ceil() as u64).clamp(n_pieces.min(LEAST_PIECES), n_pieces);
        Spread { row_len, n_pieces, n_sampled }
    }

    /// `n_sampled` pieces of this tensor, or all of them if there are fewer.
    pub(crate) fn of(self, n_sampled: u64) -> Self {
        Spread { n_sampled: n_sampled.min(self.n_pieces), ..self }
    }

    /// All pieces of the tensor in an order of which every beginning is spread over it, so that a
    /// sample can grow: steps of about the golden section of all.
    pub(crate) fn in_steps(self) -> impl Iterator<Item = Piece> {
        let n = self.n_pieces;
        let section = (n as f64 * 0.618_033_988_749_894_8) as u64;
        let step = (section.max(1)..).find(|step| greatest_common_divisor(*step, n) == 1).unwrap_or(1);
        (0..n).map(move |i| self.piece(((u128::from(i) * u128::from(step) + u128::from(n / 2)) % u128::from(n)) as u64))
    }

    pub(crate) fn pieces(self) -> impl Iterator<Item = Piece> + Clone {
        (0..self.n_sampled).map(move |i| self.piece(middle(i, self.n_sampled, self.n_pieces)))
    }

    fn piece(self, number: u64) -> Piece {
        let per_row = self.row_len.div_ceil(PIECE_WEIGHTS);
        let (row, start) = (number / per_row, number % per_row * PIECE_WEIGHTS);
        (row, start, PIECE_WEIGHTS.min(self.row_len - start))
    }

    /// Weights in all of the pieces.
    pub(crate) fn n_weights(self) -> u64 {
        self.pieces().map(|(.., len)| len).sum()
    }
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// The middle of the i-th of `n_parts` equal parts of `n`.
pub fn middle(i: u64, n_parts: u64, n: u64) -> u64 {
    ((u128::from(i) * 2 + 1) * u128::from(n) / (u128::from(n_parts) * 2)) as u64
}

/// Computes sums on pieces of rows, whole blocks of every type, with one buffer for all.
pub(crate) struct Pieces<'a> {
    inputs: &'a Inputs,
    model: Option<TensorRef>,
    terms: &'a [Term],
    combination: &'a Combination,
    /// What is selected of each term, once [`Pieces::select`] has looked.
    selections: Vec<Selection>,
    operands: Vec<(Operand, Rows<'a>)>,
    row_len: u64,
    buffers: Buffers,
    space: Space,
    /// The coordinates of the piece that was computed last.
    coordinates: Coordinates,
    /// The coordinates of the vector that was computed last.
    of_tau: Coordinates,
}

/// Blocks as they were read.
#[derive(Default)]
struct Buffers {
    /// What was read ahead for each operand; empty without memory for it.
    ahead: Vec<Ahead>,
    /// The blocks of a piece that is too long to be read ahead.
    raw: Vec<u8>,
}

impl Buffers {
    /// Bytes of the tensor of an operand.
    fn read(
        &mut self,
        source: &dyn TensorSource,
        id: TensorId,
        operand: usize,
        (offset, n): (u64, u64),
    ) -> Result<&[u8], Error> {
        let n = n as usize;
        match self.ahead.get_mut(operand).filter(|ahead| ahead.takes(n)) {
            Some(ahead) => Ok(ahead.read(source, id, offset, n)?),
            None => {
                self.raw.resize(n, 0);
                source.read(id, offset, &mut self.raw)?;
                Ok(&self.raw)
            }
        }
    }
}

/// Bytes that are worth keeping of each operand: two pieces of F32.
const LEAST_AHEAD: u64 = 2 * 4 * PIECE_WEIGHTS;

/// Bytes beyond which more made no difference.
const MOST_AHEAD: u64 = 256 << 10;

/// How many threads run in a memory, where each takes so many bytes, and of them so many for blocks
/// of one piece; and what each of them then has to read ahead with, for all of as many operands.
pub(crate) fn share_out(memory: u64, threads: usize, thread_bytes: u64, n_operands: u64) -> (usize, u64) {
    let least = thread_bytes.saturating_add(n_operands * LEAST_AHEAD);
    let threads = (memory / least).clamp(1, threads.max(1) as u64);
    let left = (memory / threads).saturating_sub(thread_bytes);
    let ahead = if left < n_operands * LEAST_AHEAD { 0 } else { left.min(n_operands * MOST_AHEAD) };
    (threads as usize, ahead)
}

impl<'a> Pieces<'a> {
    /// For `model`, if there is one, and what `terms` add to rows of this length, those of `except`
    /// aside. `ahead` are the bytes that may be used to read more than a piece at a time, besides
    /// those of one.
    pub(crate) fn new(
        inputs: &'a Inputs,
        model: Option<TensorRef>,
        terms: &'a [Term],
        combination: &'a Combination,
        except: &'a [u32],
        row_len: u64,
        ahead: u64,
    ) -> Self {
        let operands: Vec<Operand> = operands(model, terms).collect();
        let rows = |operand: Operand| inputs.rows(&operand, operands[0].at, except);
        let operands: Vec<_> = operands.iter().map(|operand| (*operand, rows(*operand))).collect();
        let each = ahead as usize / operands.len().max(1);
        let ahead = operands.iter().map(|_| Ahead::new(each)).collect();
        let name = |term: &Term| inputs.source(term.plus.source).tensor(term.plus.tensor).name();
        Pieces {
            inputs,
            model,
            terms,
            combination,
            selections: Vec::new(),
            operands,
            row_len,
            buffers: Buffers { ahead, raw: Vec::new() },
            space: terms.first().map_or(Space::AsStored, |term| Space::of(name(term))),
            coordinates: Coordinates::default(),
            of_tau: Coordinates::default(),
        }
    }

    /// Finds what is selected of each term, if these are all pieces of the tensor; about that, if
    /// they are not.
    ///
    /// # Errors
    /// Those of the sources.
    pub(crate) fn select(&mut self, spread: Spread, (tau, minus): (&mut Vec<f32>, &mut Vec<f32>)) -> Result<(), Error> {
        for (i, term) in self.terms.iter().enumerate() {
            let mut selector = self.combination.selector(i, spread.n_weights());
            while !selector.is_done() {
                for piece @ (row, start, _) in spread.pieces() {
                    self.tau(term, piece, (tau, minus))?;
                    selector.see(row * self.row_len + start, tau);
                }
                selector.end_pass();
            }
            self.selections.push(selector.selection());
        }
        Ok(())
    }

    /// The sum on a piece.
    ///
    /// # Errors
    /// Those of the sources.
    pub(crate) fn compute(&mut self, sum: &mut Sum, piece: Piece) -> Result<(), Error> {
        let (row, start, len) = piece;
        let Pieces { inputs, model, terms, combination, selections, operands, row_len, buffers, .. } = self;
        let coordinates = &mut self.coordinates;
        coordinates.begin(self.space);
        let first = row * *row_len + start;
        sum.combine(len as usize, first, *model, terms, (combination, selections), false, |operand, out| {
            load(inputs, operands, operand, piece, *row_len, (buffers, coordinates), out)
        })?;
        self.coordinates.check(sum)
    }

    /// The way of the piece that was computed last into the space it was computed in, and back.
    pub(crate) fn coordinates(&self) -> &Coordinates {
        &self.coordinates
    }

    /// The vector of a term on a piece, unscaled; `minus` gets the base, if it has one.
    ///
    /// # Errors
    /// Those of the sources.
    pub(crate) fn tau(
        &mut self,
        term: &Term,
        piece: Piece,
        (tau, minus): (&mut Vec<f32>, &mut Vec<f32>),
    ) -> Result<(), Error> {
        let Pieces { inputs, operands, row_len, buffers, of_tau, .. } = self;
        of_tau.begin(self.space);
        let (plus, base) = term.operands();
        resize(tau, piece.2 as usize);
        load(inputs, operands, plus, piece, *row_len, (buffers, of_tau), tau)?;
        if let Some(base) = base {
            resize(minus, piece.2 as usize);
            load(inputs, operands, base, piece, *row_len, (buffers, of_tau), minus)?;
            tau.iter_mut().zip(&*minus).for_each(|(t, m)| *t -= m);
        }
        Ok(())
    }

    /// The blocks of the model's own tensor on a piece.
    ///
    /// # Errors
    /// Whatever the source reports.
    ///
    /// # Panics
    /// If there is no model.
    pub(crate) fn blocks_of_model(&mut self, (row, start, len): Piece) -> Result<&[u8], Error> {
        let at = self.model.expect("asked only where there is one");
        let source = self.inputs.source(at.source);
        let info = source.tensor(at.tensor);
        let size = |n: u64| info.ty().size_of(n).expect("pieces begin and end at blocks");
        self.buffers.read(source, at.tensor, 0, (row * info.row_size() + size(start), size(len)))
    }
}

/// Weights of a operand on a piece of the output's rows, as they are added.
fn load(
    inputs: &Inputs,
    operands: &[(Operand, Rows<'_>)],
    operand: Operand,
    (row, start, len): Piece,
    row_len: u64,
    (buffers, coordinates): (&mut Buffers, &mut Coordinates),
    out: &mut [f32],
) -> Result<(), Error> {
    let mut number = operands.iter().position(|(other, _)| *other == operand).expect("a sum asks for its own operands");
    let rows = &operands[number].1;
    let (mut at, mut from) = (operand.at, rows.find(row));
    if from.is_none() && rows.absent() == Absent::Own {
        (number, at, from) = (0, operands[0].0.at, operands[0].1.find(row));
    }
    let Some(from) = from else {
        out.fill(0.0);
        return Ok(());
    };
    let source = inputs.source(at.source);
    let info = source.tensor(at.tensor);
    let size = |n: u64| info.ty().size_of(n).expect("pieces begin and end at blocks");
    let raw = buffers.read(source, at.tensor, number, (from * info.row_size() + size(start), size(len)))?;
    decode(source, at.tensor, from * row_len + start, raw, out)?;
    operands[number].1.turn(start, out);
    if rows.is_difference() { Ok(()) } else { coordinates.enter(source, at.tensor, from * row_len + start, out) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_meet_every_piece_once_and_every_beginning_is_spread() {
        for n in [1, 2, 3, 8, 255, 256, 1000, 4096] {
            let spread = Spread { row_len: 64, n_pieces: n, n_sampled: n };
            let rows: Vec<u64> = spread.in_steps().map(|(row, ..)| row).collect();
            let mut sorted = rows.clone();
            sorted.sort_unstable();
            assert!(sorted.iter().copied().eq(0..n), "{n}");
            // No gap is five times as long as if the beginning were even: a step that is prime to n
            // is not quite golden.
            for begin in [4, 16, 100].into_iter().filter(|begin| *begin < n as usize / 4) {
                let mut some = rows[..begin].to_vec();
                some.extend([0, n]);
                some.sort_unstable();
                let gap = some.windows(2).map(|w| w[1] - w[0]).max().unwrap();
                assert!(gap <= 5 * n / begin as u64, "{n}: a gap of {gap} after {begin}");
            }
        }
    }
}
