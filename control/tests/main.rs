//! What the control process does, from text to records: against what Kubernetes 1.36 did (`oracle/`, see its README),
//! and against cases of our own (`cases/`).

mod allocation;
mod cases;
mod command;
mod endpointslices;
mod get;
mod support;
mod validation;
