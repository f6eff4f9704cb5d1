//! What a line is: a message, or a command behind a slash.

use std::path::PathBuf;

use crate::plan;

/// A command.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Command {
    /// The text that the conversation stands under; none for none.
    System(Option<String>),
    /// Begin anew.
    Clear,
    Save(PathBuf),
    Load(PathBuf),
    /// One ratio for all parts, or one for each; none to be told them.
    Ratio(Vec<f32>),
    Compare,
    Help,
    Quit,
}

/// All commands, as help shows them.
pub(super) const HELP: &str = "\
/system TEXT   what the model is told before the conversation; without TEXT nothing
/clear         forget the conversation, but not what /system says
/save FILE     write the conversation, a message a line as {\"role\", \"content\"}
/load FILE     go on with a conversation of a file
/ratio R       change the ratio of all adapters or vectors, or give one for each; the next answer has it
/compare       answer the last message again: as now, and without adapters or by --against
/help          this list
/quit          end; Ctrl-D, too
A message of several lines: end each but the last with \\. One that begins with /: put a space before.
Ctrl-C stops an answer; pressed again, it ends the chat. Up and Down bring earlier lines back.
";

/// The command of a line; none if it is a message.
///
/// # Errors
/// What is wrong with it.
pub(super) fn parse(line: &str) -> Result<Option<Command>, String> {
    let Some(words) = line.strip_prefix('/') else { return Ok(None) };
    let (name, rest) = words.split_once(char::is_whitespace).unwrap_or((words, ""));
    let rest = rest.trim();
    let file = || if rest.is_empty() { Err(format!("/{name} needs the name of a file")) } else { Ok(rest.into()) };
    let alone = |command| if rest.is_empty() { Ok(command) } else { Err(format!("/{name} stands alone")) };
    let command = match name {
        "system" => Command::System(Some(rest.to_owned()).filter(|text| !text.is_empty())),
        "clear" => alone(Command::Clear)?,
        "save" => Command::Save(file()?),
        "load" => Command::Load(file()?),
        "ratio" => Command::Ratio(rest.split_whitespace().map(ratio).collect::<Result<_, _>>()?),
        "compare" => alone(Command::Compare)?,
        "help" | "?" => Command::Help,
        "quit" | "exit" | "bye" => alone(Command::Quit)?,
        _ => return Err(format!("/{name} is no command; /help lists them, and a space before / makes it a message")),
    };
    Ok(Some(command))
}

fn ratio(text: &str) -> Result<f32, String> {
    let number = text.parse::<f64>().ok().and_then(plan::in_f32);
    number.ok_or_else(|| format!("/ratio {text}: expected a number such as 0.8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_messages_or_commands() {
        let system = |text: &str| Command::System(Some(text.to_owned()));
        for (line, command) in [
            ("Hello", None),
            (" /quit", None),
            ("", None),
            ("/quit", Some(Command::Quit)),
            ("/clear  ", Some(Command::Clear)),
            ("/system  Be brief.\nAnd kind. ", Some(system("Be brief.\nAnd kind."))),
            ("/system", Some(Command::System(None))),
            ("/save a b.jsonl", Some(Command::Save("a b.jsonl".into()))),
            ("/ratio 0.5 -1e-2", Some(Command::Ratio(vec![0.5, -0.01]))),
            ("/ratio", Some(Command::Ratio(Vec::new()))),
        ] {
            assert_eq!(parse(line), Ok(command), "{line:?}");
        }
        for (line, word) in [
            ("/", "no command"),
            ("/etc/passwd", "/etc/passwd is no command"),
            ("/save", "name of a file"),
            ("/compare it", "stands alone"),
            ("/ratio nan", "nan: expected a number"),
            ("/ratio 1e99", "expected a number"),
        ] {
            assert!(parse(line).is_err_and(|text| text.contains(word)), "{line:?}");
        }
    }

    #[test]
    fn help_lists_every_command_that_is_known() {
        for line in HELP.lines().filter(|line| line.starts_with('/')) {
            let name = line.split(' ').next().unwrap_or_default();
            let is_known = |line: &str| parse(line).is_ok_and(|command| command.is_some());
            assert!(is_known(name) || is_known(&format!("{name} x")), "{line}");
        }
    }
}
