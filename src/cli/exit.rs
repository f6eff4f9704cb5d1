//! The one table of exit codes.

use std::process::ExitCode;

use super::Usage;
use super::chat::NoTemplate;
use crate::{chat, eval, gguf, imatrix, infer, job, patch, pipeline, plan, vector};

/// How a command ended. The numbers are a promise to scripts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// Done.
    Success,
    /// A failure that no other code names.
    Failure,
    /// The arguments make no sense.
    Usage,
    /// An input file is damaged, malformed or beyond the limits.
    Malformed,
    /// The inputs are each fine but do not belong together.
    Refused,
    /// A type, option or value that cannot be handled.
    NotSupported,
    /// The output cannot be where it was asked for.
    Output,
    /// The system refused to read or write.
    Io,
    /// Rounding took too much of the vector.
    Lost,
    /// A model was asked, and a check of its answers failed.
    NoChat,
    /// Ended by a signal; nothing is left behind.
    Interrupted,
}

/// Code, exit, meaning.
const TABLE: [(u8, Exit, &str); 11] = [
    (0, Exit::Success, "done"),
    (1, Exit::Failure, "a failure that no other code names"),
    (2, Exit::Usage, "the arguments make no sense"),
    (3, Exit::Malformed, "an input file is damaged, malformed, beyond the limits, or holds NaN"),
    (4, Exit::Refused, "the inputs do not belong together (see --force where it is offered)"),
    (5, Exit::NotSupported, "a type, option or value that cannot be handled, or a budget too small"),
    (6, Exit::Output, "the output exists, is an input, is no regular file, or does not fit on the disk"),
    (7, Exit::Io, "the system refused to read or write"),
    (
        10,
        Exit::Lost,
        "rounding took the vector: the output is kept as OUTPUT.rejected, or not begun (see --on-loss); a patch is written",
    ),
    (11, Exit::NoChat, "the model was asked, and a check of its answers failed, or with --strict warned"),
    (130, Exit::Interrupted, "interrupted; nothing unfinished is left behind"),
];

/// The table as text, for the help.
pub(super) fn table() -> String {
    let lines = TABLE.iter().map(|(code, _, meaning)| format!("\n  {code:>3}  {meaning}"));
    "Exit codes:".to_owned() + &lines.collect::<String>()
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit.code())
    }
}

impl Exit {
    /// The number the process ends with.
    pub fn code(self) -> u8 {
        TABLE.iter().find(|row| row.1 == self).map_or(1, |row| row.0)
    }

    /// Every code with its meaning, in order.
    pub fn all() -> impl Iterator<Item = (u8, &'static str)> {
        TABLE.iter().map(|(code, _, meaning)| (*code, *meaning))
    }

    /// The exit that an error asks for.
    pub(super) fn of(error: &anyhow::Error) -> Self {
        for cause in error.chain() {
            let exit = if let Some(e) = cause.downcast_ref::<gguf::Error>() {
                of_container(e)
            } else if let Some(e) = cause.downcast_ref::<imatrix::Error>() {
                of_importance(e)
            } else if let Some(e) = cause.downcast_ref::<vector::Error>() {
                of_vector(e)
            } else if let Some(e) = cause.downcast_ref::<plan::Error>() {
                of_plan(e)
            } else if let Some(e) = cause.downcast_ref::<pipeline::Error>() {
                of_pipeline(e)
            } else if let Some(e) = cause.downcast_ref::<patch::Error>() {
                of_patch(e)
            } else if let Some(e) = cause.downcast_ref::<patch::extract::Error>() {
                of_extraction(e)
            } else if let Some(e) = cause.downcast_ref::<patch::lora::Error>() {
                of_lora(e)
            } else if let Some(e) = cause.downcast_ref::<infer::Error>() {
                of_infer(e)
            } else if let Some(e) = cause.downcast_ref::<eval::ChatterError>() {
                of_chatter(e)
            } else if let Some(e) = cause.downcast_ref::<eval::Error>() {
                of_compare(e)
            } else if let Some(e) = cause.downcast_ref::<eval::PromptError>() {
                of_prompts(e)
            } else if cause.is::<eval::UnknownLanguage>() || cause.is::<eval::ThresholdError>() {
                Exit::Usage
            } else if let Some(e) = cause.downcast_ref::<chat::Error>() {
                of_vocabulary(e)
            } else if let Some(e) = cause.downcast_ref::<chat::TemplateError>() {
                of_template(e)
            } else if let Some(e) = cause.downcast_ref::<eval::TurnError>() {
                of_turn(e)
            } else if cause.is::<NoTemplate>() {
                Exit::NotSupported
            } else if cause.is::<Usage>() {
                Exit::Usage
            } else if let Some(e) = cause.downcast_ref::<job::Error>() {
                of_job(e)
            } else if let Some(e) = cause.downcast_ref::<std::io::Error>() {
                of_io(e)
            } else {
                continue;
            };
            return exit;
        }
        Exit::Failure
    }
}

fn of_job(error: &job::Error) -> Exit {
    use job::Error::*;
    match error {
        Container(e) => of_container(e),
        Vector(e) => of_vector(e),
        Plan(e) => of_plan(e),
        Pipeline(e) => of_pipeline(e),
        Patch(e) => of_patch(e),
        Extraction(e) => of_extraction(e),
        Lora(e) => of_lora(e),
        Infer(e) => of_infer(e),
        Chatter(e) => of_chatter(e),
        Tokenizer(e) => of_vocabulary(e),
        Judge(_) => Exit::Failure,
        Refused { .. } => Exit::Refused,
        Lost { .. } => Exit::Lost,
        SameFile { .. } => Exit::Usage,
        Interrupted { .. } => Exit::Interrupted,
        SmokeTest(source) | Adapter(source) | NoAdapter { source, .. } | NotAsked { source, .. } => of_job(source),
    }
}

fn of_chatter(error: &eval::ChatterError) -> Exit {
    match error {
        eval::ChatterError::Tokenizer { source, .. } => of_vocabulary(source),
    }
}

fn of_container(error: &gguf::Error) -> Exit {
    use gguf::Error::*;
    match error {
        Malformed { .. } | Limit { .. } => Exit::Malformed,
        BigEndian { .. } => Exit::NotSupported,
        OutputExists { .. }
        | OutputIsInput { .. }
        | OutputKind { .. }
        | NoFolder { .. }
        | NoSpace { .. }
        | TooManyShards { .. }
        | NotRenamed { .. } => Exit::Output,
        Io { source, .. } => of_io(source),
        Layout { .. } => Exit::Failure,
    }
}

fn of_importance(error: &imatrix::Error) -> Exit {
    use imatrix::Error::*;
    match error {
        Container(e) => of_container(e),
        Io { .. } => Exit::Io,
        Malformed { .. } | Value { .. } => Exit::Malformed,
        NotAMatrix { .. } | Length { .. } => Exit::Refused,
        NoneLeft { .. } => Exit::Usage,
        Memory { .. } => Exit::NotSupported,
    }
}

fn of_vector(error: &vector::Error) -> Exit {
    use vector::Error::*;
    match error {
        Container(e) => of_container(e),
        Type { .. } | FoldKey { .. } => Exit::NotSupported,
        Threads(_) => Exit::Io,
        NotFinite { .. } | Scale { .. } | Zero { .. } => Exit::Malformed,
        Shape { .. } | OneSided { .. } | NoPlace { .. } => Exit::Refused,
        Folded { .. } | PatchSpace { .. } | Sign { .. } => Exit::Refused,
    }
}

fn of_plan(error: &plan::Error) -> Exit {
    use plan::Error::*;
    match error {
        Container(e) => of_container(e),
        Importance(e) => of_importance(e),
        Mismatch { .. } | NoArchitecture { .. } | NotAModel { .. } | NoTensors { .. } => Exit::Refused,
        Unshared { .. } | Vocabulary { .. } | MissingTokens { .. } => Exit::Refused,
        CannotAddTokens { .. } => Exit::NotSupported,
        UnknownToken { .. } | NoRows { .. } | SilentTokens => Exit::Usage,
        NoRules { .. }
        | CannotEncode { .. }
        | CannotDecode { .. }
        | NoNumber { .. }
        | NoLayer { .. }
        | Rows { .. }
        | Requantize { .. }
        | ImportanceMissing { .. } => Exit::NotSupported,
        Layers { .. } | LinearGap { .. } => Exit::Refused,
        RecipeSyntax { .. } | RecipeTooLong { .. } => Exit::Malformed,
        UnknownType { .. } | NoMixture | Override { .. } | Type(_) | Ratio { .. } | RatioText { .. } => Exit::Usage,
        VectorText { .. } | RatioRule { .. } | UnknownPreset { .. } | Gradient { .. } | NothingMatches { .. } => {
            Exit::Usage
        }
        NoWeight { .. } | LinearZero { .. } | RecipeKey { .. } => Exit::Usage,
    }
}

fn of_pipeline(error: &pipeline::Error) -> Exit {
    use pipeline::Error::*;
    match error {
        Container(e) => of_container(e),
        Source(e) => of_vector(e),
        Plan(e) => of_plan(e),
        Range { .. } | Importance { .. } | Budget { .. } => Exit::NotSupported,
        Cancelled => Exit::Interrupted,
        Threads(_) => Exit::Io,
    }
}

fn of_patch(error: &patch::Error) -> Exit {
    use patch::Error::*;
    match error {
        Container(e) => of_container(e),
        Plan(e) => of_plan(e),
        Survey(e) => of_vector(e),
        Stored { .. } | Key { .. } | Work { .. } | Damaged { .. } => Exit::Malformed,
        NotAPatch { .. } => Exit::Refused,
        Version { .. } | Encoding { .. } | Memory { .. } => Exit::NotSupported,
    }
}

fn of_extraction(error: &patch::extract::Error) -> Exit {
    use patch::extract::Error::*;
    match error {
        Container(e) => of_container(e),
        Plan(e) => of_plan(e),
        Pipeline(e) => of_pipeline(e),
        Importance(e) => of_importance(e),
        Decomposition { .. } | Size { .. } | Range { .. } => Exit::NotSupported,
        Spill { source, .. } => of_io(source),
        Bits { .. } => Exit::Usage,
    }
}

fn of_lora(error: &patch::lora::Error) -> Exit {
    use patch::lora::Error::*;
    match error {
        Container(e) => of_container(e),
        Pipeline(e) => of_pipeline(e),
        Importance(e) => of_importance(e),
        Type { .. } => Exit::Usage,
        Decomposition { .. } | Range { .. } | Empty { .. } | Folded { .. } => Exit::NotSupported,
    }
}

fn of_vocabulary(error: &chat::Error) -> Exit {
    use chat::Error::*;
    match error {
        UnknownModel { .. } | UnknownPre { .. } => Exit::NotSupported,
        _ => Exit::Malformed,
    }
}

/// Texts are read by the system's own words: what is too long, or no text, is not the system's
/// fault. A disk that turns out to be full in the middle is as full as one that was known to be.
fn of_io(error: &std::io::Error) -> Exit {
    use std::io::ErrorKind::*;
    match error.kind() {
        StorageFull | QuotaExceeded => Exit::Output,
        InvalidData | FileTooLarge if error.raw_os_error().is_none() => Exit::Malformed,
        _ => Exit::Io,
    }
}

fn of_infer(error: &infer::Error) -> Exit {
    use infer::Error::*;
    match error {
        Container(e) => of_container(e),
        Fold(e) => of_vector(e),
        Architecture { .. } | NotBuiltIn { .. } | Folded { .. } | Type { .. } | Memory { .. } => Exit::NotSupported,
        Adapter(e) => match of_infer(e) {
            Exit::Malformed => Exit::Refused,
            exit => exit,
        },
        OtherEngine { .. } | NoLlamaCpp | LlamaCppRefuses { .. } => Exit::NotSupported,
        LlamaCppEnded { .. } => Exit::Failure,
        Key { .. } | Tensor { .. } | Extra { .. } | NotFinite { .. } => Exit::Malformed,
        Setting { .. } | TooShort { .. } => Exit::Usage,
        Threads(_) => Exit::Io,
        Cancelled => Exit::Interrupted,
        Context { .. } | Token { .. } => Exit::Failure,
    }
}

fn of_compare(error: &eval::Error) -> Exit {
    use eval::Error::*;
    match error {
        NoSuchToken { .. } | NoVocabulary { .. } | NotFinite { .. } => Exit::Malformed,
        Context { .. } | TooShort { .. } => Exit::Usage,
        Memory { .. } => Exit::NotSupported,
        VocabularySize { .. } | Token { .. } | Text { .. } | Chunks { .. } => Exit::Refused,
        NothingShared { .. } | PatchAndModel { .. } => Exit::Refused,
        Scorer { source, .. } => source.downcast_ref().map_or(Exit::Failure, of_infer),
        Rows { .. } => Exit::Failure,
    }
}

fn of_template(error: &chat::TemplateError) -> Exit {
    match error {
        chat::TemplateError::Process { .. } | chat::TemplateError::Stack(_) => Exit::Io,
        chat::TemplateError::Interrupted => Exit::Interrupted,
        _ => Exit::Malformed,
    }
}

fn of_turn(error: &eval::TurnError) -> Exit {
    use eval::TurnError::*;
    match error {
        Template(e) => of_template(e),
        Full { .. } => Exit::NotSupported,
        Infer(e) => of_infer(e),
    }
}

fn of_prompts(error: &eval::PromptError) -> Exit {
    use eval::PromptError::*;
    match error {
        Io { .. } => Exit::Io,
        _ => Exit::Malformed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_is_too_small_has_one_code_whoever_finds_out() {
        let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
        let path = || std::path::PathBuf::from("out.gguf");
        let forecast = patch::extract::Forecast {
            matrices: Vec::new(),
            form: "svd",
            largest: 1 << 62,
            temporary: 1 << 60,
            memory: 0,
            threads: 1,
            observed: 0,
        };
        let forecast = forecast.check_disk(&path()).expect_err("no disk is that large");
        let text = forecast.to_string();
        assert!(text.contains(&(1u64 << 62).to_string()) && text.contains(&(1u64 << 60).to_string()), "{text}");
        let known = gguf::Error::NoSpace { path: path(), needed: 2, temporary: 0, available: 1 };
        let writing = gguf::Error::Io { path: path(), action: "write to", source: full() };
        let spilling = patch::extract::Error::Spill { path: path(), source: full() };
        let quota = std::io::Error::from(std::io::ErrorKind::QuotaExceeded);
        let of_lora =
            patch::lora::Error::Container(gguf::Error::Io { path: path(), action: "write to", source: full() });
        for error in [
            forecast.into(),
            known.into(),
            writing.into(),
            spilling.into(),
            full().into(),
            quota.into(),
            of_lora.into(),
        ] {
            assert_eq!(Exit::of(&error), Exit::Output, "{error:#}");
        }
    }

    #[test]
    fn codes_are_unique_and_every_exit_has_one() {
        let mut codes: Vec<u8> = Exit::all().map(|(code, _)| code).collect();
        let n = codes.len();
        codes.dedup();
        assert_eq!(codes.len(), n);
        assert!(TABLE.iter().all(|(code, exit, _)| exit.code() == *code));
    }
}
