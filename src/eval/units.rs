//! A text as the units that it is compared by: words, and characters of scripts without spaces.

use std::ops::Range;

use super::language::is_syllable;

/// Units that are looked at, a bound on the work: no smoke test generates as many.
pub(super) const MAX_UNITS: usize = 8192;

/// Whether words of the character's script are not set apart by spaces.
pub(super) fn is_unspaced(c: char) -> bool {
    // Hangul has spaces.
    is_of_many_signs(c) || is_syllable(c) && !matches!(c, '\u{ac00}'..='\u{d7a3}')
}

/// Whether words of the character's script are not set apart, and have several signs for a syllable:
/// Thai and Lao, Myanmar, Khmer.
pub(super) fn is_of_many_signs(c: char) -> bool {
    matches!(c, '\u{0e00}'..='\u{0eff}' | '\u{1000}'..='\u{109f}' | '\u{1780}'..='\u{17ff}')
}

/// Where the units of a text are, the first [`MAX_UNITS`] of them.
pub(super) fn ranges(text: &str) -> Vec<Range<usize>> {
    let mut units = Vec::new();
    let mut word: Option<usize> = None;
    for (at, c) in text.char_indices().chain([(text.len(), ' ')]) {
        let is_of_word = (c.is_alphanumeric() || is_mark(c)) && !is_unspaced(c);
        match word {
            None if is_of_word => word = Some(at),
            Some(start) if !is_of_word => {
                units.push(start..at);
                word = None;
            }
            _ => {}
        }
        if is_unspaced(c) {
            units.push(at..at + c.len_utf8());
        }
        if units.len() >= MAX_UNITS {
            break;
        }
    }
    units
}

/// Signs inside words that are no letters: viramas, joiners and apostrophes.
fn is_mark(c: char) -> bool {
    matches!(c, '\'' | '’' | '\u{0300}'..='\u{036f}' | '\u{064b}'..='\u{0652}' | '\u{0900}'..='\u{0dff}' | '\u{200c}' | '\u{200d}')
        && !matches!(c, '\u{0964}' | '\u{0965}')
}
