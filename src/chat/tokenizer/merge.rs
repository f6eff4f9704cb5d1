//! Merging neighbours, best pair first: what byte-pair encoding and SentencePiece have in common.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// No token, and no string that a merge knows.
pub(super) const NONE: u32 = u32::MAX;

const END: usize = usize::MAX;

/// A stretch of the text on its way to become a token.
#[derive(Clone, Copy, Debug)]
pub(super) struct Symbol {
    /// Where it begins, in bytes.
    pub(super) start: usize,
    /// Its bytes; 0 once it was merged into its left neighbour.
    pub(super) len: usize,
    /// The id of its text, or [`NONE`].
    pub(super) id: u32,
    prev: usize,
    next: usize,
}

/// A pair that may be merged: the highest priority first, then the leftmost.
#[derive(PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Bond {
    priority: u32,
    left: Reverse<usize>,
    right: usize,
    /// Bytes of both: if either symbol has grown since, this bond is out of date.
    len: usize,
    merged: u32,
}

/// Symbols in a chain and the pairs among them, in buffers that serve one word after the other.
///
/// The order of merging is llama.cpp's, ties included (src/llama-vocab.cpp,
/// `llm_tokenizer_spm_session::tokenize` and `llm_tokenizer_bpe_session::tokenize`). Of n symbols
/// at most 2n pairs are ever queued: O(n log n).
///
/// The BPE of the `tokenizers` crate merges in the same order, but it wants vocabularies in UTF-8
/// and both halves and the result of every merge among the tokens, and it lets the last of two
/// equal merges win where llama.cpp takes the first.
#[derive(Default)]
pub(super) struct Chain {
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Bond>,
}

impl Chain {
    /// Begins a new text.
    pub(super) fn clear(&mut self) {
        self.symbols.clear();
        self.queue.clear();
    }

    /// Adds the next symbol of the text.
    pub(super) fn push(&mut self, start: usize, len: usize, id: u32) {
        let i = self.symbols.len();
        let prev = i.checked_sub(1).unwrap_or(END);
        if let Some(last) = self.symbols.last_mut() {
            last.next = i;
        }
        self.symbols.push(Symbol { start, len, id, prev, next: END });
    }

    /// Merges until no pair is left that `bond` knows; it returns a priority and the id of the
    /// merged text.
    pub(super) fn merge(&mut self, bond: impl Fn(Symbol, Symbol) -> Option<(u32, u32)>) {
        for right in 1..self.symbols.len() {
            self.offer(right - 1, right, &bond);
        }
        while let Some(Bond { left: Reverse(left), right, len, merged, .. }) = self.queue.pop() {
            let (l, r) = (self.symbols[left], self.symbols[right]);
            if l.len == 0 || r.len == 0 || l.len + r.len != len {
                continue;
            }
            self.symbols[right].len = 0;
            self.symbols[left] = Symbol { len, id: merged, next: r.next, ..l };
            if r.next != END {
                self.symbols[r.next].prev = left;
            }
            self.offer(l.prev, left, &bond);
            self.offer(left, r.next, &bond);
        }
    }

    /// What is left, in order.
    pub(super) fn symbols(&self) -> impl Iterator<Item = Symbol> {
        self.symbols.iter().copied().filter(|s| s.len > 0)
    }

    fn offer(&mut self, left: usize, right: usize, bond: &impl Fn(Symbol, Symbol) -> Option<(u32, u32)>) {
        if left == END || right == END {
            return;
        }
        let (l, r) = (self.symbols[left], self.symbols[right]);
        if let Some((priority, merged)) = bond(l, r) {
            self.queue.push(Bond { priority, left: Reverse(left), right, len: l.len + r.len, merged });
        }
    }
}
