//! Files that may be compressed.

use anyhow::{Context, Result};
use flate2::bufread::MultiGzDecoder;
use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    path::Path,
};

/// Opens a file, through gzip if it starts with the magic number of gzip.
pub(super) fn open(path: &Path) -> Result<Box<dyn Read>> {
    let file = File::open(path).with_context(|| format!("{}: cannot open", path.display()))?;
    let mut file = BufReader::with_capacity(1 << 18, file);
    let start = file.fill_buf().with_context(|| format!("{}: cannot read", path.display()))?;
    Ok(if start.starts_with(&[0x1f, 0x8b]) {
        Box::new(MultiGzDecoder::new(file))
    } else {
        Box::new(file)
    })
}
