//! Two files, tensor by tensor: how far apart their weights are.

use std::collections::BTreeMap;
use std::ops::AddAssign;
use std::path::Path;

use crate::ggml::GgmlType;
use crate::gguf::{Model, TensorId};
use crate::patch::{is_patch, require_patch_space};
use crate::pipeline::Budget;
use crate::pool::{self, Pool};
use crate::quants;
use crate::vector::{Coordinates, Error, FoldedTensor, Folding, Space, TensorSource, Turn, decode, part_of, resize};

/// A vector τ to look for in the difference: chat − base, or a patch.
#[derive(Clone, Copy, Debug)]
pub struct Tau<'a> {
    /// The chat model, or the patch.
    pub plus: &'a Model,
    /// The base; none for a patch.
    pub minus: Option<&'a Model>,
}

/// Sums in f64 over weights *a* of A, *b* of B and τ, from which norms and cosines follow.
#[derive(Clone, Copy, PartialEq, Default, Debug, serde::Serialize)]
pub struct Difference {
    /// Σ a²
    pub a2: f64,
    /// Σ b²
    pub b2: f64,
    /// Σ (b − a)²
    pub difference2: f64,
    /// max |b − a|
    pub max: f64,
    /// Σ τ²
    pub tau2: f64,
    /// Σ (b − a)·τ
    pub difference_tau: f64,
}

impl Difference {
    /// ‖A‖
    pub fn norm_a(&self) -> f64 {
        self.a2.sqrt()
    }

    /// ‖B‖
    pub fn norm_b(&self) -> f64 {
        self.b2.sqrt()
    }

    /// ‖B − A‖ / ‖A‖. None where A is zero.
    pub fn relative(&self) -> Option<f64> {
        (self.a2 > 0.0).then(|| (self.difference2 / self.a2).sqrt())
    }

    /// cos(A, B). None where either is zero.
    pub fn cosine(&self) -> Option<f64> {
        let norms = self.norm_a() * self.norm_b();
        // ⟨a, b⟩ by the norms: near 1, where it matters, the small difference has all its digits.
        (norms > 0.0).then(|| ((self.a2 + self.b2 - self.difference2) / (2.0 * norms)).clamp(-1.0, 1.0))
    }

    /// ⟨B − A, τ⟩ / ⟨τ, τ⟩: how often B has the vector on top of A. 1 if B is A with the vector at
    /// ratio 1 and nothing was lost. None where the vector is zero, or there is none.
    pub fn survival(&self) -> Option<f64> {
        (self.tau2 > 0.0).then(|| self.difference_tau / self.tau2)
    }

    pub(super) fn add(&mut self, a: &[f32], b: &[f32], tau: Option<&[f32]>) {
        match tau {
            Some(tau) => self.add_weights::<true>(a, b, tau),
            // Any slice of the length will do for what is not looked at.
            None => self.add_weights::<false>(a, b, a),
        }
    }

    fn add_weights<const TAU: bool>(&mut self, a: &[f32], b: &[f32], tau: &[f32]) {
        // Running sums side by side, so that the compiler may use vectors. Their order follows from
        // the length alone.
        let mut lanes = [Difference::default(); 4];
        for ((a, b), tau) in a.chunks(4).zip(b.chunks(4)).zip(tau.chunks(4)) {
            for (lane, ((a, b), tau)) in lanes.iter_mut().zip(a.iter().zip(b).zip(tau)) {
                let (a, b) = (f64::from(*a), f64::from(*b));
                let difference = b - a;
                lane.a2 += a * a;
                lane.b2 += b * b;
                lane.difference2 += difference * difference;
                lane.max = if difference.abs() > lane.max { difference.abs() } else { lane.max };
                if TAU {
                    let tau = f64::from(*tau);
                    lane.tau2 += tau * tau;
                    lane.difference_tau += difference * tau;
                }
            }
        }
        lanes.into_iter().for_each(|lane| *self += lane);
    }
}

impl AddAssign for Difference {
    fn add_assign(&mut self, other: Self) {
        self.a2 += other.a2;
        self.b2 += other.b2;
        self.difference2 += other.difference2;
        self.max = self.max.max(other.max);
        self.tau2 += other.tau2;
        self.difference_tau += other.difference_tau;
    }
}

/// A tensor that both files have.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct TensorDifference {
    /// Its name.
    pub name: String,
    /// Its shape, row length first.
    pub ne: Vec<u64>,
    /// Its type in A.
    #[serde(serialize_with = "type_name")]
    pub type_a: GgmlType,
    /// Its type in B.
    #[serde(serialize_with = "type_name")]
    pub type_b: GgmlType,
    /// Whether τ has this tensor, so that there is something to survive.
    pub has_tau: bool,
    /// The sums.
    pub difference: Difference,
}

fn type_name<S: serde::Serializer>(ty: &GgmlType, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(ty.name())
}

/// All tensors of one part of the model ([`part_of`]).
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct PartDifference {
    /// The part.
    pub part: String,
    /// How many tensors.
    pub n_tensors: usize,
    /// Sums over them.
    pub difference: Difference,
}

/// Why a tensor was left out.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// B lacks it.
    OnlyInA,
    /// A lacks it.
    OnlyInB,
    /// The shapes differ. They have the row length first.
    Shape {
        /// The shape in A.
        a: Vec<u64>,
        /// The shape in B.
        b: Vec<u64>,
    },
    /// The codec does not know this type.
    #[serde(serialize_with = "type_name")]
    Type(GgmlType),
}

/// A tensor that was left out.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct NotCompared {
    /// Its name.
    pub name: String,
    /// Why.
    pub reason: Reason,
}

/// Two files, tensor by tensor.
#[derive(Clone, PartialEq, Debug, Default, serde::Serialize)]
pub struct TensorTable {
    /// What both files have, in the order of A.
    pub tensors: Vec<TensorDifference>,
    /// Sums by part of the model, in the order of the parts' names.
    pub parts: Vec<PartDifference>,
    /// Sums over all tensors.
    pub total: Difference,
    /// What was left out, in the order of A, then of B.
    pub not_compared: Vec<NotCompared>,
}

impl TensorTable {
    /// Whether everything was compared that the two have, so that the total is one of all.
    pub fn is_whole(&self) -> bool {
        self.not_compared.is_empty()
    }

    /// Adds up the tensors by part, and all of them.
    pub(super) fn add_up(&mut self) {
        let mut parts: BTreeMap<&str, (usize, Difference)> = BTreeMap::new();
        for t in &self.tensors {
            let (n_tensors, sum) = parts.entry(part_of(&t.name)).or_default();
            *n_tensors += 1;
            *sum += t.difference;
            self.total += t.difference;
        }
        let part = |(part, (n_tensors, difference)): (&str, _)| PartDifference {
            part: part.to_owned(),
            n_tensors,
            difference,
        };
        self.parts = parts.into_iter().map(part).collect();
    }
}

/// Weights that a thread looks at together. A multiple of 256 is whole blocks of every type, and
/// sums over these pieces are added in their order, so that results do not depend on threads or
/// memory.
pub(super) const PIECE_WEIGHTS: u64 = 1 << 16;

/// Bytes of buffers of a thread: A, B, and both sides of τ as f32, the blocks of one of them, and
/// weights as they are stored where others are compared.
const THREAD_BYTES: u64 = 6 * 4 * PIECE_WEIGHTS;

/// Compares the weights of two files, tensors by their names, and looks for a vector in the
/// difference. Tensors that τ lacks, or has in another shape, have no survival. Where a vector is
/// added to other numbers than the weights ([`Space`]), those are compared. Reads every weight
/// once, with at most 1.5 MiB of buffers a thread, and as many threads as the budget allows, but
/// one at least.
///
/// # Errors
/// [`Error::Container`] (also for a big-endian file), [`Error::NotFinite`], [`Error::Threads`];
/// [`Error::Folded`], [`Error::FoldKey`], [`Error::PatchSpace`], [`Error::Zero`] and
/// [`Error::Sign`] for files whose numbers have no distance.
pub fn compare_tensors(a: &Model, b: &Model, tau: Option<Tau<'_>>, budget: &Budget) -> Result<TensorTable, Error> {
    let vectors = tau.into_iter().flat_map(|tau| [Some(tau.plus), tau.minus]).flatten();
    [a, b].into_iter().chain(vectors).try_for_each(Model::require_little_endian)?;
    let threads = budget.threads.min((budget.memory / THREAD_BYTES) as usize).max(1);
    let pool = Pool::new(threads)?;

    let mut table = TensorTable::default();
    let mut jobs: Vec<Job<'_>> = Vec::new();
    for (id, info) in a.tensors().enumerate() {
        let leave_out = |reason| NotCompared { name: info.name().to_owned(), reason };
        let Some(id_b) = b.find(info.name()) else {
            table.not_compared.push(leave_out(Reason::OnlyInA));
            continue;
        };
        let other = b.tensor(id_b);
        let unreadable = [info.ty(), other.ty()].into_iter().find(|ty| !quants::is_supported(*ty));
        if !info.same_shape(other) {
            let reason = Reason::Shape { a: info.ne().to_vec(), b: other.ne().to_vec() };
            table.not_compared.push(leave_out(reason));
        } else if let Some(ty) = unreadable {
            table.not_compared.push(leave_out(Reason::Type(ty)));
        } else {
            let tau = tau.and_then(|tau| TauTensor::of(tau, a, id));
            jobs.push(Job { a: (a, id), b: (b, id_b), tau, turns: [None; 3] });
        }
    }
    let foldings = foldings(&jobs)?;
    jobs.iter_mut().try_for_each(|job| job.turn(&foldings))?;
    let only_in_b = b.tensors().filter(|info| a.find(info.name()).is_none());
    table
        .not_compared
        .extend(only_in_b.map(|info| NotCompared { name: info.name().to_owned(), reason: Reason::OnlyInB }));

    table.tensors = pool.install(|| pool::try_map(jobs, |job| job.run()))?;
    table.add_up();
    Ok(table)
}

/// A tensor of a file.
type At<'a> = (&'a Model, TensorId);

/// How the files are folded.
fn foldings<'a>(jobs: &[Job<'a>]) -> Result<Vec<(&'a Path, Option<Folding>)>, Error> {
    let mut foldings: Vec<(&Path, Option<Folding>)> = Vec::new();
    for (model, _) in jobs.iter().flat_map(Job::parts) {
        if !foldings.iter().any(|(path, _)| *path == model.path()) {
            foldings.push((model.path(), Folding::read(model)?));
        }
    }
    Ok(foldings)
}

/// The tensor of τ that has the name and shape of one to be compared.
struct TauTensor<'a> {
    plus: At<'a>,
    minus: Option<At<'a>>,
}

impl<'a> TauTensor<'a> {
    fn of(tau: Tau<'a>, a: &Model, id: TensorId) -> Option<Self> {
        let info = a.tensor(id);
        let find = |model: &'a Model| {
            let id = model.find(info.name())?;
            let found = model.tensor(id);
            (found.same_shape(info) && quants::is_supported(found.ty())).then_some((model, id))
        };
        let minus = match tau.minus {
            Some(model) => Some(find(model)?),
            None => None,
        };
        Some(TauTensor { plus: find(tau.plus)?, minus })
    }
}

struct Job<'a> {
    a: At<'a>,
    b: At<'a>,
    tau: Option<TauTensor<'a>>,
    /// How B, τ's plus and its minus come to be folded as A is.
    turns: [Option<Turn<'a>>; 3],
}

/// A thread's buffers, used again for every piece of a tensor.
#[derive(Default)]
struct PieceBuffers {
    raw: Vec<u8>,
    a: Vec<f32>,
    b: Vec<f32>,
    plus: Vec<f32>,
    minus: Vec<f32>,
    coordinates: Coordinates,
}

impl<'a> Job<'a> {
    /// The tensors of both files, and of τ.
    fn parts(&self) -> impl Iterator<Item = At<'a>> + use<'a> {
        let (plus, minus) = self.tau.as_ref().map_or((None, None), |tau| (Some(tau.plus), tau.minus));
        [Some(self.a), Some(self.b), plus, minus].into_iter().flatten()
    }

    /// Finds the turns, and refuses numbers that have no distance: of weights that are folded in
    /// ways between which none is known, and differences of other numbers.
    fn turn(&mut self, foldings: &'a [(&'a Path, Option<Folding>)]) -> Result<(), Error> {
        let folded = |(model, id): At<'a>| {
            let folding = foldings.iter().find(|(path, _)| *path == model.path()).and_then(|(_, f)| f.as_ref());
            FoldedTensor::new(model, folding, id)
        };
        let own = folded(self.a);
        let parts = self.parts().skip(1);
        for (turn, part) in self.turns.iter_mut().zip(parts) {
            *turn = folded(part).turn(own)?;
        }
        for (model, id) in self.parts().filter(|(model, _)| is_patch(model.metadata())) {
            require_patch_space(model, model.tensor(id).name())?;
        }
        Ok(())
    }

    fn run(&self) -> Result<TensorDifference, Error> {
        let info = self.a.0.tensor(self.a.1);
        let n_pieces = info.n_weights().div_ceil(PIECE_WEIGHTS);
        let piece = |buffers: &mut PieceBuffers, piece| self.piece(piece, buffers);
        let sums = pool::try_map_init((0..n_pieces).collect(), PieceBuffers::default, piece)?;
        let mut difference = Difference::default();
        sums.into_iter().for_each(|sum| difference += sum);
        Ok(TensorDifference {
            name: info.name().to_owned(),
            ne: info.ne().to_vec(),
            type_a: info.ty(),
            type_b: self.b.0.tensor(self.b.1).ty(),
            has_tau: self.tau.is_some(),
            difference,
        })
    }

    fn piece(&self, piece: u64, buffers: &mut PieceBuffers) -> Result<Difference, Error> {
        let first = piece * PIECE_WEIGHTS;
        let n = PIECE_WEIGHTS.min(self.a.0.tensor(self.a.1).n_weights() - first);
        let PieceBuffers { raw, a, b, plus, minus, coordinates } = buffers;
        coordinates.begin(Space::of(self.a.0.tensor(self.a.1).name()));
        let mut load = |at: At<'_>, turn: Option<Turn<'_>>, out: &mut Vec<f32>| {
            let (source, id) = at;
            let size = |n: u64| source.tensor(id).ty().size_of(n).expect("pieces begin and end at blocks");
            raw.resize(size(n) as usize, 0);
            resize(out, n as usize);
            TensorSource::read(source, id, size(first), raw)?;
            decode(source, id, first, raw, out)?;
            if let Some(turn) = turn {
                turn.apply(first, out);
            }
            // A patch holds differences within the space already.
            if is_patch(source.metadata()) { Ok(()) } else { coordinates.enter(source, id, first, out) }
        };
        let [turn_b, turn_plus, turn_minus] = self.turns;
        load(self.a, None, a)?;
        load(self.b, turn_b, b)?;
        if let Some(tau) = &self.tau {
            load(tau.plus, turn_plus, plus)?;
            if let Some(at) = tau.minus {
                load(at, turn_minus, minus)?;
                plus.iter_mut().zip(&*minus).for_each(|(plus, minus)| *plus -= minus);
            }
        }
        let mut sums = Difference::default();
        sums.add(a, b, self.tau.as_ref().map(|_| &plus[..]));
        Ok(sums)
    }
}
