//! Dialects: the layouts of tables in the checkpoints of training programs.
//!
//! A dialect finds its tables in a checkpoint ([`Dialect::detect`]) and, with the facts of a spec,
//! turns one into a [`Source`] ([`Dialect::open`]): a shape and readers of rows or slices. The
//! error names facts that both the file and the spec lack. A spec that contradicts the file is
//! refused.

mod codes;
mod cores;
mod dense;
mod dlrm;
mod el_rec;
mod fbtt;
mod hetu;
mod model;
mod rows;
mod t3nsor;
mod tltorch;
mod torchrec;
mod trained;

use crate::{
    checkpoint::{Checkpoint, ElementType, Tensor},
    factorize::Request,
    spec::{IndexMapping, Representation, Spec, TableSpec},
};
use anyhow::{Context, Result, anyhow, bail, ensure};
pub(crate) use codes::CodedRows;
pub(crate) use cores::Core;
pub use fbtt::digit_strides;
pub(crate) use model::Model;
pub(crate) use rows::TableRows;
use std::collections::{BTreeSet, HashMap};
pub use trained::FACTS;
pub(crate) use trained::learned_dtype;
use ttrec::{TtShape, dtype::Dtype, repr::Combine};

/// Every dialect, those with the most specific keys first.
const DIALECTS: &[&dyn Dialect] = &[
    &trained::Trained,
    &fbtt::Fbtt,
    &el_rec::ElRec,
    &hetu::Hetu,
    &tltorch::Tltorch,
    &t3nsor::T3nsor,
    &codes::Codes,
    &dlrm::Dlrm,
    &torchrec::Torchrec,
    &dense::Dense,
];

/// The most tables of one set of cores that are offered individually.
const MAX_OFFERED: u64 = 1024;

/// A layout of tables.
pub(crate) trait Dialect {
    /// Its name in specs.
    fn name(&self) -> &'static str;
    /// Adds the tables with this dialect's keys, with the facts that a spec needs.
    fn detect(&self, survey: &mut Survey<'_>);
    /// The table that `spec` describes.
    fn open<'c>(&self, checkpoint: &'c Checkpoint, spec: &TableSpec) -> Result<Weights<'c>>;
}

/// The tables that the dialects detect in a checkpoint, one dialect after another.
pub(crate) struct Survey<'c> {
    checkpoint: &'c Checkpoint,
    /// The current dialect.
    dialect: &'static str,
    /// Tables that can be converted.
    pub(crate) tables: Vec<TableSpec>,
    /// Tables that cannot, each with the reason.
    pub(crate) refused: Vec<(TableSpec, String)>,
    /// Whether the checkpoint's metadata lists all of its tables.
    pub(crate) complete: bool,
    /// The tables of the model by name, in its order, if the metadata says that.
    pub(crate) of_model: Vec<String>,
    /// Tensors that belong to a dialect, so that later dialects ignore them.
    taken: BTreeSet<&'c str>,
}

impl<'c> Survey<'c> {
    /// Asks every dialect.
    pub(crate) fn of(checkpoint: &'c Checkpoint) -> Self {
        let mut survey = Self {
            checkpoint,
            dialect: "",
            tables: Vec::new(),
            refused: Vec::new(),
            complete: false,
            of_model: Vec::new(),
            taken: BTreeSet::new(),
        };
        for dialect in DIALECTS {
            survey.dialect = dialect.name();
            dialect.detect(&mut survey);
        }
        survey
    }

    /// The tensors that belong to no dialect yet, and to no optimizer.
    fn free(&self) -> Vec<&'c Tensor> {
        self.checkpoint
            .tensors()
            .filter(|tensor| {
                !self.taken.contains(tensor.name())
                    && !self.checkpoint.is_optimizer_state(tensor.name())
            })
            .collect()
    }

    /// Whether the file has the tensors in the order of the model. TorchRec's
    /// `DistributedModelParallel` sorts them by name; a model has `weight` before `bias`.
    fn is_ordered(&self) -> bool {
        let part = |name: &str| name.split('.').next().unwrap_or_default().to_owned();
        let descends = |[a, b]: &[String; 2]| a > b && part(a) == part(b);
        self.checkpoint.order().is_some_and(|order| order.array_windows().any(descends))
    }

    /// Sorts tensors by their order in the file.
    fn sort(&self, tensors: &mut [&'c Tensor]) {
        let order = self.checkpoint.order().unwrap_or_default().iter();
        let position: HashMap<&str, usize> =
            order.enumerate().map(|(at, name)| (name.as_str(), at)).collect();
        tensors.sort_by_key(|tensor| position.get(tensor.name()).copied());
    }

    /// The free tensors whose names end in `key`, with the prefix.
    fn first_cores(&self, key: &str) -> Vec<(&'c str, &'c Tensor)> {
        let prefix =
            |tensor: &'c Tensor| tensor.name().strip_suffix(key).map(|prefix| (prefix, tensor));
        self.free().into_iter().filter_map(prefix).collect()
    }

    /// The columns of each table that can be converted; 0 if they are not known.
    fn dims(&self) -> Vec<usize> {
        let dim = |table: &TableSpec| {
            let spec = TableSpec { dtype: Some(Dtype::F32), ..table.clone() };
            Source::open(self.checkpoint, &spec).map_or(0, |source| source.weights.embedding_dim())
        };
        self.tables.iter().map(dim).collect()
    }

    fn take(&mut self, name: &str) -> bool {
        let tensor = self.checkpoint.tensor(name);
        self.taken.extend(tensor.map(Tensor::name));
        tensor.is_some()
    }

    /// Marks `{stem}0`, `{stem}1` and so on as belonging to the dialect.
    fn take_numbered(&mut self, stem: &str) {
        let mut k = 0;
        while self.take(&format!("{stem}{k}")) {
            k += 1;
        }
    }

    fn offer(&mut self, spec: TableSpec) {
        self.tables.push(TableSpec { dialect: Some(self.dialect.to_owned()), ..spec });
    }

    /// Offers each of the tables in one set of cores.
    fn offer_each(&mut self, spec: &TableSpec, tables: u64) {
        if !(2..=MAX_OFFERED).contains(&tables) {
            self.offer(spec.clone());
            return;
        }
        let prefix = spec.prefix.as_deref().unwrap_or_default().trim_end_matches('.');
        let stem = if prefix.is_empty() { "table" } else { prefix };
        for table in 0..tables {
            let name = Some(format!("{stem}.{table}"));
            self.offer(TableSpec { name, table: Some(table), ..spec.clone() });
        }
    }

    /// Sets the tables of a checkpoint whose metadata lists all of them, and those of its model.
    fn offer_all(&mut self, specs: Vec<TableSpec>, of_model: Vec<String>) {
        (self.complete, self.of_model) = (true, of_model);
        self.taken.extend(self.checkpoint.tensors().map(Tensor::name));
        self.tables = specs;
    }

    fn refuse(&mut self, spec: TableSpec, reason: String) {
        self.refused
            .push((TableSpec { dialect: Some(self.dialect.to_owned()), ..spec }, reason));
    }
}

/// A table of a checkpoint, ready to be read.
pub struct Source<'c> {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) weights: Weights<'c>,
    /// The number of indices of a hashed table, in which index i is row i modulo the rows.
    pub(crate) hashed: Option<u64>,
    /// The factorisation of a dense table, if the spec requests one.
    pub(crate) factorize: Option<Request>,
}

/// The representation of a table, in a checkpoint or a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StoredAs {
    /// Rows.
    Dense,
    /// The cores of a tensor train.
    Tt,
    /// Short rows and a projection.
    Projected,
    /// Quotient and remainder rows.
    QuotientRemainder,
    /// Codes of entries of a few books.
    Codebook,
    /// A representation that this version does not know.
    Other,
}

impl StoredAs {
    /// The representation of a table of a blob.
    pub fn of(weights: &ttrec::repr::Weights<'_>) -> Self {
        match weights {
            ttrec::repr::Weights::Dense(_) => Self::Dense,
            ttrec::repr::Weights::Tt(_) => Self::Tt,
            ttrec::repr::Weights::Projected(_) => Self::Projected,
            ttrec::repr::Weights::QuotientRemainder(_) => Self::QuotientRemainder,
            ttrec::repr::Weights::Codebook(_) => Self::Codebook,
            _ => Self::Other,
        }
    }

    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::Tt => "tt",
            Self::Projected => "projected",
            Self::QuotientRemainder => "quotient_remainder",
            Self::Codebook => "codebook",
            Self::Other => "other",
        }
    }
}

/// The weights of a table in the checkpoint.
pub(crate) enum Weights<'c> {
    Dense(TableRows<'c>),
    Tt {
        shape: TtShape,
        cores: Vec<Core<'c>>,
        overrides: Option<Overrides<'c>>,
    },
    /// A row is its row of `rows` times the transpose of `projection`, which is `embedding_dim x
    /// rank`; rows have `rank` columns.
    Projected {
        rows: TableRows<'c>,
        embedding_dim: usize,
        projection: &'c Tensor,
    },
    /// Quotient and remainder rows.
    QuotientRemainder {
        num_embeddings: u64,
        num_remainders: u32,
        columns: [usize; 2],
        combine: Combine,
        parts: [TableRows<'c>; 2],
    },
    /// Codes and books.
    Codebook(CodedRows<'c>),
}

/// Overridden rows; their ids ascend.
pub(crate) struct Overrides<'c> {
    /// The id of a row, and its row of the tensor; `None`: zeros.
    pub(crate) ids: Vec<(u64, Option<u64>)>,
    pub(crate) tensor: Option<&'c Tensor>,
}

impl Overrides<'_> {
    /// Reads row `position` of the tensor into `out`.
    pub(crate) fn read(&self, position: Option<u64>, out: &mut [f32]) -> Result<()> {
        match position.zip(self.tensor) {
            Some((position, tensor)) => Ok(tensor.read_f32(position * out.len() as u64, out)?),
            None => {
                out.fill(0.0);
                Ok(())
            }
        }
    }
}

impl<'c> Source<'c> {
    /// The table that `spec` describes.
    pub(crate) fn open(checkpoint: &'c Checkpoint, spec: &TableSpec) -> Result<Self> {
        let what = || toml::to_string(spec).unwrap_or_default().trim_end().replace('\n', ", ");
        let name = spec
            .blob_name()
            .with_context(|| format!("`name` is missing in [[table]] {{ {} }}", what()))?;
        let (weights, hashed) = pick(checkpoint, spec)
            .and_then(|dialect| open_mapped(dialect, checkpoint, spec))
            .with_context(|| format!("{}: table {name:?}", checkpoint.path().display()))?;
        let factorize = match &weights {
            Weights::Dense(rows) => Request::of_dense(spec, rows.num_rows, rows.columns),
            Weights::Tt { .. } => Request::of_factors(spec, Representation::Tt).map(|()| None),
            Weights::Projected { .. } => {
                Request::of_factors(spec, Representation::LowRank).map(|()| None)
            }
            Weights::QuotientRemainder { .. } => {
                Request::of_factors(spec, Representation::Dense).map(|()| None)
            }
            // `combine` is a fact of the checkpoint here.
            Weights::Codebook(_) => {
                let spec = TableSpec { combine: None, ..spec.clone() };
                Request::of_factors(&spec, Representation::Codes).map(|()| None)
            }
        };
        let factorize = factorize
            .with_context(|| format!("{}: table {name:?}", checkpoint.path().display()))?;
        ensure!(
            spec.padding_idx.is_none() || matches!(factorize, None | Some(Request::LowRank { .. })),
            "{}: table {name:?}: `padding_idx` does not apply to a table that becomes a tensor \
             train or codes, whose row would not be zeros: remove one of both, or set \
             `representation` to \"low-rank\"",
            checkpoint.path().display()
        );
        let stored = weights.tensors()[0].element_type();
        ensure!(
            spec.dtype.is_some()
                || weights.tensors().iter().all(|tensor| tensor.element_type() == stored),
            "{}: table {name:?}: its tensors have different types: set `dtype`",
            checkpoint.path().display()
        );
        let of_codes = match &weights {
            Weights::Dense(rows) | Weights::Projected { rows, .. } => rows.dtype_of_codes(),
            _ => None,
        };
        let dtype = match (spec.dtype.or(of_codes), stored) {
            (Some(dtype), _) => dtype,
            (None, ElementType::F32) => Dtype::F32,
            (None, ElementType::F16) => Dtype::F16,
            (None, ElementType::Bf16) => Dtype::Bf16,
            (None, other) => bail!(
                "{}: table {name:?}: its elements are {other}: set `dtype` to f32, f16, bf16, i8 \
                 or i4",
                checkpoint.path().display()
            ),
        };
        ensure!(
            dtype.suits_cores()
                || !matches!(
                    (&weights, &factorize),
                    (Weights::Tt { .. }, _) | (_, Some(Request::Tt { .. } | Request::Codes(_)))
                ),
            "{}: table {name:?}: the cores of a tensor train and the books of codes cannot be {}: \
             set `dtype` to f32, f16, bf16 or i8",
            checkpoint.path().display(),
            dtype.name()
        );
        Ok(Self { name, dtype, weights, hashed, factorize })
    }

    /// The table's name in the blob.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The representation in the checkpoint.
    pub fn stored_as(&self) -> StoredAs {
        match self.weights {
            Weights::Dense(_) => StoredAs::Dense,
            Weights::Tt { .. } => StoredAs::Tt,
            Weights::Projected { .. } => StoredAs::Projected,
            Weights::QuotientRemainder { .. } => StoredAs::QuotientRemainder,
            Weights::Codebook(_) => StoredAs::Codebook,
        }
    }

    /// The `tolerance` of the spec for the factorisation.
    pub fn tolerance(&self) -> Option<f64> {
        self.factorize.as_ref()?.tolerance()
    }

    /// The bytes of the table in the checkpoint.
    pub fn checkpoint_bytes(&self) -> u64 {
        self.weights.checkpoint_bytes()
    }

    /// The number of indices; several may map to one row.
    pub fn num_embeddings(&self) -> u64 {
        self.hashed.unwrap_or(self.weights.num_embeddings())
    }

    /// The row of an index.
    pub(crate) fn row_of(&self, index: u64) -> u64 {
        if self.hashed.is_some() {
            index % self.weights.num_embeddings().max(1)
        } else {
            index
        }
    }
}

/// Opens the table, and for a hashed one returns the number of indices. Dialects only handle rows.
fn open_mapped<'c>(
    dialect: &dyn Dialect,
    checkpoint: &'c Checkpoint,
    spec: &TableSpec,
) -> Result<(Weights<'c>, Option<u64>)> {
    let Some(IndexMapping::Modulo) = spec.index_map else {
        ensure!(
            spec.num_rows.is_none(),
            "`num_rows` needs `index_map`; without it, set `num_embeddings`"
        );
        return Ok((open_rows(dialect, checkpoint, spec)?, None));
    };
    let num_embeddings = spec
        .num_embeddings
        .context("`num_embeddings` is missing: with `index_map` it is the number of indices")?;
    let rows = TableSpec { num_embeddings: spec.num_rows, ..spec.clone() };
    let weights = open_rows(dialect, checkpoint, &rows);
    let weights = if spec.num_rows.is_some() {
        weights?
    } else {
        weights.context("with `index_map`, set `num_rows` to the number of rows")?
    };
    let num_rows = weights.num_embeddings();
    ensure!(
        num_embeddings >= num_rows,
        "`num_embeddings` is {num_embeddings}: a hashed table needs at least as many indices as \
         rows ({num_rows})"
    );
    Ok((weights, Some(num_embeddings)))
}

fn open_rows<'c>(
    dialect: &dyn Dialect,
    checkpoint: &'c Checkpoint,
    spec: &TableSpec,
) -> Result<Weights<'c>> {
    let mut weights = dialect.open(checkpoint, spec)?;
    if let Some(row) = spec.padding_idx {
        ensure!(
            spec.index_map.is_none(),
            "`padding_idx` does not apply to a table with `index_map`, whose indices share rows"
        );
        weights.clear(row)?;
    }
    if !matches!(weights, Weights::QuotientRemainder { .. }) {
        ensure!(
            spec.qr_operation.is_none(),
            "`qr_operation` applies only to quotient-remainder tables"
        );
    }
    Ok(weights)
}

/// The spec with `operation`, if it is of a quotient-remainder table without one.
pub(crate) fn table_with_qr_operation(
    checkpoint: &Checkpoint,
    spec: TableSpec,
    operation: Option<Combine>,
) -> TableSpec {
    let is_qr = spec
        .prefix
        .as_ref()
        .is_some_and(|prefix| checkpoint.tensor(&format!("{prefix}weight_q")).is_some());
    let qr_operation = spec.qr_operation.or(operation.filter(|_| is_qr));
    TableSpec { qr_operation, ..spec }
}

/// The only table of a checkpoint: a table with an empty prefix gets the name of the file.
pub(crate) fn named_after_file(checkpoint: &Checkpoint, table: &TableSpec) -> TableSpec {
    let file_name =
        || checkpoint.path().file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let unnamed = table.prefix.as_ref().is_some_and(|prefix| prefix.is_empty());
    TableSpec {
        name: table.name.clone().or_else(|| file_name().filter(|_| unnamed)),
        ..table.clone()
    }
}

/// The spec with `operation` for those of its quotient-remainder tables that have none.
pub fn with_qr_operation(checkpoint: &Checkpoint, spec: Spec, operation: Option<Combine>) -> Spec {
    let with_operation = |table| table_with_qr_operation(checkpoint, table, operation);
    Spec { tables: spec.tables.into_iter().map(with_operation).collect(), ..spec }
}

impl<'c> Weights<'c> {
    /// Makes a row zeros, whatever the checkpoint has for it.
    fn clear(&mut self, row: u64) -> Result<()> {
        let num_embeddings = self.num_embeddings();
        ensure!(
            row < num_embeddings,
            "`padding_idx` is {row}, but the table has {num_embeddings} rows"
        );
        match self {
            Self::Dense(rows) | Self::Projected { rows, .. } => *rows = rows.with_zero_row(row),
            Self::Tt { overrides, .. } => {
                let none = || Overrides { ids: Vec::new(), tensor: None };
                let ids = &mut overrides.get_or_insert_with(none).ids;
                match ids.binary_search_by_key(&row, |(id, _)| *id) {
                    Ok(at) => ids[at].1 = None,
                    Err(at) => ids.insert(at, (row, None)),
                }
            }
            Self::QuotientRemainder { .. } | Self::Codebook(_) => {
                bail!(
                    "`padding_idx` does not apply to quotient-remainder tables and codes, whose \
                     rows share their parts"
                )
            }
        }
        Ok(())
    }

    pub(crate) fn num_embeddings(&self) -> u64 {
        match self {
            Self::Dense(rows) | Self::Projected { rows, .. } => rows.num_rows,
            Self::QuotientRemainder { num_embeddings, .. } => *num_embeddings,
            Self::Codebook(rows) => rows.num_rows,
            Self::Tt { shape, .. } => shape.num_embeddings(),
        }
    }

    pub(crate) fn embedding_dim(&self) -> usize {
        match self {
            Self::Dense(rows) => rows.columns,
            Self::Projected { embedding_dim, .. } => *embedding_dim,
            Self::Codebook(rows) => rows.embedding_dim,
            Self::QuotientRemainder {
                columns: [first, second], combine: Combine::Concat, ..
            } => first + second,
            Self::QuotientRemainder { columns: [first, _], .. } => *first,
            Self::Tt { shape, .. } => shape.embedding_dim(),
        }
    }

    /// The bytes of the table in the checkpoint.
    pub(crate) fn checkpoint_bytes(&self) -> u64 {
        let bytes =
            |tensor: &Tensor, elements: u64| elements.saturating_mul(tensor.element_type().size());
        match self {
            Self::Dense(rows) => rows.checkpoint_bytes(),
            Self::Projected { rows, projection, .. } => {
                rows.checkpoint_bytes() + bytes(projection, projection.len())
            }
            Self::QuotientRemainder { parts, .. } => {
                parts.iter().map(TableRows::checkpoint_bytes).sum()
            }
            Self::Codebook(rows) => {
                let tensors = [Some(rows.codes), Some(rows.books), rows.projection];
                tensors.into_iter().flatten().map(|tensor| bytes(tensor, tensor.len())).sum()
            }
            Self::Tt { cores, overrides, .. } => {
                let of_core =
                    |core: &Core<'_>| bytes(core.tensor, core.slices() * core.slice_len() as u64);
                let rows = |o: &Overrides<'_>| {
                    let of_tensor = o.ids.iter().filter(|(_, position)| position.is_some());
                    let elements = of_tensor.count() as u64 * self.embedding_dim() as u64;
                    o.tensor.map_or(0, |tensor| bytes(tensor, elements))
                };
                cores.iter().map(of_core).sum::<u64>() + overrides.as_ref().map_or(0, rows)
            }
        }
    }

    pub(crate) fn tensors(&self) -> Vec<&'c Tensor> {
        match self {
            Self::Dense(rows) => vec![rows.tensor],
            Self::Projected { rows, projection, .. } => vec![rows.tensor, *projection],
            Self::QuotientRemainder { parts, .. } => parts.iter().map(|part| part.tensor).collect(),
            Self::Codebook(rows) => [rows.books].into_iter().chain(rows.projection).collect(),
            Self::Tt { cores, .. } => cores.iter().map(|core| core.tensor).collect(),
        }
    }
}

/// The dialect of the spec, or the one detected from the keys.
fn pick(checkpoint: &Checkpoint, spec: &TableSpec) -> Result<&'static dyn Dialect> {
    let by_name = |name: &str| DIALECTS.iter().copied().find(|dialect| dialect.name() == name);
    if let Some(name) = &spec.dialect {
        let known: Vec<&str> = DIALECTS.iter().map(|dialect| dialect.name()).collect();
        return by_name(name)
            .with_context(|| format!("dialect {name:?}: expected one of {known:?}"));
    }
    let survey = Survey::of(checkpoint);
    if let Some(tensor) = &spec.tensor {
        // A tensor of a refused table is not a table, unless the spec sets `dialect`.
        let part = |(whole, _): &&(TableSpec, String)| {
            whole.prefix.as_ref().is_some_and(|p| tensor.starts_with(p))
        };
        if let Some((_, reason)) = survey.refused.iter().find(part) {
            bail!("{reason}");
        }
        return by_name("dense").context("no dialect reads `tensor`");
    }
    let prefix = spec.prefix.as_deref().unwrap_or_default();
    let refused = survey.refused.iter().map(|(spec, _)| spec);
    let found = survey
        .tables
        .iter()
        .chain(refused)
        .find(|found| found.prefix.as_deref() == Some(prefix));
    found.and_then(|found| by_name(found.dialect.as_deref()?)).with_context(|| {
        format!(
            "no dialect has keys after prefix {prefix:?}: set `tensor` for a dense tensor, or \
             `dialect`"
        )
    })
}

/// The tensor called `name`, or an error that names near ones.
fn require<'c>(checkpoint: &'c Checkpoint, name: &str) -> Result<&'c Tensor> {
    checkpoint.tensor(name).ok_or_else(|| {
        if let Some((_, reason)) = checkpoint.unreadable().find(|(found, _)| *found == name) {
            return anyhow!("tensor {name:?} cannot be read: {reason}");
        }
        let near: Vec<&str> = checkpoint
            .tensors()
            .map(Tensor::name)
            .filter(|n| ["emb", "core", "factor", "parameters"].iter().any(|part| n.contains(part)))
            .take(8)
            .collect();
        anyhow!(
            "the checkpoint has no tensor {name:?}; it has {} others, such as {near:?}",
            checkpoint.tensors().count()
        )
    })
}

/// Refuses a field of the spec that does not apply to the dialect.
fn refuse(given: bool, field: &str, dialect: &str) -> Result<()> {
    ensure!(!given, "`{field}` does not apply to dialect {dialect:?}");
    Ok(())
}

/// Refuses tensors that do not hold real numbers.
fn require_float(tensor: &Tensor) -> Result<()> {
    use ElementType::{Bf16, F16, F32, F64};
    let found = tensor.element_type();
    ensure!(
        matches!(found, F64 | F32 | F16 | Bf16),
        "tensor {:?} is {found}: expected a float type",
        tensor.name()
    );
    Ok(())
}
