//! FBTT (facebookresearch/FBTT-Embedding, `TTEmbeddingBag`): `tt_cores.{k}` of `1 x p_k x (r_k q_k r_{k+1})`, slices
//! row-major, core 0 most significant; `L` holds the digit strides. Rows of the trained cache are never written back to
//! the cores: slot s of `hashtbl` overrides row `hashtbl[s]` by `cache_weight[cache_state[s]]`, unless either is -1.

use super::{Dialect, Overrides, Weights, refuse, require, require_float};
use crate::{
    checkpoint::{Checkpoint, Tensor},
    spec::TableSpec,
};
use anyhow::{Context, Result, bail, ensure};
use ttrec::{
    TtShape,
    shape::{MAX_CORES, MAX_RANK},
};

pub(super) struct Fbtt;

impl Dialect for Fbtt {
    fn name(&self) -> &'static str {
        "fbtt"
    }

    fn detect(&self, checkpoint: &Checkpoint) -> Vec<TableSpec> {
        let prefixes = checkpoint.tensors().filter_map(|tensor| tensor.name().strip_suffix("tt_cores.0"));
        prefixes.map(|prefix| TableSpec { prefix: Some(prefix.to_owned()), ..TableSpec::default() }).collect()
    }

    fn open<'c>(&self, checkpoint: &'c Checkpoint, spec: &TableSpec) -> Result<Weights<'c>> {
        refuse(spec.tensor.is_some(), "tensor", self.name())?;
        let prefix = spec.prefix.as_deref().unwrap_or_default();
        let key = |name: &str| format!("{prefix}{name}");
        let mut cores = vec![require(checkpoint, &key("tt_cores.0"))?];
        while let Some(core) = checkpoint.tensor(&key(&format!("tt_cores.{}", cores.len()))) {
            cores.push(core);
        }
        ensure!(
            (2..=MAX_CORES).contains(&cores.len()),
            "{} tensors {:?}: expected 2 to {MAX_CORES}",
            cores.len(),
            key("tt_cores.*")
        );

        let mut row_factors = Vec::new();
        let mut slice_lens = Vec::new();
        for core in &cores {
            require_float(core)?;
            let &[tables, rows, slice_len] = core.shape() else {
                bail!("tensor {:?} has shape {:?}: expected 1 x p_k x (r_k q_k r_k+1)", core.name(), core.shape());
            };
            ensure!(tables == 1, "tensor {:?} holds {tables} tables: expected 1", core.name());
            let too_large = || format!("tensor {:?}: {rows} slices of {slice_len} elements", core.name());
            row_factors.push(u32::try_from(rows).with_context(too_large)?);
            slice_lens.push(slice_len);
        }
        if let Some(given) = &spec.row_factors {
            ensure!(*given == row_factors, "`row_factors` is {given:?}, but the cores have {row_factors:?} slices");
        }
        if let Some(strides) = checkpoint.tensor(&key("L")) {
            check_strides(strides, &row_factors)?;
        }
        let cache = checkpoint.tensor(&key("cache_weight"));
        let embedding_dim = match cache.map(|cache| cache.shape()) {
            None => None,
            Some(&[_, columns]) => Some(columns),
            Some(shape) => bail!("tensor {:?} has shape {shape:?}: expected rows x columns", key("cache_weight")),
        };
        let split = split_slices(&slice_lens, spec, embedding_dim);
        let Some(num_embeddings) = spec.num_embeddings else {
            let rows: u64 = row_factors.iter().fold(1, |rows: u64, &p| rows.saturating_mul(p.into()));
            let also = split.err().map(|error| format!("; and {error}")).unwrap_or_default();
            bail!(
                "`num_embeddings` is missing: FBTT does not store it (at most {rows} for row factors {row_factors:?}){also}"
            );
        };
        let Split { column_factors, ranks } = split?;
        let shape = TtShape::new(num_embeddings, &row_factors, &column_factors, &ranks)
            .with_context(|| format!("{num_embeddings} rows in cores of {row_factors:?} slices"))?;
        let overrides = match cache {
            Some(cache) => {
                let slots = require(checkpoint, &key("hashtbl"))?;
                let states = require(checkpoint, &key("cache_state"))?;
                read_cache(slots, states, cache, num_embeddings)?
            }
            None => None,
        };
        Ok(Weights::Tt { shape, cores, overrides })
    }
}

/// How slices split into ranks and column factors.
#[derive(Clone, Debug, PartialEq)]
struct Split {
    column_factors: Vec<u32>,
    ranks: Vec<u32>,
}

/// Finds the column factors and ranks with `r_k q_k r_{k+1}` equal to each slice's length that agree with the spec and
/// with `embedding_dim`; there must be exactly one.
fn split_slices(slice_lens: &[u64], spec: &TableSpec, embedding_dim: Option<u64>) -> Result<Split> {
    let d = slice_lens.len();
    if let Some(given) = &spec.column_factors {
        ensure!(given.len() == d, "`column_factors` is {given:?}: expected {d}, one per core");
    }
    if let Some(given) = &spec.ranks {
        ensure!(given.len() + 1 == d, "`ranks` is {given:?}: expected {}, the inner ranks of {d} cores", d - 1);
    }
    let mut search = Search { slice_lens, spec, embedding_dim, found: Vec::new(), budget: 1 << 16 };
    search.extend(&Split { column_factors: Vec::new(), ranks: Vec::new() });
    match search.found.as_slice() {
        [split] if search.budget > 0 => Ok(split.clone()),
        [] if search.budget > 0 => bail!(
            "no split of slices of {slice_lens:?} elements (r_k q_k r_k+1) fits{}{}{}",
            given("column_factors", &spec.column_factors),
            given("ranks", &spec.ranks),
            embedding_dim.map(|n| format!(", {n} columns as in cache_weight")).unwrap_or_default()
        ),
        [a, b, ..] => bail!(
            "`column_factors` or `ranks` is missing: slices of {slice_lens:?} elements could be {:?} with ranks {:?}, or \
             {:?} with ranks {:?}, and so on",
            a.column_factors,
            a.ranks,
            b.column_factors,
            b.ranks
        ),
        _ => bail!("`column_factors` or `ranks` is missing: slices of {slice_lens:?} elements split in too many ways"),
    }
}

fn given(field: &str, value: &Option<Vec<u32>>) -> String {
    value.as_ref().map(|value| format!(", `{field}` = {value:?}")).unwrap_or_default()
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
        let columns: u64 = split.column_factors.iter().fold(1, |n: u64, &q| n.saturating_mul(q.into()));
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
        let rank_fixed = if last { Some(1) } else { self.spec.ranks.as_ref().map(|ranks| u64::from(ranks[k])) };
        let factor_fixed = self.spec.column_factors.as_ref().map(|factors| u64::from(factors[k]));
        // Either is a divisor of `rest` and decides the other.
        let ranks = match (rank_fixed, factor_fixed) {
            (Some(rank), _) => rank..=rank,
            // A factor of 0 leaves rank 0, which the filter below drops.
            (None, Some(factor)) => rest.checked_div(factor).map_or(0..=0, |rank| rank..=rank),
            (None, None) => 1..=rest.min(MAX_RANK),
        };
        for rank in ranks.filter(|&rank| rank > 0 && rest.is_multiple_of(rank)) {
            let (Ok(factor), Ok(next)) = (u32::try_from(rest / rank), u32::try_from(rank)) else { continue };
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

/// `L` must be the strides of the digits, `prod_{m>k} p_m`: anything else is another index order.
fn check_strides(tensor: &Tensor, row_factors: &[u32]) -> Result<()> {
    let name = tensor.name();
    ensure!(
        tensor.len() == row_factors.len() as u64,
        "tensor {name:?} has {} elements: expected one per core",
        tensor.len()
    );
    let mut found = vec![0; row_factors.len()];
    tensor.read_i64(0, &mut found)?;
    let mut expected = vec![1i64; row_factors.len()];
    for k in (1..row_factors.len()).rev() {
        expected[k - 1] = expected[k].saturating_mul(row_factors[k].into());
    }
    ensure!(
        found == expected,
        "tensor {name:?} is {found:?}: expected the digit strides {expected:?} of {row_factors:?}"
    );
    Ok(())
}

/// The rows that the trained cache overrides, in ascending order.
fn read_cache<'c>(slots: &Tensor, states: &Tensor, cache: &'c Tensor, rows: u64) -> Result<Option<Overrides<'c>>> {
    require_float(cache)?;
    ensure!(
        slots.len() == states.len(),
        "tensors {:?} and {:?} have {} and {} elements: expected as many",
        slots.name(),
        states.name(),
        slots.len(),
        states.len()
    );
    let cached = cache.shape()[0];
    let mut ids = Vec::new();
    const BLOCK: u64 = 1 << 16;
    for start in (0..slots.len()).step_by(BLOCK as usize) {
        let count = BLOCK.min(slots.len() - start) as usize;
        let (mut rows_of, mut states_of) = (vec![0; count], vec![0; count]);
        slots.read_i64(start, &mut rows_of)?;
        states.read_i64(start, &mut states_of)?;
        for ((slot, row), state) in (start..).zip(rows_of).zip(states_of) {
            // An empty slot may keep a stale state.
            if row == -1 || state == -1 {
                continue;
            }
            let id = u64::try_from(row).ok().filter(|&id| id < rows);
            let id = id.with_context(|| format!("tensor {:?}, slot {slot}: row {row} of {rows}", slots.name()))?;
            let at = u64::try_from(state).ok().filter(|&at| at < cached);
            let at =
                at.with_context(|| format!("tensor {:?}, slot {slot}: cached row {state} of {cached}", states.name()))?;
            ids.push((id, at));
        }
    }
    ids.sort_unstable();
    if let Some(pair) = ids.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        bail!("tensor {:?} holds row {} in two slots", slots.name(), pair[0].0);
    }
    Ok((!ids.is_empty()).then_some(Overrides { ids, tensor: cache }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(slice_lens: &[u64], q: Option<&[u32]>, r: Option<&[u32]>, dim: Option<u64>) -> Result<Split> {
        let spec =
            TableSpec { column_factors: q.map(<[u32]>::to_vec), ranks: r.map(<[u32]>::to_vec), ..TableSpec::default() };
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
        // 6 = q0 r1 and 4 = r1 q1: 24 columns with r1 = 1, 6 with r1 = 2; the cache's width decides.
        assert!(split(&[6, 4], None, None, None).is_err());
        assert_eq!(split(&[6, 4], None, None, Some(6)).unwrap(), Split { column_factors: vec![3, 2], ranks: vec![2] });
    }

    #[test]
    fn a_contradiction_is_refused() {
        for (q, r) in [(Some(&[4, 4, 3][..]), None), (Some(&[4, 4, 4]), Some(&[16, 8][..])), (Some(&[0, 4, 4]), None)] {
            let error = split(&[64, 1024, 64], q, r, None).unwrap_err().to_string();
            assert!(error.contains("no split of slices"), "{error}");
        }
        let error = split(&[64, 1024, 64], Some(&[4, 16]), None, None).unwrap_err().to_string();
        assert!(error.contains("expected 3, one per core"), "{error}");
        let error = split(&[64, 1024, 64], None, Some(&[16]), None).unwrap_err().to_string();
        assert!(error.contains("expected 2, the inner ranks"), "{error}");
    }
}
