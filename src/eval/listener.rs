//! Who is told how the asking of a set goes on.

use super::{Answer, Prompt};

/// What is being done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// The model is read.
    Reading,
    /// Prompts are answered.
    Asking,
    /// Answers are judged.
    Judging,
}

/// Someone who is told how the asking of a set goes on, and may end it. A closure that is told how
/// many prompts were answered is one.
pub trait Listener {
    /// Asked before each token; `n_answered` is how many prompts were answered. False ends the
    /// asking.
    fn go_on(&self, n_answered: usize) -> bool;

    /// Told what is done next.
    fn begins(&self, phase: Phase) {
        let _ = phase;
    }

    /// Told that a prompt, `answer.prompt` of the set, has all its replies. They come in the order
    /// in which conversations end.
    fn hears(&self, prompt: &Prompt, answer: &Answer) {
        let _ = (prompt, answer);
    }

    /// Whether what was answered is wanted though the asking was ended.
    fn takes_a_part(&self) -> bool {
        false
    }
}

impl<F: Fn(usize) -> bool> Listener for F {
    fn go_on(&self, n_answered: usize) -> bool {
        self(n_answered)
    }
}
