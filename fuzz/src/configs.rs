//! Specs and configs, in TOML.

use crate::{
    refused,
    train::config::{self, Config},
    write,
};
use std::str;
use ttrec_convert::Spec;

/// Reads the bytes as a spec and as a config of `ttrec train`.
pub fn config(bytes: &[u8]) {
    if let Ok(text) = str::from_utf8(bytes)
        && let Err(error) = Spec::from_toml(text)
    {
        refused(error);
    }
    let path = write("config.toml", bytes);
    match config::read::<Config>(&path) {
        Err(error) => refused(error),
        Ok(config) => {
            // A checkpoint keeps the config as JSON.
            let text = serde_json::to_string(&config).expect("a config is data");
            assert!(!text.is_empty());
            if let Err(error) = config.check() {
                refused(error);
            }
        }
    }
}
