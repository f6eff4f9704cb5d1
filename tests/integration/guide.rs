//! README.md and the pages of docs/guide: their examples run, their links lead somewhere, and their
//! lists are whole.
//!
//! A page is fenced blocks among prose. By the words behind the fence:
//!
//! - `sh`: every line is a command.
//! - `console`: lines that begin with `$ ` are commands; those below a command are what it prints,
//!   in this order, with others between. `…` stands for anything, and how much space there is does
//!   not count.
//! - `LANGUAGE file NAME`: a file of this name.
//! - anything else, as `sh not run`: not read.
//!
//! A command ends with 0, or with what `# exit code N` behind it says. A `\` at the end of a line
//! continues it.
#![cfg(unix)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use chatvec::cli::Exit;

use crate::trio::{Ran, command};

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The pages, of which the first says how to make the folder that the others run in.
fn pages() -> Vec<PathBuf> {
    let guide = repository().join("docs/guide");
    let mut pages: Vec<PathBuf> = fs::read_dir(&guide).unwrap().map(|entry| entry.unwrap().path()).collect();
    pages.sort();
    pages.retain(|page| *page != guide.join("README.md"));
    [guide.join("README.md"), repository().join("README.md")].into_iter().chain(pages).collect()
}

/// The blocks of a page: the line of each, the words behind its fence, its lines.
fn blocks(page: &str) -> Vec<(usize, &str, Vec<&str>)> {
    let mut blocks = Vec::new();
    let mut lines = page.lines().enumerate();
    while let Some((i, line)) = lines.next() {
        if let Some(info) = line.strip_prefix("```") {
            let inside = lines.by_ref().map(|(_, line)| line).take_while(|line| *line != "```").collect();
            blocks.push((i + 1, info, inside));
        }
    }
    blocks
}

/// The commands of a block, and the lines that each prints.
fn commands<'a>(info: &str, lines: &[&'a str]) -> Vec<(String, Vec<&'a str>)> {
    let mut commands: Vec<(String, Vec<&str>)> = Vec::new();
    let mut is_continued = false;
    for &line in lines {
        let start = if info == "sh" { Some(line) } else { line.strip_prefix("$ ") };
        if let (true, Some((command, _))) = (is_continued, commands.last_mut()) {
            command.push('\n');
            command.push_str(line);
        } else if let Some(start) = start {
            commands.push((start.to_owned(), Vec::new()));
        } else {
            commands.last_mut().expect("a command before what it prints").1.push(line);
            continue;
        }
        is_continued = line.ends_with('\\');
    }
    commands
}

/// Whether a line is as a page shows it.
fn is_shown_by(line: &str, shown: &str) -> bool {
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (line, shown) = (words(line), words(shown));
    let Some((start, rest)) = shown.split_once('…') else { return line == shown };
    let Some(mut left) = line.strip_prefix(start.trim_end()) else { return false };
    let mut parts: Vec<&str> = rest.split('…').map(str::trim).collect();
    let end = parts.pop().unwrap_or("");
    for part in parts {
        let Some((_, behind)) = left.split_once(part) else { return false };
        left = behind;
    }
    left.ends_with(end)
}

/// Runs the blocks of a page in a folder.
fn run(page: &Path, folder: &Path) {
    let text = fs::read_to_string(page).unwrap();
    let version = command(["--version"]);
    let programs = Path::new(version.get_program()).parent().unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    for (number, info, lines) in blocks(&text) {
        if let [_, "file", name] = info.split(' ').collect::<Vec<_>>()[..] {
            fs::write(folder.join(name), lines.join("\n") + "\n").unwrap();
        }
        if !["sh", "console"].contains(&info) {
            continue;
        }
        for (command, printed) in commands(info, &lines) {
            let place = format!("{}:{number}: {command}", page.display());
            let code = command.split_once("# exit code ").map_or(0, |(_, code)| code.trim().parse::<i32>().unwrap());
            // Both outputs in the order in which a terminal shows them.
            let mut shell = Command::new("sh");
            shell.args(["-c", &format!("exec 2>&1\n{command}")]).current_dir(folder);
            // Cargo names the repository in one of these, which a user's shell does not.
            let ran = Ran::new(shell.env("PATH", &path).env_remove("CARGO_MANIFEST_DIR").output().unwrap());
            assert_eq!(ran.code, code, "{place}\n{}", ran.out);
            let mut found = ran.out.lines();
            for shown in printed.iter().filter(|line| !["", "…"].contains(line)) {
                assert!(found.any(|line| is_shown_by(line, shown)), "{place}\nno line {shown:?} in\n{}", ran.out);
            }
        }
    }
}

#[test]
fn examples_of_every_page_do_what_it_says() {
    let pages = pages();
    assert!(pages.len() > 9, "{pages:?}");
    for page in &pages {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(repository().join("fixtures"), folder.path().join("fixtures")).unwrap();
        run(&pages[0], folder.path());
        if *page != pages[0] {
            run(page, &folder.path().join("guide"));
        }
    }
}

#[test]
fn links_lead_to_files_and_both_lists_name_every_page() {
    let pages = pages();
    let texts: Vec<String> = pages.iter().map(|page| fs::read_to_string(page).unwrap()).collect();
    for (page, text) in pages.iter().zip(&texts) {
        for behind in text.split("](").skip(1) {
            let link = behind.split(')').next().unwrap();
            let file = link.split('#').next().unwrap();
            if !link.contains("://") && !file.is_empty() {
                assert!(page.parent().unwrap().join(file).exists(), "{}: {link}", page.display());
            }
        }
        let name = page.file_name().unwrap().to_str().unwrap();
        if name != "README.md" {
            assert!(texts[0].contains(&format!("]({name})")), "docs/guide/README.md does not name {name}");
            assert!(texts[1].contains(&format!("](docs/guide/{name})")), "README.md does not name {name}");
        }
    }
}

#[test]
fn the_first_page_is_short() {
    let text = fs::read_to_string(repository().join("README.md")).unwrap();
    assert!(text.lines().count() <= 150, "{} lines", text.lines().count());
}

#[test]
fn exit_codes_are_those_of_the_page() {
    let page = fs::read_to_string(repository().join("docs/guide/exit-codes.md")).unwrap();
    let rows: Vec<&str> =
        page.lines().filter(|line| line.starts_with("| ") && line.as_bytes()[2].is_ascii_digit()).collect();
    assert_eq!(rows.len(), Exit::all().count());
    for ((code, meaning), row) in Exit::all().zip(rows) {
        let start = format!("| {code} | {meaning}");
        assert!(row.starts_with(&start), "expected a row that begins {start:?}, found {row:?}");
    }
}
