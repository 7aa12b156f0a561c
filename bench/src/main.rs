//! `sluice-bench`: arguments to meaning to one command.

fn main() {}
