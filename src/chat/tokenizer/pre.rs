//! Pre-tokenizers: which words byte-pair encoding may not merge across, by `tokenizer.ggml.pre`.

use std::borrow::Cow;

use tokenizers::utils::SysRegex;

use super::spm::SPACE;

/// Rules that go by one or more names in `tokenizer.ggml.pre`.
#[derive(Default, Debug)]
pub(super) struct Pre {
    /// Names in files.
    pub(super) names: &'static [&'static str],
    /// What happens to a text before it is cut.
    rewrite: Rewrite,
    /// Each applied to the pieces that those before it left.
    stages: &'static [Stage],
    /// A word that is a token is that token, whatever the merges say.
    pub(super) ignore_merges: bool,
    /// Prompts begin with BOS unless the file says otherwise.
    pub(super) add_bos: bool,
    /// Prompts begin with BOS whatever the file says.
    pub(super) always_bos: bool,
    /// There is no BOS unless the file names one.
    pub(super) no_bos: bool,
    /// Tokens are text, not text in the alphabet of bytes.
    pub(super) raw: bool,
    /// With [`Pre::raw`], tokens have ▁ for spaces.
    pub(super) escapes: bool,
    /// Words of newlines that are a token are that token.
    pub(super) raw_newlines: bool,
    /// What has no token is the unknown token, not bytes.
    pub(super) no_bytes: bool,
    /// A file may be without merges.
    pub(super) no_merges: bool,
    /// Texts that end an answer here only.
    pub(super) ends: &'static [&'static str],
}

const NO: Pre = Pre {
    names: &[],
    rewrite: Rewrite::Nothing,
    stages: &[],
    ignore_merges: false,
    add_bos: false,
    always_bos: false,
    no_bos: false,
    raw: false,
    escapes: false,
    raw_newlines: false,
    no_bytes: false,
    no_merges: false,
    ends: &[],
};

/// A change to a text before it is cut (src/llama-vocab.cpp,
/// `llm_tokenizer_bpe_session::tokenize`).
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) enum Rewrite {
    #[default]
    Nothing,
    /// U+200C goes after `[` and `<`.
    Brackets,
    /// Runs of white space become a space, capital letters small ones.
    Lower,
    /// Every line that holds something begins with ▁.
    Lines,
}

/// One way to cut.
#[derive(Clone, Copy, Debug)]
enum Stage {
    /// What a pattern matches is a word, and what it leaves between matches.
    Words(&'static str),
    /// The same, and runs of white space are cut into powers of two, 512 at most.
    Powers(&'static str),
    /// Runs of numbers are cut into threes from their right, with a cut behind them and none
    /// before: the first group stays with the text on its left.
    AfterThrees,
    /// Runs of ASCII digits are cut into threes from their right, before each whole three.
    BeforeThrees,
}

use Stage::{AfterThrees, BeforeThrees, Words};

const GPT2: Stage = Words(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+");

/// The patterns that begin with English contractions in either case, and what follows.
macro_rules! contractions {
    ($rest:literal) => {
        concat!("(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|", $rest)
    };
}
/// Words with an English contraction behind them, and what follows.
macro_rules! contracted {
    ($word:literal, $rest:literal) => {
        concat!($word, "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?", $rest)
    };
}
const LLAMA3: Stage =
    Words(contractions!(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"));
const QWEN2: Stage =
    Words(contractions!(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"));
/// Words that begin anew with a capital letter behind small ones; then numbers, and what follows.
macro_rules! tekken {
    ($numbers:literal) => {
        concat!(
            r"[^\r\n\p{L}\p{N}]?[[\p{L}\p{M}]&&[^a-z]]*[[\p{L}\p{M}]&&[^A-Z]]+",
            r"|[^\r\n\p{L}\p{N}]?[[\p{L}\p{M}]&&[^a-z]]+[[\p{L}\p{M}]&&[^A-Z]]*|",
            $numbers,
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        )
    };
}
const GPT4O: Stage = Words(concat!(
    contracted!(r"[^\r\n\p{L}\p{N}]?[[\p{L}\p{M}]&&[^a-z]]*[[\p{L}\p{M}]&&[^A-Z]]+", ""),
    contracted!(r"|[^\r\n\p{L}\p{N}]?[[\p{L}\p{M}]&&[^a-z]]+[[\p{L}\p{M}]&&[^A-Z]]*", ""),
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
));
const LINES: Stage = Words(r"[^\n]+|[\n]+");
const NOT_BLOOM: Stage = Words(r" ?[^(\s|.,!?…。，、।۔،)]+");
const IDEOGRAPHS: Stage = Words(r"[一-龥぀-ゟ゠-ヿ]+");

const DEEPSEEK_V3: Stage = Words(concat!(
    r"[!\x22#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
));

/// The ranges of ideographs in src/unicode.cpp, `unicode_cpt_is_han`.
macro_rules! han {
    () => {
        concat!(
            r"[\u{4E00}-\u{9FFF}\u{3400}-\u{4DBF}\u{20000}-\u{2A6DF}\u{2A700}-\u{2EBEF}",
            r"\u{F900}-\u{FAFF}\u{2F800}-\u{2FA1F}]",
        )
    };
}

/// Every pre-tokenizer of llama.cpp 0.8 (b12032), held against llama.cpp's own, name by name
/// (tests/peers/tokenizer_goldens.py).
///
/// Names, patterns and flags are facts of src/llama-vocab.cpp (`llama_vocab::impl::load`,
/// `llm_tokenizer_bpe`). Where llama.cpp replaces a pattern by a loop of its own (src/unicode.cpp,
/// `unicode_regex_split_custom`), the pattern here is the one that the loop says it is, or does
/// where it says another. Letters of either case by lookahead are written as intersections. Where a
/// pattern names letters by case, as `\p{Lu}`, it means all letters, since llama.cpp tells their
/// cases only in ASCII (`unicode_regex_split`). White space is taken out of ranges of characters,
/// because llama.cpp makes it U+000B before it looks.
#[rustfmt::skip]
pub(super) static PRES: &[Pre] = &[
    Pre {
        names: &["default"],
        stages: &[
            Words(r"[\p{P}\$\+<=>\^~\|]+"),
            GPT2,
            Words(r"\p{N}+"),
            Words(r"[0-9][0-9][0-9]"),
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
        names: &["llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "midm-2.0", "lfm2", "jina-v5-nano"],
        stages: &[LLAMA3],
        ignore_merges: true,
        add_bos: true,
        ..NO
    },
    Pre { names: &["dbrx", "smaug-bpe"], stages: &[LLAMA3], ..NO },
    Pre { names: &["chatglm-bpe"], stages: &[LLAMA3], no_bos: true, ..NO },
    Pre { names: &["glm4", "glm5"], stages: &[LLAMA3], no_bos: true, ignore_merges: true, ..NO },
    Pre {
        names: &["jais-2"],
        stages: &[Stage::Powers(contractions!(
            r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
        ))],
        ..NO
    },
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
        stages: &[Words(contractions!(
            r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        ))],
        ..NO
    },
    Pre {
        names: &["ufakzeka"],
        stages: &[Words(
            r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )],
        ..NO
    },
    Pre { names: &["laguna"], stages: &[LINES, QWEN2], ..NO },
    Pre {
        names: &["minicpm5"],
        stages: &[
            Words(r"\p{N}{1,3}"),
            Words(contractions!(
                r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            )),
        ],
        ignore_merges: true,
        ..NO
    },
    Pre {
        names: &["seed-coder"],
        stages: &[Words(contractions!(
            r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
        ))],
        ..NO
    },
    Pre {
        names: &["exaone-moe"],
        stages: &[Words(contractions!(
            r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
        ))],
        ..NO
    },
    Pre {
        names: &["k2-horizon"],
        // The loop, not the pattern, takes ſ for s.
        stages: &[Words(concat!(
            r"(?:'[sSſ]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])",
            r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}\u{200C}\u{200D}]+",
            r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ))],
        ..NO
    },
    Pre {
        names: &["kimi-k2"],
        stages: &[Words(concat!(
            han!(), r"+|[^\r\n\p{L}\p{N}]?[\p{L}&&[^", han!(), r"]]+",
            r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?",
            r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ))],
        no_merges: true,
        ..NO
    },
    Pre {
        names: &[
            "starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2",
        ],
        stages: &[Words(r"\p{N}"), GPT2],
        ..NO
    },
    Pre {
        names: &["falcon"],
        stages: &[Words(r"[\p{P}\$\+<=>\^~\|`]+"), GPT2, Words(r"[0-9][0-9][0-9]")],
        ..NO
    },
    Pre {
        names: &["chameleon"],
        stages: &[
            Words(r"<sentinel:[0-9]+>"),
            Words(r"IMGIMG[A-I]{1,4}Z"),
            Words(r"[\t\n]|    |  "),
            Words(r"\p{N}"),
            Words(r"[\p{P}!-/:-@\[-`{-~]"),
            GPT2,
        ],
        add_bos: true,
        ..NO
    },
    Pre {
        names: &["tekken", "pixtral"],
        stages: &[Words(tekken!(r"\p{N}"))],
        ignore_merges: true,
        add_bos: true,
        ..NO
    },
    Pre {
        names: &["tekken-num3"],
        // In one pattern there, with lookahead.
        stages: &[Words(tekken!(r"\p{N}+")), AfterThrees],
        ignore_merges: true,
        add_bos: true,
        ..NO
    },
    Pre {
        names: &["nemotron-3.5-embed"],
        rewrite: Rewrite::Brackets,
        stages: &[Words(tekken!(r"\p{N}"))],
        ignore_merges: true,
        add_bos: true,
        ..NO
    },
    Pre { names: &["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], stages: &[GPT4O], ..NO },
    Pre { names: &["granite-embed-multi-97m"], stages: &[GPT4O], ignore_merges: true, ..NO },
    Pre {
        names: &["tiny_aya", "cohere2moe"],
        stages: &[
            AfterThrees,
            Words(contracted!(
                r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
                r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            )),
        ],
        ..NO
    },
    Pre {
        names: &["youtu"],
        stages: &[
            Words(r"[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+"),
            Words(contracted!(
                r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
                r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            )),
        ],
        ignore_merges: true,
        ..NO
    },
    Pre {
        names: &["flint"],
        stages: &[
            Words(r"\p{N}{1,3}"),
            IDEOGRAPHS,
            Words(contracted!(
                r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
                r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            )),
        ],
        ends: &["<|user|>", "<|observation|>"],
        ..NO
    },
    Pre { names: &["superbpe"], stages: &[Words(r"\p{N}+"), BeforeThrees], ..NO },
    Pre {
        names: &["deepseek-llm"],
        stages: &[
            Words(r"[\r\n]"),
            Words(concat!(
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
            )),
            Words(r"\s?[[!-/:-~！-／：-～‘-‟\u{3000}-。]&&\S]+"),
            Words(r"\s+$"),
            Words(r"[[一-龥ࠀ-一가-퟿]&&\S]+"),
            Words(r"\p{N}+"),
        ],
        ..NO
    },
    Pre {
        names: &["deepseek-coder"],
        stages: &[
            Words(r"[\r\n]"),
            Words(r"\s?\p{L}+"),
            Words(r"\s?\p{P}+"),
            Words(r"[[一-龥ࠀ-一가-퟿]&&\S]+"),
            Words(r"\p{N}"),
        ],
        ..NO
    },
    Pre {
        names: &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        stages: &[Words(r"\p{N}{1,3}"), IDEOGRAPHS, DEEPSEEK_V3],
        ..NO
    },
    Pre {
        names: &["afmoe"],
        stages: &[
            AfterThrees,
            // The first of the third range, 豈, is U+8C48 there, not U+F900.
            Words(concat!(
                r"[\u{4E00}-\u{9FFF}\u{3400}-\u{4DBF}\u{8C48}-\u{FAFF}\u{3040}-\u{30FF}\u{FF65}-\u{FF9F}",
                r"\u{2F00}-\u{2FDF}\u{E40}-\u{EFF}\u{1780}-\u{17FF}\u{1000}-\u{109F}\u{AA60}-\u{AA7F}",
                r"\u{A9E0}-\u{A9FF}\u{AC00}-\u{D7AF}\u{1100}-\u{11FF}]+",
            )),
            DEEPSEEK_V3,
        ],
        ..NO
    },
    Pre {
        names: &["spark2_5"],
        stages: &[
            Words(r"\p{N}{1,3}"),
            IDEOGRAPHS,
            Words(concat!(
                r"[!\x22#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
                r"| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+",
            )),
            Words(r"\p{N}"),
        ],
        ..NO
    },
    Pre { names: &["poro-chat", "bloom", "gpt3-finnish"], stages: &[NOT_BLOOM], ..NO },
    Pre { names: &["viking"], stages: &[NOT_BLOOM, Words(r"\p{N}")], ..NO },
    Pre {
        names: &["gemma4", "granite-embed-multi-311m"],
        stages: &[LINES],
        always_bos: true,
        raw: true,
        escapes: true,
        raw_newlines: true,
        ..NO
    },
    Pre {
        names: &["mmbert"],
        rewrite: Rewrite::Lines,
        stages: &[LINES, Words(r"▁[^▁]*")],
        raw: true,
        escapes: true,
        raw_newlines: true,
        ..NO
    },
    Pre { names: &["sarvam-moe", "domyn-small"], stages: &[LINES], raw: true, escapes: true, ..NO },
    Pre {
        names: &["soprano"],
        rewrite: Rewrite::Lower,
        stages: &[Words(r"\p{N}"), Words(r"\s+|[\p{L}\p{N}_]+|[^\p{L}\p{N}_\s]+")],
        raw: true,
        no_bytes: true,
        ..NO
    },
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
        let lower = (self.rewrite == Rewrite::Lower).then(|| regex(r"[\p{CWL}]+|\s+"));
        Splitter { rewrite: self.rewrite, lower, stages: self.stages.iter().map(SplitStage::new).collect() }
    }
}

/// Compiled patterns.
pub(super) struct Splitter {
    rewrite: Rewrite,
    /// What [`Rewrite::Lower`] changes.
    lower: Option<SysRegex>,
    stages: Vec<SplitStage>,
}

impl Splitter {
    /// The text that is cut in place of this one.
    pub(super) fn rewrite<'t>(&self, text: &'t str) -> Cow<'t, str> {
        match self.rewrite {
            Rewrite::Nothing => text.into(),
            Rewrite::Brackets => text.replace("[\u{200C}", "[").replace("<\u{200C}", "<").into(),
            Rewrite::Lower => {
                let mut out = String::with_capacity(text.len());
                let mut done = 0;
                for (start, end) in self.lower.iter().flat_map(|regex| regex.find_iter(text)) {
                    out.push_str(&text[done..start]);
                    match text[start..end].starts_with(char::is_whitespace) {
                        true => out.push(' '),
                        // Each character by itself: `str` looks where a sigma stands.
                        false => out.extend(text[start..end].chars().flat_map(char::to_lowercase)),
                    }
                    done = end;
                }
                out.push_str(&text[done..]);
                out.into()
            }
            Rewrite::Lines => {
                let mut out = String::with_capacity(text.len() + SPACE.len());
                for line in text.split_inclusive('\n') {
                    if !line.starts_with('\n') && !line.starts_with(SPACE) {
                        out.push_str(SPACE);
                    }
                    out.push_str(line);
                }
                out.into()
            }
        }
    }

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
        words
    }
}

/// One stage.
struct SplitStage {
    regex: SysRegex,
    cut: Cut,
}

/// What becomes of a match.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// A word.
    None,
    /// Of a run of white space that another character follows, all but the last is a word; the last
    /// belongs to the word behind: `\s+(?!\S)`.
    LastSpace,
    /// The same unless the run ends with a newline: `\s*[\r\n]+` takes such a run whole.
    LastSpaceUnlessNewline,
    /// The same, and what is left falls into powers of two: `\s{512}(?!\S)|\s{256}(?!\S)|…`.
    Powers,
    /// [`Stage::AfterThrees`].
    AfterThrees,
    /// [`Stage::BeforeThrees`].
    BeforeThrees,
}

/// `\s+(?!\S)|\s+` is matched as `\s+` and cut afterwards, by [`SplitStage::cut`]: a pattern
/// without lookahead is matched in linear time and constant memory however long the run is.
const LOOKAHEAD: &str = r"\s+(?!\S)|\s+";

/// A pattern of the table, with the classes of llama.cpp's tables (src/unicode-data.cpp): but for
/// those that only `t5` needs they are those of Unicode 15.1, and this engine's are newer.
fn regex(pattern: &str) -> SysRegex {
    let mut pattern = pattern.to_owned();
    for class in ["L", "N", "M", "P", "S", "CWL"] {
        pattern = pattern.replace(&format!(r"\p{{{class}}}"), &format!(r"[\p{{{class}}}&&\p{{age=15.1}}]"));
    }
    SysRegex::new(&pattern).expect("a test compiles every pattern of the table")
}

impl SplitStage {
    fn new(stage: &Stage) -> Self {
        let (pattern, cut) = match *stage {
            Words(p) => match (p.ends_with(LOOKAHEAD), p.contains(r"\s*[\r\n]")) {
                (false, _) => (p, Cut::None),
                (true, false) => (p, Cut::LastSpace),
                (true, true) => (p, Cut::LastSpaceUnlessNewline),
            },
            Stage::Powers(p) => (p, Cut::Powers),
            AfterThrees => (r"\p{N}+", Cut::AfterThrees),
            BeforeThrees => (r"[0-9]+", Cut::BeforeThrees),
        };
        SplitStage { regex: regex(&pattern.replace(LOOKAHEAD, r"\s+")), cut }
    }

    fn split<'t>(&self, text: &'t str, words: &mut Vec<&'t str>) {
        // Up to `done` the text is cut, from `from` on it is searched.
        let (mut done, mut from) = (0, 0);
        'search: loop {
            for (start, end) in self.regex.find_iter(&text[from..]) {
                let (start, end) = (from + start, from + end);
                if matches!(self.cut, Cut::AfterThrees | Cut::BeforeThrees) {
                    for at in threes(&text[start..end]) {
                        let inside = match self.cut {
                            Cut::AfterThrees => at > 0,
                            _ => start + at < end,
                        };
                        if inside {
                            push(&text[done..start + at], words);
                            done = start + at;
                        }
                    }
                    continue;
                }
                push(&text[done..start], words);
                let left = self.cut(&text[start..end], &text[end..], words);
                done = end - left;
                if left > 0 {
                    from = done;
                    continue 'search;
                }
            }
            break;
        }
        push(&text[done..], words);
    }

    /// Makes words of a match, and says how many bytes at its end are left to the next one.
    fn cut<'t>(&self, matched: &'t str, rest: &str, words: &mut Vec<&'t str>) -> usize {
        let mut chars = matched.chars();
        let left = match chars.next_back() {
            Some('\r' | '\n') if self.cut != Cut::LastSpace => 0,
            // Every other match that ends with white space is white space.
            Some(last) if self.cut != Cut::None && last.is_whitespace() => {
                let follows = !rest.is_empty() && !rest.starts_with(char::is_whitespace);
                match follows && !chars.as_str().is_empty() {
                    true => last.len_utf8(),
                    false => 0,
                }
            }
            _ => 0,
        };
        let (mut run, rest) = matched.split_at(matched.len() - left);
        if self.cut == Cut::Powers && run.chars().next_back().is_some_and(|c| c.is_whitespace() && !"\r\n".contains(c))
        {
            // Each of them is followed by another character of white space or by the end.
            let mut n = run.chars().count();
            while n > 0 {
                let k = 1 << n.ilog2().min(9);
                let end = run.char_indices().nth(k).map_or(run.len(), |(at, _)| at);
                words.push(&run[..end]);
                run = &run[end..];
                n -= k;
            }
        }
        push(run, words);
        rest.len()
    }
}

fn push<'t>(word: &'t str, words: &mut Vec<&'t str>) {
    if !word.is_empty() {
        words.push(word);
    }
}

/// Where a multiple of three characters is left, the beginning and the end among it.
fn threes(run: &str) -> impl Iterator<Item = usize> {
    let n = run.chars().count();
    let starts = run.char_indices().map(|(at, _)| at).enumerate();
    starts.filter(move |(i, _)| (n - i).is_multiple_of(3)).map(|(_, at)| at).chain([run.len()])
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
        assert_eq!(split("jais-2", "a       b   "), "a·    ·  · b·  · ");
    }

    #[test]
    fn numbers_fall_into_threes_from_their_right() {
        let split =
            |name: &str, text| Pre::find(name.as_bytes()).expect("in the table").splitter().split(text).join("·");
        assert_eq!(split("tekken-num3", "1234567 12"), "1·234·567· ·12");
        // A first group stays with what is before it until the next stage.
        assert_eq!(split("tiny_aya", "  1234"), " · ·1·234");
        assert_eq!(split("superbpe", "a 1234½½123"), "a ·1·234½½·123");
    }
}
