//! Atomic output files: written to a temporary file in the same directory, synced, and renamed.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};
use tempfile::NamedTempFile;
use ttrec_convert::Conversion;

/// An output file could not be written; an existing file at `path` is not modified.
#[derive(Debug, thiserror::Error)]
#[error("{}: cannot write: {error}", path.display())]
pub(crate) struct WriteError {
    path: PathBuf,
    error: io::Error,
}

impl WriteError {
    pub(crate) fn new(path: &Path, error: io::Error) -> Self {
        Self { path: path.to_owned(), error }
    }
}

/// Writes the blob to `path`, which is replaced only when the blob is complete.
///
/// # Errors
/// A [`ttrec_convert::Error`] for the conversion; another error if the file cannot be written.
pub fn write_blob(conversion: &Conversion<'_>, path: &Path) -> anyhow::Result<()> {
    write(path, |file| conversion.write(file))
}

/// Runs a writer of `ttrec-convert` on an [`Output`] at `path`, and commits it.
pub(crate) fn write<T>(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<NamedTempFile>) -> Result<T, ttrec_convert::Error>,
) -> anyhow::Result<T> {
    let mut output = Output::create(path)?;
    let written = write(&mut output.file).map_err(|error| match error {
        ttrec_convert::Error::Output(error) => WriteError::new(&output.path, error).into(),
        error => anyhow::Error::from(error),
    })?;
    output.commit()?;
    Ok(written)
}

/// Restores the [`WriteError`] of a resume directory from the error of `ttrec-convert`, for its
/// exit code.
pub(crate) fn resumed(error: ttrec_convert::Error) -> anyhow::Error {
    match error {
        ttrec_convert::Error::Output(error) => match error.downcast::<WriteError>() {
            Ok(error) => error.into(),
            Err(error) => error.into(),
        },
        error => error.into(),
    }
}

/// Prints to standard output. A closed pipe (`| head`) is not an error.
pub(crate) fn print(
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), WriteError> {
    let mut out = io::stdout().lock();
    match write(&mut out).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(WriteError { path: "standard output".into(), error })
        }
        _ => Ok(()),
    }
}

/// Refuses an output that would replace one of its own inputs.
///
/// # Errors
/// If it is one of them.
pub fn refuse_inputs(output: &Path, inputs: &[&Path]) -> anyhow::Result<()> {
    let Ok(place) = output.canonicalize() else { return Ok(()) };
    for input in inputs {
        let same = input.canonicalize().is_ok_and(|input| input == place);
        anyhow::ensure!(!same, "{}: is an input: choose another output", output.display());
    }
    Ok(())
}

/// The target of `path` if it is a symbolic link: the target is replaced, and the link stays.
fn follow_links(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    // Linux follows at most 40 links.
    for _ in 0..40 {
        match fs::read_link(&path) {
            Ok(target) => path = path.parent().unwrap_or(Path::new("")).join(target),
            Err(_) => return Ok(path),
        }
    }
    Err(io::Error::other("too many links"))
}

/// The parent directory of `path`; for a bare name the current directory.
fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// The unfinished files of this process, each with its final path. Files are created and renamed
/// under this lock, so that the holder of the lock sees either the temporary or the final file.
static UNFINISHED: Mutex<Vec<(PathBuf, PathBuf)>> = Mutex::new(Vec::new());

fn unfinished() -> MutexGuard<'static, Vec<(PathBuf, PathBuf)>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes a file's entry from [`UNFINISHED`] when dropped.
struct Entry(PathBuf);

impl Drop for Entry {
    fn drop(&mut self) {
        unfinished().retain(|(file, _)| *file != self.0);
    }
}

/// The abandoned outputs. While this is held, no output is created or renamed.
#[cfg(unix)]
pub(crate) struct Abandoned(MutexGuard<'static, Vec<(PathBuf, PathBuf)>>);

/// Removes all unfinished files.
#[cfg(unix)]
pub(crate) fn abandon() -> Abandoned {
    let files = unfinished();
    // A file that cannot be removed stays, as after SIGKILL.
    files.iter().for_each(|(file, _)| drop(fs::remove_file(file)));
    Abandoned(files)
}

#[cfg(unix)]
impl Abandoned {
    /// The final paths of the outputs.
    pub(crate) fn places(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().map(|(_, place)| place.as_path())
    }
}

/// An output file that appears at its path only when [`commit`](Self::commit) succeeds.
pub(crate) struct Output {
    path: PathBuf,
    file: BufWriter<NamedTempFile>,
    // Declared after `file`, so that it is dropped after the file is removed.
    entry: Entry,
}

impl Output {
    /// Creates the temporary file in the directory of `path`, so that the rename is atomic.
    pub(crate) fn create(path: &Path) -> Result<Self, WriteError> {
        let failed = |error| WriteError { path: path.to_owned(), error };
        let path = follow_links(path).map_err(failed)?;
        if let Ok(metadata) = fs::metadata(&path)
            && !metadata.is_file()
        {
            return Err(failed(io::Error::other("exists and is not a regular file")));
        }
        let name = path
            .file_name()
            .ok_or_else(|| failed(io::Error::other("is not the name of a file")))?;
        let mut prefix = std::ffi::OsString::from(".");
        prefix.push(name);
        prefix.push(".");
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(".part");
        #[cfg(unix)]
        {
            // tempfile's default is owner-only; with 0o666 the umask decides, as for any new file.
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(fs::Permissions::from_mode(0o666));
        }
        let mut unfinished = unfinished();
        let file = builder.tempfile_in(directory_of(&path)).map_err(failed)?;
        let entry = Entry(file.path().to_owned());
        unfinished.push((entry.0.clone(), path.clone()));
        Ok(Self { path, file: BufWriter::with_capacity(1 << 20, file), entry })
    }

    pub(crate) fn write(
        &mut self,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), WriteError> {
        write(&mut self.file).map_err(|error| WriteError { path: self.path.clone(), error })
    }

    /// Syncs the file and renames it to its path.
    pub(crate) fn commit(self) -> Result<(), WriteError> {
        let Self { path, file, entry } = self;
        let failed = |error| WriteError { path: path.clone(), error };
        let file = file.into_inner().map_err(|error| failed(error.into_error()))?;
        file.as_file().sync_all().map_err(failed)?;
        let mut unfinished = unfinished();
        file.persist(&path).map_err(|error| failed(error.error))?;
        unfinished.retain(|(file, _)| *file != entry.0);
        drop(unfinished);
        // The rename is durable once the directory is synced. Some systems cannot open directories.
        if let Ok(directory) = File::open(directory_of(&path)) {
            let _ = directory.sync_all();
        }
        Ok(())
    }
}
