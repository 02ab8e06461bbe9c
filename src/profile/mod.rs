//! Profiles: the JSON contract, from text to [`model::Profile`].

pub mod load;
pub mod model;
mod source;
pub mod suggest;
pub mod units;
pub mod variables;
