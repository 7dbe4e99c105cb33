//! Output files, whole or not at all: written beside their place, synced, and renamed into it.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};
use tempfile::NamedTempFile;

/// An output file could not be written; the path holds what it held before.
#[derive(Debug, thiserror::Error)]
#[error("{}: cannot write: {source}", path.display())]
pub(crate) struct WriteError {
    path: PathBuf,
    source: io::Error,
}

/// A file that takes its place only when [`commit`](Self::commit) succeeds.
pub(crate) struct Output {
    path: PathBuf,
    file: BufWriter<NamedTempFile>,
}

impl Output {
    /// Starts a file that will stand at `path`, beside it: in the same directory, so that the rename is atomic.
    pub(crate) fn create(path: &Path) -> Result<Self, WriteError> {
        let failed = |source| WriteError { path: path.to_owned(), source };
        // A link keeps pointing where it does: what it points to is replaced.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        if let Ok(metadata) = fs::metadata(&path)
            && !metadata.is_file()
        {
            return Err(failed(io::Error::other("it exists and is not a regular file")));
        }
        let directory = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let name = path.file_name().ok_or_else(|| failed(io::Error::other("it names no file")))?;
        let mut prefix = std::ffi::OsString::from(".");
        prefix.push(name);
        prefix.push(".");
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(".part");
        #[cfg(unix)]
        {
            // As any new file: the umask decides, not tempfile's owner-only default.
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(fs::Permissions::from_mode(0o666));
        }
        let file = builder.tempfile_in(directory).map_err(failed)?;
        Ok(Self { path, file: BufWriter::with_capacity(1 << 20, file) })
    }

    /// Runs `write` on the file.
    pub(crate) fn write(&mut self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), WriteError> {
        write(&mut self.file).map_err(|source| WriteError { path: self.path.clone(), source })
    }

    /// Writes `bytes` over the start of the file.
    pub(crate) fn overwrite_start(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        let Self { path, file } = self;
        file.seek(SeekFrom::Start(0))
            .and_then(|_| file.write_all(bytes))
            .map_err(|source| WriteError { path: path.clone(), source })
    }

    /// Syncs the file and puts it in its place.
    pub(crate) fn commit(self) -> Result<(), WriteError> {
        let Self { path, file } = self;
        let failed = |source| WriteError { path: path.clone(), source };
        let file = file.into_inner().map_err(|error| failed(error.into_error()))?;
        file.as_file().sync_all().map_err(failed)?;
        file.persist(&path).map_err(|error| failed(error.error))?;
        // The rename itself lasts once its directory is synced; where directories cannot be opened, it is as safe as any.
        if let Some(Ok(directory)) = path.parent().map(File::open) {
            let _ = directory.sync_all();
        }
        Ok(())
    }
}
