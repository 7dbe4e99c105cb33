//! The library's errors as Python exceptions.

use pyo3::{
    create_exception,
    exceptions::{PyIndexError, PyOSError, PyRuntimeError, PyValueError},
    prelude::*,
};
use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
};
use ttrec::{BagsError, LookupError, RetrievalError, ScoreError, train::TrainError};

create_exception!(ttrec, BlobError, PyValueError, "The bytes are not a blob, or are damaged.");
create_exception!(
    ttrec,
    ConvertError,
    PyValueError,
    "A checkpoint or a spec was refused, or they do not fit each other."
);

/// Why a call failed, before it is a Python exception: most work runs without the interpreter.
pub(crate) enum Error {
    /// An index that a table does not have.
    Index(String),
    /// Another argument.
    Value(String),
    Blob(String),
    Convert(String),
    Output(String),
    /// A file that cannot be opened; the kind decides the exception.
    File(io::Error),
    /// A defect of this package, or no memory or thread is left.
    Defect(String),
}

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        match error {
            Error::Index(text) => PyIndexError::new_err(text),
            Error::Value(text) => PyValueError::new_err(text),
            Error::Blob(text) => BlobError::new_err(text),
            Error::Convert(text) => ConvertError::new_err(text),
            Error::Output(text) => PyOSError::new_err(text),
            Error::File(error) => error.into(),
            Error::Defect(text) => PyRuntimeError::new_err(text),
        }
    }
}

impl From<LookupError> for Error {
    fn from(error: LookupError) -> Self {
        match error {
            LookupError::IndexOutOfRange { .. } | LookupError::NegativeIndex { .. } => {
                Self::Index(error.to_string())
            }
            LookupError::Inconsistent => Self::Defect(error.to_string()),
            _ => Self::Value(error.to_string()),
        }
    }
}

impl From<ScoreError> for Error {
    fn from(error: ScoreError) -> Self {
        let text = error.to_string();
        match error {
            ScoreError::Table { error, .. } => match Self::from(error) {
                Self::Index(_) => Self::Index(text),
                _ => Self::Value(text),
            },
            ScoreError::Inconsistent => Self::Defect(text),
            _ => Self::Value(text),
        }
    }
}

impl From<RetrievalError> for Error {
    fn from(error: RetrievalError) -> Self {
        let text = error.to_string();
        match error {
            RetrievalError::ExcludedIndex(_) => Self::Index(text),
            RetrievalError::Inconsistent => Self::Defect(text),
            _ => Self::Value(text),
        }
    }
}

impl From<TrainError> for Error {
    fn from(error: TrainError) -> Self {
        match error {
            TrainError::Lookup(error) => error.into(),
            _ => Self::Value(error.to_string()),
        }
    }
}

impl From<BagsError> for Error {
    fn from(error: BagsError) -> Self {
        Self::Value(error.to_string())
    }
}

impl From<ttrec_convert::Error> for Error {
    fn from(error: ttrec_convert::Error) -> Self {
        match error {
            ttrec_convert::Error::Output(_) => Self::Output(error.to_string()),
            _ => Self::Convert(error.to_string()),
        }
    }
}

/// Runs `work` without the interpreter, so that other Python threads run meanwhile.
pub(crate) fn detached<T: Send>(
    py: Python<'_>,
    work: impl FnOnce() -> Result<T, Error> + Send,
) -> PyResult<T> {
    // What a panic leaves inconsistent is dropped with `work`, or is a view that nothing changes.
    py.detach(|| contain(work)).map_err(PyErr::from)
}

/// Makes a panic an error. None is expected.
pub(crate) fn contain<T>(work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(Error::Defect("a defect of ttrec: please report it".to_owned())))
}
