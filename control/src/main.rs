//! `sluice`: arguments to meaning to one command.

fn main() {}
