//! Arguments that are arrays: anything that numpy makes an array of, borrowed where its type and
//! its layout allow it.

use numpy::{
    Element, PyArrayDescrMethods, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn,
    PyReadwriteArrayDyn, PyUntypedArray, PyUntypedArrayMethods, dtype,
};
use pyo3::{
    exceptions::{PyTypeError, PyValueError},
    prelude::*,
    sync::PyOnceLock,
    types::PyDict,
};

fn numpy(py: Python<'_>) -> PyResult<&Bound<'_, PyModule>> {
    static NUMPY: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    Ok(NUMPY
        .get_or_try_init(py, || Ok::<_, PyErr>(py.import("numpy")?.unbind()))?
        .bind(py))
}

/// `value` as an array of numbers; `what` names it in errors.
fn numbers<'py>(value: &Bound<'py, PyAny>, what: &str) -> PyResult<Bound<'py, PyUntypedArray>> {
    let array = match value.cast::<PyUntypedArray>() {
        Ok(array) => array.clone(),
        Err(_) => numpy(value.py())?
            .call_method1("asarray", (value,))
            .map_err(|error| {
                let text = format!("{what}: not an array of numbers: {error}");
                PyTypeError::new_err(text)
            })?
            .cast_into::<PyUntypedArray>()?,
    };
    match array.dtype().kind() {
        b'i' | b'u' | b'f' => Ok(array),
        _ => Err(PyTypeError::new_err(format!(
            "{what}: an array of {}: expected numbers",
            array.dtype()
        ))),
    }
}

/// The array itself if its elements are `T`, aligned and row-major; otherwise a copy that is.
fn required<'py, T: Element>(
    array: &Bound<'py, PyUntypedArray>,
) -> PyResult<PyReadonlyArrayDyn<'py, T>> {
    let py = array.py();
    let array = match array.cast::<PyArrayDyn<T>>() {
        Ok(array) if array.is_aligned() && array.is_c_contiguous() => array.clone(),
        _ => numpy(py)?
            .call_method1("require", (array, dtype::<T>(py), "CA"))?
            .cast_into::<PyArrayDyn<T>>()?,
    };
    array.try_readonly().map_err(|error| PyValueError::new_err(error.to_string()))
}

/// An array of f32.
pub(crate) struct Floats<'py>(PyReadonlyArrayDyn<'py, f32>);

impl<'py> Floats<'py> {
    pub(crate) fn new(value: &Bound<'py, PyAny>, what: &str) -> PyResult<Self> {
        Ok(Self(required(&numbers(value, what)?)?))
    }

    pub(crate) fn shape(&self) -> &[usize] {
        self.0.shape()
    }

    pub(crate) fn values(&self) -> PyResult<&[f32]> {
        Ok(self.0.as_slice()?)
    }
}

/// An array of integers, of one of the types that the library reads.
pub(crate) enum Integers<'py> {
    I32(PyReadonlyArrayDyn<'py, i32>),
    U32(PyReadonlyArrayDyn<'py, u32>),
    I64(PyReadonlyArrayDyn<'py, i64>),
    U64(PyReadonlyArrayDyn<'py, u64>),
}

/// Runs `$body` with the readonly array.
macro_rules! with_integers {
    ($integers:expr, $array:ident => $body:expr) => {
        match $integers {
            Integers::I32($array) => $body,
            Integers::U32($array) => $body,
            Integers::I64($array) => $body,
            Integers::U64($array) => $body,
        }
    };
}

impl<'py> Integers<'py> {
    pub(crate) fn new(value: &Bound<'py, PyAny>, what: &str) -> PyResult<Self> {
        let array = numbers(value, what)?;
        let (kind, size) = (array.dtype().kind(), array.dtype().itemsize());
        match (kind, size) {
            (b'i', 4) => Ok(Self::I32(required(&array)?)),
            (b'u', 4) => Ok(Self::U32(required(&array)?)),
            (b'u', 8) => Ok(Self::U64(required(&array)?)),
            // numpy makes an array of floats of an empty list.
            (b'f', _) if array.len() > 0 => Err(PyTypeError::new_err(format!(
                "{what}: an array of {}: expected integers",
                array.dtype()
            ))),
            _ => Ok(Self::I64(required(&array)?)),
        }
    }

    pub(crate) fn shape(&self) -> &[usize] {
        with_integers!(self, array => array.shape())
    }

    pub(crate) fn len(&self) -> usize {
        with_integers!(self, array => array.len())
    }

    /// Each as an i64. Integers above its range become negative, and so are refused like these.
    pub(crate) fn to_i64(&self) -> PyResult<Vec<i64>> {
        Ok(match self {
            Self::I32(array) => array.as_slice()?.iter().map(|&integer| integer.into()).collect(),
            Self::U32(array) => array.as_slice()?.iter().map(|&integer| integer.into()).collect(),
            Self::I64(array) => array.as_slice()?.to_vec(),
            Self::U64(array) => {
                array.as_slice()?.iter().map(|integer| integer.cast_signed()).collect()
            }
        })
    }
}

/// Where a call writes its f32.
pub(crate) struct Output<'py> {
    array: Bound<'py, PyArrayDyn<f32>>,
    borrow: PyReadwriteArrayDyn<'py, f32>,
}

impl<'py> Output<'py> {
    /// The caller's `out`, which has this shape; without it, a new array.
    pub(crate) fn new(
        py: Python<'py>,
        out: Option<&Bound<'py, PyAny>>,
        shape: &[usize],
    ) -> PyResult<Self> {
        let array = match out {
            None => numpy(py)?
                .call_method1("empty", (shape.to_vec(), dtype::<f32>(py)))?
                .cast_into::<PyArrayDyn<f32>>()?,
            Some(out) => {
                let array = out
                    .cast::<PyArrayDyn<f32>>()
                    .map_err(|_| PyTypeError::new_err("out: expected a numpy array of float32"))?;
                if array.shape() != shape {
                    return Err(PyValueError::new_err(format!(
                        "out: an array of shape {:?}: expected {shape:?}",
                        array.shape()
                    )));
                }
                array.clone()
            }
        };
        Self::over(array, "out")
    }

    /// An array that a call changes; `what` names it in errors.
    pub(crate) fn of(value: &Bound<'py, PyAny>, what: &str) -> PyResult<Self> {
        let array = value.cast::<PyArrayDyn<f32>>().map_err(|_| {
            PyTypeError::new_err(format!("{what}: expected a numpy array of float32"))
        })?;
        Self::over(array.clone(), what)
    }

    fn over(array: Bound<'py, PyArrayDyn<f32>>, what: &str) -> PyResult<Self> {
        if !array.is_aligned() || !array.is_c_contiguous() {
            return Err(PyValueError::new_err(format!("{what}: expected a contiguous array")));
        }
        let borrow = array.try_readwrite().map_err(|error| {
            PyValueError::new_err(format!(
                "{what}: {error}: expected a writable array that no other argument shares"
            ))
        })?;
        Ok(Self { array, borrow })
    }

    pub(crate) fn values(&mut self) -> PyResult<&mut [f32]> {
        Ok(self.borrow.as_slice_mut()?)
    }

    /// The array, in another shape of as many elements.
    pub(crate) fn into_array(self) -> Bound<'py, PyAny> {
        self.array.into_any()
    }
}

/// An array of i64 that takes over these values.
pub(crate) fn of_i64<'py>(
    py: Python<'py>,
    values: Vec<i64>,
    shape: &[usize],
) -> PyResult<Bound<'py, PyAny>> {
    let array = numpy::PyArray1::from_vec(py, values);
    array.call_method1("reshape", (shape.to_vec(),))
}

/// A text of JSON as Python objects.
pub(crate) fn from_json<'py>(py: Python<'py>, text: &str) -> PyResult<Bound<'py, PyDict>> {
    Ok(py.import("json")?.call_method1("loads", (text,))?.cast_into::<PyDict>()?)
}
