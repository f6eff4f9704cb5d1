//! The command in a real terminal, which tmux is: keys go in, and the screen comes out.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// A terminal of tmux, with a server of its own that ends with it.
pub(crate) struct Terminal {
    socket: PathBuf,
    _folder: tempfile::TempDir,
}

impl Terminal {
    /// One in which the command runs with these arguments. None where there is no tmux, which is said.
    pub(crate) fn start(args: &[&str], environment: &str) -> Option<Terminal> {
        if Command::new("tmux").arg("-V").output().is_err() {
            let _ = writeln!(std::io::stderr(), "not tried: tmux is not installed, and this test needs a terminal");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let terminal = Terminal { socket: folder.path().join("tmux"), _folder: folder };
        let words: Vec<String> = args.iter().map(|word| format!("'{word}'")).collect();
        let program = env!("CARGO_BIN_EXE_chatvec");
        // What it ends with stays on the screen.
        let shell =
            format!("env {environment} '{program}' {}; echo \"ended with $?\"; exec sleep 600", words.join(" "));
        let mut command = Command::new("tmux");
        command.args(["-u", "-f", "/dev/null", "-S"]).arg(&terminal.socket);
        command.args(["new-session", "-d", "-x", "120", "-y", "50", &shell]);
        assert!(command.env_remove("NO_COLOR").env_remove("CLICOLOR").status().unwrap().success());
        Some(terminal)
    }

    pub(crate) fn tmux(&self, args: &[&str]) -> String {
        let output = Command::new("tmux").arg("-u").arg("-S").arg(&self.socket).args(args).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn screen(&self) -> String {
        let screen = self.tmux(&["capture-pane", "-p", "-J", "-S", "-"]);
        // Without the space at the ends of lines, and without empty lines at the end.
        screen.trim_end().lines().fold(String::new(), |text, line| text + line.trim_end() + "\n")
    }

    /// The screen once it has all of this, in this order.
    #[track_caller]
    pub(crate) fn shows(&self, words: &[&str]) -> String {
        let limit = Instant::now() + Duration::from_secs(120);
        loop {
            let screen = self.screen();
            let mut rest = screen.as_str();
            let find = |word: &&str| match rest.split_once(*word) {
                Some((_, behind)) => {
                    rest = behind;
                    true
                }
                None => false,
            };
            if words.iter().all(find) {
                return screen;
            }
            assert!(Instant::now() < limit, "no {words:?} in\n{screen}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn types(&self, text: &str) {
        self.tmux(&["send-keys", "-l", "--", text]);
    }

    pub(crate) fn presses(&self, key: &str) {
        self.tmux(&["send-keys", key]);
    }

    pub(crate) fn enters(&self, line: &str) {
        self.types(line);
        self.presses("Enter");
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}
