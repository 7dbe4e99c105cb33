//! The tables of a model, planned from the config and the features of the data.

use super::config::{
    Cache, Codes, Hashed, HashedTt, Model, Operation, QuotientRemainder, Rank, Representation, Tt,
};
use crate::data::Feature;
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::num::NonZeroU64;
use ttrec::{
    Pooling, TtShape,
    dtype::Dtype,
    repr::{CodeDtype, Combine},
    train::{
        CacheSpec, Checkpointed, CodesShape, CodesTable, DenseShape, DenseTable, Embedding,
        HashedTable, Initializer, Optimizer, QuotientRemainderShape, QuotientRemainderTable,
        TtTable,
    },
};
use ttrec_convert::{
    Budget,
    shape::{suggest_shape, widest_first},
    spec::{self, Combining, IndexMapping, Quantized, TableSpec},
    trained::{Books, digit_strides},
    zeros,
};

/// The plan of a table.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Planned {
    pub(super) name: String,
    pub(super) num_embeddings: u32,
    pub(super) embedding_dim: usize,
    /// The number of rows of a hashed table: index i is row i modulo this number.
    pub(super) hashed: Option<u32>,
    pooling: Pooling,
    pub(super) stored: TrainedForm,
    /// The type that its values are learned as, and stored as by default.
    pub(super) dtype: Dtype,
    /// How its rows will be coded after a warm-up.
    pub(super) coding: Option<Coding>,
    /// How its ranks will be chosen after a warm-up.
    pub(super) search: Option<RankSearch>,
}

/// How ranks will be chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct RankSearch {
    /// The most bytes of all tables of the model, of those of dense ones.
    pub(super) budget: Budget,
    /// The steps before they are chosen.
    pub(super) warm_up: u64,
}

impl RankSearch {
    /// As the config of a table says; none if it has a rank.
    fn of(tt: &Tt) -> Result<Option<Self>> {
        let Tt { rank, budget, warm_up, cache, .. } = tt;
        if *rank != Rank::Auto {
            ensure!(
                budget.is_none() && warm_up.is_none(),
                "`budget` and `warm_up` are for `rank = \"auto\"`"
            );
            return Ok(None);
        }
        ensure!(cache.is_none(), "`rank` is \"auto\", which a table with a `cache` cannot have");
        let text = budget.as_ref().context(
            "`rank` is \"auto\": set `budget`, the size of all tables of the model, such as \"1%\"",
        )?;
        let budget: Result<Budget, String> = text.parse();
        let budget = budget.map_err(|reason| anyhow!("`budget` is {text:?}: {reason}"))?;
        Ok(Some(Self { budget, warm_up: warm_up.unwrap_or(0) }))
    }
}

/// How rows are coded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Coding {
    books: Books,
    pub(super) shape: CodesShape,
    /// The type that the books are learned as.
    dtype: Dtype,
    /// The steps before the rows are coded.
    warm_up: u64,
    /// The steps between further codings. If set, the rows are learned, not the books.
    recode_every: Option<NonZeroU64>,
}

impl Coding {
    /// Codes the rows of `table`, which is dense or learns its rows; `weights` say how much the
    /// error of each row counts. Takes the rows out of `table` if they are learned further.
    pub(super) fn code(
        &self,
        table: &mut dyn Embedding,
        weights: Option<&[f32]>,
        optimizer: Optimizer,
    ) -> Result<CodesTable> {
        let steps = table.steps();
        let rows = table.parameters_mut().last_mut().context("the table has no rows")?;
        let (books, codes) = self.books.learn(rows.values(), self.shape.embedding_dim, weights)?;
        let mut coded = self.table(&codes, books, optimizer)?;
        if let [_, learned] = coded.parameters_mut() {
            // With the state of the optimiser, which depends on the steps.
            std::mem::swap(learned, rows);
            coded.set_steps(steps);
        }
        Ok(coded)
    }

    /// A table of these codes and books. If it learns rows, these are zeros.
    pub(super) fn table(
        &self,
        codes: &[u16],
        books: Vec<f32>,
        optimizer: Optimizer,
    ) -> Result<CodesTable> {
        let table = CodesTable::new(self.shape, codes, books, optimizer)?.with_dtype(self.dtype)?;
        if self.recode_every.is_none() {
            return Ok(table);
        }
        let num_rows = usize::try_from(self.shape.num_embeddings)?;
        Ok(table.with_rows(zeros(num_rows.saturating_mul(self.shape.embedding_dim))?)?)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum TrainedForm {
    Dense,
    Tt { shape: TtShape, initializer: Initializer, scale: f64, cache: Option<CacheSpec> },
    QuotientRemainder { num_remainders: u32, combine: Combine },
    Codes(Coding),
}

/// Plans the tables of all features. Those whose ranks will be chosen have the rank `start`.
pub(super) fn plan(model: &Model, features: &[Feature], start: u32) -> Result<Vec<Planned>> {
    // The first feature of each table.
    let mut tables: Vec<&Feature> = Vec::new();
    for feature in features {
        if feature.table == tables.len() {
            tables.push(feature);
        }
    }
    let is_there = |name: &str| tables.iter().any(|table| table.name == name);
    if let Some(name) = model.tables.keys().find(|name| !is_there(name)) {
        let names: Vec<_> = tables.iter().map(|table| &table.name).take(40).collect();
        bail!(
            "`[model.tables]` names {name:?}, but the model has no such table: expected one of \
             {names:?}"
        );
    }
    let one = |feature: &Feature| {
        let dense = Representation::default();
        let small = feature.num_embeddings < model.dense_below;
        let chosen =
            model
                .tables
                .get(&feature.name)
                .unwrap_or(if small { &dense } else { &model.table });
        Planned::new(feature, model.embedding_dim, chosen, start)
            .with_context(|| format!("table {:?}", feature.name))
    };
    tables.into_iter().map(one).collect()
}

impl Planned {
    /// The plan of the table of a feature; `start` is the rank that it begins with if its ranks are
    /// chosen after a warm-up.
    fn new(
        feature: &Feature,
        dim: usize,
        representation: &Representation,
        start: u32,
    ) -> Result<Self> {
        let (num_embeddings, mut dtype) = (feature.num_embeddings, representation.dtype());
        let (mut coding, mut search) = (None, None);
        let (hashed, stored) = match representation {
            Representation::Dense(_) => (None, TrainedForm::Dense),
            Representation::Tt(tt) => {
                search = RankSearch::of(tt)?;
                let rank = match tt.rank {
                    Rank::Given(rank) => rank,
                    Rank::Auto => start,
                };
                (None, train_of(tt, rank, num_embeddings, dim)?)
            }
            Representation::Hashed(Hashed { num_rows, bytes, like_rank, .. }) => {
                let given = Given { rows: *num_rows, bytes: *bytes, like_rank: *like_rank };
                let rows = fitting_rows(given, num_embeddings, dim, dtype, "num_rows")?;
                // No index uses more rows than there are indices.
                (Some(rows.min(num_embeddings)), TrainedForm::Dense)
            }
            Representation::HashedTt(HashedTt {
                num_rows,
                share,
                rank,
                cores,
                initializer,
                scale,
                dtype,
            }) => {
                let rows = rows_or_share(*num_rows, *share, num_embeddings, "num_rows")?;
                let (cores, initializer) = (*cores, *initializer);
                let tt = Tt { cores, initializer, scale: *scale, dtype: *dtype, ..Tt::default() };
                (Some(rows), train_of(&tt, *rank, rows, dim)?)
            }
            Representation::QuotientRemainder(QuotientRemainder {
                num_remainders,
                bytes,
                like_rank,
                operation,
                ..
            }) => {
                let num_remainders = match num_remainders {
                    Some(0) => bail!("`num_remainders` is 0: expected at least 1"),
                    Some(remainders) => *remainders,
                    None => {
                        let given = Given { rows: None, bytes: *bytes, like_rank: *like_rank };
                        let rows =
                            fitting_rows(given, num_embeddings, dim, dtype, "num_remainders")?;
                        fewest_remainders(num_embeddings, rows)?
                    }
                };
                let combine = match operation {
                    Operation::Mult => Combine::Mult,
                    Operation::Add => Combine::Add,
                };
                (None, TrainedForm::QuotientRemainder { num_remainders, combine })
            }
            &Representation::Codes(Codes {
                books, bits, combine, warm_up, recode_every, ..
            }) => {
                let books = Books { count: books, bits, combine };
                books.check(num_embeddings.into(), dim)?;
                let shape = CodesShape {
                    num_embeddings: num_embeddings.into(),
                    embedding_dim: dim,
                    num_books: books.count as usize,
                    book_len: 1 << bits,
                    combine: match combine {
                        Combining::Concat => Combine::Concat,
                        Combining::Add => Combine::Add,
                    },
                };
                ensure!(
                    dtype.suits_cores(),
                    "`dtype` is {:?}, which books cannot be: expected f32, f16, bf16 or i8",
                    dtype.name()
                );
                coding = Some(Coding { books, shape, dtype, warm_up, recode_every });
                // Until they are coded, rows are exact.
                dtype = Dtype::F32;
                (None, TrainedForm::Dense)
            }
        };
        if let TrainedForm::Tt { .. } = stored {
            ensure!(
                dtype.suits_cores(),
                "`dtype` is {:?}, which the cores of a tensor train cannot be: expected f32, f16, \
                 bf16 or i8",
                dtype.name()
            );
        }
        ensure!(
            dtype != Dtype::I4 || dim.is_multiple_of(2),
            "`dtype` is \"i4\", of which a byte of the checkpoint has two columns, but \
             `embedding_dim` is {dim}: expected an even number"
        );
        let (name, embedding_dim, pooling) = (feature.name.clone(), dim, feature.pooling);
        Ok(Self {
            name,
            num_embeddings,
            embedding_dim,
            hashed,
            pooling,
            stored,
            dtype,
            coding,
            search,
        })
    }

    /// The steps of the warm-up after which its form changes, if that is planned.
    pub(super) fn warm_up(&self) -> Option<u64> {
        let coding = self.coding.map(|coding| coding.warm_up);
        coding.or(self.search.map(|search| search.warm_up))
    }

    /// The tensor train with these inner ranks.
    pub(super) fn with_ranks(&self, ranks: &[u32]) -> Result<Self> {
        let TrainedForm::Tt { shape, initializer, scale, cache } = self.stored else {
            bail!("table {:?} is no tensor train", self.name)
        };
        let (rows, columns) = (shape.row_factors(), shape.column_factors());
        let shape = TtShape::new(shape.num_embeddings(), rows, columns, ranks)?
            .with_digit_order(shape.digit_order())
            .with_column_order(shape.column_order());
        let stored = TrainedForm::Tt { shape, initializer, scale, cache };
        Ok(Self { stored, search: None, ..self.clone() })
    }

    /// The table after its rows are coded, if that is planned.
    pub(super) fn coded(&self) -> Option<Self> {
        let coding = self.coding?;
        let stored = TrainedForm::Codes(coding);
        Some(Self { stored, dtype: coding.dtype, coding: None, ..self.clone() })
    }

    /// How its rows are coded after this many steps; none if they are not.
    pub(super) fn coding_after(&self, steps: u64) -> Option<Coding> {
        match (self.coding, &self.stored) {
            (Some(coding), _) => Some(coding).filter(|coding| coding.warm_up == steps),
            (None, TrainedForm::Codes(coding)) => {
                let since = steps.checked_sub(coding.warm_up)?;
                let is_due = |every: NonZeroU64| since.is_multiple_of(every.get());
                Some(*coding).filter(|coding| coding.recode_every.is_some_and(is_due))
            }
            (None, _) => None,
        }
    }

    /// The bytes of its parameters, as they are stored.
    pub(crate) fn bytes(&self) -> u64 {
        if let Some(coded) = self.coded() {
            return coded.bytes();
        }
        let rows = u64::from(self.hashed.unwrap_or(self.num_embeddings));
        let row = self.dtype.row_len(self.embedding_dim) as u64;
        match &self.stored {
            TrainedForm::Dense => rows.saturating_mul(row),
            TrainedForm::Tt { shape, cache, .. } => {
                // A cache is f32.
                let row = Dtype::F32.row_len(self.embedding_dim) as u64;
                let cached = cache.map_or(0, |cache| (cache.capacity() as u64).saturating_mul(row));
                let slices = shape.row_factors().iter().map(|&p| u64::from(p)).sum::<u64>();
                self.values_bytes(shape.num_parameters(), slices).saturating_add(cached)
            }
            TrainedForm::QuotientRemainder { num_remainders, .. } => {
                let remainders = u64::from(*num_remainders);
                (rows.div_ceil(remainders.max(1)) + remainders).saturating_mul(row)
            }
            TrainedForm::Codes(Coding { shape, .. }) => {
                let codes = CodeDtype::for_book_len(shape.book_len).row_len(shape.num_books);
                let books = self.values_bytes(shape.books_len() as u64, shape.num_books as u64);
                rows.saturating_mul(codes as u64).saturating_add(books)
            }
        }
    }

    /// The bytes of `count` values that have `scales` scales if they are i8.
    fn values_bytes(&self, count: u64, scales: u64) -> u64 {
        let scales = if self.dtype == Dtype::I8 { scales } else { 0 };
        let [value, scale] = [self.dtype, Dtype::F32].map(|dtype| dtype.bytes_of(1) as u64);
        count.saturating_mul(value).saturating_add(scales.saturating_mul(scale))
    }

    /// The bytes of a dense table of the same shape.
    pub(crate) fn dense_bytes(&self) -> u64 {
        u64::from(self.num_embeddings)
            .saturating_mul(self.embedding_dim as u64 * size_of::<f32>() as u64)
    }

    /// Builds the table with random initial values.
    pub(crate) fn build(&self, optimizer: Optimizer, seed: u64) -> Result<Box<dyn Embedding>> {
        let dim = self.embedding_dim;
        let rows = u64::from(self.hashed.unwrap_or(self.num_embeddings));
        let build = || -> Result<Box<dyn Embedding>> {
            let table: Box<dyn Embedding> = match &self.stored {
                TrainedForm::Dense => {
                    let shape = DenseShape { num_embeddings: rows, embedding_dim: dim };
                    let table = DenseTable::new(shape, Initializer::Uniform, optimizer, seed)?;
                    Box::new(table.with_dtype(self.dtype))
                }
                TrainedForm::Tt { shape, initializer, scale, cache } => {
                    let mut table = TtTable::new(*shape, *initializer, optimizer, seed)?;
                    // A row is a product of one slice of each core.
                    let of_core = scale.powf(1.0 / shape.num_cores() as f64) as f32;
                    for core in table.parameters_mut() {
                        core.values_mut().iter_mut().for_each(|value| *value *= of_core);
                    }
                    let table = table.with_dtype(self.dtype)?;
                    Box::new(match cache {
                        Some(cache) => table.with_cache(*cache)?,
                        None => table,
                    })
                }
                TrainedForm::QuotientRemainder { num_remainders, combine } => {
                    let shape = QuotientRemainderShape {
                        num_embeddings: rows,
                        num_remainders: *num_remainders,
                        columns: [dim, dim],
                        combine: *combine,
                    };
                    let initializer = Initializer::Uniform;
                    let table = QuotientRemainderTable::new(shape, initializer, optimizer, seed)?;
                    Box::new(table.with_dtype(self.dtype))
                }
                TrainedForm::Codes(coding) => {
                    let codes = vec![0; rows as usize * coding.shape.num_books];
                    let books = vec![0.0; coding.shape.books_len()];
                    Box::new(coding.table(&codes, books, optimizer)?)
                }
            };
            Ok(match self.hashed {
                Some(_) => Box::new(HashedTable::new(table, self.num_embeddings.into())?),
                None => table,
            })
        };
        build().with_context(|| format!("table {:?}", self.name))
    }

    /// The names and shapes of its parameters in a checkpoint, as table `number`.
    pub(crate) fn tensors(&self, number: usize) -> Vec<(String, Vec<usize>)> {
        let prefix = prefix(number);
        let rows = self.hashed.unwrap_or(self.num_embeddings) as usize;
        let matrix =
            |key: &str, rows: usize| (format!("{prefix}{key}"), vec![rows, self.embedding_dim]);
        match &self.stored {
            TrainedForm::Dense => vec![matrix("weight", rows)],
            TrainedForm::Tt { shape, cache, .. } => {
                let core = |(k, &slices): (usize, &u32)| {
                    (format!("{prefix}tt_cores.{k}"), vec![1, slices as usize, shape.slice_len(k)])
                };
                let cached = cache.map(|cache| matrix("cache_weight", cache.capacity()));
                shape.row_factors().iter().enumerate().map(core).chain(cached).collect()
            }
            TrainedForm::QuotientRemainder { num_remainders, .. } => {
                let remainders = *num_remainders as usize;
                vec![
                    matrix("weight_q", rows.div_ceil(remainders.max(1))),
                    matrix("weight_r", remainders),
                ]
            }
            TrainedForm::Codes(Coding { shape, recode_every, .. }) => {
                let books = vec![shape.num_books, shape.book_len, shape.entry_len()];
                let rows = recode_every.map(|_| matrix("rows", rows));
                [(format!("{prefix}books"), books)].into_iter().chain(rows).collect()
            }
        }
    }

    /// The name of the codes in a checkpoint, as table `number`, and their shape; none without
    /// codes.
    pub(crate) fn codes(&self, number: usize) -> Option<(String, Vec<usize>)> {
        let TrainedForm::Codes(coding) = &self.stored else { return None };
        let rows = self.num_embeddings as usize;
        Some((format!("{}codes", prefix(number)), vec![rows, coding.shape.num_books]))
    }

    /// FBTT's names for the row of each cache slot and for the slot's place, as table `number`;
    /// none without a cache.
    pub(crate) fn cache_keys(&self, number: usize) -> Option<[String; 2]> {
        let is_cached = matches!(&self.stored, TrainedForm::Tt { cache: Some(_), .. });
        is_cached.then(|| ["hashtbl", "cache_state"].map(|key| format!("{}{key}", prefix(number))))
    }

    /// FBTT's name for the strides of a row's digits, as table `number`, and the strides; none
    /// unless it is a tensor train.
    pub(crate) fn strides(&self, number: usize) -> Option<(String, Vec<i64>)> {
        let TrainedForm::Tt { shape, .. } = &self.stored else { return None };
        Some((
            format!("{}L", prefix(number)),
            digit_strides(shape.row_factors(), shape.digit_order()),
        ))
    }

    /// The spec with which a converter opens it, as table `number`.
    pub(crate) fn spec(&self, number: usize) -> TableSpec {
        let rows = u64::from(self.hashed.unwrap_or(self.num_embeddings));
        let spec = TableSpec {
            name: Some(self.name.clone()),
            prefix: Some(prefix(number)),
            num_embeddings: Some(self.num_embeddings.into()),
            index_map: self.hashed.map(|_| IndexMapping::Modulo),
            num_rows: self.hashed.map(|_| rows),
            pooling: (self.pooling == Pooling::Mean).then_some(spec::Pooling::Mean),
            dtype: (self.dtype != Dtype::F32).then_some(self.dtype),
            quantized: (self.dtype == Dtype::I4).then_some(Quantized::Nibble),
            ..TableSpec::default()
        };
        let dialect = |name: &str| Some(name.to_owned());
        match &self.stored {
            TrainedForm::Dense => TableSpec { dialect: dialect("dlrm"), ..spec },
            TrainedForm::Tt { shape, .. } => TableSpec {
                dialect: dialect("fbtt"),
                row_factors: Some(shape.row_factors().to_vec()),
                column_factors: Some(shape.column_factors().to_vec()),
                ranks: Some(shape.inner_ranks().to_vec()),
                ..spec
            },
            TrainedForm::QuotientRemainder { combine, .. } => {
                TableSpec { dialect: dialect("dlrm"), qr_operation: Some(*combine), ..spec }
            }
            TrainedForm::Codes(Coding { shape, .. }) => TableSpec {
                dialect: dialect("codes"),
                combine: Some(match shape.combine {
                    Combine::Concat => Combining::Concat,
                    _ => Combining::Add,
                }),
                ..spec
            },
        }
    }
}

/// DLRM's name for a table.
fn prefix(number: usize) -> String {
    format!("emb_l.{number}.")
}

fn train_of(tt: &Tt, rank: u32, num_embeddings: u32, dim: usize) -> Result<TrainedForm> {
    let scale = tt.scale;
    ensure!(scale > 0.0 && scale.is_finite(), "`scale` is {scale}: expected more than 0");
    let shape = tt_shape(tt, rank, num_embeddings, dim)?;
    let cache = tt.cache.as_ref().map(|cache| {
        let &Cache { rows, share, warm_up, refresh } = cache;
        let rows = rows_or_share(rows, share, num_embeddings, "rows").context("`cache`")?;
        Ok::<_, anyhow::Error>(CacheSpec { rows, warm_up, refresh })
    });
    Ok(TrainedForm::Tt {
        shape,
        initializer: tt.initializer.initializer(),
        scale,
        cache: cache.transpose()?,
    })
}

/// The rows of a table, given as a number or as a share of its indices; at most one per index.
fn rows_or_share(
    rows: Option<u32>,
    share: Option<f64>,
    num_embeddings: u32,
    field: &str,
) -> Result<u32> {
    let rows = match (rows, share) {
        (Some(rows), None) => rows,
        (None, Some(share)) if share > 0.0 => (f64::from(num_embeddings) * share).ceil() as u32,
        (None, Some(share)) => bail!("`share` is {share}: expected more than 0"),
        _ => bail!("set either `{field}` or `share`"),
    };
    ensure!(rows > 0, "`{field}` is 0: expected at least 1");
    Ok(rows.min(num_embeddings))
}

fn tt_shape(tt: &Tt, rank: u32, num_embeddings: u32, dim: usize) -> Result<TtShape> {
    let rows = u64::from(num_embeddings);
    let suggested = suggest_shape(rows, dim, tt.cores)?;
    let row_factors = tt.row_factors.clone().unwrap_or(suggested.rows);
    let column_factors = tt.column_factors.clone().unwrap_or_else(|| widest_first(dim, tt.cores));
    ensure!(rank > 0, "`rank` is 0: expected at least 1");
    // The rank of an unfolding is at most its number of rows or columns.
    let sides: Vec<u64> = row_factors
        .iter()
        .zip(&column_factors)
        .map(|(&p, &q)| u64::from(p) * u64::from(q))
        .collect();
    let product =
        |sides: &[u64]| sides.iter().fold(1u64, |product, &side| product.saturating_mul(side));
    let most = |k: usize| product(&sides[..k]).min(product(&sides[k..]));
    let ranks: Vec<u32> = (1..sides.len()).map(|k| most(k).min(rank.into()) as u32).collect();
    let shape = TtShape::new(rows, &row_factors, &column_factors, &ranks)?;
    ensure!(
        shape.embedding_dim() == dim,
        "the product of `column_factors` {column_factors:?} is {}, but `embedding_dim` is \
         {dim}",
        shape.embedding_dim()
    );
    // Training gives columns their meaning, so the cores may have either order: take the faster
    // one.
    let reversed = shape.reversed()?.with_column_order(shape.column_order());
    Ok(if reversed.flops_left_to_right() < shape.flops_left_to_right() {
        reversed
    } else {
        shape
    })
}

/// How a config gives a number of rows.
struct Given {
    rows: Option<u32>,
    bytes: Option<u64>,
    like_rank: Option<u32>,
}

/// The number of rows: given, or as many as fit into the bytes.
fn fitting_rows(
    given: Given,
    num_embeddings: u32,
    dim: usize,
    dtype: Dtype,
    field: &str,
) -> Result<u32> {
    let bytes = match (given.rows, given.bytes, given.like_rank) {
        (Some(0), None, None) => bail!("`{field}` is 0: expected at least 1"),
        (Some(rows), None, None) => return Ok(rows),
        (None, Some(bytes), None) => bytes,
        (None, None, Some(rank)) => tt_bytes(rank, num_embeddings, dim)?,
        _ => bail!("set exactly one of `{field}`, `bytes` and `like_rank`"),
    };
    let fitting = bytes / (dtype.row_len(dim) as u64).max(1);
    ensure!(fitting > 0, "{bytes} bytes are less than one row of {dim} columns");
    Ok(u32::try_from(fitting).unwrap_or(u32::MAX))
}

/// The bytes of a tensor train of f32 of this rank with the default factors.
fn tt_bytes(rank: u32, num_embeddings: u32, dim: usize) -> Result<u64> {
    Ok(tt_shape(&Tt::default(), rank, num_embeddings, dim)?
        .num_parameters()
        .saturating_mul(size_of::<f32>() as u64))
}

/// The fewest remainder rows with which quotients and remainders fit into `rows` rows.
fn fewest_remainders(num_embeddings: u32, rows: u32) -> Result<u32> {
    let total =
        |remainders: u32| u64::from(num_embeddings.div_ceil(remainders)) + u64::from(remainders);
    let root = f64::from(num_embeddings).sqrt().ceil() as u32;
    let found = (1..=root.max(1)).find(|&remainders| total(remainders) <= rows.into());
    found.with_context(|| {
        let least = total(root.max(1));
        format!(
            "{rows} rows fit, but quotients and remainders need at least {least}: raise `bytes` or \
             `like_rank`"
        )
    })
}
