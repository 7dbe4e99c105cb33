//! Tensor trains whose cores belong to Python: the kernels of the layers in `ttrec.torch`.

use crate::{
    arrays::{Floats, Output},
    bags::{self, BagList, Offsets, OwnedBags},
    error::{Error, detached},
    threads,
};
use pyo3::{exceptions::PyValueError, prelude::*};
use std::sync::{Mutex, PoisonError};
use ttrec::{
    Bags, DigitOrder, Pooling, TtShape,
    train::{BorrowedTt, Optimizer},
};
use ttrec_convert::{shape::suggest_shape, zeros};

/// Lookups whose rows are in memory together, for the gradients of weights.
const AT_ONCE: usize = 4096;

/// The shape of a tensor train, and what its calls reuse. Each call takes the cores.
#[pyclass(frozen, module = "ttrec._ttrec")]
pub(crate) struct TensorTrain {
    shape: TtShape,
    /// Idle ones: calls on several threads use one each.
    spare: Mutex<Vec<BorrowedTt>>,
}

impl TensorTrain {
    /// Runs `work` with memory that calls reuse.
    fn with<T>(&self, work: impl FnOnce(&mut BorrowedTt) -> Result<T, Error>) -> Result<T, Error> {
        let spare = || self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = spare().pop();
        let mut tt = match idle {
            Some(tt) => tt,
            None => BorrowedTt::new(self.shape)?,
        };
        let done = work(&mut tt)?;
        spare().push(tt);
        Ok(done)
    }
}

/// Row and column factors for a table of this size, in so many cores.
#[pyfunction]
pub(crate) fn suggest_factors(
    num_embeddings: u64,
    embedding_dim: usize,
    cores: usize,
) -> PyResult<(Vec<u32>, Vec<u32>)> {
    let factors = suggest_shape(num_embeddings, embedding_dim, cores)
        .map_err(|error| PyValueError::new_err(error.to_string()))?;
    Ok((factors.rows, factors.columns))
}

/// Arrays that a call changes.
fn outputs<'py>(arrays: &[Bound<'py, PyAny>], what: &str) -> PyResult<Vec<Output<'py>>> {
    arrays.iter().map(|array| Output::of(array, what)).collect()
}

fn values<'a>(arrays: &'a mut [Output<'_>]) -> PyResult<Vec<&'a mut [f32]>> {
    arrays.iter_mut().map(Output::values).collect()
}

fn floats<'py>(arrays: &[Bound<'py, PyAny>], what: &str) -> PyResult<Vec<Floats<'py>>> {
    arrays.iter().map(|array| Floats::new(array, what)).collect()
}

#[pymethods]
impl TensorTrain {
    #[new]
    fn new(
        num_embeddings: u64,
        row_factors: Vec<u32>,
        column_factors: Vec<u32>,
        ranks: Vec<u32>,
        least_significant_first: bool,
    ) -> PyResult<Self> {
        let shape = TtShape::new(num_embeddings, &row_factors, &column_factors, &ranks)
            .map_err(|error| PyValueError::new_err(error.to_string()))?;
        let order = if least_significant_first {
            DigitOrder::LeastSignificantFirst
        } else {
            DigitOrder::MostSignificantFirst
        };
        let shape = shape.with_digit_order(order);
        let first = BorrowedTt::new(shape).map_err(Error::from)?;
        Ok(Self { shape, spare: Mutex::new(vec![first]) })
    }

    /// As Table.pool, of the table of these cores.
    #[pyo3(signature = (
        cores, indices, offsets, mode, per_sample_weights, padding_idx, out, threads
    ))]
    #[expect(clippy::too_many_arguments, reason = "those of EmbeddingBag")]
    fn pool<'py>(
        &self,
        py: Python<'py>,
        cores: Vec<Bound<'py, PyAny>>,
        indices: &Bound<'py, PyAny>,
        offsets: &Bound<'py, PyAny>,
        mode: &str,
        per_sample_weights: Option<&Bound<'py, PyAny>>,
        padding_idx: Option<i64>,
        out: &Bound<'py, PyAny>,
        threads: usize,
    ) -> PyResult<()> {
        let cores = floats(&cores, "cores")?;
        let cores = cores.iter().map(Floats::values).collect::<PyResult<Vec<_>>>()?;
        let padding_idx = bags::padding_idx(padding_idx, self.shape.num_embeddings())?;
        let offsets = Offsets::WithLast(offsets);
        let list = BagList::new(indices, offsets, per_sample_weights, padding_idx)?;
        let (pooling, bags) = (bags::pooling(mode)?, list.bags()?);
        let mut out = Output::of(out, "out")?;
        let rows = out.values()?;
        detached(py, || {
            self.with(|tt| {
                let table = tt.table(&cores)?;
                bags::pool(&table, &bags, padding_idx, pooling, rows, threads)
            })
        })
    }

    /// Writes the gradients of the cores, and of the weights, into arrays.
    #[pyo3(signature = (
        cores, indices, offsets, mode, per_sample_weights, padding_idx, gradient, core_gradients,
        weight_gradients, threads
    ))]
    #[expect(clippy::too_many_arguments, reason = "those of EmbeddingBag")]
    fn backward<'py>(
        &self,
        py: Python<'py>,
        cores: Vec<Bound<'py, PyAny>>,
        indices: &Bound<'py, PyAny>,
        offsets: &Bound<'py, PyAny>,
        mode: &str,
        per_sample_weights: Option<&Bound<'py, PyAny>>,
        padding_idx: Option<i64>,
        gradient: &Bound<'py, PyAny>,
        core_gradients: Vec<Bound<'py, PyAny>>,
        weight_gradients: Option<&Bound<'py, PyAny>>,
        threads: usize,
    ) -> PyResult<()> {
        let cores = floats(&cores, "cores")?;
        let cores = cores.iter().map(Floats::values).collect::<PyResult<Vec<_>>>()?;
        let padding_idx = bags::padding_idx(padding_idx, self.shape.num_embeddings())?;
        let offsets = Offsets::WithLast(offsets);
        let list = BagList::new(indices, offsets, per_sample_weights, None)?;
        let (pooling, bags) = (bags::pooling(mode)?, list.bags()?);
        let gradient = Floats::new(gradient, "gradient")?;
        let gradient = gradient.values()?;
        let mut core_gradients = outputs(&core_gradients, "core_gradients")?;
        let mut core_gradients = values(&mut core_gradients)?;
        let mut weight_gradients =
            weight_gradients.map(|out| Output::of(out, "weight_gradients")).transpose()?;
        let weight_gradients = weight_gradients.as_mut().map(Output::values).transpose()?;
        detached(py, || {
            threads::check(threads)?;
            let pool = threads::pool(threads)?;
            let kept = padding_idx.map(|index| OwnedBags::new(&bags).without(index));
            let kept = kept.as_ref().map(OwnedBags::bags).transpose()?.unwrap_or(bags);
            self.with(|tt| {
                pool.install(|| {
                    tt.gradients(&cores, &kept, pooling, gradient, &mut core_gradients)
                })?;
                match weight_gradients {
                    Some(out) => {
                        let table = tt.table(&cores)?;
                        write_weight_gradients(&table, &bags, padding_idx, gradient, out)
                    }
                    None => Ok(()),
                }
            })
        })
    }

    /// Takes one step of an optimiser, number `number` from 1 on: moves the cores and its state.
    #[pyo3(signature = (
        cores, state, indices, offsets, mode, per_sample_weights, padding_idx, gradient, optimizer,
        learning_rate, epsilon, number, threads
    ))]
    #[expect(clippy::too_many_arguments, reason = "those of EmbeddingBag and of an optimiser")]
    fn step<'py>(
        &self,
        py: Python<'py>,
        cores: Vec<Bound<'py, PyAny>>,
        state: Vec<Bound<'py, PyAny>>,
        indices: &Bound<'py, PyAny>,
        offsets: &Bound<'py, PyAny>,
        mode: &str,
        per_sample_weights: Option<&Bound<'py, PyAny>>,
        padding_idx: Option<i64>,
        gradient: &Bound<'py, PyAny>,
        optimizer: &str,
        learning_rate: f64,
        epsilon: f64,
        number: u64,
        threads: usize,
    ) -> PyResult<()> {
        let optimizer = match optimizer {
            "sgd" => Optimizer::Sgd,
            "adagrad" => Optimizer::Adagrad { epsilon },
            "rowwise_adagrad" => Optimizer::RowWiseAdagrad { epsilon },
            _ => {
                return Err(PyValueError::new_err(format!(
                    "optimizer {optimizer:?}: expected sgd, adagrad or rowwise_adagrad"
                )));
            }
        };
        let padding_idx = bags::padding_idx(padding_idx, self.shape.num_embeddings())?;
        let offsets = Offsets::WithLast(offsets);
        let list = BagList::new(indices, offsets, per_sample_weights, None)?;
        let (pooling, bags) = (bags::pooling(mode)?, list.bags()?);
        let gradient = Floats::new(gradient, "gradient")?;
        let gradient = gradient.values()?;
        let (mut cores, mut state) = (outputs(&cores, "cores")?, outputs(&state, "state")?);
        let (mut cores, state) = (values(&mut cores)?, values(&mut state)?);
        let mut state = match optimizer {
            Optimizer::Sgd => cores.iter().map(|_| [&mut [][..], &mut []]).collect(),
            _ => state.into_iter().map(|state| [state, &mut []]).collect::<Vec<_>>(),
        };
        detached(py, || {
            threads::check(threads)?;
            let pool = threads::pool(threads)?;
            let kept = padding_idx.map(|index| OwnedBags::new(&bags).without(index));
            let kept = kept.as_ref().map(OwnedBags::bags).transpose()?.unwrap_or(bags);
            self.with(|tt| {
                Ok(pool.install(|| {
                    tt.step(
                        &mut cores,
                        &mut state,
                        &kept,
                        pooling,
                        gradient,
                        optimizer,
                        learning_rate,
                        number,
                    )
                })?)
            })
        })
    }
}

/// The gradient of a lookup's weight: the product of its row and the gradient of its bag; 0 for
/// padding.
fn write_weight_gradients(
    table: &ttrec::Table<'_>,
    bags: &Bags<'_>,
    padding_idx: Option<u64>,
    gradient: &[f32],
    out: &mut [f32],
) -> Result<(), Error> {
    let (dim, count) = (table.embedding_dim(), bags.num_indices());
    if out.len() != count {
        let text = format!("weight_gradients of {} elements: expected {count}", out.len());
        return Err(Error::Value(text));
    }
    let indices: Vec<u64> = bags.indices().collect();
    let ends: Vec<u64> = bags.offsets().skip(1).collect();
    let mut rows = zeros(AT_ONCE.min(count) * dim)?;
    let mut workspace = zeros(table.workspace_len(AT_ONCE.min(count)))?;
    let offsets: Vec<u64> = (0..=AT_ONCE as u64).collect();
    let (mut bag, mut position) = (0, 0);
    for (these, out) in indices.chunks(AT_ONCE).zip(out.chunks_mut(AT_ONCE)) {
        let single = Bags::new(these, &offsets[..=these.len()])?;
        let rows = &mut rows[..these.len() * dim];
        table.pool(&single, Pooling::Sum, rows, &mut workspace)?;
        for ((&index, row), out) in these.iter().zip(rows.chunks_exact(dim)).zip(out) {
            while ends.get(bag).is_some_and(|&end| end <= position) {
                bag += 1;
            }
            let gradient = gradient.get(bag * dim..(bag + 1) * dim).unwrap_or_default();
            *out = if padding_idx == Some(index) {
                0.0
            } else {
                row.iter().zip(gradient).map(|(x, g)| x * g).sum()
            };
            position += 1;
        }
    }
    Ok(())
}
