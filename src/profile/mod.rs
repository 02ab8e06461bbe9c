//! Profiles: the JSON contract.
pub mod model;
