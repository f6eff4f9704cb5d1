//! The `chatvec` command.

fn main() {}
