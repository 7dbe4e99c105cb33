//! The extension module of the Python package `ttrec`: blobs, conversions, and the kernels of its
//! PyTorch layers. The Python files beside it hold what needs no Rust.

mod arrays;
mod bags;
mod blob;
mod convert;
mod error;
mod ranker;
mod table;
mod tensor_train;
mod threads;
mod workspace;

use pyo3::prelude::*;

#[pymodule]
mod _ttrec {
    #[pymodule_export]
    use crate::{
        blob::Blob,
        convert::{compare, convert, plan},
        error::{BlobError, ConvertError},
        ranker::Ranker,
        table::Table,
        tensor_train::{TensorTrain, suggest_factors},
    };
    use pyo3::prelude::*;
    use std::ffi::OsString;

    #[pymodule_export]
    #[expect(non_upper_case_globals, reason = "Python's name for it")]
    const __version__: &str = env!("CARGO_PKG_VERSION");

    /// Runs the command `ttrec` with these words, its name first, and returns its exit code.
    #[pyfunction]
    fn run(py: Python<'_>, args: Vec<OsString>) -> PyResult<u8> {
        crate::error::detached(py, || Ok(ttrec_cli::run(args)))
    }
}
