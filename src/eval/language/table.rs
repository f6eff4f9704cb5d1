//! The table by which languages are told apart: naive Bayes over short strings of bytes.
//!
//! A feature is a string of 2 to 6 bytes. Each class (a language, or one of its scripts) has a prior,
//! a floor, and levels of those features that are more frequent in it than the floor says. The table
//! is a part of the program; it is read as if a stranger had written it, all the same: lengths are
//! checked before memory is taken, and whatever its bytes are, reading ends with a table or an error.
//!
//! Compressed by zstd; integers are little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `CVLANG1\n` |
//! | 4 × u32 | numbers of classes C and features F, bytes of the features, bytes of the gaps |
//! | 4 C | codes of languages, padded by zeros |
//! | 4 C | floors, i32 in parts of 2⁻¹⁶ |
//! | 4 C | priors, likewise |
//! | features | F times, in the order of bytes: one byte 8 s + n, then n − s bytes: a feature of n bytes that begins with s bytes of the one before |
//! | gaps | C times: how many features have a level (u32), then the features between them and the one before; 255 is 255 and more follows |
//! | the rest | levels, class by class: a byte each, in steps of a quarter |
//!
//! All numbers are whole, so that sums are exact: every processor finds the same. What is computed
//! of them is a division, a square root (both exactly rounded) and libm's exponential.

use std::collections::HashMap;
use std::io::Read;

/// How a table begins.
const MAGIC: &[u8; 8] = b"CVLANG1\n";
/// Bytes of a table that are unpacked at most.
const MAX_TABLE: usize = 16 << 20;
/// Lengths of features, in bytes.
const LENGTHS: std::ops::RangeInclusive<usize> = 2..=6;
/// Parts of one in which floors and priors are counted, as a power of two.
const UNIT_BITS: u32 = 16;
/// A level, in these parts.
const STEP: i64 = 1 << (UNIT_BITS - 2);
/// The highest level.
const MAX_LEVEL: u8 = 63;
/// Floors and priors are no larger than this, either way: so no sum overflows.
const MAX_UNITS: i64 = 64 << UNIT_BITS;
/// Parts of one in which logarithms of counts are counted, as a power of two.
const COUNT_BITS: u32 = 20;
/// Bytes of a text that are scored, at most.
const MAX_TEXT: usize = 1 << 16;

/// Bytes that are no table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum TableError {
    /// No whole zstd frame.
    #[error("the table does not unpack: {0}")]
    Packed(String),
    /// More than a table takes.
    #[error("the table unpacks to more than {MAX_TABLE} bytes")]
    Large,
    /// Another kind of file.
    #[error("the table does not begin with CVLANG1")]
    Magic,
    /// It ends too early.
    #[error("the table ends in its {what}: {needed} bytes more are needed, {left} are left")]
    Short {
        /// What was read.
        what: &'static str,
        /// Bytes it takes.
        needed: usize,
        /// Bytes there are.
        left: usize,
    },
    /// Numbers that contradict each other or mean nothing.
    #[error("the table's {what} {at} is wrong: {found}")]
    Value {
        /// What was read.
        what: &'static str,
        /// Its place, from 0.
        at: usize,
        /// What is there.
        found: String,
    },
}

fn value(what: &'static str, at: usize, found: impl ToString) -> TableError {
    TableError::Value { what, at, found: found.to_string() }
}

/// What is not yet read of a table.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, n: usize, what: &'static str) -> Result<&'a [u8], TableError> {
        let short = TableError::Short { what, needed: n, left: self.0.len() };
        let (taken, rest) = self.0.split_at_checked(n).ok_or(short)?;
        self.0 = rest;
        Ok(taken)
    }

    fn u8(&mut self, what: &'static str) -> Result<u8, TableError> {
        Ok(self.take(1, what)?[0])
    }

    fn u32(&mut self, what: &'static str) -> Result<usize, TableError> {
        let bytes = self.take(4, what)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize)
    }
}

/// A table that was read.
pub(super) struct Table {
    /// The code of each class's language. Several may be of one language.
    codes: Vec<String>,
    /// For each class, in parts of 2⁻¹⁶.
    floors: Vec<i64>,
    /// Likewise.
    priors: Vec<i64>,
    /// Features by length and bytes.
    features: HashMap<u64, u32>,
    /// Where the levels of each feature begin; one more than there are features.
    starts: Vec<u32>,
    /// Class and level.
    levels: Vec<(u8, u8)>,
}

impl Table {
    /// Reads a compressed table.
    pub(super) fn read(packed: &[u8]) -> Result<Self, TableError> {
        let unpacks = |e: std::io::Error| TableError::Packed(e.to_string());
        let mut plain = Vec::new();
        let decoder = zstd::stream::read::Decoder::new(packed).map_err(unpacks)?;
        decoder.take(MAX_TABLE as u64 + 1).read_to_end(&mut plain).map_err(unpacks)?;
        if plain.len() > MAX_TABLE {
            return Err(TableError::Large);
        }
        Self::parse(&plain)
    }

    fn parse(plain: &[u8]) -> Result<Self, TableError> {
        let mut rest = Rest(plain);
        if rest.take(MAGIC.len(), "first bytes")? != MAGIC {
            return Err(TableError::Magic);
        }
        let counts = "counts";
        let (n_classes, n_features) = (rest.u32(counts)?, rest.u32(counts)?);
        let (n_feature_bytes, n_gap_bytes) = (rest.u32(counts)?, rest.u32(counts)?);
        // Classes are bytes below; a feature takes two bytes at least.
        if !(1..=255).contains(&n_classes) {
            return Err(value("number of classes", 0, n_classes));
        }
        if n_features > n_feature_bytes / 2 {
            return Err(value("number of features", 0, n_features));
        }
        let codes = codes(rest.take(4 * n_classes, "codes")?)?;
        let floors = units(rest.take(4 * n_classes, "floors")?, "floor")?;
        let priors = units(rest.take(4 * n_classes, "priors")?, "prior")?;
        let features = features(rest.take(n_feature_bytes, "features")?, n_features)?;
        let gaps = rest.take(n_gap_bytes, "gaps")?;
        let (starts, levels) = levels(gaps, rest.0, n_classes, n_features)?;
        Ok(Self { codes, floors, priors, features, starts, levels })
    }

    /// The code of each class's language.
    pub(super) fn codes(&self) -> &[String] {
        &self.codes
    }

    /// How probable each class is for a text; none if the text has no feature.
    ///
    /// Of a very long text, the beginning is looked at.
    pub(super) fn probabilities(&self, text: &[u8]) -> Option<Vec<f64>> {
        let text = &text[..text.len().min(MAX_TEXT)];
        let mut found: Vec<u32> = (1..=text.len()).filter_map(|end| self.longest(&text[..end])).collect();
        if found.is_empty() {
            return None;
        }
        found.sort_unstable();
        let mut sums = vec![0i64; self.codes.len()];
        let mut all = 0;
        for same in found.chunk_by(|a, b| a == b) {
            let count = (libm::log(1.0 + same.len() as f64) * f64::from(1 << COUNT_BITS)).round() as i64;
            all += count;
            let at = same[0] as usize;
            for (class, level) in &self.levels[self.starts[at] as usize..self.starts[at + 1] as usize] {
                sums[usize::from(*class)] += count * i64::from(*level) * STEP;
            }
        }
        for ((sum, floor), prior) in sums.iter_mut().zip(&self.floors).zip(&self.priors) {
            *sum += all * floor + (prior << COUNT_BITS);
        }
        // Long texts would be certain of anything: confidence is right if logarithms are divided by
        // the root of the length (py3langid's calibration).
        let highest = sums.iter().copied().max().unwrap_or(0);
        let scale = (1u64 << (UNIT_BITS + COUNT_BITS)) as f64 * (text.len() as f64).sqrt();
        let mut shares: Vec<f64> = sums.iter().map(|sum| libm::exp((sum - highest) as f64 / scale)).collect();
        let sum = shares.iter().fold(0.0, |sum, share| sum + share);
        shares.iter_mut().for_each(|share| *share /= sum);
        Some(shares)
    }

    /// The longest feature that a text ends with.
    fn longest(&self, text: &[u8]) -> Option<u32> {
        let longest = text.len().min(*LENGTHS.end());
        (*LENGTHS.start()..=longest).rev().find_map(|n| self.features.get(&key(&text[text.len() - n..])).copied())
    }
}

/// A feature as a number: its length and its bytes.
fn key(feature: &[u8]) -> u64 {
    feature.iter().fold(feature.len() as u64, |key, byte| key << 8 | u64::from(*byte))
}

fn codes(bytes: &[u8]) -> Result<Vec<String>, TableError> {
    let one = |(at, code): (usize, &[u8])| {
        let letters = code.split(|byte| *byte == 0).next().unwrap_or_default();
        let is_code = letters.len() >= 2 && letters.iter().all(u8::is_ascii_lowercase);
        let is_padded = code[letters.len()..].iter().all(|byte| *byte == 0);
        let text = String::from_utf8_lossy(letters).into_owned();
        if is_code && is_padded { Ok(text) } else { Err(value("code", at, format!("{code:?}"))) }
    };
    bytes.chunks_exact(4).enumerate().map(one).collect()
}

fn units(bytes: &[u8], what: &'static str) -> Result<Vec<i64>, TableError> {
    let one = |(at, units): (usize, &[u8])| {
        let units = i64::from(i32::from_le_bytes([units[0], units[1], units[2], units[3]]));
        if units.abs() <= MAX_UNITS { Ok(units) } else { Err(value(what, at, units)) }
    };
    bytes.chunks_exact(4).enumerate().map(one).collect()
}

fn features(bytes: &[u8], n: usize) -> Result<HashMap<u64, u32>, TableError> {
    let mut rest = Rest(bytes);
    let mut features = HashMap::with_capacity(n);
    let mut last: Vec<u8> = Vec::new();
    for at in 0..n {
        let head = usize::from(rest.u8("features")?);
        let (shared, len) = (head / 8, head % 8);
        if !LENGTHS.contains(&len) || shared >= len || shared > last.len() {
            return Err(value("feature", at, format!("{shared} of {len} bytes are those of the one before")));
        }
        let mut feature = last[..shared].to_vec();
        feature.extend_from_slice(rest.take(len - shared, "features")?);
        if feature <= last {
            return Err(value("feature", at, "it is not behind the one before"));
        }
        features.insert(key(&feature), at as u32);
        last = feature;
    }
    if rest.0.is_empty() { Ok(features) } else { Err(value("end of features", n, "bytes are left")) }
}

/// Levels by feature, and where those of each begin.
type Levels = (Vec<u32>, Vec<(u8, u8)>);

/// Levels come class by class and are needed feature by feature.
fn levels(gaps: &[u8], levels: &[u8], n_classes: usize, n_features: usize) -> Result<Levels, TableError> {
    let mut starts = vec![0u32; n_features + 1];
    let places = |each: &mut dyn FnMut(usize, u8, usize)| each_place(gaps, n_classes, n_features, levels.len(), each);
    places(&mut |_, _, feature| starts[feature + 1] += 1)?;
    for at in 0..n_features {
        starts[at + 1] += starts[at];
    }
    if let Some(at) = levels.iter().position(|level| !(1..=MAX_LEVEL).contains(level)) {
        return Err(value("level", at, levels[at]));
    }
    let mut free = starts.clone();
    let mut sorted = vec![(0, 0); levels.len()];
    places(&mut |at, class, feature| {
        sorted[free[feature] as usize] = (class, levels[at]);
        free[feature] += 1;
    })?;
    Ok((starts, sorted))
}

/// Tells the place, the class and the feature of each level. There are as many as said, or it is an
/// error.
fn each_place(
    gaps: &[u8],
    n_classes: usize,
    n_features: usize,
    n_levels: usize,
    each: &mut dyn FnMut(usize, u8, usize),
) -> Result<(), TableError> {
    let mut rest = Rest(gaps);
    let mut at = 0;
    for class in 0..n_classes {
        let n = rest.u32("gaps")?;
        if n > n_features || n > n_levels - at {
            return Err(value("number of levels of class", class, n));
        }
        let mut next = 0;
        for _ in 0..n {
            let mut byte = rest.u8("gaps")?;
            while byte == 255 {
                next += 255;
                byte = rest.u8("gaps")?;
            }
            next += usize::from(byte);
            if next >= n_features {
                return Err(value("gap to feature", next, format!("there are {n_features}")));
            }
            each(at, class as u8, next);
            at += 1;
            next += 1;
        }
    }
    if rest.0.is_empty() && at == n_levels {
        Ok(())
    } else {
        Err(value(
            "end of levels",
            at,
            format!("{} bytes of gaps are left, and there are {n_levels} levels", rest.0.len()),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table of two classes and three features.
    fn small() -> Vec<u8> {
        let mut plain = MAGIC.to_vec();
        let gaps = [2, 0, 0, 0, 0, 1, 1, 0, 0, 0, 1];
        let features = [2, b'a', b'b', 8 + 3, b'c', b'd', 2, b'x', b'y'];
        [2, 3, features.len() as u32, gaps.len() as u32].iter().for_each(|n| plain.extend(n.to_le_bytes()));
        plain.extend(b"de\0\0en\0\0");
        [-100_000i32, -90_000, 400_000, 400_000].iter().for_each(|n| plain.extend(n.to_le_bytes()));
        plain.extend(features);
        plain.extend(gaps);
        plain.extend([5, 6, 63]);
        plain
    }

    fn is_in_order(table: &Table) -> bool {
        let text = "ab acd xy aab \u{e9}";
        let Some(found) = table.probabilities(text.as_bytes()) else { return true };
        found.len() == table.codes().len() && (found.iter().sum::<f64>() - 1.0).abs() < 1e-9
    }

    #[test]
    fn a_small_table_counts_its_longest_features() {
        let table = Table::parse(&small()).unwrap();
        assert_eq!(table.codes(), ["de", "en"]);
        assert_eq!(table.longest(b"ab"), Some(0));
        assert_eq!(table.longest(b"acd"), Some(1));
        assert_eq!(table.longest(b"cd"), None);
        assert_eq!(table.probabilities(b"cd"), None);
        assert_eq!(table.probabilities(b""), None);
        // de: ln 2 (5 quarters − 100000 parts) + ln 2 (− 100000 parts); en: 63 quarters for `acd`.
        let found = table.probabilities(b"ab acd").unwrap();
        let score = |floor: f64, level: f64| 2f64.ln() * (2.0 * floor / 65536.0 + level / 4.0);
        let ratio = ((score(-90_000.0, 63.0) - score(-100_000.0, 5.0)) / 6f64.sqrt()).exp();
        assert!((found[1] / found[0] / ratio - 1.0).abs() < 1e-5, "{found:?}, {ratio}");
        // Twice is ln 3, not twice ln 2.
        let twice = table.probabilities(b"abab").unwrap();
        let ratio = (3f64.ln() * (5.0 / 4.0 - 10_000.0 / 65536.0) / 4f64.sqrt()).exp();
        assert!((twice[0] / twice[1] / ratio - 1.0).abs() < 1e-5, "{twice:?}, {ratio}");
    }

    #[test]
    fn every_cut_of_a_table_is_an_error() {
        let plain = small();
        for end in 0..plain.len() {
            assert!(Table::parse(&plain[..end]).is_err(), "{end}");
        }
        let mut long = plain;
        long.push(1);
        assert!(Table::parse(&long).is_err());
    }

    #[test]
    fn every_changed_byte_gives_a_table_or_an_error() {
        let plain = small();
        let mut refused = 0;
        for at in 0..plain.len() {
            for byte in 0..=255 {
                let mut changed = plain.clone();
                changed[at] = byte;
                match Table::parse(&changed) {
                    Ok(table) => assert!(is_in_order(&table), "byte {at} is {byte}"),
                    Err(_) => refused += 1,
                }
            }
        }
        // Letters, floors and levels have other values that are as good.
        assert!(refused > 255 * 30, "{refused}");
    }

    #[test]
    fn what_is_wrong_with_a_table_is_said() {
        let changed = |at: usize, bytes: &[u8]| {
            let mut plain = small();
            plain[at..at + bytes.len()].copy_from_slice(bytes);
            Table::parse(&plain).map(|_| ()).unwrap_err().to_string()
        };
        for (at, bytes, words) in [
            (0, &b"GGUF"[..], "does not begin with CVLANG1"),
            (8, &[0, 0, 0, 0], "number of classes 0 is wrong: 0"),
            (8, &[255, 255, 255, 255], "number of classes 0 is wrong: 4294967295"),
            (12, &[255, 255, 255, 127], "number of features 0 is wrong"),
            (16, &[255, 255, 255, 255], "ends in its features"),
            (20, &[255, 255, 255, 255], "ends in its gaps"),
            (24, b"DE", "code 0 is wrong"),
            (32, &[0, 0, 0, 127], "floor 0 is wrong: 2130706432"),
            (48, &[1], "feature 0 is wrong"),
            (51, &[3 * 8 + 4], "feature 1 is wrong: 3 of 4"),
            (54, &[2, b'a', b'a'], "feature 2 is wrong: it is not behind"),
            (57, &[255, 255, 255, 255], "number of levels of class 0 is wrong"),
            (61, &[9], "gap to feature 9 is wrong: there are 3"),
            (68, &[0], "level 0 is wrong: 0"),
            (68, &[64], "level 0 is wrong: 64"),
        ] {
            let said = changed(at, bytes);
            assert!(said.contains(words), "{at}: {said}");
        }
    }

    #[test]
    fn damaged_packed_tables_are_errors() {
        let packed = super::super::PACKED;
        assert!(Table::read(b"").is_err());
        for end in (0..packed.len()).step_by(packed.len() / 16) {
            assert!(Table::read(&packed[..end]).is_err(), "{end}");
        }
        // A frame that unpacks to more than any table has.
        let bomb = zstd::encode_all(std::io::repeat(0).take(MAX_TABLE as u64 + 2), 1).unwrap();
        assert_eq!(Table::read(&bomb).map(|_| ()), Err(TableError::Large));
    }
}
