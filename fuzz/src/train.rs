//! The configs of training.

#[path = "../../tools/cli/src/train/config.rs"]
pub(crate) mod config;
