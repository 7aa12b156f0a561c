//! The channel between the control process and the dataplane.

pub mod record;
