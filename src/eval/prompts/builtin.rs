//! The sets that come with the crate, one for each language: 56 prompts and phrases of refusals.

/// A language's prompts, and what it refuses with.
pub(super) struct Set {
    /// The language.
    pub(super) code: &'static str,
    /// Prompts, as JSON lines.
    pub(super) prompts: &'static str,
    /// Phrases in lower case with straight apostrophes, one a line.
    refusals: &'static str,
}

/// Reads `CODE.jsonl` and `CODE.refusals` of each language.
macro_rules! sets {
    ($($code:literal),* $(,)?) => {
        [$(Set {
            code: $code,
            prompts: include_str!(concat!($code, ".jsonl")),
            refusals: include_str!(concat!($code, ".refusals")),
        }),*]
    };
}

/// All of them, in the order of codes. A language is added by its two files, and here.
pub(super) const SETS: [Set; 30] = sets![
    "ar", "bn", "ca", "de", "el", "en", "es", "eu", "fa", "fi", "fr", "gl", "he", "hi", "id", "it", "ja", "ko", "nl",
    "pl", "pt", "ru", "se", "sv", "ta", "th", "tr", "uk", "vi", "zh",
];

/// Phrases of refusals in every language that has a set, by code.
pub(in crate::eval) fn refusals() -> impl Iterator<Item = (&'static str, &'static str)> {
    SETS.iter().flat_map(|set| set.refusals.lines().filter(|line| !line.is_empty()).map(|line| (set.code, line)))
}
