//! The error of this crate.

use std::io;

/// Why a checkpoint could not be converted, planned or compared.
///
/// Its text names the file and the table.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// An input was refused; the text says what was found, where, and what was expected.
    Input(String),
    /// The output could not be written.
    Output(io::Error),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Input(text) => f.write_str(text),
            Self::Output(error) => write!(f, "cannot write: {error}"),
        }
    }
}

impl std::error::Error for Error {}

/// A failure of the caller's writer.
#[derive(Debug, thiserror::Error)]
#[error("cannot write: {0}")]
pub(crate) struct OutputError(pub(crate) io::Error);

impl From<anyhow::Error> for Error {
    fn from(error: anyhow::Error) -> Self {
        match error.downcast::<OutputError>() {
            Ok(OutputError(error)) => Self::Output(error),
            Err(error) => Self::Input(format!("{error:#}")),
        }
    }
}
