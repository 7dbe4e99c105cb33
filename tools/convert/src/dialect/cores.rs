//! Cores: the position of a tensor train's slices in tensors, and the facts of a spec that complete
//! their shapes.

use super::{refuse, require, require_float};
use crate::{
    checkpoint::{Checkpoint, CheckpointError, Tensor},
    spec::TableSpec,
};
use anyhow::{Context, Result, bail, ensure};
use ttrec::{
    TtShape,
    limits::{MAX_CORES, MAX_RANK},
};

/// One core: slice i is `runs` runs of `run` elements of the tensor, the first one at
/// `start + i * run`, and each `stride` after the previous one.
#[derive(Clone, Copy)]
pub(crate) struct Core<'c> {
    pub(crate) tensor: &'c Tensor,
    slices: u64,
    start: u64,
    run: usize,
    runs: usize,
    stride: u64,
}

impl<'c> Core<'c> {
    /// Core k of `shape` with its slices one after another from `start` on.
    pub(super) fn flat(tensor: &'c Tensor, start: u64, shape: &TtShape, k: usize) -> Self {
        let slices = shape.row_factors()[k].into();
        Self { tensor, slices, start, run: shape.slice_len(k), runs: 1, stride: 0 }
    }

    /// Core k of `shape` in a tensor of `r_k x p_k x q_k x r_{k+1}`, or of
    /// `r_k x tables x p_k x q_k x r_{k+1}`.
    fn block(tensor: &'c Tensor, shape: &TtShape, k: usize, [table, tables]: [u64; 2]) -> Self {
        let slices = u64::from(shape.row_factors()[k]);
        let run = shape.column_factor(k) * shape.rank(k + 1);
        let of_table = slices * run as u64;
        let (start, stride) = (table * of_table, tables * of_table);
        Self { tensor, slices, start, run, runs: shape.rank(k), stride }
    }

    pub(crate) fn slices(&self) -> u64 {
        self.slices
    }

    pub(crate) fn slice_len(&self) -> usize {
        self.run * self.runs
    }

    /// The position of element `at` of a slice in the tensor.
    pub(crate) fn position(&self, slice: u64, at: usize) -> u64 {
        self.start
            + slice * self.run as u64
            + (at / self.run) as u64 * self.stride
            + (at % self.run) as u64
    }

    /// Reads a slice, row-major.
    pub(crate) fn read(&self, slice: u64, out: &mut [f32]) -> Result<(), CheckpointError> {
        for (a, run) in out.chunks_mut(self.run).enumerate() {
            self.tensor.read_f32(self.position(slice, a * self.run), run)?;
        }
        Ok(())
    }
}

/// The tensors `{stem}0`, `{stem}1` and so on.
pub(super) fn numbered<'c>(checkpoint: &'c Checkpoint, stem: &str) -> Result<Vec<&'c Tensor>> {
    let mut cores = vec![require(checkpoint, &format!("{stem}0"))?];
    while let Some(core) = checkpoint.tensor(&format!("{stem}{}", cores.len())) {
        cores.push(core);
    }
    ensure!(
        (2..=MAX_CORES).contains(&cores.len()),
        "found {} tensors {:?}: a tensor train has 2 to {MAX_CORES} \
         cores",
        cores.len(),
        format!("{stem}*")
    );
    cores.iter().try_for_each(|core| require_float(core))?;
    Ok(cores)
}

/// The table of the spec, if `core` holds that of several.
pub(super) fn table(core: &Tensor, tables: u64, spec: &TableSpec) -> Result<u64> {
    let name = core.name();
    let table = match spec.table {
        Some(table) => table,
        None if tables == 1 => 0,
        None => bail!("`table` is missing: tensor {name:?} holds {tables} tables"),
    };
    ensure!(
        table < tables,
        "`table` is {table}, but tensor {name:?} holds {tables} tables, numbered from 0"
    );
    Ok(table)
}

/// The row factors, which are the numbers of slices of the cores. The spec must agree.
pub(super) fn row_factors(cores: &[&Tensor], slices: &[u64], spec: &TableSpec) -> Result<Vec<u32>> {
    let factor = |(core, &slices): (&&Tensor, &u64)| {
        u32::try_from(slices).with_context(|| format!("tensor {:?}: {slices} slices", core.name()))
    };
    let factors = cores.iter().zip(slices).map(factor).collect::<Result<Vec<_>>>()?;
    if let Some(given) = &spec.row_factors {
        ensure!(
            *given == factors,
            "`row_factors` is {given:?}, but the cores have {factors:?} slices"
        );
    }
    Ok(factors)
}

/// The shape, if the spec has the number of rows; `who` is the program that does not store it.
pub(super) fn shape(
    who: &str,
    row_factors: &[u32],
    split: Result<Split>,
    spec: &TableSpec,
) -> Result<TtShape> {
    let Some(num_embeddings) = spec.num_embeddings else {
        let rows: u64 = row_factors.iter().fold(1, |rows: u64, &p| rows.saturating_mul(p.into()));
        let also = split.err().map(|error| format!("; and {error}")).unwrap_or_default();
        bail!(
            "`num_embeddings` is missing: {who} does not store it (at most {rows} for row factors \
             {row_factors:?}){also}"
        );
    };
    let Split { column_factors, ranks } = split?;
    TtShape::new(num_embeddings, row_factors, &column_factors, &ranks).with_context(|| {
        format!("`num_embeddings` is {num_embeddings}, row factors are {row_factors:?}")
    })
}

/// The table of cores `{stem}{k}` of `r_k x p_k x q_k x r_{k+1}`, or table `table` of the spec in
/// cores of `r_k x tables x p_k x q_k x r_{k+1}`. They have all of the shape except the number of
/// rows.
pub(super) fn open_blocks<'c>(
    checkpoint: &'c Checkpoint,
    stem: &str,
    [who, dialect]: [&str; 2],
    spec: &TableSpec,
) -> Result<(TtShape, Vec<Core<'c>>)> {
    let tensors = numbered(checkpoint, stem)?;
    let tables = match *tensors[0].shape() {
        [_, tables, _, _, _] => Some(tables),
        _ => None,
    };
    refuse(spec.table.is_some() && tables.is_none(), "table", dialect)?;
    let table = table(tensors[0], tables.unwrap_or(1), spec)?;
    let mut slices = Vec::new();
    let mut split = Split { column_factors: Vec::new(), ranks: Vec::new() };
    let mut left = 1;
    for (k, tensor) in tensors.iter().enumerate() {
        let (name, shape) = (tensor.name(), tensor.shape());
        let (rank, rows, columns, right) = match (shape, tables) {
            (&[rank, rows, columns, right], None) => (rank, rows, columns, right),
            (&[rank, found, rows, columns, right], Some(tables)) if found == tables => {
                (rank, rows, columns, right)
            }
            (_, Some(tables)) => bail!(
                "tensor {name:?} has shape {shape:?}: expected r_k x {tables} x p_k x q_k x r_k+1"
            ),
            (_, None) => {
                bail!("tensor {name:?} has shape {shape:?}: expected r_k x p_k x q_k x r_k+1")
            }
        };
        ensure!(
            rank == left,
            "tensor {name:?} has shape {shape:?}: the first dimension must be {left}, the last \
             one of the core before"
        );
        left = right;
        let too_large = || format!("tensor {name:?} has shape {shape:?}: too large");
        slices.push(rows);
        split.column_factors.push(u32::try_from(columns).with_context(too_large)?);
        if k + 1 < tensors.len() {
            split.ranks.push(u32::try_from(right).with_context(too_large)?);
        } else {
            ensure!(
                right == 1,
                "tensor {name:?} has shape {shape:?}: the last dimension of the last core must be 1"
            );
        }
    }
    let row_factors = row_factors(&tensors, &slices, spec)?;
    for (field, given, found) in [
        ("column_factors", &spec.column_factors, &split.column_factors),
        ("ranks", &spec.ranks, &split.ranks),
    ] {
        if let Some(given) = given {
            ensure!(given == found, "`{field}` is {given:?}, but the cores have {found:?}");
        }
    }
    let shape = shape(who, &row_factors, Ok(split), spec)?;
    let cores = tensors
        .iter()
        .enumerate()
        .map(|(k, tensor)| Core::block(tensor, &shape, k, [table, tables.unwrap_or(1)]))
        .collect();
    Ok((shape, cores))
}

/// A split of the slices into ranks and column factors.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Split {
    column_factors: Vec<u32>,
    ranks: Vec<u32>,
}

/// Finds the column factors and ranks with `r_k q_k r_{k+1}` equal to each slice's length that
/// agree with the spec and with `embedding_dim`; there must be exactly one.
pub(super) fn split_slices(
    slice_lens: &[u64],
    spec: &TableSpec,
    embedding_dim: Option<u64>,
) -> Result<Split> {
    let d = slice_lens.len();
    if let Some(given) = &spec.column_factors {
        ensure!(given.len() == d, "`column_factors` is {given:?}: expected {d}, one per core");
    }
    if let Some(given) = &spec.ranks {
        ensure!(
            given.len() + 1 == d,
            "`ranks` is {given:?}: expected {}, the inner ranks of {d} cores",
            d - 1
        );
    }
    let mut search = Search { slice_lens, spec, embedding_dim, found: Vec::new(), budget: 1 << 16 };
    search.extend(&Split { column_factors: Vec::new(), ranks: Vec::new() });
    match search.found.as_slice() {
        [split] if search.budget > 0 => Ok(split.clone()),
        [] if search.budget > 0 => bail!(
            "no split of slices of {slice_lens:?} elements (r_k q_k r_k+1) fits{}{}{}",
            given("column_factors", &spec.column_factors),
            given("ranks", &spec.ranks),
            embedding_dim
                .map(|n| format!(", {n} columns as in cache_weight"))
                .unwrap_or_default()
        ),
        [a, b, ..] => bail!(
            "`column_factors` or `ranks` is missing: slices of {slice_lens:?} elements could be \
             {:?} with ranks {:?}, or {:?} with ranks {:?}, and so on",
            a.column_factors,
            a.ranks,
            b.column_factors,
            b.ranks
        ),
        _ => bail!(
            "`column_factors` or `ranks` is missing: slices of {slice_lens:?} elements split in \
             too many ways"
        ),
    }
}

fn given(field: &str, value: &Option<Vec<u32>>) -> String {
    value
        .as_ref()
        .map(|value| format!(", `{field}` = {value:?}"))
        .unwrap_or_default()
}

/// A search over all splits that stops once two are found, or its budget of steps is spent.
struct Search<'s> {
    slice_lens: &'s [u64],
    spec: &'s TableSpec,
    embedding_dim: Option<u64>,
    found: Vec<Split>,
    budget: u32,
}

impl Search<'_> {
    /// Extends `split` by core k = `split.column_factors.len()` in every way.
    fn extend(&mut self, split: &Split) {
        let k = split.column_factors.len();
        let columns: u64 =
            split.column_factors.iter().fold(1, |n: u64, &q| n.saturating_mul(q.into()));
        if self.embedding_dim.is_some_and(|dim| !dim.is_multiple_of(columns)) {
            return;
        }
        let Some(&slice_len) = self.slice_lens.get(k) else {
            if self.embedding_dim.is_none_or(|dim| dim == columns) {
                self.found.push(split.clone());
            }
            return;
        };
        let left = split.ranks.last().map_or(1, |&r| u64::from(r));
        if slice_len == 0 || !slice_len.is_multiple_of(left) {
            return;
        }
        let rest = slice_len / left;
        let last = k + 1 == self.slice_lens.len();
        let rank_fixed = if last {
            Some(1)
        } else {
            self.spec.ranks.as_ref().map(|ranks| u64::from(ranks[k]))
        };
        let factor_fixed = self.spec.column_factors.as_ref().map(|factors| u64::from(factors[k]));
        // Both divide `rest`, and one determines the other.
        let ranks = match (rank_fixed, factor_fixed) {
            (Some(rank), _) => rank..=rank,
            // A factor of 0 leaves rank 0, which the filter below drops.
            (None, Some(factor)) => rest.checked_div(factor).map_or(0..=0, |rank| rank..=rank),
            (None, None) => 1..=rest.min(MAX_RANK),
        };
        for rank in ranks.filter(|&rank| rank > 0 && rest.is_multiple_of(rank)) {
            let (Ok(factor), Ok(next)) = (u32::try_from(rest / rank), u32::try_from(rank)) else {
                continue;
            };
            if factor_fixed.is_some_and(|fixed| fixed != u64::from(factor)) {
                continue;
            }
            self.budget = self.budget.saturating_sub(1);
            if self.budget == 0 || self.found.len() > 1 {
                return;
            }
            let mut longer = split.clone();
            longer.column_factors.push(factor);
            if !last {
                longer.ranks.push(next);
            }
            self.extend(&longer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(
        slice_lens: &[u64],
        q: Option<&[u32]>,
        r: Option<&[u32]>,
        dim: Option<u64>,
    ) -> Result<Split> {
        let spec = TableSpec {
            column_factors: q.map(<[u32]>::to_vec),
            ranks: r.map(<[u32]>::to_vec),
            ..TableSpec::default()
        };
        split_slices(slice_lens, &spec, dim)
    }

    #[test]
    fn either_list_decides_the_other() {
        let expected = Split { column_factors: vec![2, 2, 2, 4], ranks: vec![5, 9, 7] };
        let lens = [10, 90, 126, 28];
        assert_eq!(split(&lens, Some(&[2, 2, 2, 4]), None, None).unwrap(), expected);
        assert_eq!(split(&lens, None, Some(&[5, 9, 7]), None).unwrap(), expected);
        assert_eq!(split(&lens, Some(&[2, 2, 2, 4]), Some(&[5, 9, 7]), None).unwrap(), expected);
    }

    #[test]
    fn a_split_is_never_guessed() {
        let error = split(&[64, 1024, 64], None, None, None).unwrap_err().to_string();
        assert!(error.contains("`column_factors` or `ranks` is missing"), "{error}");
        // 7 = q0 r1 and 11 = r1 q1 leave only r1 = 1.
        let only = Split { column_factors: vec![7, 11], ranks: vec![1] };
        assert_eq!(split(&[7, 11], None, None, None).unwrap(), only);
        // 6 = q0 r1 and 4 = r1 q1: 24 columns with r1 = 1, 6 with r1 = 2; the cache's width
        // decides.
        assert!(split(&[6, 4], None, None, None).is_err());
        assert_eq!(
            split(&[6, 4], None, None, Some(6)).unwrap(),
            Split { column_factors: vec![3, 2], ranks: vec![2] }
        );
    }

    #[test]
    fn a_contradiction_is_refused() {
        for (q, r) in [
            (Some(&[4, 4, 3][..]), None),
            (Some(&[4, 4, 4]), Some(&[16, 8][..])),
            (Some(&[0, 4, 4]), None),
        ] {
            let error = split(&[64, 1024, 64], q, r, None).unwrap_err().to_string();
            assert!(error.contains("no split of slices"), "{error}");
        }
        let error = split(&[64, 1024, 64], Some(&[4, 16]), None, None).unwrap_err().to_string();
        assert!(error.contains("expected 3, one per core"), "{error}");
        let error = split(&[64, 1024, 64], None, Some(&[16]), None).unwrap_err().to_string();
        assert!(error.contains("expected 2, the inner ranks"), "{error}");
    }
}
