//! Languages by code and by name.

use std::fmt;

use serde::{Serialize, Serializer};

/// Codes (ISO 639-1, or 639-3 for those that have none there) with English names, in the order of
/// codes. Those with a `/` are groups: languages that short texts do not tell apart.
const NAMES: [(&str, &str); 141] = [
    ("ace", "Acehnese"),
    ("af", "Afrikaans"),
    ("am", "Amharic"),
    ("an", "Aragonese"),
    ("ar", "Arabic"),
    ("ary", "Moroccan Arabic"),
    ("arz", "Egyptian Arabic"),
    ("as", "Assamese"),
    ("az", "Azerbaijani"),
    ("ba", "Bashkir"),
    ("bcl", "Central Bikol"),
    ("be", "Belarusian"),
    ("bg", "Bulgarian"),
    ("bn", "Bengali"),
    ("br", "Breton"),
    ("bs", "Bosnian"),
    ("bs/hr/sr", "Bosnian, Croatian or Serbian"),
    ("ca", "Catalan"),
    ("crh", "Crimean Tatar"),
    ("cs", "Czech"),
    ("cy", "Welsh"),
    ("da", "Danish"),
    ("de", "German"),
    ("dz", "Dzongkha"),
    ("el", "Greek"),
    ("en", "English"),
    ("eo", "Esperanto"),
    ("es", "Spanish"),
    ("et", "Estonian"),
    ("eu", "Basque"),
    ("ext", "Extremaduran"),
    ("fa", "Persian"),
    ("fi", "Finnish"),
    ("fo", "Faroese"),
    ("fr", "French"),
    ("fuv", "Nigerian Fulfulde"),
    ("fy", "West Frisian"),
    ("ga", "Irish"),
    ("gcf", "Guadeloupean Creole"),
    ("gcr", "Guianese Creole"),
    ("gd", "Scottish Gaelic"),
    ("gl", "Galician"),
    ("gn", "Guarani"),
    ("gom", "Goan Konkani"),
    ("grc", "Ancient Greek"),
    ("gu", "Gujarati"),
    ("guw", "Gun"),
    ("ha", "Hausa"),
    ("hbo", "Ancient Hebrew"),
    ("he", "Hebrew"),
    ("hi", "Hindi"),
    ("hr", "Croatian"),
    ("ht", "Haitian Creole"),
    ("hu", "Hungarian"),
    ("hy", "Armenian"),
    ("id", "Indonesian"),
    ("id/ms", "Indonesian or Malay"),
    ("ig", "Igbo"),
    ("is", "Icelandic"),
    ("it", "Italian"),
    ("ja", "Japanese"),
    ("jv", "Javanese"),
    ("ka", "Georgian"),
    ("kab", "Kabyle"),
    ("ki", "Kikuyu"),
    ("kk", "Kazakh"),
    ("km", "Khmer"),
    ("kn", "Kannada"),
    ("ko", "Korean"),
    ("ku", "Kurdish"),
    ("ky", "Kyrgyz"),
    ("la", "Latin"),
    ("lb", "Luxembourgish"),
    ("lg", "Ganda"),
    ("lij", "Ligurian"),
    ("ln", "Lingala"),
    ("lo", "Lao"),
    ("lt", "Lithuanian"),
    ("ltg", "Latgalian"),
    ("lv", "Latvian"),
    ("mg", "Malagasy"),
    ("mk", "Macedonian"),
    ("ml", "Malayalam"),
    ("mn", "Mongolian"),
    ("mr", "Marathi"),
    ("ms", "Malay"),
    ("mt", "Maltese"),
    ("my", "Burmese"),
    ("ne", "Nepali"),
    ("nl", "Dutch"),
    ("nn", "Norwegian Nynorsk"),
    ("no", "Norwegian"),
    ("nso", "Northern Sotho"),
    ("oc", "Occitan"),
    ("om", "Oromo"),
    ("or", "Odia"),
    ("pa", "Punjabi"),
    ("pcm", "Nigerian Pidgin"),
    ("pl", "Polish"),
    ("ps", "Pashto"),
    ("pt", "Portuguese"),
    ("qu", "Quechua"),
    ("ro", "Romanian"),
    ("ru", "Russian"),
    ("rw", "Kinyarwanda"),
    ("sa", "Sanskrit"),
    ("sdh", "Southern Kurdish"),
    ("se", "Northern Sami"),
    ("si", "Sinhala"),
    ("sk", "Slovak"),
    ("sl", "Slovenian"),
    ("sn", "Shona"),
    ("so", "Somali"),
    ("sq", "Albanian"),
    ("sr", "Serbian"),
    ("st", "Southern Sotho"),
    ("sv", "Swedish"),
    ("sw", "Swahili"),
    ("ta", "Tamil"),
    ("te", "Telugu"),
    ("tg", "Tajik"),
    ("th", "Thai"),
    ("tk", "Turkmen"),
    ("tl", "Tagalog"),
    ("tr", "Turkish"),
    ("tt", "Tatar"),
    ("ug", "Uyghur"),
    ("uk", "Ukrainian"),
    ("ur", "Urdu"),
    ("uz", "Uzbek"),
    ("uzs", "Southern Uzbek"),
    ("vec", "Venetian"),
    ("vi", "Vietnamese"),
    ("vo", "Volapuk"),
    ("wa", "Walloon"),
    ("wuu", "Wu Chinese"),
    ("xh", "Xhosa"),
    ("yo", "Yoruba"),
    ("yue", "Cantonese"),
    ("zh", "Chinese"),
    ("zu", "Zulu"),
];

/// Other codes and names that people write.
const ALIASES: [(&str, &str); 22] = [
    ("bokmal", "no"),
    ("bokmål", "no"),
    ("castilian", "es"),
    ("cmn", "zh"),
    ("farsi", "fa"),
    ("fil", "tl"),
    ("filipino", "tl"),
    ("flemish", "nl"),
    ("frisian", "fy"),
    ("in", "id"),
    ("iw", "he"),
    ("kurmanji", "ku"),
    ("mandarin", "zh"),
    ("modern greek", "el"),
    ("nb", "no"),
    ("northern sámi", "se"),
    ("norwegian bokmal", "no"),
    ("norwegian bokmål", "no"),
    ("nynorsk", "nn"),
    ("slovene", "sl"),
    ("sotho", "st"),
    ("volapük", "vo"),
];

/// Languages that short texts do not tell apart, and the name of each group. An answer in any of
/// them counts as the one that is asked for; where none is, as the group.
///
/// Members are written alike and confused often, also in sentences of 13 words and more: of Bosnian
/// ones, the table calls 55 % Croatian or Serbian; of Malay ones, 77 % Indonesian. Dialects and
/// older forms go with the language that most people mean.
pub(super) const GROUPS: [(&str, &[&str]); 7] = [
    ("ar", &["ar", "ary", "arz"]),
    ("bs/hr/sr", &["bs", "hr", "sr"]),
    ("el", &["el", "grc"]),
    ("he", &["hbo", "he"]),
    ("id/ms", &["id", "ms"]),
    ("no", &["nn", "no"]),
    ("zh", &["wuu", "yue", "zh"]),
];

/// Suggestions for a name that is not known, at most.
const SUGGESTIONS: usize = 3;

/// Bytes of a word that is likened to names, at most: a bound on the work.
const LONGEST: usize = 64;

/// How alike a suggestion is, at least (Jaro and Winkler, 0 to 1). By trial: `Germn`, `Portugese`
/// and `jp` find theirs, `klingon` finds none.
const ALIKE: f64 = 0.84;

/// A language, or a group of languages that short texts do not tell apart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Language(u8);

/// A word that names no language that can be recognised.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", unknown(code))]
pub struct UnknownLanguage {
    /// The word as given.
    pub code: String,
}

fn unknown(word: &str) -> String {
    let shown = |languages: &[Language]| {
        let shown: Vec<String> = languages.iter().map(|l| format!("{l} ({})", l.name())).collect();
        shown.join(", ")
    };
    let nearest = if word.len() <= LONGEST { nearest(&word.to_lowercase()) } else { Vec::new() };
    let nearest = if nearest.is_empty() { String::new() } else { format!("; do you mean {}?", shown(&nearest)) };
    let some: Vec<Language> = ["de", "fr", "ja", "tr"].iter().filter_map(|code| Language::of_code(code)).collect();
    format!(
        "`{word}` is no language that can be recognised{nearest}; give a code or an English name, such as {}; \
         `chatvec languages` lists all {}",
        shown(&some),
        Language::all().len()
    )
}

/// Languages whose code or name is like a word, the most alike first.
fn nearest(word: &str) -> Vec<Language> {
    let alike = |language: &Language| {
        let (code, name) = NAMES[usize::from(language.0)];
        strsim::jaro_winkler(word, code).max(strsim::jaro_winkler(word, &name.to_lowercase()))
    };
    let mut all: Vec<(f64, Language)> = Language::all().into_iter().map(|l| (alike(&l), l)).collect();
    all.retain(|(alike, _)| *alike >= ALIKE);
    all.sort_by(|a, b| b.0.total_cmp(&a.0));
    all.into_iter().take(SUGGESTIONS).map(|(_, language)| language).collect()
}

impl Language {
    /// English, the language that chat vectors fall back to.
    pub const ENGLISH: Self = Self(place("en"));

    /// All that can be asked for, in the order of their codes: groups are left out.
    pub fn all() -> Vec<Self> {
        (0..NAMES.len() as u8).map(Self).filter(|language| !language.is_group()).collect()
    }

    /// One by its code (`de`), its English name (`German`) or a tag that begins with its code
    /// (`de-AT`, `de_DE`, `sr@latin`), in either case.
    pub fn parse(word: &str) -> Result<Self, UnknownLanguage> {
        let word = word.trim();
        let wanted = word.to_lowercase();
        let by_tag = || {
            let (code, rest) = wanted.split_once(['-', '_', '@'])?;
            let is_tag = rest.split(['-', '_', '.', '@']).all(|part| part.chars().all(char::is_alphanumeric));
            if is_tag { Self::named(code) } else { None }
        };
        Self::named(&wanted).or_else(by_tag).ok_or_else(|| UnknownLanguage { code: word.to_owned() })
    }

    /// Its code: ISO 639-1, or 639-3 for those that have none there. Of a group, those of its
    /// members (`bs/hr/sr`).
    pub fn code(self) -> String {
        NAMES[usize::from(self.0)].0.to_owned()
    }

    /// Its English name.
    pub fn name(self) -> String {
        NAMES[usize::from(self.0)].1.to_owned()
    }

    /// Whether it is several languages that short texts do not tell apart. Such a one is found, and
    /// cannot be asked for.
    pub fn is_group(self) -> bool {
        NAMES[usize::from(self.0)].0.contains('/')
    }

    /// The languages that short texts do not tell from this one, itself among them; none if there
    /// are no others.
    pub fn group(self) -> Vec<Self> {
        let code = NAMES[usize::from(self.0)].0;
        let is_in = |(group, members): &&(&str, &[&str])| *group == code || members.contains(&code);
        let members = GROUPS.iter().find(is_in).map_or(&[][..], |(_, members)| *members);
        members.iter().filter_map(|code| Self::of_code(code)).collect()
    }

    /// By a code, or by one of a group.
    pub(super) fn of_code(code: &str) -> Option<Self> {
        NAMES.binary_search_by_key(&code, |(code, _)| code).ok().map(|at| Self(at as u8))
    }

    /// By a code, a name or an alias in lower case.
    fn named(word: &str) -> Option<Self> {
        let code = ALIASES.iter().find(|(alias, _)| *alias == word).map_or(word, |(_, code)| code);
        let by_name = || NAMES.iter().position(|(_, name)| name.to_lowercase() == word).map(|at| Self(at as u8));
        Self::of_code(code).or_else(by_name).filter(|language| !language.is_group())
    }
}

/// The place of a code.
const fn place(code: &str) -> u8 {
    let mut at = 0;
    while at < NAMES.len() {
        let (one, other) = (NAMES[at].0.as_bytes(), code.as_bytes());
        if one.len() == other.len() && one[0] == other[0] && one[1] == other[1] {
            return at as u8;
        }
        at += 1;
    }
    panic!("no such code")
}

impl fmt::Display for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(NAMES[usize::from(self.0)].0)
    }
}

impl fmt::Debug for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Language({self})")
    }
}

impl Serialize for Language {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(NAMES[usize::from(self.0)].0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_order_and_groups_are_of_them() {
        assert!(NAMES.is_sorted_by(|a, b| a.0 < b.0));
        assert!(ALIASES.is_sorted_by(|a, b| a.0 < b.0));
        assert_eq!(Language::ENGLISH.name(), "English");
        for (alias, code) in ALIASES {
            assert!(Language::of_code(alias).is_none() && Language::of_code(code).is_some(), "{alias}");
        }
        let codes = GROUPS.iter().flat_map(|(group, members)| members.iter().chain([group]));
        for code in codes {
            let language = Language::of_code(code).unwrap();
            assert!(language.group().len() > 1, "{code}");
        }
        let members = GROUPS.iter().map(|(_, members)| members.len()).sum::<usize>();
        assert_eq!(Language::all().iter().filter(|l| !l.group().is_empty()).count(), members);
    }
}
