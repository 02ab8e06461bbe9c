//! Run a command you do not trust.
pub mod layers;
pub mod profile;
pub mod report;
