//! One worker's work on one chunk.

use std::ops::Range;

use super::feedbacks::Feedbacks;
use super::segment::rows_of;
use super::{Error, TensorSink};
use crate::ggml::GgmlType;
use crate::plan::TensorPlan;
use crate::quants::{self, Dither};
use crate::vector::{
    self, Coordinates, DecodeFn, Encoder, Inputs, Kept, Moments, Operand, Rounding, RowBlocks, Selection, Sum,
    TensorRef, ToEncode, check_finite, decode, decode_unscaled, divide_scale, minimum_rows, resize,
};

/// Whole rows of one tensor, beginning at a whole segment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Chunk {
    /// Position in the plan.
    pub(super) tensor: usize,
    pub(super) first_row: u64,
    pub(super) n_rows: u64,
    pub(super) first_segment: u64,
    pub(super) segment_rows: u64,
    /// Weights in a row.
    pub(super) row_len: u64,
    /// Bytes of a row in the output.
    pub(super) row_size: u64,
}

impl Chunk {
    /// Bytes of the chunk in the output.
    pub(super) fn n_bytes(&self) -> u64 {
        self.n_rows * self.row_size
    }
}

/// A thread's buffers, used again for every chunk.
pub(super) struct Worker<'a> {
    inputs: &'a Inputs,
    sink: &'a dyn TensorSink,
    feedbacks: &'a Feedbacks,
    /// Blocks of the output, then of the model, then of plus and minus of each term. One
    /// allocation, so that the largest chunk bounds it, and not the sum of each part's largest.
    blocks: Vec<u8>,
    strip: StripBuffers,
}

/// A source of a chunk and its blocks.
struct LoadedSource<'a> {
    operand: Operand,
    ty: GgmlType,
    blocks: RowBlocks<'a>,
    /// Whether it is the model, and has scales of its own that the output keeps.
    keeps_scale: bool,
}

impl LoadedSource<'_> {
    /// Takes decoded weights into the space they are added in, where the tensor does not hold
    /// differences within it.
    fn enter(&self, coordinates: &mut Coordinates, first_weight: u64, out: &mut [f32]) -> Result<(), vector::Error> {
        match self.blocks.rows().is_difference() {
            true => Ok(()),
            false => coordinates.enter(self.blocks.source(), self.blocks.tensor(), first_weight, out),
        }
    }

    /// The weights of these rows of the output. `own` is the first source of the tensor.
    fn decode(
        &self,
        own: &LoadedSource<'_>,
        rows: Range<u64>,
        decode: DecodeFn,
        out: &mut [f32],
    ) -> Result<(), vector::Error> {
        let own = Some(&own.blocks).filter(|_| !std::ptr::eq(self, own));
        self.blocks.decode(rows, own, decode, out)
    }
}

/// Reads the rows of a chunk of every source of a tensor into `blocks`. `taken` are the output's
/// rows that are no sum.
fn load<'a>(
    plan: &'a TensorPlan,
    chunk: &Chunk,
    inputs: &'a Inputs,
    taken: &'a [u32],
    mut blocks: &'a mut [u8],
) -> Result<Vec<LoadedSource<'a>>, Error> {
    let mut sources: Vec<LoadedSource<'_>> = Vec::new();
    for operand in plan.operands() {
        let TensorRef { source, tensor } = operand.at;
        let info = inputs.source(source).tensor(tensor);
        let is_model = plan.model() == Some(operand.at) && sources.is_empty();
        let rows = inputs.rows(&operand, plan.own(), if is_model { &[] } else { taken }).select(plan.selected());
        let (own, after) = std::mem::take(&mut blocks).split_at_mut((chunk.n_rows * info.row_size()) as usize);
        let keeps_scale = is_model && plan.keeps_scale(inputs);
        let wanted = chunk.first_row..chunk.first_row + chunk.n_rows;
        let loaded = RowBlocks::read(inputs.source(source), tensor, rows, wanted, own)?;
        sources.push(LoadedSource { operand, ty: info.ty(), blocks: loaded, keeps_scale });
        blocks = after;
    }
    Ok(sources)
}

/// A chunk whose sources are read.
struct LoadedChunk<'a> {
    plan: &'a TensorPlan,
    chunk: &'a Chunk,
    sources: &'a [LoadedSource<'a>],
    selections: &'a [Selection],
    encoder: Encoder<'a>,
}

/// f32 buffers of one strip.
#[derive(Default)]
struct StripBuffers {
    sum: Sum,
    coordinates: Coordinates,
    got: Vec<f32>,
}

/// Bytes of [`StripBuffers`] for each weight of a tensor.
pub(super) fn strip_bytes_per_weight(plan: &TensorPlan) -> u64 {
    Sum::bytes_per_weight(plan.terms().len(), plan.combination()) + Coordinates::bytes_per_weight(plan.space()) + 4
}

/// The sum of whole rows of a tensor, in true units and in its space: what is added, and what is
/// wanted.
pub(super) fn sum_of_rows(
    plan: &TensorPlan,
    inputs: &Inputs,
    selections: &[Selection],
    rows: Range<u64>,
) -> Result<Sum, Error> {
    let (row_len, _) = rows_of(plan);
    let n_rows = rows.end - rows.start;
    let (first_segment, segment_rows, row_size) = (0, n_rows, 0);
    let chunk = Chunk { tensor: 0, first_row: rows.start, n_rows, first_segment, segment_rows, row_len, row_size };
    let row_sizes = plan.sources().map(|at| inputs.source(at.source).tensor(at.tensor).row_size());
    let mut blocks = vec![0; (row_sizes.sum::<u64>() * n_rows) as usize];
    let taken = plan.taken_rows();
    let sources = load(plan, &chunk, inputs, &taken, &mut blocks)?;
    let (mut sum, mut coordinates) = (Sum::default(), Coordinates::default());
    coordinates.begin(plan.space());
    let (n, first) = ((n_rows * row_len) as usize, rows.start * row_len);
    let weights = |operand: Operand, out: &mut [f32]| {
        let operand = plan.operand(operand);
        let source = sources.iter().find(|s| s.operand == operand).expect("sources are those of the plan");
        source.decode(&sources[0], rows.clone(), decode, out)?;
        source.enter(&mut coordinates, first, out)
    };
    sum.combine(n, first, plan.model(), plan.terms(), (plan.combination(), selections), true, weights)?;
    Ok(sum)
}

impl<'a> Worker<'a> {
    /// `block_bytes` is the size of the largest chunk: a vector that grows on its way there would
    /// take up to twice as much.
    pub(super) fn new(
        inputs: &'a Inputs,
        sink: &'a dyn TensorSink,
        feedbacks: &'a Feedbacks,
        block_bytes: usize,
    ) -> Self {
        Worker { inputs, sink, feedbacks, blocks: vec![0; block_bytes], strip: StripBuffers::default() }
    }

    /// Reads, computes and writes one chunk. Returns the sums of its segments; none for a tensor
    /// that nothing is added to.
    pub(super) fn work(
        &mut self,
        plan: &TensorPlan,
        chunk: &Chunk,
        selections: &[Selection],
    ) -> Result<Vec<Moments>, Error> {
        let inputs = self.inputs;
        let (out, rest) = self.blocks.split_at_mut(chunk.n_bytes() as usize);
        let taken = plan.taken_rows();
        let sources = load(plan, chunk, inputs, &taken, rest)?;
        let offset = chunk.first_row * chunk.row_size;
        let strip_rows = minimum_rows(chunk.row_len);
        if plan.takes_blocks(inputs) {
            if must_be_finite(plan) {
                self.strip.check(chunk, &sources[0], strip_rows)?;
            }
            if plan.taken().is_none() {
                self.sink.write(chunk.tensor, offset, sources[0].blocks.all())?;
                return Ok(Vec::new());
            }
            out.copy_from_slice(sources[0].blocks.all());
            self.strip.take_rows(plan, chunk, inputs, out)?;
            self.sink.write(chunk.tensor, offset, out)?;
            return Ok(Vec::new());
        }

        let importance = plan.importance(inputs).filter(|_| quants::uses_importance(plan.ty));
        let feedback = match plan.rounding {
            Rounding::Encoder | Rounding::UnitGain => None,
            Rounding::Dithered { amplitude } => {
                let dither = Dither { seed: Dither::seed_of(&plan.name), amplitude };
                Some((self.feedbacks.of(chunk.tensor, plan, self.inputs)?, dither))
            }
        };
        let grid = feedback.as_ref().map(|(feedback, dither)| (&**feedback, *dither));
        let encoder = Encoder { encoding: plan.encoding(), row_len: chunk.row_len, importance, grid };
        let computed = LoadedChunk { plan, chunk, sources: &sources, selections, encoder };
        let mut sums = Vec::new();
        let mut row = 0;
        while row < chunk.n_rows {
            let end = (row + chunk.segment_rows).min(chunk.n_rows);
            let mut segment = Moments::default();
            while row < end {
                let n_rows = strip_rows.min(end - row);
                let out = &mut out[(row * chunk.row_size) as usize..((row + n_rows) * chunk.row_size) as usize];
                segment += self.strip.compute(&computed, row..row + n_rows, out)?;
                row += n_rows;
            }
            if plan.is_sum() {
                sums.push(segment);
            }
        }
        self.strip.take_rows(plan, chunk, inputs, out)?;
        self.sink.write(chunk.tensor, offset, out)?;
        Ok(sums)
    }
}

/// Whether a copied tensor is looked at. One that is no weight may hold what it likes.
pub(super) fn must_be_finite(plan: &TensorPlan) -> bool {
    matches!(
        plan.kept(),
        Some(Kept::NoVector | Kept::NoPartner | Kept::Zero | Kept::Skipped | Kept::ByToken | Kept::RatioZero)
    ) && quants::is_supported(plan.ty)
}

impl StripBuffers {
    /// Refuses NaN and infinity in blocks that are copied.
    fn check(&mut self, chunk: &Chunk, source: &LoadedSource<'_>, strip_rows: u64) -> Result<(), Error> {
        for row in (0..chunk.n_rows).step_by(strip_rows as usize) {
            let n_rows = strip_rows.min(chunk.n_rows - row);
            resize(&mut self.got, (n_rows * chunk.row_len) as usize);
            let first = chunk.first_row + row;
            source.decode(source, first..first + n_rows, decode, &mut self.got)?;
        }
        Ok(())
    }

    /// Puts rows that are another model's, as they are, in their places among the chunk's blocks:
    /// the same bytes where the types are the same.
    fn take_rows(&mut self, plan: &TensorPlan, chunk: &Chunk, inputs: &Inputs, out: &mut [u8]) -> Result<(), Error> {
        let Some(taken) = plan.taken() else { return Ok(()) };
        let source = inputs.source(taken.at.source);
        let (info, turn) = (source.tensor(taken.at.tensor), inputs.turn(taken.at, taken.own));
        let row_size = chunk.row_size as usize;
        let is_before = |end: u64| move |&(row, _): &(u32, u32)| u64::from(row) < end;
        let end = taken.rows.partition_point(is_before(chunk.first_row + chunk.n_rows));
        let mut rest = &taken.rows[taken.rows.partition_point(is_before(chunk.first_row))..end];
        while let Some(&(_, first)) = rest.first() {
            let (run, after) = rest.split_at(neighbours(rest, info.row_size()));
            rest = after;
            let mut read = vec![0; run.len() * info.row_size() as usize];
            source.read(taken.at.tensor, u64::from(first) * info.row_size(), &mut read)?;
            for (&(row, from), blocks) in run.iter().zip(read.chunks_exact(info.row_size() as usize)) {
                let row = u64::from(row);
                let first_weight = u64::from(from) * chunk.row_len;
                resize(&mut self.got, chunk.row_len as usize);
                decode(source, taken.at.tensor, first_weight, blocks, &mut self.got)?;
                if let Some(turn) = turn {
                    turn.apply(0, &mut self.got);
                }
                let start = (row - chunk.first_row) as usize * row_size;
                let out = &mut out[start..start + row_size];
                let is_scaled = plan.keeps_scale(inputs) || source.scale_of(taken.at.tensor).is_some();
                match info.ty() == plan.ty && !is_scaled && turn.is_none() {
                    true => out.copy_from_slice(blocks),
                    false => self.encode_row(plan, row, inputs, out)?,
                }
            }
        }
        Ok(())
    }

    /// Encodes a row of true weights, that of this number in the output.
    fn encode_row(&mut self, plan: &TensorPlan, row: u64, inputs: &Inputs, out: &mut [u8]) -> Result<(), Error> {
        let importance = plan.importance(inputs).filter(|_| quants::uses_importance(plan.ty));
        let row_len = self.got.len();
        if let Some(model) = plan.model().filter(|_| plan.keeps_scale(inputs)) {
            divide_scale(inputs.source(model.source), model.tensor, 0, &mut self.got)?;
        }
        let encoder = Encoder { encoding: plan.encoding(), row_len: row_len as u64, importance, grid: None };
        encoder.encode_weights(row * row_len as u64, &self.got, out);
        let wanted = std::mem::take(&mut self.got);
        resize(&mut self.got, wanted.len());
        quants::dequantize_row(plan.ty, out, &mut self.got).expect("the plan chose a type that can be read");
        if let Some(i) = check_finite(&self.got) {
            let i = largest_of_block(&wanted, i, plan.ty.block_len());
            let (tensor, index, value) = (plan.name.clone(), row * row_len as u64 + i as u64, wanted[i]);
            return Err(Error::Range { tensor, index, value, ty: plan.ty });
        }
        Ok(())
    }

    /// Computes rows, counted from the first of the chunk, into `out`.
    fn compute(&mut self, computed: &LoadedChunk<'_>, rows: Range<u64>, out: &mut [u8]) -> Result<Moments, Error> {
        let LoadedChunk { plan, chunk, sources, selections, encoder } = *computed;
        let rows = chunk.first_row + rows.start..chunk.first_row + rows.end;
        let (n, first) = (((rows.end - rows.start) * chunk.row_len) as usize, rows.start * chunk.row_len);
        let model = plan.model().map(|_| &sources[0]);
        let own = model.filter(|model| model.ty == plan.ty);
        let StripBuffers { sum, coordinates, got } = self;
        coordinates.begin(plan.space());
        let load = |operand: Operand, out: &mut [f32]| {
            let operand = plan.operand(operand);
            let s = sources.iter().find(|s| s.operand == operand).expect("sources are those of the plan");
            let decode = if s.keeps_scale && !plan.is_sum() { decode_unscaled } else { decode };
            s.decode(&sources[0], rows.clone(), decode, out)?;
            s.enter(coordinates, first, out)
        };
        let combination = (plan.combination(), selections);
        sum.combine(n, first, plan.model(), plan.terms(), combination, own.is_some(), load)?;
        coordinates.check(sum)?;

        let scaled = model.filter(|model| model.keeps_scale && plan.is_sum());
        let scaled = scaled.map(|model| (model.blocks.source(), model.blocks.tensor()));
        let own = own.map(|model| model.blocks.of(rows));
        encoder.encode(ToEncode { first, sum, coordinates, scaled, own }, got, out)?;
        if let Some(i) = check_finite(sum.wanted()).or_else(|| check_finite(got)) {
            return Err(no_number(plan, (sum, coordinates), first, i, encoder.importance.is_some()));
        }
        let mut moments = Moments::default();
        if plan.is_sum() {
            moments.add(&sum.weights(got));
        }
        Ok(moments)
    }
}

/// Bytes of rows of another model that are read at a time, if one is no longer.
const TAKEN_BYTES: u64 = 64 << 10;

/// How many of the first rows, of so many bytes each, lie one behind the other in the other model,
/// too.
fn neighbours(rows: &[(u32, u32)], row_size: u64) -> usize {
    let most = (TAKEN_BYTES / row_size.max(1)).max(1) as usize;
    let n = rows.windows(2).take(most).take_while(|pair| pair[0].1.checked_add(1) == Some(pair[1].1)).count() + 1;
    n.min(most).min(rows.len())
}

/// Why the block of the `i`-th weight of a strip came out as no number.
fn no_number(
    plan: &TensorPlan,
    (sum, coordinates): (&Sum, &Coordinates),
    first_weight: u64,
    i: usize,
    has_importance: bool,
) -> Error {
    let i = largest_of_block(sum.wanted(), i, plan.ty.block_len());
    let (tensor, index, value) = (plan.name.clone(), first_weight + i as u64, coordinates.stored(sum, i));
    match has_importance && value.is_finite() {
        true => Error::Importance { tensor, index, value, ty: plan.ty },
        false => Error::Range { tensor, index, value, ty: plan.ty },
    }
}

/// The weight that spoils the block of the `i`-th: one that is no number, or the largest.
fn largest_of_block(weights: &[f32], i: usize, block_len: usize) -> usize {
    let start = i - i % block_len;
    let block = weights[start..start + block_len].iter().enumerate();
    start + block.max_by(|a, b| a.1.abs().total_cmp(&b.1.abs())).map_or(0, |(i, _)| i)
}
