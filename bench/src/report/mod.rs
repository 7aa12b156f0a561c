//! Raw rows, as `nat`, `pktgen` and `compare` print them with `--json`, become a page: the claims that are not kept first,
//! then those that are, the machine, pictures, and every figure in a table. One HTML file with everything in it.
//!
//! In reading order: `rows` (lines to values), `claims` (what we promise), `plot` (pictures), `page` (all of it).

/// Lines to values.
pub mod rows;
/// Promises.
pub mod claims;
/// Pictures.
pub mod plot;
/// The page.
pub mod page;
