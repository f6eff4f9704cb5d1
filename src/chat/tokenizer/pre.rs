//! Pre-tokenizers: which words byte-pair encoding may not merge across, by `tokenizer.ggml.pre`.

use tokenizers::utils::SysRegex;

/// Rules that go by one or more names in `tokenizer.ggml.pre`.
#[derive(Default, Debug)]
pub(super) struct Pre {
    /// Names in files.
    pub(super) names: &'static [&'static str],
    /// Patterns, each applied to the pieces that those before it left.
    stages: &'static [&'static str],
    /// A word that is a token is that token, whatever the merges say.
    pub(super) ignore_merges: bool,
    /// Prompts begin with BOS unless the file says otherwise.
    pub(super) add_bos: bool,
    /// There is no BOS unless the file names one.
    pub(super) no_bos: bool,
    /// Tokens are text with ▁ for spaces, not text in the alphabet of bytes.
    pub(super) raw: bool,
    /// Words of newlines that are a token are that token.
    pub(super) raw_newlines: bool,
}

const NO: Pre = Pre {
    names: &[],
    stages: &[],
    ignore_merges: false,
    add_bos: false,
    no_bos: false,
    raw: false,
    raw_newlines: false,
};

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// The patterns that begin with English contractions in either case, and what follows.
macro_rules! contractions {
    ($rest:literal) => {
        concat!("(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|", $rest)
    };
}
const LLAMA3: &str =
    contractions!(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+");
const QWEN2: &str = contractions!(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+");
const LINES: &str = r"[^\n]+|[\n]+";
const NOT_BLOOM: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";

/// Every pre-tokenizer that was held against llama.cpp's own, name by name
/// (tests/peers/tokenizer_goldens.py).
///
/// Names, patterns and flags are facts of src/llama-vocab.cpp (`llama_vocab::impl::load`,
/// `llm_tokenizer_bpe`). Where llama.cpp replaces a pattern by a loop of its own (src/unicode.cpp,
/// `unicode_regex_split_custom`), the pattern here is the one that the loop says it is. Letters of
/// either case by lookahead are written as intersections, and white space is taken out of ranges of
/// characters, because llama.cpp makes it U+000B before it looks.
#[rustfmt::skip]
pub(super) static PRES: &[Pre] = &[
    Pre {
        names: &["default"],
        stages: &[
            r"[\p{P}\$\+<=>\^~\|]+",
            GPT2,
            r"\p{N}+",
            r"[0-9][0-9][0-9]",
        ],
        ..NO
    },
    Pre {
        names: &[
            "gpt-2", "phi-2", "jina-es", "jina-de", "gigachat", "jina-v2-es", "jina-v2-de", "a.x-4.0", "mellum",
            "modern-bert", "jina-v1-en", "jina-v2-code", "roberta-bpe", "mpt", "olmo", "jais", "trillion",
            "granite-docling", "exaone4",
        ],
        stages: &[GPT2],
        ..NO
    },
    Pre {
        names: &[
            "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano",
        ],
        stages: &[LLAMA3],
        ignore_merges: true,
        add_bos: true,
        ..NO
    },
    Pre { names: &["dbrx", "smaug-bpe"], stages: &[LLAMA3], ..NO },
    Pre { names: &["chatglm-bpe"], stages: &[LLAMA3], no_bos: true, ..NO },
    Pre { names: &["glm4", "glm5"], stages: &[LLAMA3], no_bos: true, ignore_merges: true, ..NO },
    Pre {
        names: &[
            "qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2",
            // With one newline after `\s*` for any number, which is the same.
            "bailingmoe", "bailingmoe2", "llada-moe",
        ],
        stages: &[QWEN2],
        ..NO
    },
    Pre {
        names: &["qwen35"],
        stages: &[contractions!(
            r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )],
        ..NO
    },
    Pre {
        names: &["ufakzeka"],
        stages: &[r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"],
        ..NO
    },
    Pre { names: &["laguna"], stages: &[LINES, QWEN2], ..NO },
    Pre {
        names: &["minicpm5"],
        stages: &[
            r"\p{N}{1,3}",
            contractions!(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"),
        ],
        ignore_merges: true,
        ..NO
    },
    Pre {
        names: &["seed-coder"],
        stages: &[contractions!(
            r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
        )],
        ..NO
    },
    Pre {
        names: &["exaone-moe"],
        stages: &[contractions!(
            r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
        )],
        ..NO
    },
    Pre {
        names: &[
            "starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2",
        ],
        stages: &[r"\p{N}", GPT2],
        ..NO
    },
    Pre {
        names: &["falcon"],
        stages: &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, r"[0-9][0-9][0-9]"],
        ..NO
    },
    Pre {
        names: &["tekken"],
        stages: &[concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]*[\p{L}&&[^A-Z]]+",
            r"|[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]+[\p{L}&&[^A-Z]]*",
            r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        )],
        ignore_merges: true,
        add_bos: true,
        ..NO
    },
    Pre {
        names: &["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"],
        stages: &[concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]*[\p{L}&&[^A-Z]]+",
            r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?",
            r"|[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]+[\p{L}&&[^A-Z]]*",
            r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?",
            r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        )],
        ..NO
    },
    Pre {
        names: &["deepseek-llm"],
        stages: &[
            r"[\r\n]",
            concat!(
                r"\s?[A-Za-z",
                r"\u{B5}\u{C0}-\u{D6}\u{D8}-\u{F6}\u{F8}-\u{1BA}\u{1BC}-\u{1BF}\u{1C4}-\u{293}",
                r"\u{295}-\u{2AF}\u{370}-\u{373}\u{376}\u{377}\u{37B}-\u{37D}\u{37F}\u{386}\u{388}-\u{38A}",
                r"\u{38C}\u{38E}-\u{3A1}\u{3A3}-\u{3F5}\u{3F7}-\u{481}\u{48A}-\u{52F}\u{531}-\u{556}",
                r"\u{10A0}-\u{10C5}\u{13A0}-\u{13F5}\u{13F8}-\u{13FD}\u{1C90}-\u{1CBA}\u{1CBD}-\u{1CBF}",
                r"\u{1D00}-\u{1D2B}\u{1D6B}-\u{1D77}\u{1D79}-\u{1D9A}\u{1E00}-\u{1F15}\u{1F18}-\u{1F1D}",
                r"\u{1F20}-\u{1F45}\u{1F48}-\u{1F4D}\u{1F50}-\u{1F57}\u{1F59}\u{1F5B}\u{1F5D}",
                r"\u{1F5F}-\u{1F7D}\u{1F80}-\u{1FB4}\u{1FB6}-\u{1FBC}\u{1FBE}\u{1FC2}-\u{1FC4}",
                r"\u{1FC6}-\u{1FCC}\u{1FD0}-\u{1FD3}\u{1FD6}-\u{1FDB}\u{1FE0}-\u{1FEC}\u{1FF2}-\u{1FF4}",
                r"\u{1FF6}-\u{1FFC}\u{2102}\u{2107}\u{210A}-\u{2113}\u{2115}\u{2119}-\u{211D}\u{2124}",
                r"\u{2126}\u{2128}\u{212A}-\u{212D}\u{212F}-\u{2134}\u{2139}\u{213C}-\u{213F}",
                r"\u{2145}-\u{2149}\u{214E}\u{2183}\u{2184}\u{2C00}-\u{2C7B}\u{2C7E}-\u{2CE4}",
                r"\u{2CEB}-\u{2CEE}\u{2CF2}\u{2CF3}\u{A640}-\u{A66D}\u{A680}-\u{A69B}\u{A722}-\u{A76F}",
                r"\u{A771}-\u{A787}\u{A78B}-\u{A78E}\u{AB70}-\u{ABBF}\u{FB00}-\u{FB06}\u{FB13}-\u{FB17}",
                r"\u{FF21}-\u{FF3A}\u{FF41}-\u{FF5A}\u{10400}-\u{1044F}\u{104B0}-\u{104D3}",
                r"\u{104D8}-\u{104FB}\u{10C80}-\u{10CB2}\u{10CC0}-\u{10CF2}\u{118A0}-\u{118DF}",
                r"\u{1E900}-\u{1E943}",
                r"]+",
            ),
            r"\s?[[!-/:-~！-／：-～‘-‟\u{3000}-。]&&\S]+",
            r"\s+$",
            r"[[一-龥ࠀ-一가-퟿]&&\S]+",
            r"\p{N}+",
        ],
        ..NO
    },
    Pre {
        names: &["deepseek-coder"],
        stages: &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[[一-龥ࠀ-一가-퟿]&&\S]+", r"\p{N}"],
        ..NO
    },
    Pre {
        names: &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        stages: &[
            r"\p{N}{1,3}",
            r"[一-龥぀-ゟ゠-ヿ]+",
            concat!(
                r"[!\x22#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
                r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            ),
        ],
        ..NO
    },
    Pre {
        names: &["spark2_5"],
        stages: &[
            r"\p{N}{1,3}",
            r"[一-龥぀-ゟ゠-ヿ]+",
            concat!(
                r"[!\x22#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
                r"| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+",
            ),
            r"\p{N}",
        ],
        ..NO
    },
    Pre { names: &["poro-chat", "bloom", "gpt3-finnish"], stages: &[NOT_BLOOM], ..NO },
    Pre { names: &["viking"], stages: &[NOT_BLOOM, r"\p{N}"], ..NO },
    Pre { names: &["gemma4", "granite-embed-multi-311m"], stages: &[LINES], raw: true, raw_newlines: true, ..NO },
    Pre { names: &["sarvam-moe"], stages: &[LINES], raw: true, ..NO },
];

impl Pre {
    /// The rules of a name.
    pub(super) fn find(name: &[u8]) -> Option<&'static Pre> {
        PRES.iter().find(|pre| pre.names.iter().any(|n| n.as_bytes() == name))
    }

    /// All names, for people.
    pub(super) fn known() -> String {
        PRES.iter().flat_map(|pre| pre.names).copied().collect::<Vec<_>>().join(", ")
    }

    pub(super) fn splitter(&self) -> Splitter {
        Splitter { stages: self.stages.iter().map(|pattern| SplitStage::new(pattern)).collect() }
    }
}

/// Compiled patterns.
pub(super) struct Splitter {
    stages: Vec<SplitStage>,
}

impl Splitter {
    /// The words of a text, none empty, nothing left out (src/unicode.cpp, `unicode_regex_split`):
    /// what a pattern does not match stays together as a word too.
    pub(super) fn split<'t>(&self, text: &'t str) -> Vec<&'t str> {
        let mut words = vec![text];
        for stage in &self.stages {
            let mut finer = Vec::with_capacity(words.len());
            for word in words {
                stage.split(word, &mut finer);
            }
            words = finer;
        }
        words.retain(|word| !word.is_empty());
        words
    }
}

/// One pattern.
struct SplitStage {
    regex: SysRegex,
    spaces: Spaces,
}

/// How much of a run of white space that another character follows is one word.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spaces {
    /// What the pattern matches.
    All,
    /// All but the last, which belongs to the word behind: `\s+(?!\S)`.
    ButLast,
    /// All but the last, unless the run ends with a newline: `\s*[\r\n]+` takes such a run whole.
    ButLastUnlessNewline,
}

/// `\s+(?!\S)|\s+` is matched as `\s+` and cut afterwards, by [`SplitStage::split`]: a pattern
/// without lookahead is matched in linear time and constant memory however long the run is.
const LOOKAHEAD: &str = r"\s+(?!\S)|\s+";

impl SplitStage {
    fn new(pattern: &str) -> Self {
        let spaces = match (pattern.ends_with(LOOKAHEAD), pattern.contains(r"\s*[\r\n]")) {
            (false, _) => Spaces::All,
            (true, false) => Spaces::ButLast,
            (true, true) => Spaces::ButLastUnlessNewline,
        };
        let mut pattern = pattern.replace(LOOKAHEAD, r"\s+");
        // llama.cpp's tables are those of Unicode 15.1 (src/unicode-data.cpp); this engine's are
        // newer.
        for class in ["L", "N", "M", "P", "S"] {
            pattern = pattern.replace(&format!(r"\p{{{class}}}"), &format!(r"[\p{{{class}}}&&\p{{age=15.1}}]"));
        }
        let regex = SysRegex::new(&pattern).expect("a test compiles every pattern of the table");
        SplitStage { regex, spaces }
    }

    fn split<'t>(&self, text: &'t str, words: &mut Vec<&'t str>) {
        // Up to `done` the text is cut, from `from` on it is searched.
        let (mut done, mut from) = (0, 0);
        'search: loop {
            for (start, end) in self.regex.find_iter(&text[from..]) {
                let (start, mut end) = (from + start, from + end);
                let cut = self.last_space(&text[start..end], &text[end..]);
                end -= cut;
                words.extend([&text[done..start], &text[start..end]].into_iter().filter(|word| !word.is_empty()));
                done = end;
                if cut > 0 {
                    from = end;
                    continue 'search;
                }
            }
            break;
        }
        if done < text.len() {
            words.push(&text[done..]);
        }
    }

    /// Bytes at the end of a match that are left to the next one.
    fn last_space(&self, matched: &str, rest: &str) -> usize {
        if self.spaces == Spaces::All || rest.is_empty() || rest.starts_with(char::is_whitespace) {
            return 0;
        }
        let mut chars = matched.chars();
        match chars.next_back() {
            Some('\r' | '\n') if self.spaces == Spaces::ButLastUnlessNewline => 0,
            // Every other match that ends with white space is white space.
            Some(last) if last.is_whitespace() && !chars.as_str().is_empty() => last.len_utf8(),
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_pattern_compiles_and_every_name_is_there_once() {
        let mut names = HashSet::new();
        for pre in PRES {
            assert!(!pre.splitter().stages.is_empty());
            assert!(pre.names.iter().all(|name| names.insert(name)));
        }
    }

    #[test]
    fn spaces_before_a_word_leave_it_the_last() {
        let split =
            |name: &str, text| Pre::find(name.as_bytes()).expect("in the table").splitter().split(text).join("·");
        assert_eq!(split("gpt-2", "a   b  "), "a·  · b·  ");
        assert_eq!(split("gpt-2", "a\n\nb"), "a·\n·\n·b");
        assert_eq!(split("llama3", "a\n\nb  \n 1"), "a·\n\n·b·  \n· ·1");
        assert_eq!(split("qwen2", "\t\t1"), "\t·\t·1");
    }
}
