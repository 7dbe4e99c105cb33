//! Bags from Python: indices of any integer type, with offsets or in two dimensions.

use crate::{
    arrays::{Floats, Integers},
    error::Error,
    threads, workspace,
};
use numpy::{PyReadonlyArrayDyn, PyUntypedArrayMethods};
use pyo3::{
    exceptions::{PyTypeError, PyValueError},
    prelude::*,
    types::PyTuple,
};
use rayon::prelude::*;
use ttrec::{Bags, Pooling, Table};

/// A list of bags, as `torch.nn.EmbeddingBag` takes them.
pub(crate) struct BagList<'py> {
    lookups: Lookups<'py>,
    weights: Option<Floats<'py>>,
    padding_idx: Option<u64>,
}

/// Indices, and offsets of the same type that end at their number.
enum Lookups<'py> {
    I32(PyReadonlyArrayDyn<'py, i32>, Vec<i32>),
    U32(PyReadonlyArrayDyn<'py, u32>, Vec<u32>),
    I64(PyReadonlyArrayDyn<'py, i64>, Vec<i64>),
    U64(PyReadonlyArrayDyn<'py, u64>, Vec<u64>),
}

/// Where bags begin.
#[derive(Clone, Copy)]
pub(crate) enum Offsets<'a, 'py> {
    /// The caller's, one for each bag.
    Starts(&'a Bound<'py, PyAny>),
    /// The caller's, one more than there are bags.
    WithLast(&'a Bound<'py, PyAny>),
    /// Each row of two-dimensional indices is a bag.
    Rows,
    /// Each index is a bag.
    Single,
}

impl<'a, 'py> Offsets<'a, 'py> {
    /// The arguments of `torch.nn.EmbeddingBag`.
    pub(crate) fn new(offsets: Option<&'a Bound<'py, PyAny>>, include_last_offset: bool) -> Self {
        match offsets {
            None => Self::Rows,
            Some(offsets) if include_last_offset => Self::WithLast(offsets),
            Some(offsets) => Self::Starts(offsets),
        }
    }

    /// The offsets of `indices`, the last one included.
    fn read(self, indices: &Integers<'py>) -> PyResult<Vec<i64>> {
        let (len, shape) = (indices.len() as i64, indices.shape());
        let given = match (self, shape) {
            (Self::Single, _) => return Ok((0..=len).collect()),
            (Self::Rows, &[bags, each]) => {
                return Ok((0..=bags).map(|bag| (bag * each) as i64).collect());
            }
            (Self::Starts(given) | Self::WithLast(given), [_]) => Integers::new(given, "offsets")?,
            (Self::Rows, _) => {
                return Err(PyValueError::new_err(format!(
                    "indices of shape {shape:?} without offsets: expected two dimensions, a row \
                     for each bag, or offsets"
                )));
            }
            _ => {
                return Err(PyValueError::new_err(format!(
                    "indices of shape {shape:?} with offsets: expected one dimension"
                )));
            }
        };
        if given.shape().len() != 1 {
            let shape = given.shape();
            let text = format!("offsets of shape {shape:?}: expected one dimension");
            return Err(PyValueError::new_err(text));
        }
        let mut offsets = given.to_i64()?;
        if let Self::Starts(_) = self {
            offsets.push(len);
        }
        Ok(offsets)
    }
}

/// The offsets as another type. One that does not fit is not within `len` indices either.
fn fit<T: TryFrom<i64>>(offsets: Vec<i64>, len: usize) -> PyResult<Vec<T>> {
    let fit = |(position, offset): (usize, i64)| {
        T::try_from(offset).map_err(|_| {
            PyValueError::new_err(format!(
                "offset {offset} at position {position}: expected 0 to {len}"
            ))
        })
    };
    offsets.into_iter().enumerate().map(fit).collect()
}

impl<'py> BagList<'py> {
    pub(crate) fn new(
        indices: &Bound<'py, PyAny>,
        offsets: Offsets<'_, 'py>,
        weights: Option<&Bound<'py, PyAny>>,
        padding_idx: Option<u64>,
    ) -> PyResult<Self> {
        let indices = Integers::new(indices, "indices")?;
        let offsets = offsets.read(&indices)?;
        let weights = weights.map(|weights| Floats::new(weights, "per_sample_weights"));
        let weights = weights.transpose()?;
        if let Some(weights) = &weights
            && weights.shape() != indices.shape()
        {
            return Err(PyValueError::new_err(format!(
                "per_sample_weights of shape {:?}: expected that of the indices, {:?}",
                weights.shape(),
                indices.shape()
            )));
        }
        let len = indices.len();
        let lookups = match indices {
            Integers::I32(indices) => Lookups::I32(indices, fit(offsets, len)?),
            Integers::U32(indices) => Lookups::U32(indices, fit(offsets, len)?),
            Integers::I64(indices) => Lookups::I64(indices, offsets),
            Integers::U64(indices) => Lookups::U64(indices, fit(offsets, len)?),
        };
        Ok(Self { lookups, weights, padding_idx })
    }

    /// The bags of one table of a model: `(indices, offsets)`, `(indices, offsets,
    /// per_sample_weights)`, or indices alone, one for each bag or a row for each bag.
    pub(crate) fn of_model(
        value: &Bound<'py, PyAny>,
        include_last_offset: bool,
        padding_idx: Option<u64>,
    ) -> PyResult<Self> {
        if let Ok(parts) = value.cast::<PyTuple>() {
            if !(2..=3).contains(&parts.len()) {
                return Err(PyTypeError::new_err(format!(
                    "bags of {} parts: expected (indices, offsets) or (indices, offsets, \
                     per_sample_weights)",
                    parts.len()
                )));
            }
            let (indices, offsets) = (parts.get_item(0)?, parts.get_item(1)?);
            let weights = (parts.len() == 3).then(|| parts.get_item(2)).transpose()?;
            let offsets = Offsets::new(Some(&offsets), include_last_offset);
            return Self::new(&indices, offsets, weights.as_ref(), padding_idx);
        }
        let dims = Integers::new(value, "indices")?.shape().len();
        let offsets = if dims == 1 { Offsets::Single } else { Offsets::Rows };
        Self::new(value, offsets, None, padding_idx)
    }

    pub(crate) fn bags(&self) -> PyResult<Bags<'_>> {
        let bags = match &self.lookups {
            Lookups::I32(indices, offsets) => Bags::new(indices.as_slice()?, offsets),
            Lookups::U32(indices, offsets) => Bags::new(indices.as_slice()?, offsets),
            Lookups::I64(indices, offsets) => Bags::new(indices.as_slice()?, offsets),
            Lookups::U64(indices, offsets) => Bags::new(indices.as_slice()?, offsets),
        };
        let mut bags = bags.map_err(Error::from)?;
        if let Some(weights) = &self.weights {
            bags = bags.with_per_sample_weights(weights.values()?).map_err(Error::from)?;
        }
        Ok(match self.padding_idx {
            Some(padding_idx) => bags.with_padding_idx(padding_idx),
            None => bags,
        })
    }

    pub(crate) fn shape(&self) -> &[usize] {
        match &self.lookups {
            Lookups::I32(indices, _) => indices.shape(),
            Lookups::U32(indices, _) => indices.shape(),
            Lookups::I64(indices, _) => indices.shape(),
            Lookups::U64(indices, _) => indices.shape(),
        }
    }
}

/// The pooling of this name.
pub(crate) fn pooling(mode: &str) -> PyResult<Pooling> {
    match mode {
        "sum" => Ok(Pooling::Sum),
        "mean" => Ok(Pooling::Mean),
        "max" => Ok(Pooling::Max),
        _ => Err(PyValueError::new_err(format!("mode {mode:?}: expected sum, mean or max"))),
    }
}

/// The index that is left out; one below 0 counts from the end, as in PyTorch.
pub(crate) fn padding_idx(given: Option<i64>, num_embeddings: u64) -> PyResult<Option<u64>> {
    let Some(given) = given else { return Ok(None) };
    let index = u64::try_from(given)
        .ok()
        .or_else(|| num_embeddings.checked_sub(given.unsigned_abs()))
        .filter(|&index| index < num_embeddings);
    match index {
        Some(index) => Ok(Some(index)),
        None => Err(PyValueError::new_err(format!(
            "padding_idx {given}: the table has {num_embeddings} rows"
        ))),
    }
}

/// Bags that own their numbers, to be divided or changed.
pub(crate) struct OwnedBags {
    pub(crate) indices: Vec<u64>,
    pub(crate) offsets: Vec<u64>,
    pub(crate) weights: Option<Vec<f32>>,
}

impl OwnedBags {
    pub(crate) fn new(bags: &Bags<'_>) -> Self {
        Self {
            indices: bags.indices().collect(),
            offsets: bags.offsets().collect(),
            weights: bags.per_sample_weights().map(<[f32]>::to_vec),
        }
    }

    /// The bags without the indices that are `padding_idx`.
    pub(crate) fn without(mut self, padding_idx: u64) -> Self {
        let mut kept = 0;
        let mut ends = self.offsets.iter_mut().peekable();
        for (position, &index) in self.indices.iter().enumerate() {
            while let Some(end) = ends.next_if(|end| **end <= position as u64) {
                *end = kept;
            }
            kept += u64::from(index != padding_idx);
        }
        ends.for_each(|end| *end = kept);
        if let Some(weights) = &mut self.weights {
            let mut indices = self.indices.iter();
            weights.retain(|_| indices.next() != Some(&padding_idx));
        }
        self.indices.retain(|&index| index != padding_idx);
        self
    }

    pub(crate) fn bags(&self) -> Result<Bags<'_>, Error> {
        self.part(&self.offsets)
    }

    /// The bags with these offsets, which begin at 0.
    fn part<'b>(&'b self, offsets: &'b [u64]) -> Result<Bags<'b>, Error> {
        let bags = Bags::new(&self.indices, offsets)?;
        Ok(match &self.weights {
            Some(weights) => bags.with_per_sample_weights(weights)?,
            None => bags,
        })
    }

    /// Some of the bags.
    fn slice(&self, bags: std::ops::Range<usize>) -> Option<Self> {
        let offsets = self.offsets.get(bags.start..=bags.end)?;
        let (&first, &last) = (offsets.first()?, offsets.last()?);
        let lookups = first as usize..last as usize;
        Some(Self {
            indices: self.indices.get(lookups.clone())?.to_vec(),
            offsets: offsets.iter().map(|offset| offset - first).collect(),
            weights: match &self.weights {
                Some(weights) => Some(weights.get(lookups)?.to_vec()),
                None => None,
            },
        })
    }
}

/// Pools `bags` on some threads. The result has the same bits on any number of them.
pub(crate) fn pool(
    table: &Table<'_>,
    bags: &Bags<'_>,
    padding_idx: Option<u64>,
    pooling: Pooling,
    out: &mut [f32],
    threads: usize,
) -> Result<(), Error> {
    let on_this_thread = |bags: &Bags<'_>, out: &mut [f32]| {
        let len = table.workspace_len(bags.num_indices());
        workspace::with(len, |workspace| Ok(table.pool(bags, pooling, out, workspace)?))
    };
    // An error leaves the output unmodified, so it has to be found before a part is written.
    let is_refused = |bags: &Bags<'_>| {
        let mut indices = bags.indices();
        let in_range = indices.all(|index| index < table.num_embeddings());
        !in_range || bags.per_sample_weights().is_some() && pooling != Pooling::Sum
    };
    let several = threads::several(threads)?;
    let Some(pool) = several.filter(|_| bags.len() > 1 && !is_refused(bags)) else {
        return on_this_thread(bags, out);
    };
    let all = OwnedBags::new(bags);
    let dim = table.embedding_dim();
    let bounds = threads::bounds(bags.len(), threads);
    let mut parts = Vec::new();
    let mut rest = out;
    for part in bounds.windows(2) {
        let (these, after) = rest
            .split_at_mut_checked((part[1] - part[0]) * dim)
            .ok_or_else(|| Error::Defect("an output is short: please report this".to_owned()))?;
        parts.push((part[0]..part[1], these));
        rest = after;
    }
    pool.install(|| {
        parts.into_par_iter().try_for_each(|(part, out)| {
            let part = all.slice(part).ok_or(ttrec::LookupError::Inconsistent)?;
            let bags = part.bags()?;
            on_this_thread(
                &padding_idx.map_or(bags, |padding_idx| bags.with_padding_idx(padding_idx)),
                out,
            )
        })
    })
}
