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

/// Every pre-tokenizer that was held against llama.cpp's own, name by name (tests/peers/tokenizer_goldens.py).
///
/// Names, patterns and flags are facts of src/llama-vocab.cpp (`llama_vocab::impl::load`, `llm_tokenizer_bpe`). Where
/// llama.cpp replaces a pattern by a loop of its own (src/unicode.cpp, `unicode_regex_split_custom`), the pattern here
/// is the one that the loop says it is. Letters of either case by lookahead are written as intersections, and white
/// space is taken out of ranges of characters, because llama.cpp makes it U+000B before it looks.
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
        names: &["bailingmoe", "bailingmoe2", "llada-moe"],
        stages: &[concat!(
            r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])",
            r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
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
                r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώ",
                r"ᾀ-ᾴᾶ-ᾼ\u{1FBE}ῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u{2126}ℨ\u{212A}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗ",
                r"Ａ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+",
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
                r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"##,
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
                r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"##,
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
        Splitter { stages: self.stages.iter().map(|pattern| Stage::new(pattern)).collect() }
    }
}

/// Compiled patterns.
pub(super) struct Splitter {
    stages: Vec<Stage>,
}

impl Splitter {
    /// The words of a text, none empty, nothing left out (src/unicode.cpp, `unicode_regex_split`): what a pattern does
    /// not match stays together as a word too.
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
struct Stage {
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
    /// Likewise; but a run that ends with a newline was matched by `\s*[\r\n]+`, which takes it whole.
    ButLastUnlessNewline,
}

/// `\s+(?!\S)|\s+` is matched as `\s+` and cut afterwards, by [`Stage::split`]: a pattern without lookahead is matched
/// in linear time and constant memory however long the run is.
const LOOKAHEAD: &str = r"\s+(?!\S)|\s+";

impl Stage {
    fn new(pattern: &str) -> Self {
        let spaces = match (pattern.ends_with(LOOKAHEAD), pattern.contains(r"\s*[\r\n]")) {
            (false, _) => Spaces::All,
            (true, false) => Spaces::ButLast,
            (true, true) => Spaces::ButLastUnlessNewline,
        };
        let mut pattern = pattern.replace(LOOKAHEAD, r"\s+");
        // llama.cpp's tables are those of Unicode 15.1 (src/unicode-data.cpp); this engine's are newer.
        for class in ["L", "N", "M", "P", "S"] {
            pattern = pattern.replace(&format!(r"\p{{{class}}}"), &format!(r"[\p{{{class}}}&&\p{{age=15.1}}]"));
        }
        let regex = SysRegex::new(&pattern).expect("a test compiles every pattern of the table");
        Stage { regex, spaces }
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
