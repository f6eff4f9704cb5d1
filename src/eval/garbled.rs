//! Answers that are no text in any language: a damaged or permuted vocabulary, weights drowned in
//! noise.
//!
//! Nothing here knows a word. The signs are those that no writing has: characters that could not be
//! decoded, words of two scripts, four scripts in one answer, capitals in the middle of every other
//! word. Word salad of clean words passes; it fails by what is expected of the answers, by their
//! language, or because it never ends.

use super::repetition::without_code;

/// One character in so many that could not be decoded makes an answer garbled.
const UNDECODED: usize = 50;
/// Words of two scripts, at least, and one in so many.
const MIXED: (usize, usize) = (2, 20);
/// Words with a capital after a small letter, at least, and one in so many. Names such as `GitHub`
/// are rarer.
const CAPITALS: (usize, usize) = (4, 4);
/// A script counts from one letter in so many; so many scripts are too many.
const SCRIPT_SHARE: usize = 20;
const SCRIPTS: usize = 4;

/// First and last code points of scripts, in rising order; Chinese and kana are one, since Japanese
/// mixes them.
const RANGES: [(u32, u32, Script); 33] = [
    (0x41, 0x5a, Script::Latin),
    (0x61, 0x7a, Script::Latin),
    (0xc0, 0x24f, Script::Latin),
    (0x370, 0x3ff, Script::Other(1)),
    (0x400, 0x52f, Script::Other(2)),
    (0x530, 0x58f, Script::Other(3)),
    (0x590, 0x5ff, Script::Other(4)),
    (0x600, 0x6ff, Script::Other(5)),
    (0x750, 0x77f, Script::Other(5)),
    (0x900, 0x97f, Script::Other(6)),
    (0x980, 0x9ff, Script::Other(7)),
    (0xa00, 0xa7f, Script::Other(8)),
    (0xa80, 0xaff, Script::Other(9)),
    (0xb00, 0xb7f, Script::Other(10)),
    (0xb80, 0xbff, Script::Other(11)),
    (0xc00, 0xc7f, Script::Other(12)),
    (0xc80, 0xcff, Script::Other(13)),
    (0xd00, 0xd7f, Script::Other(14)),
    (0xd80, 0xdff, Script::Other(15)),
    (0xe00, 0xe7f, Script::Unspaced(16)),
    (0xe80, 0xeff, Script::Unspaced(17)),
    (0xf00, 0xfff, Script::Unspaced(18)),
    (0x1000, 0x109f, Script::Unspaced(19)),
    (0x10a0, 0x10ff, Script::Other(20)),
    (0x1100, 0x11ff, Script::Unspaced(21)),
    (0x1200, 0x137f, Script::Other(22)),
    (0x1780, 0x17ff, Script::Unspaced(23)),
    (0x1e00, 0x1eff, Script::Latin),
    (0x1f00, 0x1fff, Script::Other(1)),
    (0x3040, 0x30ff, Script::Unspaced(24)),
    (0x3400, 0x9fff, Script::Unspaced(24)),
    (0xac00, 0xd7a3, Script::Unspaced(21)),
    (0xfb50, 0xfefc, Script::Other(5)),
];

#[derive(PartialEq, Eq, PartialOrd, Ord, Clone, Copy)]
enum Script {
    Latin,
    /// Words have spaces between them and are of one script.
    Other(u8),
    /// Words of other scripts stand in the text without a space. Hangul is here for its particles:
    /// `LG는`.
    Unspaced(u8),
}

fn script(c: char) -> Option<Script> {
    let c = u32::from(c);
    let at = RANGES.partition_point(|(_, last, _)| *last < c);
    RANGES.get(at).filter(|(first, ..)| *first <= c).map(|(.., script)| *script)
}

/// What shows that an answer is garbled, if it is.
pub(super) fn garbled(text: &str) -> Option<&'static str> {
    let text = without_code(text);
    // The last character may be cut where the answer was.
    let text = text.trim_end_matches('\u{fffd}');
    let n_chars = text.chars().count();
    let n_undecoded = text.chars().filter(|c| is_undecoded(*c)).count();
    if n_undecoded > 0 && n_undecoded * UNDECODED >= n_chars {
        return Some("characters that cannot be decoded");
    }
    let words: Vec<&str> = text.split(|c: char| !c.is_alphabetic()).filter(|w| !w.is_empty()).collect();
    let is_often = |n: usize, (least, one_in): (usize, usize)| n >= least && n * one_in >= words.len();
    if is_often(words.iter().filter(|w| is_mixed(w)).count(), MIXED) {
        return Some("words of two scripts");
    }
    if is_often(words.iter().filter(|w| has_inner_capital(w)).count(), CAPITALS) {
        return Some("capitals inside words");
    }
    (n_scripts(text) >= SCRIPTS).then_some("letters of four scripts or more")
}

fn is_undecoded(c: char) -> bool {
    c == '\u{fffd}' || c.is_control() && !matches!(c, '\n' | '\r' | '\t') || matches!(c, '\u{e000}'..='\u{f8ff}')
}

fn is_mixed(word: &str) -> bool {
    let mut scripts = word.chars().filter_map(script).filter(|s| !matches!(s, Script::Unspaced(_)));
    let first = scripts.next();
    scripts.any(|s| Some(s) != first)
}

fn has_inner_capital(word: &str) -> bool {
    let mut after_small = false;
    word.chars().any(|c| std::mem::replace(&mut after_small, c.is_lowercase()) && c.is_uppercase())
}

/// Scripts that have a share of the letters.
fn n_scripts(text: &str) -> usize {
    let mut letters: Vec<Script> = text.chars().filter(|c| c.is_alphabetic()).filter_map(script).collect();
    letters.sort_unstable();
    letters.chunk_by(|a, b| a == b).filter(|chunk| chunk.len() * SCRIPT_SHARE >= letters.len()).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_in_order() {
        assert!(RANGES.windows(2).all(|w| w[0].0 <= w[0].1 && w[0].1 < w[1].0));
    }

    #[test]
    fn what_no_writing_has_is_garbled() {
        for (text, sign) in [
            ("2\u{fffd}iel", "characters that cannot be decoded"),
            ("ham\u{1f}ele \u{1d}ten", "characters that cannot be decoded"),
            ("приvet как delа это", "words of two scripts"),
            ("wohntEva dreiHut alsMartin fragtWas und so", "capitals inside words"),
            ("house дом σπίτι 房子 בית haus", "letters of four scripts or more"),
        ] {
            assert_eq!(garbled(text), Some(sign), "{text}");
        }
    }

    #[test]
    fn what_people_write_is_not() {
        for text in [
            "Der Himmel ist blau.",
            "LG전자는 회사입니다. Apple의 iPhone도 있습니다.",
            "東京はJapanの首都です。",
            "Use GitHub, LaTeX or iOS.",
            "Слово «computer» по-русски — компьютер.",
            "The letter π, the Greek alpha α and the sum Σ.",
            "cut in the middle of a sign \u{fffd}",
            "```\nfooBar(bazQux, quuxCorge, graultGarply)\n```",
            "मेरा नाम नादिया है।",
            "",
        ] {
            assert_eq!(garbled(text), None, "{text}");
        }
    }
}
