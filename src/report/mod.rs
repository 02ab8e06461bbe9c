//! The report.
pub mod model;
