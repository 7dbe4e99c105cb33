//! Tables.

use crate::{
    arrays::{Floats, Integers, Output, of_i64},
    bags::{self, BagList, Offsets},
    blob::OpenBlob,
    error::{Error, detached},
    threads, workspace,
};
use numpy::PyArray1;
use pyo3::{
    exceptions::{PyIndexError, PyValueError},
    prelude::*,
};
use rayon::prelude::*;
use self_cell::self_cell;
use std::sync::Arc;
use ttrec::{
    Bags, DigitOrder, Pooling, Scored, Search, TtShape, merge_top_k,
    repr::{Combine, IndexMap, Weights},
};

type View<'b> = ttrec::Table<'b>;

self_cell!(
    /// A table and its blob.
    struct OpenTable {
        owner: Arc<OpenBlob>,
        #[covariant]
        dependent: View,
    }
);

/// A table of a blob: rows by their indices.
///
/// Indices are arrays, lists or torch tensors of any integer type. They are not copied if they are
/// contiguous and of 32 or 64 bits. While a call runs, other Python threads run too; do not change
/// its arrays meanwhile.
#[pyclass(frozen, module = "ttrec")]
pub(crate) struct Table(OpenTable);

/// Indices and their scores.
type Best<'py> = (Bound<'py, PyAny>, Bound<'py, PyAny>);

/// What a layer of PyTorch needs of a tensor train.
type TensorTrain<'py> = (Vec<u32>, Vec<u32>, Vec<u32>, bool, bool, Vec<Bound<'py, PyAny>>);

/// What a layer of PyTorch needs of a table of codes.
type Codes<'py> = (Bound<'py, PyAny>, Bound<'py, PyAny>, Option<Bound<'py, PyAny>>, bool);

impl Table {
    pub(crate) fn new(blob: Arc<OpenBlob>, position: usize) -> PyResult<Self> {
        OpenTable::try_new(blob, |blob| blob.blob().tables().nth(position).ok_or(()))
            .map(Self)
            .map_err(|()| PyIndexError::new_err(format!("the blob has no table {position}")))
    }

    fn view(&self) -> &ttrec::Table<'_> {
        self.0.borrow_dependent()
    }

    fn tt(&self) -> Option<&TtShape> {
        match self.view().data().weights() {
            Weights::Tt(tt) => Some(tt.shape()),
            _ => None,
        }
    }

    /// Queries, with whether there is a dimension for their number.
    fn queries<'py>(&self, queries: &Bound<'py, PyAny>) -> PyResult<(Floats<'py>, bool)> {
        let queries = Floats::new(queries, "queries")?;
        let dim = self.view().embedding_dim();
        match *queries.shape() {
            [len] if len == dim => Ok((queries, false)),
            [_, len] if len == dim => Ok((queries, true)),
            ref shape => Err(PyValueError::new_err(format!(
                "queries of shape {shape:?}: expected ({dim},) or (n, {dim})"
            ))),
        }
    }
}

#[pymethods]
impl Table {
    /// Its name in the blob.
    #[getter]
    fn name(&self) -> &str {
        self.view().name()
    }

    /// The number of indices.
    #[getter]
    fn num_embeddings(&self) -> u64 {
        self.view().num_embeddings()
    }

    /// The number of elements of a row.
    #[getter]
    fn embedding_dim(&self) -> usize {
        self.view().embedding_dim()
    }

    /// (num_embeddings, embedding_dim).
    #[getter]
    fn shape(&self) -> (u64, usize) {
        (self.view().num_embeddings(), self.view().embedding_dim())
    }

    /// How it is stored, such as "tt", "dense" or "low-rank".
    #[getter]
    fn representation(&self) -> &'static str {
        self.view().data().weights().name()
    }

    /// The stored type of its numbers, such as "f16".
    #[getter]
    fn dtype(&self) -> &'static str {
        self.view().data().dtype().name()
    }

    /// The bytes of its sections.
    #[getter]
    fn nbytes(&self) -> u64 {
        self.view().sections().map(|section| section.len).sum()
    }

    /// The row factors of a tensor train; None of other tables.
    #[getter]
    fn row_factors(&self) -> Option<Vec<u32>> {
        Some(self.tt()?.row_factors().to_vec())
    }

    /// The column factors of a tensor train; None of other tables.
    #[getter]
    fn column_factors(&self) -> Option<Vec<u32>> {
        Some(self.tt()?.column_factors().to_vec())
    }

    /// The inner ranks of a tensor train; None of other tables.
    #[getter]
    fn ranks(&self) -> Option<Vec<u32>> {
        Some(self.tt()?.inner_ranks().to_vec())
    }

    /// The rows of `indices`, an array of any shape: one more dimension, of `embedding_dim`.
    #[pyo3(signature = (indices, *, out=None, threads=1))]
    fn lookup<'py>(
        &self,
        py: Python<'py>,
        indices: &Bound<'py, PyAny>,
        out: Option<&Bound<'py, PyAny>>,
        threads: usize,
    ) -> PyResult<Bound<'py, PyAny>> {
        let list = BagList::new(indices, Offsets::Single, None, None)?;
        let shape = [list.shape(), &[self.view().embedding_dim()]].concat();
        let mut out = Output::new(py, out, &shape)?;
        let (bags, rows) = (list.bags()?, out.values()?);
        detached(py, || bags::pool(self.view(), &bags, None, Pooling::Sum, rows, threads))?;
        Ok(out.into_array())
    }

    /// Pools each bag into one row, as torch.nn.EmbeddingBag does with the same arguments.
    ///
    /// mode: "sum", "mean" or "max". Without offsets, each row of two-dimensional indices is a bag.
    #[pyo3(signature = (
        indices, offsets=None, *, mode, per_sample_weights=None, padding_idx=None,
        include_last_offset=false, out=None, threads=1
    ))]
    #[expect(clippy::too_many_arguments, reason = "those of EmbeddingBag")]
    fn pool<'py>(
        &self,
        py: Python<'py>,
        indices: &Bound<'py, PyAny>,
        offsets: Option<&Bound<'py, PyAny>>,
        mode: &str,
        per_sample_weights: Option<&Bound<'py, PyAny>>,
        padding_idx: Option<i64>,
        include_last_offset: bool,
        out: Option<&Bound<'py, PyAny>>,
        threads: usize,
    ) -> PyResult<Bound<'py, PyAny>> {
        let pooling = bags::pooling(mode)?;
        let padding_idx = bags::padding_idx(padding_idx, self.view().num_embeddings())?;
        let offsets = Offsets::new(offsets, include_last_offset);
        let list = BagList::new(indices, offsets, per_sample_weights, padding_idx)?;
        let bags = list.bags()?;
        let mut out = Output::new(py, out, &[bags.len(), self.view().embedding_dim()])?;
        let rows = out.values()?;
        detached(py, || bags::pool(self.view(), &bags, padding_idx, pooling, rows, threads))?;
        Ok(out.into_array())
    }

    /// The inner product of each query with each row, or with the rows from `rows[0]` to before
    /// `rows[1]`: an array of queries x rows; of rows alone for a query of one dimension.
    #[pyo3(signature = (queries, *, rows=None, out=None, threads=1))]
    fn scores<'py>(
        &self,
        py: Python<'py>,
        queries: &Bound<'py, PyAny>,
        rows: Option<(u64, u64)>,
        out: Option<&Bound<'py, PyAny>>,
        threads: usize,
    ) -> PyResult<Bound<'py, PyAny>> {
        let table = self.view();
        let (queries, has_count) = self.queries(queries)?;
        let (start, end) = rows.unwrap_or((0, table.num_embeddings()));
        if start > end || end > table.num_embeddings() {
            return Err(PyValueError::new_err(format!(
                "rows {start} to {end}: the table has {}",
                table.num_embeddings()
            )));
        }
        let (num_rows, dim) = ((end - start) as usize, table.embedding_dim());
        let queries = queries.values()?;
        let count = queries.len() / dim;
        let shape = if has_count {
            vec![count, num_rows]
        } else {
            vec![num_rows]
        };
        let mut out = Output::new(py, out, &shape)?;
        let scores = out.values()?;
        detached(py, || {
            let run = |queries: &[f32], rows: std::ops::Range<u64>, out: &mut [f32]| {
                let len = table.retrieval_workspace_len(queries.len() / dim);
                workspace::with(len, |workspace| Ok(table.scores(queries, rows, out, workspace)?))
            };
            let Some(pool) = threads::several(threads)?.filter(|_| !scores.is_empty()) else {
                return run(queries, start..end, scores);
            };
            // Scores of one query are divided by rows, those of several by queries.
            let by_rows = count == 1;
            let bounds = threads::bounds(if by_rows { num_rows } else { count }, threads);
            let unit = if by_rows { 1 } else { num_rows };
            let (mut parts, mut rest) = (Vec::new(), scores);
            for part in bounds.windows(2) {
                let (these, after) = rest.split_at_mut((part[1] - part[0]) * unit);
                parts.push((part[0], part[1], these));
                rest = after;
            }
            pool.install(|| {
                parts.into_par_iter().try_for_each(|(first, last, out)| {
                    if by_rows {
                        run(queries, start + first as u64..start + last as u64, out)
                    } else {
                        run(&queries[first * dim..last * dim], start..end, out)
                    }
                })
            })
        })?;
        Ok(out.into_array())
    }

    /// The `k` rows with the highest inner products with each query, best first: their indices
    /// (int64) and scores (float32), queries x k; of k elements for a query of one dimension.
    ///
    /// exclude: indices to leave out, one list for all queries, or a list of lists, one for each.
    /// bias: a dense table of one column, which is added to the scores. If fewer than k rows are
    /// left, the rest has index -1 and score -inf.
    #[pyo3(signature = (queries, k, *, exclude=None, bias=None, rows=None, threads=1))]
    #[expect(clippy::too_many_arguments, reason = "each is an option of a search")]
    fn top_k<'py>(
        &self,
        py: Python<'py>,
        queries: &Bound<'py, PyAny>,
        k: usize,
        exclude: Option<&Bound<'py, PyAny>>,
        bias: Option<&Self>,
        rows: Option<(u64, u64)>,
        threads: usize,
    ) -> PyResult<Best<'py>> {
        let table = self.view();
        let (queries, has_count) = self.queries(queries)?;
        let queries = queries.values()?;
        let count = queries.len() / table.embedding_dim();
        if k as u64 > table.num_embeddings() {
            let rows = table.num_embeddings();
            return Err(PyValueError::new_err(format!("k is {k}: the table has {rows} rows")));
        }
        let exclude = exclude.map(excluded).transpose()?;
        let best = detached(py, || {
            let mut search = Search::new(k);
            if let Some((indices, offsets)) = &exclude {
                search = search.without(Bags::new(indices, offsets)?);
            }
            if let Some(bias) = bias {
                search = search.with_bias(*bias.view());
            }
            if let Some((start, end)) = rows {
                search = search.in_rows(start..end);
            }
            let len = k.checked_mul(count).ok_or_else(|| Error::Value("too many rows".into()))?;
            let run = |part: usize| {
                let mut best = Vec::new();
                best.try_reserve_exact(len).map_err(|error| Error::Defect(error.to_string()))?;
                best.resize(len, Scored::NONE);
                let search = search.part(part, threads);
                workspace::with(table.retrieval_workspace_len(count), |workspace| {
                    table.top_k(queries, &search, &mut best, workspace)?;
                    Ok(best)
                })
            };
            let Some(pool) = threads::several(threads)? else { return run(0) };
            let parts = pool
                .install(|| (0..threads).into_par_iter().map(run).collect::<Result<Vec<_>, _>>())?;
            let mut parts = parts.into_iter();
            let mut best = parts.next().unwrap_or_default();
            for others in parts {
                merge_top_k(k, &mut best, &others)?;
            }
            Ok(best)
        })?;
        let shape = if has_count { vec![count, k] } else { vec![k] };
        let indices = best.iter().map(|row| row.index.cast_signed()).collect();
        let mut scores = Output::new(py, None, &shape)?;
        let to = scores.values()?;
        to.iter_mut().zip(&best).for_each(|(to, row)| *to = row.score);
        Ok((of_i64(py, indices, &shape)?, scores.into_array()))
    }

    /// The factors, the ranks, whether core 0 has the least significant digit of rows and of
    /// columns, and the slices of each core; None of other tables.
    fn _tensor_train<'py>(&self, py: Python<'py>) -> PyResult<Option<TensorTrain<'py>>> {
        let Weights::Tt(tt) = self.view().data().weights() else { return Ok(None) };
        let data = self.view().data();
        if data.overrides().is_some() || !matches!(data.index_map(), IndexMap::Identity) {
            let text = format!("table {:?} is more than its cores", self.name());
            return Err(PyValueError::new_err(text));
        }
        let shape = tt.shape();
        let cores = tt.cores().iter().enumerate().map(|(k, core)| {
            let (slices, len) = (core.slices(), shape.slice_len(k));
            let scale = |at: usize| core.scales().get(at / len).copied().unwrap_or(1.0);
            let value = |at| slices.get(at).unwrap_or_default() * scale(at);
            let values = (0..slices.len()).map(value).collect();
            let slices = shape.row_factors().get(k).copied().unwrap_or_default() as usize;
            let [r, q, next] = [shape.rank(k), shape.column_factor(k), shape.rank(k + 1)];
            PyArray1::from_vec(py, values).call_method1("reshape", ((slices, r, q, next),))
        });
        let is_least = |order| order == DigitOrder::LeastSignificantFirst;
        Ok(Some((
            shape.row_factors().to_vec(),
            shape.column_factors().to_vec(),
            shape.inner_ranks().to_vec(),
            is_least(shape.digit_order()),
            is_least(shape.column_order()),
            cores.collect::<PyResult<_>>()?,
        )))
    }

    /// The codes of each row, the books, the projection and whether entries are added; None of
    /// other tables.
    fn _codes<'py>(&self, py: Python<'py>) -> PyResult<Option<Codes<'py>>> {
        let data = self.view().data();
        let Weights::Codebook(table) = data.weights() else { return Ok(None) };
        let (books, len, entry) = (table.num_books(), table.book_len(), table.entry_len());
        let rows = usize::try_from(data.num_rows()).unwrap_or(0);
        let codes = (0..rows).filter_map(|row| table.row_codes(row)).flatten();
        let codes = of_i64(py, codes.map(i64::from).collect(), &[rows, books])?;
        let scale = |at: usize| table.scales().get(at / (len * entry)).copied().unwrap_or(1.0);
        let values = table.books();
        let value = |at| values.get(at).unwrap_or_default() * scale(at);
        let entries = PyArray1::from_vec(py, (0..values.len()).map(value).collect());
        let projection = table.projection().map(|values| {
            let value = |at| values.get(at).unwrap_or_default();
            let values = PyArray1::from_vec(py, (0..values.len()).map(value).collect());
            values.call_method1("reshape", ((table.inner_dim(), self.view().embedding_dim()),))
        });
        Ok(Some((
            codes,
            entries.call_method1("reshape", ((books, len, entry),))?,
            projection.transpose()?,
            table.combine() == Combine::Add,
        )))
    }

    fn __len__(&self) -> usize {
        usize::try_from(self.view().num_embeddings()).unwrap_or(usize::MAX)
    }

    fn __repr__(&self) -> String {
        let table = self.view();
        format!(
            "<ttrec.Table {:?}: {} x {}, {}, {}>",
            table.name(),
            table.num_embeddings(),
            table.embedding_dim(),
            self.representation(),
            self.dtype()
        )
    }
}

/// Lists of indices, each sorted, with their offsets: one list if `value` is an array of one
/// dimension.
fn excluded(value: &Bound<'_, PyAny>) -> PyResult<(Vec<i64>, Vec<i64>)> {
    let sorted = |list: &Bound<'_, PyAny>| {
        let list = Integers::new(list, "exclude")?;
        if list.shape().len() != 1 {
            return Err(PyValueError::new_err("exclude: expected a list, or a list of lists"));
        }
        let mut list = list.to_i64()?;
        list.sort_unstable();
        Ok(list)
    };
    // The first element tells, as a list of lists need not be an array.
    let first = value.try_iter()?.next().transpose()?;
    let is_flat = first.is_none_or(|first| first.extract::<i64>().is_ok());
    if is_flat {
        let list = sorted(value)?;
        let len = list.len() as i64;
        return Ok((list, vec![0, len]));
    }
    let (mut indices, mut offsets) = (Vec::new(), vec![0]);
    for list in value.try_iter()? {
        indices.extend(sorted(&list?)?);
        offsets.push(indices.len() as i64);
    }
    Ok((indices, offsets))
}
