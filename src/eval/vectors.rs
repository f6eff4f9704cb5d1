//! Two patches: how far apart the vectors are that they hold, as an apply reads them.
//!
//! τ is compared whatever it is stored as, rows of embeddings by the texts of their tokens. A
//! tensor that a patch leaves out is zero there, and so are the rows of tokens that it lacks.

use std::collections::HashSet;
use std::ops::Range;

use super::tensors::{Difference, NotCompared, PIECE_WEIGHTS, Reason, TensorDifference, TensorTable};
use crate::chat::TokenMap;
use crate::ggml::GgmlType;
use crate::gguf::names::{OUTPUT, TOKEN_EMBEDDINGS};
use crate::gguf::{Model, TensorId};
use crate::patch::{self, require_patch_space, whole_name};
use crate::pipeline::Budget;
use crate::pool::{self, Pool};
use crate::quants;
use crate::vector::{Error, FoldedTensor, Folding, TensorSource, Turn, decode, has_row_per_token, is_by_token, resize};

/// Bytes of buffers of a thread: both rows as f32, and blocks of one of them.
const THREAD_BYTES: u64 = 3 * 4 * PIECE_WEIGHTS;

/// Compares the vectors of two patches that [`crate::patch::open`] has opened. Reads every weight
/// once, with at most 0.75 MiB of buffers a thread and what computing rows takes, and as many
/// threads as the budget allows, but one at least.
///
/// # Errors
/// [`Error::Container`], [`Error::Type`], [`Error::NotFinite`], [`Error::Threads`];
/// [`Error::Folded`], [`Error::FoldKey`] and [`Error::PatchSpace`] for vectors whose numbers have
/// no distance.
pub fn compare_vectors(a: &Model, b: &Model, budget: &Budget) -> Result<TensorTable, Error> {
    [a, b].into_iter().try_for_each(Model::require_little_endian)?;
    let scratch = |patch: &Model| (0..patch.n_tensors()).map(|id| patch.scratch_of(id)).max().unwrap_or(0);
    let thread_bytes = THREAD_BYTES.saturating_add(scratch(a)).saturating_add(scratch(b));
    let threads = budget.threads.min((budget.memory / thread_bytes) as usize).max(1);
    let pool = Pool::new(threads)?;

    let (a, b) = (PatchVector::new(a), PatchVector::new(b));
    let map = TokenMap::new(a.patch.metadata(), b.patch.metadata());
    let (folding_a, folding_b) = (Folding::read(a.patch)?, Folding::read(b.patch)?);
    let mut table = TensorTable::default();
    let only_in_b = b.names.iter().filter(|name| !a.listed.contains(name.as_str()));
    for name in a.names.iter().chain(only_in_b) {
        let leave_out = |reason| NotCompared { name: name.clone(), reason };
        let (held_a, held_b) = match (a.held(name), b.held(name)) {
            (InPatch::Absent, _) => {
                table.not_compared.push(leave_out(Reason::OnlyInB));
                continue;
            }
            (_, InPatch::Absent) => {
                table.not_compared.push(leave_out(Reason::OnlyInA));
                continue;
            }
            (InPatch::Stored(a), InPatch::Stored(b)) => (Some(a), Some(b)),
            (InPatch::Stored(a), InPatch::Zero) => (Some(a), None),
            (InPatch::Zero, InPatch::Stored(b)) => (None, Some(b)),
            (InPatch::Zero, InPatch::Zero) => continue,
        };
        let whole = whole_name(name);
        let sides = [(a.patch, held_a, &folding_a), (b.patch, held_b, &folding_b)];
        let [own, other] = sides.map(|(patch, held, folding)| {
            held.map(|id| FoldedTensor { name: whole, ..FoldedTensor::new(patch, folding.as_ref(), id) })
        });
        [own, other].iter().flatten().try_for_each(|side| require_patch_space(side.model, whole))?;
        let turn = own.zip(other).map(|(own, other)| other.turn(own)).transpose()?.flatten();
        match TensorPair::new((&a, held_a), (&b, held_b), map.as_ref()) {
            Err(reason) => table.not_compared.push(leave_out(reason)),
            Ok(pair) => table.tensors.push(pool.install(|| TensorPair { turn, ..pair }.run(name))?),
        }
    }
    table.add_up();
    Ok(table)
}

/// A patch, and the names of what its vector consists of.
struct PatchVector<'a> {
    patch: &'a Model,
    names: Vec<String>,
    listed: HashSet<String>,
}

/// What a patch has of a tensor.
enum InPatch {
    Stored(TensorId),
    /// The patch leaves the tensor out, since it is zero.
    Zero,
    /// The vector has no such tensor.
    Absent,
}

impl<'a> PatchVector<'a> {
    fn new(patch: &'a Model) -> Self {
        let names = patch.metadata().get_strings(patch::format::TENSORS);
        let listed = names.into_iter().flat_map(|names| names.iter()).map(ToString::to_string);
        let stored =
            patch.tensors().map(|info| info.name()).filter(|name| !patch::format::is_beside(name)).map(str::to_owned);
        let mut vector = PatchVector { patch, names: Vec::new(), listed: HashSet::new() };
        for name in listed.chain(stored) {
            if vector.listed.insert(name.clone()) {
                vector.names.push(name);
            }
        }
        vector
    }

    fn held(&self, name: &str) -> InPatch {
        match self.patch.find(name) {
            Some(id) => InPatch::Stored(id),
            None if self.listed.contains(name) => InPatch::Zero,
            // Of a model with tied embeddings, whose vector stands for the output too.
            None if name == OUTPUT => self.held(TOKEN_EMBEDDINGS),
            None => InPatch::Absent,
        }
    }
}

/// What a patch stores of a tensor: nothing where the vector is zero.
type StoredTensor<'a> = Option<(&'a Model, TensorId)>;

/// The same tensor of two vectors.
struct TensorPair<'a> {
    a: StoredTensor<'a>,
    b: StoredTensor<'a>,
    row_len: u64,
    rows: RowPairs,
    /// How B comes to be folded as A is.
    turn: Option<Turn<'a>>,
}

/// Which rows belong together.
enum RowPairs {
    /// So many rows; each belongs to the row of its number.
    Same(u64),
    /// Rows of tokens with one text; none where a side lacks the token.
    ByToken(Vec<(Option<u32>, Option<u32>)>),
}

impl RowPairs {
    fn len(&self) -> u64 {
        match self {
            RowPairs::Same(n) => *n,
            RowPairs::ByToken(pairs) => pairs.len() as u64,
        }
    }

    /// The rows of A and of B in the pair of this number.
    fn get(&self, i: u64) -> (Option<u64>, Option<u64>) {
        match self {
            RowPairs::Same(_) => (Some(i), Some(i)),
            RowPairs::ByToken(pairs) => {
                let (a, b) = pairs[i as usize];
                (a.map(u64::from), b.map(u64::from))
            }
        }
    }

    fn by_token(map: &TokenMap) -> Self {
        let own = (0..map.n_own() as u32).map(|id| (Some(id), map.find(id)));
        let inverted = map.inverted();
        let others = (0..map.n_other() as u32).filter(|id| inverted.find(*id).is_none()).map(|id| (None, Some(id)));
        RowPairs::ByToken(own.chain(others).collect())
    }
}

impl<'a> TensorPair<'a> {
    /// Fails with what keeps the two from being compared.
    fn new(
        (a, held_a): (&PatchVector<'a>, Option<TensorId>),
        (b, held_b): (&PatchVector<'a>, Option<TensorId>),
        map: Option<&TokenMap>,
    ) -> Result<Self, Reason> {
        let (a, b) = (held_a.map(|id| (a.patch, id)), held_b.map(|id| (b.patch, id)));
        let info = |(patch, id): (&'a Model, TensorId)| patch.tensor(id);
        for side in [a, b].into_iter().flatten() {
            if !quants::is_supported(info(side).ty()) {
                return Err(Reason::Type(info(side).ty()));
            }
        }
        let some = a.or(b).map(info).expect("a pair of two zeros is none");
        let mut rows = RowPairs::Same(some.n_rows());
        if let (Some(a), Some(b)) = (a, b) {
            let by_token = |(patch, id): (&Model, TensorId)| is_by_token(patch, id);
            let map = map.filter(|map| !map.is_identity() && by_token(a) && by_token(b));
            let fits = match map {
                Some(_) => info(a).row_len() == info(b).row_len() && has_row_per_token(info(a).name()),
                None => info(a).same_shape(info(b)),
            };
            if !fits {
                return Err(Reason::Shape { a: info(a).ne().to_vec(), b: info(b).ne().to_vec() });
            }
            rows = map.map_or(rows, RowPairs::by_token);
        }
        Ok(TensorPair { a, b, row_len: some.row_len(), rows, turn: None })
    }

    /// Pieces are the same for any number of threads, and are added in their order.
    fn run(&self, name: &str) -> Result<TensorDifference, Error> {
        let rows_of_piece = (PIECE_WEIGHTS / self.row_len.max(1)).max(1);
        let columns_of_piece = self.row_len.clamp(1, PIECE_WEIGHTS);
        let n_columns = self.row_len.div_ceil(columns_of_piece);
        let n_pieces = self.rows.len().div_ceil(rows_of_piece) * n_columns;
        let piece = |buffers: &mut RowBuffers, piece: u64| {
            let row = piece / n_columns * rows_of_piece;
            let column = piece % n_columns * columns_of_piece;
            let rows = row..(row + rows_of_piece).min(self.rows.len());
            self.piece(rows, column..(column + columns_of_piece).min(self.row_len), buffers)
        };
        let sums = pool::try_map_init((0..n_pieces).collect(), RowBuffers::default, piece)?;
        let mut difference = Difference::default();
        sums.into_iter().for_each(|sum| difference += sum);
        let info = |(patch, id): (&'a Model, TensorId)| patch.tensor(id);
        let ty = |side: StoredTensor<'a>| side.map_or(GgmlType::F32, |side| info(side).ty());
        let ne = self.a.or(self.b).map_or(Vec::new(), |side| info(side).ne().to_vec());
        let (type_a, type_b) = (ty(self.a), ty(self.b));
        Ok(TensorDifference { name: name.to_owned(), ne, type_a, type_b, has_tau: false, difference })
    }

    fn piece(&self, rows: Range<u64>, columns: Range<u64>, buffers: &mut RowBuffers) -> Result<Difference, Error> {
        let n = (rows.end - rows.start) * (columns.end - columns.start);
        let RowBuffers { raw, a, b } = buffers;
        resize(a, n as usize);
        resize(b, n as usize);
        let (of_a, of_b): (Vec<_>, Vec<_>) = rows.map(|row| self.rows.get(row)).unzip();
        load(self.a, self.row_len, &of_a, &columns, raw, a)?;
        load(self.b, self.row_len, &of_b, &columns, raw, b)?;
        if let Some(turn) = self.turn {
            turn.apply(columns.start, b);
        }
        let mut sums = Difference::default();
        sums.add(a, b, None);
        Ok(sums)
    }
}

/// A thread's buffers, used again for every piece of a tensor.
#[derive(Default)]
struct RowBuffers {
    raw: Vec<u8>,
    a: Vec<f32>,
    b: Vec<f32>,
}

/// Loads `columns` of these rows, those together that lie one behind the other.
fn load(
    side: StoredTensor<'_>,
    row_len: u64,
    rows: &[Option<u64>],
    columns: &Range<u64>,
    raw: &mut Vec<u8>,
    out: &mut [f32],
) -> Result<(), Error> {
    let Some((patch, id)) = side else {
        out.fill(0.0);
        return Ok(());
    };
    let n_columns = columns.end - columns.start;
    let size = |n: u64| patch.tensor(id).ty().size_of(n).expect("pieces begin and end at blocks");
    let mut at = 0;
    while at < rows.len() {
        let mut end = at + 1;
        while end < rows.len() && n_columns == row_len && rows[end] == rows[at].map(|row| row + (end - at) as u64) {
            end += 1;
        }
        let out = &mut out[at * n_columns as usize..end * n_columns as usize];
        match rows[at] {
            None => out.fill(0.0),
            Some(row) => {
                let first = row * row_len + columns.start;
                raw.resize(size(out.len() as u64) as usize, 0);
                TensorSource::read(patch, id, size(first), raw)?;
                decode(patch, id, first, raw, out)?;
            }
        }
        at = end;
    }
    Ok(())
}
