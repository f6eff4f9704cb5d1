//! Promises to users.
#![allow(clippy::unwrap_used, reason = "clippy takes only functions marked as tests for tests, not their helpers")]

/// The codec against the real ggml's golden vectors, and what it says to wrong lengths and hostile values.
mod quants;
