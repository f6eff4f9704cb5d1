//! One worker's work on one chunk.

use std::ops::Range;

use super::feedbacks::Feedbacks;
use super::segment::rows_of;
use super::{Error, TensorSink};
use crate::ggml::GgmlType;
use crate::imatrix::RowImportance;
use crate::plan::TensorPlan;
use crate::quants::{self, Dither, Feedback, Placement};
use crate::vector::{
    self, Coordinates, Inputs, Kept, Moments, Operand, Rounding, Rows, Selection, Sum, TensorRef, TensorSource,
    check_finite, decode, decode_unscaled, divide_scale, minimum_rows, multiply_scale, resize,
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
    source: &'a dyn TensorSource,
    operand: Operand,
    ty: GgmlType,
    row_size: u64,
    blocks: &'a [u8],
    /// Which rows of the tensor those of the output are.
    rows: Rows<'a>,
    /// Whether it is the model, and has scales of its own that the output keeps.
    keeps_scale: bool,
}

impl LoadedSource<'_> {
    /// The blocks of `n_rows` rows from the `row`-th of the chunk.
    fn rows(&self, row: u64, n_rows: u64) -> &[u8] {
        &self.blocks[(row * self.row_size) as usize..((row + n_rows) * self.row_size) as usize]
    }

    /// Reads the rows of the chunk that the tensor has.
    fn read(at: TensorRef, rows: Rows<'_>, chunk: &Chunk, inputs: &Inputs, blocks: &mut [u8]) -> Result<(), Error> {
        let source = inputs.source(at.source);
        let row_size = source.tensor(at.tensor).row_size();
        let first = chunk.first_row;
        for (run, from) in rows.runs(first..first + chunk.n_rows) {
            let bytes = (run.start - first) * row_size..(run.end - first) * row_size;
            let blocks = &mut blocks[bytes.start as usize..bytes.end as usize];
            match from {
                Some(from) => source.read(at.tensor, from * row_size, blocks)?,
                // Not what an earlier chunk left: what nothing is added to is copied and looked at.
                None => blocks.fill(0),
            }
        }
        Ok(())
    }

    /// Takes decoded weights into the space they are added in, where the tensor does not hold
    /// differences within it.
    fn enter(&self, coordinates: &mut Coordinates, first_weight: u64, out: &mut [f32]) -> Result<(), vector::Error> {
        match self.rows.is_difference() {
            true => Ok(()),
            false => coordinates.enter(self.source, self.operand.at.tensor, first_weight, out),
        }
    }

    /// The weights of rows, counted from the first of the chunk. Those of rows that it lacks are
    /// those of `first`, if it is half of a difference, or zero.
    fn decode(
        &self,
        first: &LoadedSource<'_>,
        chunk: &Chunk,
        rows: Range<u64>,
        decode: DecodeFn,
        out: &mut [f32],
    ) -> Result<(), vector::Error> {
        let (start, row_len) = (chunk.first_row + rows.start, chunk.row_len);
        for (run, from) in self.rows.runs(start..chunk.first_row + rows.end) {
            let out = &mut out[((run.start - start) * row_len) as usize..((run.end - start) * row_len) as usize];
            let in_chunk = run.start - chunk.first_row..run.end - chunk.first_row;
            let blocks = self.rows(in_chunk.start, run.end - run.start);
            match from {
                Some(from) => decode(self.source, self.operand.at.tensor, from * row_len, blocks, out)?,
                None if self.rows.is_difference() || std::ptr::eq(self, first) => out.fill(0.0),
                None => first.decode(first, chunk, in_chunk, decode, out)?,
            }
        }
        Ok(())
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
        let at = operand.at;
        let info = inputs.source(at.source).tensor(at.tensor);
        let (ty, row_size) = (info.ty(), info.row_size());
        let is_model = plan.model() == Some(at) && sources.is_empty();
        let rows = inputs.rows(&operand, if is_model { &[] } else { taken }).select(plan.selected());
        let (own, after) = std::mem::take(&mut blocks).split_at_mut((chunk.n_rows * row_size) as usize);
        LoadedSource::read(at, rows, chunk, inputs, own)?;
        let keeps_scale = is_model && plan.keeps_scale(inputs);
        let source: &dyn TensorSource = inputs.source(at.source);
        sources.push(LoadedSource { source, operand, ty, row_size, blocks: own, rows, keeps_scale });
        blocks = after;
    }
    Ok(sources)
}

/// [`decode`], or [`decode_unscaled`].
type DecodeFn = fn(&dyn TensorSource, usize, u64, &[u8], &mut [f32]) -> Result<(), vector::Error>;

/// A chunk whose sources are read.
struct LoadedChunk<'a> {
    plan: &'a TensorPlan,
    chunk: &'a Chunk,
    sources: &'a [LoadedSource<'a>],
    selections: &'a [Selection],
    how: How<'a>,
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
        source.decode(&sources[0], &chunk, 0..n_rows, decode, out)?;
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
                self.sink.write(chunk.tensor, offset, sources[0].blocks)?;
                return Ok(Vec::new());
            }
            out.copy_from_slice(sources[0].blocks);
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
        let how = How { importance, grid: feedback.as_ref().map(|(feedback, dither)| (&**feedback, *dither)) };
        let computed = LoadedChunk { plan, chunk, sources: &sources, selections, how };
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

/// How weights become blocks, besides their type.
#[derive(Clone, Copy)]
struct How<'a> {
    importance: Option<RowImportance<'a>>,
    /// What the codes are chosen anew with.
    grid: Option<(&'a Feedback, Dither)>,
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
            source.decode(source, chunk, row..row + n_rows, decode, &mut self.got)?;
        }
        Ok(())
    }

    /// Puts rows that are another model's, as they are, in their places among the chunk's blocks:
    /// the same bytes where the types are the same.
    fn take_rows(&mut self, plan: &TensorPlan, chunk: &Chunk, inputs: &Inputs, out: &mut [u8]) -> Result<(), Error> {
        let Some(taken) = plan.taken() else { return Ok(()) };
        let source = inputs.source(taken.at.source);
        let info = source.tensor(taken.at.tensor);
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
                let start = (row - chunk.first_row) as usize * row_size;
                let out = &mut out[start..start + row_size];
                let is_scaled = plan.keeps_scale(inputs) || source.scale_of(taken.at.tensor).is_some();
                match info.ty() == plan.ty && !is_scaled {
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
        let rows = RowsToEncode { ty: plan.ty, row_len, first: row, importance };
        rows.encode(&self.got, out);
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
        let LoadedChunk { plan, chunk, sources, selections, how } = *computed;
        let importance = how.importance;
        let (row, n_rows) = (rows.start, rows.end - rows.start);
        let n = (n_rows * chunk.row_len) as usize;
        let first_weight = (chunk.first_row + row) * chunk.row_len;
        let model = plan.model().map(|_| &sources[0]).filter(|model| model.ty == plan.ty);
        let StripBuffers { sum, coordinates, got } = self;
        coordinates.begin(plan.space());
        let load = |operand: Operand, out: &mut [f32]| {
            let operand = plan.operand(operand);
            let s = sources.iter().find(|s| s.operand == operand).expect("sources are those of the plan");
            let decode = if s.keeps_scale && !plan.is_sum() { decode_unscaled } else { decode };
            s.decode(&sources[0], chunk, rows.clone(), decode, out)?;
            s.enter(coordinates, first_weight, out)
        };
        let combination = (plan.combination(), selections);
        sum.combine(n, first_weight, plan.model(), plan.terms(), combination, model.is_some(), load)?;

        let rows =
            RowsToEncode { ty: plan.ty, row_len: chunk.row_len as usize, first: chunk.first_row + row, importance };
        resize(got, n);
        let scaled = sources.first().filter(|model| model.keeps_scale && plan.is_sum());
        let stored = match scaled {
            None if coordinates.is_as_stored(sum) => sum.wanted(),
            _ => {
                coordinates.leave(sum, got);
                if let Some(model) = scaled {
                    divide_scale(model.source, model.operand.at.tensor, first_weight, got)?;
                }
                &got[..]
            }
        };
        match model {
            Some(model) if how.grid.is_some() => out.copy_from_slice(model.rows(row, n_rows)),
            Some(model) if plan.ty.is_quantized() || scaled.is_some() => {
                rows.encode_changed(stored, sum.delta(), model.rows(row, n_rows), out);
            }
            _ if plan.rounding == Rounding::UnitGain => {
                quants::quantize_to_unit_gain(plan.ty, stored, out).expect("the plan chose a type with few values");
            }
            // Floats decode and encode to the same bits, and the sum has kept what does not change.
            _ => rows.encode(stored, out),
        }
        if let Some((feedback, dither)) = how.grid {
            let place = Placement { row_len: chunk.row_len as usize, first_weight };
            let rounded = quants::round_to_grid(plan.ty, out, stored, sum.delta(), place, feedback, dither);
            rounded.expect("the plan chose a type with a grid");
        }
        quants::dequantize_row(plan.ty, out, got).expect("the plan chose a type that can be read");
        if let Some(model) = scaled {
            multiply_scale(model.source, model.operand.at.tensor, first_weight, got)?;
        }
        coordinates.enter_stored(sum, got);
        if let Some(i) = check_finite(sum.wanted()).or_else(|| check_finite(got)) {
            return Err(no_number(plan, (sum, coordinates), first_weight, i, importance.is_some()));
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

/// Whole rows that are to be encoded, the first of which has this number in its tensor.
#[derive(Clone, Copy)]
struct RowsToEncode<'a> {
    ty: GgmlType,
    row_len: usize,
    first: u64,
    importance: Option<RowImportance<'a>>,
}

impl RowsToEncode<'_> {
    fn encode(self, weights: &[f32], out: &mut [u8]) {
        let Some(importance) = self.importance else { return encode(self.ty, weights, None, out) };
        let n_rows = weights.len() / self.row_len;
        let row_size = out.len() / n_rows.max(1);
        for (rows, importance) in importance.parts(self.first..self.first + n_rows as u64) {
            let rows = (rows.start - self.first) as usize..(rows.end - self.first) as usize;
            let weights = &weights[rows.start * self.row_len..rows.end * self.row_len];
            encode(self.ty, weights, Some(importance), &mut out[rows.start * row_size..rows.end * row_size]);
        }
    }

    /// Encodes the blocks that change and copies those that do not: encoders are not idempotent, so
    /// a block that was decoded and encoded again would differ from itself.
    ///
    /// With an importance the encoder sees whole rows, because some types weigh a block by its
    /// row's variance; blocks of them that do not change are put back afterwards.
    fn encode_changed(self, stored: &[f32], delta: &[f32], blocks: &[u8], out: &mut [u8]) {
        let (len, size) = (self.ty.block_len(), self.ty.block_size());
        let unit = if self.importance.is_some() { self.row_len } else { len };
        let is_changed = |delta: &[f32]| delta.iter().any(|d| *d != 0.0);
        for (is_change, units) in runs(delta.chunks_exact(unit).map(is_changed)) {
            let weights = units.start * unit..units.end * unit;
            let bytes = weights.start / len * size..weights.end / len * size;
            if !is_change {
                out[bytes.clone()].copy_from_slice(&blocks[bytes]);
                continue;
            }
            let rows = RowsToEncode { first: self.first + (weights.start / self.row_len) as u64, ..self };
            rows.encode(&stored[weights.clone()], &mut out[bytes.clone()]);
            if unit > len {
                let changed = delta[weights].chunks_exact(len).map(is_changed);
                let blocks = blocks[bytes.clone()].chunks_exact(size);
                for ((out, block), _) in out[bytes].chunks_exact_mut(size).zip(blocks).zip(changed).filter(|(_, c)| !c)
                {
                    out.copy_from_slice(block);
                }
            }
        }
    }
}

fn encode(ty: GgmlType, weights: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    let encoded = quants::quantize_rows(ty, weights, importance, out);
    encoded.expect("the plan chose a type that can be written and fits the rows");
}

/// Ranges of neighbours that are alike.
fn runs(flags: impl Iterator<Item = bool>) -> impl Iterator<Item = (bool, Range<usize>)> {
    let mut flags = flags.enumerate().peekable();
    std::iter::from_fn(move || {
        let (start, flag) = flags.next()?;
        let mut end = start + 1;
        while flags.next_if(|(_, other)| *other == flag).is_some() {
            end += 1;
        }
        Some((flag, start..end))
    })
}
