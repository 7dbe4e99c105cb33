//! Models.

use crate::{
    arrays::{Floats, Output},
    bags::{BagList, padding_idx},
    blob::OpenBlob,
    error::{Error, detached},
    workspace,
};
use pyo3::{
    exceptions::{PyTypeError, PyValueError},
    prelude::*,
    types::{PyDict, PyMapping},
};
use self_cell::self_cell;
use std::sync::Arc;
use ttrec::{Bags, Pooling};

type View<'b> = ttrec::Ranker<'b>;

self_cell!(
    /// A model and its blob.
    struct OpenRanker {
        owner: Arc<OpenBlob>,
        #[covariant]
        dependent: View,
    }
);

/// The model of a blob: from dense features and bags to scores.
///
/// The bags of a table are `(indices, offsets)` or `(indices, offsets, per_sample_weights)`, as
/// torch.nn.EmbeddingBag takes them; or indices alone, one for each sample, or a row of them for
/// each. `bags` has them for each table: a list in the order of `tables`, or a dict by name. If
/// features share a table, it is several times in `tables`, and `bags` is a list.
#[pyclass(frozen, module = "ttrec")]
pub(crate) struct Ranker(OpenRanker);

impl Ranker {
    pub(crate) fn new(blob: Arc<OpenBlob>) -> PyResult<Self> {
        OpenRanker::try_new(blob, |blob| blob.blob().ranker())
            .map(Self)
            .map_err(|error| PyValueError::new_err(error.to_string()))
    }

    fn view(&self) -> &ttrec::Ranker<'_> {
        self.0.borrow_dependent()
    }

    /// The bags of each table, in the model's order.
    fn bags<'py>(
        &self,
        bags: Option<&Bound<'py, PyAny>>,
        include_last_offset: bool,
        padding: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Vec<BagList<'py>>> {
        let names = self.tables();
        let Some(bags) = bags else {
            if names.is_empty() {
                return Ok(Vec::new());
            }
            return Err(PyValueError::new_err(format!("no bags: expected those of {names:?}")));
        };
        let values: Vec<Bound<'py, PyAny>> = match bags.cast::<PyMapping>() {
            Ok(by_name) => {
                if let Some((at, name)) =
                    names.iter().enumerate().find(|(at, name)| names[..*at].contains(name))
                {
                    return Err(PyValueError::new_err(format!(
                        "features of the model share the table {name:?}, the last one at position \
                         {at}: expected a list of bags, in the order of {names:?}"
                    )));
                }
                let values = names.iter().map(|name| by_name.get_item(name));
                let values = values.collect::<PyResult<Vec<_>>>()?;
                if by_name.len()? != names.len() {
                    return Err(PyValueError::new_err(format!(
                        "bags of {}: expected those of {names:?}, each once",
                        by_name.keys()?
                    )));
                }
                values
            }
            Err(_) => bags.try_iter()?.collect::<PyResult<_>>()?,
        };
        if values.len() != names.len() {
            let error = ttrec::ScoreError::BagLists { found: values.len(), expected: names.len() };
            return Err(Error::from(error).into());
        }
        if let Some(padding) = padding
            && let Some(name) = padding
                .keys()
                .iter()
                .find(|name| name.extract::<String>().map_or(true, |name| !names.contains(&name)))
        {
            return Err(PyValueError::new_err(format!(
                "padding_idx of {name}: the model has the tables {names:?}"
            )));
        }
        let lists = self.view().tables().zip(values).map(|(table, value)| {
            let padding = padding.map(|padding| padding.get_item(table.name())).transpose()?;
            let padding = padding.flatten().map(|index| index.extract()).transpose()?;
            let padding = padding_idx(padding, table.num_embeddings())?;
            let name = table.name();
            BagList::of_model(&value, include_last_offset, padding)
                .map_err(|error| name_table(value.py(), name, error))
        });
        lists.collect()
    }

    /// Runs the model. `ranks`: the bags and the dense features of one user may be given once.
    fn run<'py>(&self, py: Python<'py>, call: &Call<'_, 'py>) -> PyResult<Bound<'py, PyAny>> {
        let ranker = self.view();
        let lists = self.bags(call.bags, call.include_last_offset, call.padding_idx)?;
        let bags = lists.iter().map(BagList::bags).collect::<PyResult<Vec<_>>>()?;
        let dense = call.dense.map(|dense| Floats::new(dense, "dense")).transpose()?;
        let (dense, rows) = match &dense {
            None if ranker.num_dense() == 0 => (&[][..], None),
            None => {
                return Err(PyTypeError::new_err(format!(
                    "no dense features: the model takes {}",
                    ranker.num_dense()
                )));
            }
            Some(dense) => match *dense.shape() {
                [len] if len == ranker.num_dense() => (dense.values()?, Some(1)),
                [rows, len] if len == ranker.num_dense() => (dense.values()?, Some(rows)),
                ref shape => {
                    return Err(PyValueError::new_err(format!(
                        "dense features of shape {shape:?}: expected (samples, {})",
                        ranker.num_dense()
                    )));
                }
            },
        };
        let counts = bags.iter().map(Bags::len).chain(rows);
        // Of a user there may be one bag among many candidates.
        let samples = if call.ranks {
            most(counts)
        } else {
            bags.first().map(Bags::len).or(rows)
        };
        let samples = samples.unwrap_or(0);
        let mut out = Output::new(py, call.out, &[samples])?;
        let scores = out.values()?;
        let (ranks, logits) = (call.ranks, call.logits);
        detached(py, || {
            workspace::with(ranker.workspace_len(scores.len()), |workspace| {
                Ok(match (ranks, logits) {
                    (true, _) => ranker.rank(dense, &bags, scores, workspace),
                    (false, true) => ranker.logits(dense, &bags, scores, workspace),
                    (false, false) => ranker.score(dense, &bags, scores, workspace),
                }?)
            })
        })?;
        Ok(out.into_array())
    }
}

/// The arguments of `score` and `rank`.
struct Call<'a, 'py> {
    ranks: bool,
    logits: bool,
    dense: Option<&'a Bound<'py, PyAny>>,
    bags: Option<&'a Bound<'py, PyAny>>,
    include_last_offset: bool,
    padding_idx: Option<&'a Bound<'py, PyDict>>,
    out: Option<&'a Bound<'py, PyAny>>,
}

#[pymethods]
impl Ranker {
    /// The names of the tables, in the order in which `bags` has them.
    #[getter]
    fn tables(&self) -> Vec<String> {
        self.view().tables().map(|table| table.name().to_owned()).collect()
    }

    /// The number of dense features of a sample.
    #[getter]
    fn num_dense(&self) -> usize {
        self.view().num_dense()
    }

    /// How each table pools a bag: "sum" or "mean".
    #[getter]
    fn poolings(&self) -> Vec<&'static str> {
        let name = |pooling| if pooling == Pooling::Mean { "mean" } else { "sum" };
        self.view().poolings().map(name).collect()
    }

    /// The score of each sample: a probability if the model ends in a sigmoid; with `logits`, what
    /// the sigmoid takes. `padding_idx` is a dict of the index to leave out, by table.
    #[pyo3(signature = (
        dense=None, bags=None, *, logits=false, include_last_offset=false, padding_idx=None,
        out=None
    ))]
    #[expect(clippy::too_many_arguments, reason = "one for each option")]
    fn score<'py>(
        &self,
        py: Python<'py>,
        dense: Option<&Bound<'py, PyAny>>,
        bags: Option<&Bound<'py, PyAny>>,
        logits: bool,
        include_last_offset: bool,
        padding_idx: Option<&Bound<'py, PyDict>>,
        out: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let ranks = false;
        self.run(py, &Call { ranks, logits, dense, bags, include_last_offset, padding_idx, out })
    }

    /// The score of each candidate for one user, as `score` would for samples that repeat the
    /// user's part, but faster: dense features and bags that are given once are those of all.
    #[pyo3(signature = (
        dense=None, bags=None, *, include_last_offset=false, padding_idx=None, out=None
    ))]
    fn rank<'py>(
        &self,
        py: Python<'py>,
        dense: Option<&Bound<'py, PyAny>>,
        bags: Option<&Bound<'py, PyAny>>,
        include_last_offset: bool,
        padding_idx: Option<&Bound<'py, PyDict>>,
        out: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (ranks, logits) = (true, false);
        self.run(py, &Call { ranks, logits, dense, bags, include_last_offset, padding_idx, out })
    }

    fn __repr__(&self) -> String {
        format!("<ttrec.Ranker: {} dense features, tables {:?}>", self.num_dense(), self.tables())
    }
}

/// The largest count; of counts of 1 and 0, 0.
fn most(counts: impl Iterator<Item = usize> + Clone) -> Option<usize> {
    counts
        .clone()
        .max()
        .map(|most| if most == 1 { counts.min().unwrap_or(1) } else { most })
}

/// Puts the name of the table before the message.
fn name_table(py: Python<'_>, name: &str, error: PyErr) -> PyErr {
    let text = format!("table {name:?} of the model: {}", error.value(py));
    if error.is_instance_of::<PyTypeError>(py) {
        PyTypeError::new_err(text)
    } else {
        PyValueError::new_err(text)
    }
}
