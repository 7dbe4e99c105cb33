//! A mapped blob file, named in every error.

use crate::progress::Bar;
use anyhow::{Context, Result, anyhow};
use std::path::{Path, PathBuf};
use ttrec::{Blob, NoSuchTable, Table, Tier};
use ttrec_convert::checkpoint::Mapped;

/// A mapped blob file.
pub(crate) struct BlobFile {
    path: PathBuf,
    bytes: Mapped,
}

impl BlobFile {
    /// Maps the file at `path`; [`blob`](Self::blob) parses it.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let bytes =
            Mapped::open(path).with_context(|| format!("{}: cannot open", path.display()))?;
        Ok(Self { path: path.to_owned(), bytes })
    }

    /// The parsed blob.
    pub(crate) fn blob(&self) -> Result<Blob<'_>> {
        Blob::parse(self.bytes.as_ref())
            .with_context(|| format!("{}: invalid blob", self.path.display()))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.as_ref()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The table called `name`; the error lists the tables of the blob.
    pub(crate) fn table<'b>(&self, blob: &Blob<'b>, name: &str) -> Result<Table<'b>> {
        let tier = tier()?;
        blob.table(name).map(|table| table.with_tier(tier)).map_err(|NoSuchTable| {
            let names: Vec<&str> = blob.tables().map(|table| table.name()).collect();
            anyhow!("{}: has no table {name:?}; its tables are {names:?}", self.path.display())
        })
    }
}

/// Reads the whole payload; returns a description of the first damage.
pub(crate) fn damage(blob: &Blob<'_>) -> Option<String> {
    let progress = Bar::new("checksums", (blob.num_tables() + blob.num_layers()) as u64);
    let of_tables = blob.tables().find_map(|table| {
        progress.add(1);
        let error = table.verify().err()?;
        Some(format!("table {:?}: {error}", table.name()))
    });
    of_tables.or_else(|| blob.verify_model().err().map(|error| error.to_string()))
}

/// The instruction set to use: the best one of this CPU, or the tier that `TTREC_ISA` names.
pub(crate) fn tier() -> Result<Tier> {
    let Some(name) = std::env::var_os("TTREC_ISA") else { return Ok(Tier::best()) };
    let tier = name.to_str().and_then(Tier::from_name);
    tier.ok_or_else(|| {
        let names: Vec<&str> = Tier::available().map(Tier::name).collect();
        anyhow!("TTREC_ISA is {}: expected one of {names:?}, which this CPU has", name.display())
    })
}
