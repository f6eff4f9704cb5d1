//! Which instructions the codec uses.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU8, Ordering};

/// Vector instructions that the codec can use. All levels give the same bits for finite numbers; a
/// higher one is faster.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[non_exhaustive]
pub enum Level {
    /// None but what every processor of the architecture has.
    Scalar,
    /// AVX2 and F16C, on x86-64.
    Avx2,
    /// AVX-512 F, BW, DQ and VL, on x86-64.
    Avx512,
}

/// All levels, from the lowest up.
const ALL: [Level; 3] = [Level::Scalar, Level::Avx2, Level::Avx512];

/// No level has this name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no level of vector instructions is called {name:?}; there are scalar, avx2 and avx512")]
pub struct UnknownLevel {
    /// The name as given.
    pub name: String,
}

impl Level {
    /// The highest level that this processor has.
    pub fn best() -> Self {
        Self::available().last().unwrap_or(Self::Scalar)
    }

    /// The levels that this processor has, from the lowest up.
    pub fn available() -> impl Iterator<Item = Self> {
        ALL.into_iter().filter(|level| level.is_available())
    }

    /// Whether this processor has it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => super::x86::avx2::Avx2::new().is_some(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => super::x86::avx512::Avx512::new().is_some(),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// What the codec uses where it is not told: the best, or what [`limit_level`] allows of it.
    pub fn current() -> Self {
        let limit = LIMIT.load(Ordering::Relaxed);
        Self::available().filter(|&level| level as u8 <= limit).last().unwrap_or(Self::Scalar)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Level {
    type Err = UnknownLevel;

    fn from_str(s: &str) -> Result<Self, UnknownLevel> {
        let level = ALL.into_iter().find(|level| level.name() == s);
        level.ok_or_else(|| UnknownLevel { name: s.to_owned() })
    }
}

static LIMIT: AtomicU8 = AtomicU8::new(u8::MAX);

/// Keeps encoders and decoders of the whole process, and a merge's sums, from using more than
/// `level` from now on, to measure or to look for a fault: results are the same bytes at every
/// level. Dot products of inference always use what there is, since theirs are not.
pub fn limit_level(level: Level) {
    LIMIT.store(level as u8, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_found_by_name() {
        for level in ALL {
            assert_eq!(level.to_string().parse(), Ok(level));
        }
        assert!("AVX2".parse::<Level>().is_err());
    }

    #[test]
    fn every_processor_has_the_scalar_level() {
        assert_eq!(Level::available().next(), Some(Level::Scalar));
        assert_eq!(Level::available().last(), Some(Level::best()));
    }
}
