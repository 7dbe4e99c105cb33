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

/// Indices, offsets with the last one, per_sample_weights, mode and padding_idx.
#[derive(FromPyObject)]
struct BagsArgument<'py>(
    Bound<'py, PyAny>,
    Bound<'py, PyAny>,
    Option<Bound<'py, PyAny>>,
    String,
    Option<i64>,
);

/// The bags of a call, and how to pool them.
struct Batch<'py> {
    list: BagList<'py>,
    pooling: Pooling,
    padding_idx: Option<u64>,
}

impl<'py> Batch<'py> {
    fn new(bags: &BagsArgument<'py>, shape: &TtShape) -> PyResult<Self> {
        let BagsArgument(indices, offsets, weights, mode, padding_idx) = bags;
        let padding_idx = bags::padding_idx(*padding_idx, shape.num_embeddings())?;
        let offsets = Offsets::WithLast(offsets);
        let list = BagList::new(indices, offsets, weights.as_ref(), padding_idx)?;
        Ok(Self { list, pooling: bags::pooling(mode)?, padding_idx })
    }
}

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

    /// Runs `work` with the bags, without padding, and the gradient.
    fn learn<'py>(
        &self,
        py: Python<'py>,
        batch: &Batch<'py>,
        gradient: &Bound<'py, PyAny>,
        threads: usize,
        work: impl FnOnce(&mut BorrowedTt, &Bags<'_>, &[f32]) -> Result<(), Error> + Send,
    ) -> PyResult<()> {
        let (bags, padding_idx) = (batch.list.bags()?, batch.padding_idx);
        let gradient = Floats::new(gradient, "gradient")?;
        let gradient = gradient.values()?;
        detached(py, || {
            let kept = padding_idx.map(|index| OwnedBags::new(&bags).without(index));
            let kept = kept.as_ref().map(OwnedBags::bags).transpose()?.unwrap_or(bags);
            let pool = threads::several(threads)?;
            self.with(|tt| {
                tt.set_parallel(pool.is_some());
                let work = || work(tt, &kept, gradient);
                match &pool {
                    Some(pool) => pool.install(work),
                    None => work(),
                }
            })
        })
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

    /// Pools bags of the table of these cores into `out`.
    fn pool<'py>(
        &self,
        py: Python<'py>,
        cores: Vec<Bound<'py, PyAny>>,
        bags: BagsArgument<'py>,
        out: &Bound<'py, PyAny>,
        threads: usize,
    ) -> PyResult<()> {
        let cores = floats(&cores, "cores")?;
        let cores = cores.iter().map(Floats::values).collect::<PyResult<Vec<_>>>()?;
        let batch = Batch::new(&bags, &self.shape)?;
        let (padding_idx, pooling, bags) = (batch.padding_idx, batch.pooling, batch.list.bags()?);
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
    #[expect(clippy::too_many_arguments, reason = "two of them are outputs")]
    fn backward<'py>(
        &self,
        py: Python<'py>,
        cores: Vec<Bound<'py, PyAny>>,
        bags: BagsArgument<'py>,
        gradient: &Bound<'py, PyAny>,
        core_gradients: Vec<Bound<'py, PyAny>>,
        weight_gradients: Option<&Bound<'py, PyAny>>,
        threads: usize,
    ) -> PyResult<()> {
        let cores = floats(&cores, "cores")?;
        let cores = cores.iter().map(Floats::values).collect::<PyResult<Vec<_>>>()?;
        let mut core_gradients = outputs(&core_gradients, "core_gradients")?;
        let mut core_gradients = values(&mut core_gradients)?;
        let mut weight_gradients =
            weight_gradients.map(|out| Output::of(out, "weight_gradients")).transpose()?;
        let weight_gradients = weight_gradients.as_mut().map(Output::values).transpose()?;
        let batch = Batch::new(&bags, &self.shape)?;
        let bags = batch.list.bags()?;
        self.learn(py, &batch, gradient, threads, |tt, kept, gradient| {
            tt.gradients(&cores, kept, batch.pooling, gradient, &mut core_gradients)?;
            let Some(out) = weight_gradients else { return Ok(()) };
            write_weight_gradients(&tt.table(&cores)?, &bags, batch.padding_idx, gradient, out)
        })
    }

    /// Takes a step of an optimiser: moves the cores and its state.
    #[expect(clippy::too_many_arguments, reason = "those of an optimiser")]
    fn step<'py>(
        &self,
        py: Python<'py>,
        cores: Vec<Bound<'py, PyAny>>,
        state: Vec<Bound<'py, PyAny>>,
        bags: BagsArgument<'py>,
        gradient: &Bound<'py, PyAny>,
        optimizer: &str,
        learning_rate: f64,
        epsilon: f64,
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
        let (mut cores, mut state) = (outputs(&cores, "cores")?, outputs(&state, "state")?);
        let (mut cores, state) = (values(&mut cores)?, values(&mut state)?);
        let mut state = match optimizer {
            Optimizer::Sgd => cores.iter().map(|_| [&mut [][..], &mut []]).collect(),
            _ => state.into_iter().map(|state| [state, &mut []]).collect::<Vec<_>>(),
        };
        let batch = Batch::new(&bags, &self.shape)?;
        self.learn(py, &batch, gradient, threads, |tt, kept, gradient| {
            // None of these optimisers counts its steps.
            let (rate, number) = (learning_rate, 1);
            let (cores, state) = (&mut cores, &mut state);
            Ok(tt.step(cores, state, kept, batch.pooling, gradient, optimizer, rate, number)?)
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
