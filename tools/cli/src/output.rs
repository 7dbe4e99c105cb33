//! Output files, whole or not at all: written beside their place, synced, and renamed into it.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};
use tempfile::NamedTempFile;

/// An output file could not be written; the path holds what it held before.
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

/// Writes a file at `path`, whole or not at all, with what `ttrec-convert` writes to it.
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

/// The error of a conversion that could not keep a factorisation, or of one that was refused.
pub(crate) fn resumed(error: ttrec_convert::Error) -> anyhow::Error {
    match error {
        ttrec_convert::Error::Output(error) => match error.downcast::<WriteError>() {
            Ok(error) => error.into(),
            Err(error) => error.into(),
        },
        error => error.into(),
    }
}

/// Prints to standard output. A reader who closed it has seen enough: that is no error.
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
pub(crate) fn refuse_inputs(output: &Path, inputs: &[&Path]) -> anyhow::Result<()> {
    let Ok(place) = output.canonicalize() else { return Ok(()) };
    for input in inputs {
        let same = input.canonicalize().is_ok_and(|input| input == place);
        anyhow::ensure!(!same, "{}: the output would replace an input", output.display());
    }
    Ok(())
}

/// Where writing to `path` ends up: a link keeps pointing where it does, and what it points to is
/// replaced.
fn follow_links(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    // As many as Linux follows.
    for _ in 0..40 {
        match fs::read_link(&path) {
            Ok(target) => path = path.parent().unwrap_or(Path::new("")).join(target),
            Err(_) => return Ok(path),
        }
    }
    Err(io::Error::other("too many links"))
}

/// The directory that `path` is in; a bare name is in the current one.
fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// The unfinished files of this process, each with the place it is meant for. Files are created and
/// take their place under this lock, so that whoever holds it knows which of the two is there.
static UNFINISHED: Mutex<Vec<(PathBuf, PathBuf)>> = Mutex::new(Vec::new());

fn unfinished() -> MutexGuard<'static, Vec<(PathBuf, PathBuf)>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An entry of [`UNFINISHED`], there for as long as this is.
struct Entry(PathBuf);

impl Drop for Entry {
    fn drop(&mut self) {
        unfinished().retain(|(file, _)| *file != self.0);
    }
}

/// The outputs that were given up. While this is held, no file is created, and none takes its
/// place.
#[cfg(unix)]
pub(crate) struct Abandoned(MutexGuard<'static, Vec<(PathBuf, PathBuf)>>);

/// Removes all unfinished files.
#[cfg(unix)]
pub(crate) fn abandon() -> Abandoned {
    let files = unfinished();
    // What cannot be removed stays, as after a kill.
    files.iter().for_each(|(file, _)| drop(fs::remove_file(file)));
    Abandoned(files)
}

#[cfg(unix)]
impl Abandoned {
    /// Where they would have stood.
    pub(crate) fn places(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().map(|(_, place)| place.as_path())
    }
}

/// A file that takes its place only when [`commit`](Self::commit) succeeds.
pub(crate) struct Output {
    path: PathBuf,
    file: BufWriter<NamedTempFile>,
    // After `file`, so that it goes once the file is removed.
    entry: Entry,
}

impl Output {
    /// Starts a file that will stand at `path`, beside it: in the same directory, so that the
    /// rename is atomic.
    pub(crate) fn create(path: &Path) -> Result<Self, WriteError> {
        let failed = |error| WriteError { path: path.to_owned(), error };
        let path = follow_links(path).map_err(failed)?;
        if let Ok(metadata) = fs::metadata(&path)
            && !metadata.is_file()
        {
            return Err(failed(io::Error::other("it exists and is not a regular file")));
        }
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
        let mut unfinished = unfinished();
        let file = builder.tempfile_in(directory_of(&path)).map_err(failed)?;
        let entry = Entry(file.path().to_owned());
        unfinished.push((entry.0.clone(), path.clone()));
        Ok(Self { path, file: BufWriter::with_capacity(1 << 20, file), entry })
    }

    /// Runs `write` on the file.
    pub(crate) fn write(
        &mut self,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), WriteError> {
        write(&mut self.file).map_err(|error| WriteError { path: self.path.clone(), error })
    }

    /// Syncs the file and puts it in its place.
    pub(crate) fn commit(self) -> Result<(), WriteError> {
        let Self { path, file, entry } = self;
        let failed = |error| WriteError { path: path.clone(), error };
        let file = file.into_inner().map_err(|error| failed(error.into_error()))?;
        file.as_file().sync_all().map_err(failed)?;
        let mut unfinished = unfinished();
        file.persist(&path).map_err(|error| failed(error.error))?;
        unfinished.retain(|(file, _)| *file != entry.0);
        drop(unfinished);
        // The rename itself lasts once its directory is synced; where directories cannot be opened,
        // it is as safe as any.
        if let Ok(directory) = File::open(directory_of(&path)) {
            let _ = directory.sync_all();
        }
        Ok(())
    }
}
