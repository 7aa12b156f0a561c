//! `sluice-dataplane`: arguments to meaning to one command.

fn main() {}
