//! Answers that a prompt expects: whole ones and key words.

use super::units::is_unspaced;

/// Whether an answer is one of these, but for space around it.
pub(super) fn is_one_of(text: &str, exact: &[String]) -> bool {
    exact.iter().any(|right| right.trim() == text.trim())
}

/// Whether an answer has one of these words or phrases, in any case.
///
/// A word is whole: `Rom` is not in `Roman`, `7` not in `47`. A `*` at its end stands for any
/// ending. In scripts without spaces, and beside them, a word may begin and end anywhere.
pub(super) fn has_one_of(text: &str, keywords: &[String]) -> bool {
    let text = text.to_lowercase();
    keywords.iter().any(|keyword| {
        let keyword = keyword.trim().to_lowercase();
        let stem = keyword.trim_end_matches('*');
        let is_open = stem.len() < keyword.len();
        !stem.is_empty()
            && text.match_indices(stem).any(|(at, _)| {
                let (before, after) = (text[..at].chars().next_back(), text[at + stem.len()..].chars().next());
                is_edge(stem.chars().next(), before) && (is_open || is_edge(stem.chars().next_back(), after))
            })
    })
}

/// Whether a word may end between these two.
fn is_edge(inner: Option<char>, outer: Option<char>) -> bool {
    let (Some(inner), Some(outer)) = (inner, outer) else { return true };
    if is_unspaced(inner) || is_unspaced(outer) {
        return true;
    }
    !(outer.is_alphanumeric() || outer == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_whole() {
        let has = |text, keyword: &str| has_one_of(text, &[keyword.to_owned()]);
        for (text, keyword) in [
            ("It is PARIS!", "Paris"),
            ("首都是巴黎。", "巴黎"),
            ("一个星期有7天", "7"),
            ("Stolicą jest Paryżem", "Paryż*"),
            ("파리입니다", "파리*"),
            ("Paris'tir", "Paris"),
            ("Your number: 47.", "47"),
            ("Mehl und Eier", "mehl UND eier"),
        ] {
            assert!(has(text, keyword), "{text} {keyword}");
        }
        for (text, keyword) in
            [("Roman", "Rom"), ("47", "7"), ("هفته", "هفت"), ("dreizehn", "drei"), ("", "a"), ("x", "*")]
        {
            assert!(!has(text, keyword), "{text} {keyword}");
        }
    }

    #[test]
    fn whole_answers_are_held_to_the_letter() {
        let exact = ["Drei.".to_owned()];
        assert!(is_one_of(" Drei.\n", &exact));
        assert!(!is_one_of("drei.", &exact) && !is_one_of("Drei. Vier.", &exact) && !is_one_of("", &[]));
    }
}
