//! Blobs.

use crate::{
    error::{Error, detached},
    ranker::Ranker,
    table::Table,
};
use pyo3::{
    exceptions::{PyKeyError, PyValueError},
    prelude::*,
    types::{PyBytes, PyTuple, PyType},
};
use self_cell::self_cell;
use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};
use ttrec::AlignedBuf;
use ttrec_convert::checkpoint::Mapped;

/// The bytes of a blob.
pub(crate) enum Bytes {
    File(Mapped),
    Memory(AlignedBuf),
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::File(bytes) => bytes.as_ref(),
            Self::Memory(bytes) => bytes,
        }
    }
}

type Parsed<'b> = ttrec::Blob<'b>;

self_cell!(
    /// A blob and its bytes.
    pub(crate) struct OpenBlob {
        owner: Bytes,
        #[covariant]
        dependent: Parsed,
    }
);

impl OpenBlob {
    pub(crate) fn parse(bytes: Bytes) -> Result<Arc<Self>, Error> {
        let parsed = Self::try_new(bytes, |bytes| ttrec::Blob::parse(bytes.as_ref()));
        Ok(Arc::new(parsed.map_err(|error| Error::Blob(error.to_string()))?))
    }

    pub(crate) fn blob(&self) -> &ttrec::Blob<'_> {
        self.borrow_dependent()
    }
}

/// A blob: tables by name, and perhaps the model around them.
///
/// `ttrec.open` maps a file. A table keeps the file mapped while it is in use, also after `close`.
#[pyclass(frozen, mapping, module = "ttrec")]
pub(crate) struct Blob {
    /// None once it is closed.
    open: Mutex<Option<Arc<OpenBlob>>>,
    path: Option<PathBuf>,
}

impl Blob {
    pub(crate) fn new(open: Arc<OpenBlob>, path: Option<PathBuf>) -> Self {
        Self { open: Mutex::new(Some(open)), path }
    }

    pub(crate) fn opened(&self) -> PyResult<Arc<OpenBlob>> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.clone().ok_or_else(|| PyValueError::new_err("the blob is closed"))
    }

    /// The table at this position.
    fn table(&self, position: usize) -> PyResult<Table> {
        Table::new(self.opened()?, position)
    }

    fn position(&self, name: &str) -> PyResult<Option<usize>> {
        Ok(self.opened()?.blob().tables().position(|table| table.name() == name))
    }
}

/// Maps the file at `path`, and parses it.
pub(crate) fn map(path: &Path) -> Result<Arc<OpenBlob>, Error> {
    let mapped = Mapped::open(path).map_err(|error| {
        let text = format!("{}: cannot open: {error}", path.display());
        Error::File(io::Error::new(error.kind(), text))
    })?;
    OpenBlob::parse(Bytes::File(mapped)).map_err(|error| match error {
        Error::Blob(text) => Error::Blob(format!("{}: invalid blob: {text}", path.display())),
        error => error,
    })
}

#[pymethods]
impl Blob {
    /// Maps the blob at `path` and checks its directory.
    #[classmethod]
    fn open(_class: &Bound<'_, PyType>, path: PathBuf) -> PyResult<Self> {
        Ok(Self::new(map(&path)?, Some(path)))
    }

    /// A blob in memory, from a copy of its bytes.
    #[classmethod]
    fn from_bytes(_class: &Bound<'_, PyType>, bytes: &Bound<'_, PyBytes>) -> PyResult<Self> {
        let bytes = AlignedBuf::from_slice(bytes.as_bytes());
        Ok(Self::new(OpenBlob::parse(Bytes::Memory(bytes))?, None))
    }

    /// A copy of the bytes of the blob.
    fn to_bytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(py, self.opened()?.blob().as_bytes()))
    }

    /// The path of its file; None in memory.
    #[getter]
    fn path(&self) -> Option<&PathBuf> {
        self.path.as_ref()
    }

    /// The names of the tables, in order.
    #[getter]
    fn names(&self) -> PyResult<Vec<String>> {
        Ok(self.opened()?.blob().tables().map(|table| table.name().to_owned()).collect())
    }

    /// The length of the blob in bytes.
    #[getter]
    fn nbytes(&self) -> PyResult<usize> {
        Ok(self.opened()?.blob().as_bytes().len())
    }

    /// Whether the blob has a model, which `ranker` runs.
    #[getter]
    fn has_model(&self) -> PyResult<bool> {
        Ok(self.opened()?.blob().ranker().is_ok())
    }

    /// As `names`.
    fn keys(&self) -> PyResult<Vec<String>> {
        self.names()
    }

    fn values(&self) -> PyResult<Vec<Table>> {
        (0..self.__len__()?).map(|position| self.table(position)).collect()
    }

    fn items(&self) -> PyResult<Vec<(String, Table)>> {
        Ok(self.names()?.into_iter().zip(self.values()?).collect())
    }

    fn __getitem__(&self, name: &str) -> PyResult<Table> {
        match self.position(name)? {
            Some(position) => self.table(position),
            None => Err(PyKeyError::new_err(format!(
                "no table {name:?}: the blob has {:?}",
                self.names()?
            ))),
        }
    }

    #[pyo3(signature = (name, default=None))]
    fn get<'py>(
        &self,
        py: Python<'py>,
        name: &str,
        default: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        match self.position(name)? {
            Some(position) => Ok(Some(self.table(position)?.into_pyobject(py)?.into_any())),
            None => Ok(default),
        }
    }

    fn __contains__(&self, name: &Bound<'_, PyAny>) -> PyResult<bool> {
        match name.extract::<String>() {
            Ok(name) => Ok(self.position(&name)?.is_some()),
            Err(_) => Ok(false),
        }
    }

    fn __len__(&self) -> PyResult<usize> {
        Ok(self.opened()?.blob().num_tables())
    }

    fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.names()?.into_pyobject(py)?.call_method0("__iter__")
    }

    /// The model: computes scores.
    fn ranker(&self) -> PyResult<Ranker> {
        Ranker::new(self.opened()?)
    }

    /// Reads the whole blob, and raises BlobError if a checksum does not match.
    fn verify(&self, py: Python<'_>) -> PyResult<()> {
        let open = self.opened()?;
        detached(py, || {
            open.blob().verify_payload().map_err(|error| Error::Blob(error.to_string()))
        })
    }

    /// Ends the use of the blob: its methods raise ValueError from now on.
    fn close(&self) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn __enter__(this: Bound<'_, Self>) -> Bound<'_, Self> {
        this
    }

    #[pyo3(signature = (*_error))]
    fn __exit__(&self, _error: &Bound<'_, pyo3::types::PyTuple>) {
        self.close();
    }

    /// Other processes open the same file; a blob in memory is copied.
    fn __reduce__<'py>(
        slf: &Bound<'py, Self>,
    ) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyTuple>)> {
        let (py, this) = (slf.py(), slf.get());
        Ok(match &this.path {
            Some(path) => (slf.get_type().getattr("open")?, (path,).into_pyobject(py)?),
            None => {
                let bytes = this.to_bytes(py)?;
                (slf.get_type().getattr("from_bytes")?, (bytes,).into_pyobject(py)?)
            }
        })
    }

    fn __repr__(&self) -> PyResult<String> {
        let place = match &self.path {
            Some(path) => format!("{:?}", path.display().to_string()),
            None => "in memory".to_owned(),
        };
        let Ok(open) = self.opened() else { return Ok(format!("<ttrec.Blob {place}, closed>")) };
        let (tables, bytes) = (open.blob().num_tables(), open.blob().as_bytes().len());
        Ok(format!("<ttrec.Blob {place}: {tables} tables, {bytes} bytes>"))
    }
}

impl From<ttrec::BlobError> for Error {
    fn from(error: ttrec::BlobError) -> Self {
        Self::Blob(error.to_string())
    }
}
