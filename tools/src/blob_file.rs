//! A blob on disk: mapped, parsed, and named in every error.

use crate::checkpoint::Mapped;
use anyhow::{Context, Result, anyhow};
use std::path::{Path, PathBuf};
use ttrec::{Blob, BlobError, Table};

/// A mapped blob file.
pub(crate) struct BlobFile {
    path: PathBuf,
    bytes: Mapped,
}

impl BlobFile {
    /// Maps the file at `path`; [`blob`](Self::blob) parses it.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let bytes = Mapped::open(path).with_context(|| format!("{}: cannot open", path.display()))?;
        Ok(Self { path: path.to_owned(), bytes })
    }

    /// The parsed blob.
    pub(crate) fn blob(&self) -> Result<Blob<'_>> {
        Blob::parse(self.bytes.as_ref()).with_context(|| format!("{}: not a usable blob", self.path.display()))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The table called `name`; the error lists what there is.
    pub(crate) fn table<'b>(&self, blob: &Blob<'b>, name: &str) -> Result<Table<'b>> {
        blob.table(name).map_err(|error| match error {
            BlobError::NoSuchTable => {
                let names: Vec<&str> = blob.tables().map(|table| table.name()).collect();
                anyhow!("{}: no table {name:?}: it has {names:?}", self.path.display())
            }
            error => anyhow!(error).context(format!("{}: table {name:?}", self.path.display())),
        })
    }
}
