//! Two models on one text: KL divergence, perplexities, and how often they would say the same.
//!
//! What is scored, and the errors of means, are those of `llama-perplexity`
//! (tools/perplexity/perplexity.cpp: `perplexity`, `kl_divergence`): the text is cut into chunks of
//! n_ctx tokens, each evaluated from an empty context with its first token replaced by BOS where
//! the vocabulary adds one, and of each the tokens after the first n_ctx/2 + 1 are scored. Its
//! option `--kl-divergence` rounds the first model's log-probabilities to 16 bits, cuts them at 16
//! below the largest, and leaves out what is less probable than e⁻¹⁶. That shows where models are
//! surprised: the perplexity it gives for the first model is too small (on the texts in
//! fixtures/compare by 1 to 17 % against its own result without that option, so that a model's
//! ratio to itself is 1.012 ± 0.005 on one of them); KL moves by about 1e-5. Nothing is rounded or
//! cut here.
//!
//! Two ways, with one result: [`compare`] evaluates both models chunk by chunk and is exact; a
//! [`Reference`] holds what one model said in a few KB a position, so that models need not be in
//! memory together and many can be held against one.

use std::path::PathBuf;

use super::kl::{Distribution, Keep, Kept, Known};
use super::statistics::{Estimate, correlation, percentile};
use crate::chat;
use crate::gguf::Model;

/// Next-token logits of a model.
pub trait Scorer {
    /// Tokens in the vocabulary: the length of every row of logits.
    fn n_vocab(&self) -> usize;

    /// Evaluates `tokens` from an empty context and hands over the logits after each token from
    /// position `first` on, in order: a position and `n_vocab` logits for the token that follows
    /// it.
    ///
    /// # Errors
    /// Whatever the model reports.
    fn logits(
        &mut self,
        tokens: &[u32],
        first: usize,
        row: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;
}

/// One of the two models, in messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The one whose distribution is the truth of KL(A‖B).
    A,
    /// The one that is held against it.
    B,
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Side::A => "model A",
            Side::B => "model B",
        })
    }
}

/// Why two models could not be compared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A chunk in which nothing would be scored.
    #[error("a context of {n_ctx} tokens leaves nothing to score; take at least {MIN_CHUNK}")]
    Context {
        /// Tokens in a chunk.
        n_ctx: usize,
    },
    /// A text in which nothing would be scored.
    #[error(
        "the text has {n_tokens} tokens, of which none would be scored; give at least {MIN_CHUNK}, better thousands"
    )]
    TooShort {
        /// Tokens of the text.
        n_tokens: usize,
    },
    /// More would be kept of the first model's probabilities than memory is allowed.
    #[error(
        "what is kept of model A's probabilities of {n_scored} tokens takes {}, but --memory leaves {}; take fewer --chunks, \
         a smaller --top, or more memory",
        bytesize::ByteSize::b(*needed).display().iec(), bytesize::ByteSize::b(*allowed).display().iec()
    )]
    Memory {
        /// Tokens that are scored.
        n_scored: usize,
        /// Bytes that they take.
        needed: u64,
        /// Bytes that were allowed.
        allowed: u64,
    },
    /// A token that a model does not have.
    #[error("token {index} of the text is {token}, but {side} has {n_vocab} tokens; was another tokenizer used?")]
    NoSuchToken {
        /// The model.
        side: Side,
        /// Position in the text; that of a chunk's first token for BOS.
        index: usize,
        /// The id.
        token: u32,
        /// Tokens in the vocabulary.
        n_vocab: usize,
    },
    /// A file without a list of tokens.
    #[error("{}: key tokenizer.ggml.tokens is absent or no list of strings, so its tokens cannot be compared", path.display())]
    NoVocabulary {
        /// The file.
        path: PathBuf,
    },
    /// Two files of which not one tensor can be held against another.
    #[error("no tensor of {} has the name and shape of one in {}: these are different networks", b.display(), a.display())]
    NothingShared {
        /// The first file.
        a: PathBuf,
        /// The second.
        b: PathBuf,
    },
    /// A vector and a model.
    #[error(
        "{} is a patch and {} is a model: a vector is compared with a vector; give two patches, or two models, with --base and --chat \
         for how much of a vector there is in what B has beyond A",
        patch.display(), model.display()
    )]
    PatchAndModel {
        /// The patch.
        patch: PathBuf,
        /// The other file.
        model: PathBuf,
    },
    /// Vocabularies of different sizes.
    #[error("model A has {a} tokens and model B {b}; probabilities can only be compared over one vocabulary")]
    VocabularySize {
        /// Tokens of A.
        a: usize,
        /// Tokens of B.
        b: usize,
    },
    /// A token with another text.
    #[error(
        "token {id} is {a:?} in model A but {b:?} in model B; probabilities can only be compared over one vocabulary"
    )]
    Token {
        /// The first token that differs.
        id: usize,
        /// Its text in A.
        a: bstr::BString,
        /// Its text in B.
        b: bstr::BString,
    },
    /// The models cut the text into other tokens, although their vocabularies may be the same.
    #[error(
        "the text is not the same for both: token {index} of {a_tokens} is {} for model A, of {b_tokens} {} for model B; \
         compare with one list of tokens, n_ctx and BOS", shown(*.a), shown(*.b)
    )]
    Text {
        /// The first token that differs, or the length of the shorter list.
        index: usize,
        /// The token in A's list.
        a: Option<u32>,
        /// The token in B's list.
        b: Option<u32>,
        /// Tokens of A's list.
        a_tokens: usize,
        /// Tokens of B's list.
        b_tokens: usize,
    },
    /// The texts are cut into other chunks.
    #[error("the text is not cut the same way for both: {key} is {a} for model A and {b} for model B")]
    Chunks {
        /// What differs.
        key: &'static str,
        /// For A.
        a: String,
        /// For B.
        b: String,
    },
    /// A logit that is no number.
    #[error(
        "{side}: chunk {chunk}, position {position}: the logit of token {token} is {value}; its weights are damaged or overflow"
    )]
    NotFinite {
        /// The model.
        side: Side,
        /// The chunk.
        chunk: usize,
        /// The position in the chunk.
        position: usize,
        /// The token.
        token: usize,
        /// NaN or an infinity.
        value: f32,
    },
    /// The scorer broke its promise on lengths, order or number of rows.
    #[error("{side}: chunk {chunk}: expected {expected} logits for position {position}, found {found}")]
    Rows {
        /// The model.
        side: Side,
        /// The chunk.
        chunk: usize,
        /// The position whose row was due.
        position: usize,
        /// Tokens in the vocabulary.
        expected: usize,
        /// What came instead.
        found: String,
    },
    /// The model could not be evaluated.
    #[error("{side}: chunk {chunk} could not be evaluated")]
    Scorer {
        /// The model.
        side: Side,
        /// The chunk.
        chunk: usize,
        /// The model's answer.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

fn shown(token: Option<u32>) -> String {
    token.map_or("absent".to_owned(), |token| token.to_string())
}

/// The smallest chunk in which something is scored: n_ctx − 1 − n_ctx/2 ≥ 1.
const MIN_CHUNK: usize = 3;

/// Refuses two models whose probabilities are not over the same tokens.
///
/// # Errors
/// [`Error::NoVocabulary`], [`Error::VocabularySize`], [`Error::Token`] with the first one that
/// differs.
pub fn same_vocabulary(a: &Model, b: &Model) -> Result<(), Error> {
    let tokens = |model: &Model| -> Result<_, Error> {
        let tokens = model.metadata().get_strings(chat::TOKENS).cloned();
        tokens.ok_or_else(|| Error::NoVocabulary { path: model.path().to_owned() })
    };
    let (a, b) = (tokens(a)?, tokens(b)?);
    if a.len() != b.len() {
        return Err(Error::VocabularySize { a: a.len(), b: b.len() });
    }
    match a.iter().zip(b.iter()).enumerate().find(|(_, (a, b))| a != b) {
        None => Ok(()),
        Some((id, (a, b))) => Err(Error::Token { id, a: a.to_owned(), b: b.to_owned() }),
    }
}

/// A text as tokens, cut into chunks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Text {
    tokens: Vec<u32>,
    n_ctx: usize,
    bos: Option<u32>,
}

impl Text {
    /// llama-perplexity's default for n_ctx.
    pub const DEFAULT_N_CTX: usize = 512;

    /// Cuts `tokens`, the whole text with BOS before it where the vocabulary adds one (`bos` is
    /// then that token), into chunks of `n_ctx`; what is left over at the end is not scored. A text
    /// shorter than `n_ctx` is one chunk of its own length; llama-perplexity refuses texts shorter
    /// than two chunks, see [`Text::is_short`].
    ///
    /// # Errors
    /// [`Error::Context`], [`Error::TooShort`].
    pub fn new(mut tokens: Vec<u32>, n_ctx: usize, bos: Option<u32>) -> Result<Self, Error> {
        if n_ctx < MIN_CHUNK {
            return Err(Error::Context { n_ctx });
        }
        if tokens.len() < MIN_CHUNK {
            return Err(Error::TooShort { n_tokens: tokens.len() });
        }
        let n_ctx = n_ctx.min(tokens.len());
        tokens.truncate(tokens.len() / n_ctx * n_ctx);
        Ok(Text { tokens, n_ctx, bos })
    }

    /// The first `n_chunks` chunks, at least one.
    #[must_use]
    pub fn first_chunks(mut self, n_chunks: usize) -> Self {
        self.tokens.truncate(n_chunks.max(1).saturating_mul(self.n_ctx));
        self
    }

    /// Tokens in a chunk.
    pub fn n_ctx(&self) -> usize {
        self.n_ctx
    }

    /// Chunks.
    pub fn n_chunks(&self) -> usize {
        self.tokens.len() / self.n_ctx
    }

    /// Tokens that are scored.
    pub fn n_scored(&self) -> usize {
        self.n_chunks() * self.n_scored_of_chunk()
    }

    /// Whether there is but one chunk, so that errors say little and llama-perplexity would refuse.
    pub fn is_short(&self) -> bool {
        self.n_chunks() < 2
    }

    fn n_scored_of_chunk(&self) -> usize {
        self.n_ctx - 1 - self.first()
    }

    /// The position whose logits are the first to be scored.
    fn first(&self) -> usize {
        self.n_ctx / 2
    }

    fn chunk(&self, index: usize) -> Vec<u32> {
        let mut chunk = self.tokens[index * self.n_ctx..(index + 1) * self.n_ctx].to_vec();
        if let Some(bos) = self.bos {
            chunk[0] = bos;
        }
        chunk
    }

    fn check_tokens(&self, side: Side, n_vocab: usize) -> Result<(), Error> {
        let all = self.bos.into_iter().map(|bos| (0, bos)).chain(self.tokens.iter().copied().enumerate());
        match all.into_iter().find(|(_, token)| *token as usize >= n_vocab) {
            None => Ok(()),
            Some((index, token)) => Err(Error::NoSuchToken { side, index, token, n_vocab }),
        }
    }

    /// Refuses the text of B if it is not that of A.
    fn must_equal(&self, b: &Text) -> Result<(), Error> {
        if self.n_ctx != b.n_ctx {
            return Err(Error::Chunks { key: "n_ctx", a: self.n_ctx.to_string(), b: b.n_ctx.to_string() });
        }
        if self.bos != b.bos {
            return Err(Error::Chunks { key: "the BOS token", a: shown(self.bos), b: shown(b.bos) });
        }
        if self.tokens == b.tokens {
            return Ok(());
        }
        let index = self.tokens.iter().zip(&b.tokens).take_while(|(a, b)| a == b).count();
        Err(Error::Text {
            index,
            a: self.tokens.get(index).copied(),
            b: b.tokens.get(index).copied(),
            a_tokens: self.tokens.len(),
            b_tokens: b.tokens.len(),
        })
    }
}

/// What is handed over for each scored token.
struct Scored<'a> {
    /// The distribution before the token.
    distribution: Distribution<'a>,
    /// The token itself.
    next: usize,
}

/// Evaluates one chunk and hands over every token that is scored, in order.
fn score_chunk(
    scorer: &mut dyn Scorer,
    side: Side,
    text: &Text,
    chunk: usize,
    each: &mut dyn FnMut(&Scored<'_>),
) -> Result<(), Error> {
    let n_vocab = scorer.n_vocab();
    let tokens = text.chunk(chunk);
    let first = text.first();
    let mut due = first;
    let mut broken = None;
    // The last token is only scored; what would follow it is not asked for.
    let evaluated = scorer.logits(&tokens[..text.n_ctx - 1], first, &mut |position, logits| {
        if broken.is_some() {
            return;
        }
        let rows = |found| Error::Rows { side, chunk, position: due, expected: n_vocab, found };
        if position != due || due + 1 >= tokens.len() {
            broken = Some(rows(format!("a row for position {position}")));
        } else if logits.len() != n_vocab || n_vocab == 0 {
            broken = Some(rows(logits.len().to_string()));
        } else if let Some(token) = logits.iter().position(|l| !l.is_finite()) {
            broken = Some(Error::NotFinite { side, chunk, position, token, value: logits[token] });
        } else {
            due += 1;
            each(&Scored { distribution: Distribution::new(logits), next: tokens[due] as usize });
        }
    });
    match (evaluated, broken) {
        (_, Some(error)) => Err(error),
        (Err(source), None) => Err(Error::Scorer { side, chunk, source }),
        (Ok(()), None) if due + 1 < tokens.len() => {
            Err(Error::Rows { side, chunk, position: due, expected: n_vocab, found: "the end".to_owned() })
        }
        (Ok(()), None) => Ok(()),
    }
}

/// The perplexity of one model on a text: e to the mean negative log-likelihood of the scored
/// tokens, llama-perplexity's "Final estimate".
///
/// # Errors
/// What the model reports, and rows that are not as promised.
pub fn perplexity(model: &mut dyn Scorer, text: &Text) -> Result<Estimate, Error> {
    text.check_tokens(Side::A, model.n_vocab())?;
    let mut nll = Vec::with_capacity(text.n_scored());
    for chunk in 0..text.n_chunks() {
        score_chunk(model, Side::A, text, chunk, &mut |s| nll.push(-s.distribution.ln_p(s.next)))?;
    }
    Ok(Estimate::mean(&nll).expect("a text has something to score").exp())
}

/// Compares two models on a text exactly. Both are evaluated chunk after chunk, and the first one's
/// logits of a chunk are held: 4 · n_vocab · n_ctx/2 bytes (150 MB for 150 000 tokens at n_ctx
/// 512).
///
/// # Errors
/// Everything in [`Error`] that concerns sizes, tokens and rows. Whether the vocabularies have the
/// same tokens is for [`same_vocabulary`] to say.
pub fn compare(a: &mut dyn Scorer, b: &mut dyn Scorer, text: &Text) -> Result<Comparison, Error> {
    let n_vocab = a.n_vocab();
    must_have_size(n_vocab, b.n_vocab())?;
    text.check_tokens(Side::A, n_vocab)?;
    let (mut said_a, mut said_b) = (Said::default(), Said::default());
    let mut kl = Vec::with_capacity(text.n_scored());
    let mut logits = Vec::new();
    for chunk in 0..text.n_chunks() {
        logits.clear();
        score_chunk(a, Side::A, text, chunk, &mut |s| {
            said_a.add(s);
            logits.extend_from_slice(s.distribution.logits);
        })?;
        let mut rows = logits.chunks_exact(n_vocab);
        score_chunk(b, Side::B, text, chunk, &mut |s| {
            said_b.add(s);
            let row = rows.next().expect("both models are asked for the same rows");
            let value = Distribution::new(row).divergence(&s.distribution);
            kl.push(Known { value, drawing_error: 0.0, lower: value, upper: value });
        })?;
    }
    Ok(Comparison::new(text, &said_a, &said_b, &kl))
}

fn must_have_size(a: usize, b: usize) -> Result<(), Error> {
    if a == b { Ok(()) } else { Err(Error::VocabularySize { a, b }) }
}

/// What one model says of a text, for others to be compared with.
#[derive(Debug)]
pub struct Reference {
    text: Text,
    n_vocab: usize,
    said: Said,
    kept: Kept,
}

impl Reference {
    /// Refuses to keep more of a text than `memory` bytes, for a vocabulary of `n_vocab` tokens.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn require_memory(text: &Text, keep: &Keep, n_vocab: usize, memory: u64) -> Result<(), Error> {
        let n_scored = text.n_scored();
        let needed = (n_scored as u64).saturating_mul(keep.bytes_per_position(n_vocab) as u64);
        if needed > memory { Err(Error::Memory { n_scored, needed, allowed: memory }) } else { Ok(()) }
    }

    /// Evaluates a model on a text and keeps the most of it. Takes [`Keep::bytes_per_position`] for
    /// each of [`Text::n_scored`] positions, which [`Reference::require_memory`] bounds.
    ///
    /// # Errors
    /// What the model reports, and rows that are not as promised.
    pub fn new(a: &mut dyn Scorer, text: Text, keep: Keep) -> Result<Self, Error> {
        let n_vocab = a.n_vocab();
        text.check_tokens(Side::A, n_vocab)?;
        let mut said = Said::default();
        let mut kept = Kept::new(keep, n_vocab, text.n_scored());
        for chunk in 0..text.n_chunks() {
            score_chunk(a, Side::A, &text, chunk, &mut |s| {
                said.add(s);
                kept.push(&s.distribution);
            })?;
        }
        Ok(Reference { text, n_vocab, said, kept })
    }

    /// The model's own perplexity.
    pub fn perplexity(&self) -> Estimate {
        self.said.perplexity()
    }

    /// Bytes that are kept.
    pub fn n_bytes(&self) -> usize {
        self.kept.n_bytes()
    }

    /// Holds another model against this one, on the same text: `text` as that model's own tokenizer
    /// and options make it.
    ///
    /// # Errors
    /// Everything in [`Error`] that concerns sizes, tokens and rows. Whether the vocabularies have
    /// the same tokens is for [`same_vocabulary`] to say.
    pub fn compare(&self, b: &mut dyn Scorer, text: &Text) -> Result<Comparison, Error> {
        must_have_size(self.n_vocab, b.n_vocab())?;
        self.text.must_equal(text)?;
        let mut said = Said::default();
        let mut kl = Vec::with_capacity(text.n_scored());
        let mut scratch = Vec::new();
        for chunk in 0..text.n_chunks() {
            score_chunk(b, Side::B, text, chunk, &mut |s| {
                said.add(s);
                kl.push(self.kept.divergence(kl.len(), &s.distribution, &mut scratch));
            })?;
        }
        Ok(Comparison::new(text, &self.said, &said, &kl))
    }
}

/// What a model says of each scored token, whatever another one says.
#[derive(Default, Debug)]
struct Said {
    /// −ln p of the token that comes
    nll: Vec<f64>,
    /// The most probable token, and whether there is another one as probable.
    top: Vec<(usize, bool)>,
}

impl Said {
    fn add(&mut self, scored: &Scored<'_>) {
        self.nll.push(-scored.distribution.ln_p(scored.next));
        self.top.push((scored.distribution.argmax, scored.distribution.is_tied));
    }

    fn perplexity(&self) -> Estimate {
        Estimate::mean(&self.nll).expect("a text has something to score").exp()
    }
}

/// Two models on one text. Errors are one standard error, as if the tokens were independent.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct Comparison {
    /// Tokens in a chunk.
    pub n_ctx: usize,
    /// Chunks.
    pub n_chunks: usize,
    /// Tokens scored.
    pub n_scored: usize,
    /// Whether the text is one chunk only.
    pub is_short: bool,
    /// e to the mean negative log-likelihood, in A.
    pub perplexity_a: Estimate,
    /// The same in B.
    pub perplexity_b: Estimate,
    /// ln(perplexity of B / perplexity of A). Its error is far smaller than those of the two, which
    /// go up and down together.
    pub ln_ratio: Estimate,
    /// Perplexity of B / perplexity of A.
    pub ratio: Estimate,
    /// Correlation of the two models' negative log-likelihoods. None where one of them is constant.
    pub correlation: Option<f64>,
    /// KL(A‖B).
    pub kl: Divergence,
    /// How often A and B hold the same token for the most probable; of equal ones the first counts.
    pub same_top: Estimate,
    /// Positions where A or B has more than one most probable token, so that which one counts is a
    /// matter of convention.
    pub n_tied_tops: usize,
    /// Mean of p(B) − p(A) of the token that comes.
    pub delta_p: Estimate,
    /// Root mean square of it.
    pub delta_p_rms: Estimate,
}

/// KL divergence over the scored positions, in nats.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct Divergence {
    /// The mean.
    pub mean: Estimate,
    /// How much of [`Divergence::mean`]'s error comes from what was left out of a [`Reference`]:
    /// zero if nothing was.
    pub drawing_error: f64,
    /// The mean is no less than this, whatever was left out.
    pub mean_lower: f64,
    /// The mean is no more than this, whatever was left out.
    pub mean_upper: f64,
    /// Half of the positions are below.
    pub median: f64,
    /// Nine tenths are below.
    pub p90: f64,
    /// 95 % are below.
    pub p95: f64,
    /// 99 % are below.
    pub p99: f64,
    /// 99.9 % are below.
    pub p999: f64,
    /// The largest.
    pub max: f64,
}

impl Comparison {
    /// From what was said at each position, at least one.
    fn new(text: &Text, a: &Said, b: &Said, kl: &[Known]) -> Self {
        let pairs = || a.nll.iter().zip(&b.nll);
        let mean = |values: &[f64]| Estimate::mean(values).expect("a text has something to score");
        let ln_ratio = mean(&pairs().map(|(a, b)| b - a).collect::<Vec<f64>>());
        let delta_p: Vec<f64> = pairs().map(|(a, b)| (-b).exp() - (-a).exp()).collect();
        let count =
            |f: fn((usize, bool), (usize, bool)) -> bool| a.top.iter().zip(&b.top).filter(|(a, b)| f(**a, **b)).count();
        Comparison {
            n_ctx: text.n_ctx,
            n_chunks: text.n_chunks(),
            n_scored: kl.len(),
            is_short: text.is_short(),
            perplexity_a: a.perplexity(),
            perplexity_b: b.perplexity(),
            ln_ratio,
            ratio: ln_ratio.exp(),
            correlation: correlation(&a.nll, &b.nll),
            kl: Divergence::new(kl),
            same_top: Estimate::share(count(|a, b| a.0 == b.0), kl.len()).expect("a text has something to score"),
            n_tied_tops: count(|a, b| a.1 || b.1),
            delta_p: mean(&delta_p),
            delta_p_rms: Estimate::root_mean_square(&delta_p).expect("a text has something to score"),
        }
    }
}

impl Divergence {
    fn new(kl: &[Known]) -> Self {
        let all = |f: fn(&Known) -> f64| kl.iter().map(f).collect::<Vec<f64>>();
        let mean = |values: &[f64]| Estimate::mean(values).expect("a text has something to score");
        let mut sorted = all(|k| k.value);
        let mean_value = mean(&sorted);
        sorted.sort_unstable_by(f64::total_cmp);
        let percentile = |fraction| percentile(&sorted, fraction).expect("a text has something to score");
        Divergence {
            mean: mean_value,
            drawing_error: kl.iter().map(|k| k.drawing_error * k.drawing_error).sum::<f64>().sqrt() / kl.len() as f64,
            mean_lower: mean(&all(|k| k.lower)).value,
            mean_upper: mean(&all(|k| k.upper)).value,
            median: percentile(0.5),
            p90: percentile(0.9),
            p95: percentile(0.95),
            p99: percentile(0.99),
            p999: percentile(0.999),
            max: percentile(1.0),
        }
    }
}
