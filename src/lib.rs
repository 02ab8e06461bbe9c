//! Run a command you do not trust under every isolation layer of the Linux kernel, and be told what was denied.
//!
//! Data travels one way: [`profile`] and [`host`] make a [`plan::Plan`] (pure data), [`launch`] arms it and clones,
//! the child applies it and execs, [`supervise`] watches, and a [`report::model::Report`] is what is left.

#![cfg_attr(not(target_os = "linux"), expect(unused, reason = "Linux only"))]

mod child;
pub mod error;
pub mod host;
pub mod launch;
pub mod layers;
pub mod plan;
pub mod profile;
pub mod report;
mod supervise;
mod sys;

pub use error::{Error, ErrorKind};
pub use launch::{RunOptions, run};
pub use plan::Plan;
pub use report::model::Report;
