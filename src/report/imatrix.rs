//! An importance matrix that was made.

use std::time::Duration;

use serde_json::{Value as Json, json};

use super::{Report, bytes};
use crate::gguf::Finished;
use crate::imatrix::{Form, Sums};

/// A matrix and how it was made.
pub struct Imatrix<'a> {
    /// What was gathered.
    pub sums: &'a Sums,
    /// The file.
    pub file: &'a Finished,
    /// Its form.
    pub form: Form,
    /// Tokens that were read.
    pub n_tokens: usize,
    /// How long it took.
    pub took: Duration,
}

impl Report for Imatrix<'_> {
    fn text(&self) -> String {
        let seconds = self.took.as_secs_f64();
        format!(
            "{}: {} entries from {} chunks of {} tokens, {} in {seconds:.2} s ({:.0} tokens/s)\n",
            super::shown(&self.file.path),
            self.sums.entries().len(),
            self.sums.n_chunks(),
            self.sums.chunk_size(),
            bytes(self.file.len),
            self.n_tokens as f64 / seconds.max(1e-9),
        )
    }

    fn json(&self) -> Json {
        json!({
            "output": self.file.path.to_string_lossy(),
            "output_bytes": self.file.len,
            "format": match self.form {
                Form::Gguf => "gguf",
                Form::Legacy => "dat",
            },
            "entries": self.sums.entries().map(|(name, sums, _)| json!({"name": name, "values": sums.len()})).collect::<Vec<_>>(),
            "chunks": self.sums.n_chunks(),
            "chunk_size": self.sums.chunk_size(),
            "tokens": self.n_tokens,
            "seconds": self.took.as_secs_f64(),
        })
    }
}
