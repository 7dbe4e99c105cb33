//! FBTT (facebookresearch/FBTT-Embedding, `TTEmbeddingBag`): `tt_cores.{k}` of
//! `tables x p_k x (r_k q_k r_{k+1})`, slices row-major, core 0 most significant; `L` holds the
//! strides of a row's digits, which may give another order. Rows of the trained cache are never
//! written back to the cores: slot s of `hashtbl` overrides row `hashtbl[s]` by
//! `cache_weight[cache_state[s]]`, unless either is -1.

use super::{
    Dialect, Overrides, Survey, Weights,
    cores::{self, Core, numbered, split_slices},
    refuse, require, require_float,
};
use crate::{
    checkpoint::{Checkpoint, Tensor},
    spec::TableSpec,
};
use anyhow::{Context, Result, bail, ensure};
use ttrec::DigitOrder;

pub(super) struct Fbtt;

impl Dialect for Fbtt {
    fn name(&self) -> &'static str {
        "fbtt"
    }

    fn detect(&self, survey: &mut Survey<'_>) {
        for (prefix, core) in survey.first_cores("tt_cores.0") {
            let tables = match core.shape() {
                // EL-Rec's.
                [_, _] => continue,
                &[tables, ..] => tables,
                [] => 1,
            };
            survey.take_numbered(&format!("{prefix}tt_cores."));
            survey.take_numbered(&format!("{prefix}optimizer_state.optimizer_state"));
            for beside in [
                "L",
                "hashtbl",
                "cache_state",
                "cache_freq",
                "cache_weight",
                "cache_optimizer_state",
            ] {
                survey.take(&format!("{prefix}{beside}"));
            }
            let spec = TableSpec { prefix: Some(prefix.to_owned()), ..TableSpec::default() };
            survey.offer_each(&spec, tables);
        }
    }

    fn open<'c>(&self, checkpoint: &'c Checkpoint, spec: &TableSpec) -> Result<Weights<'c>> {
        refuse(spec.tensor.is_some(), "tensor", self.name())?;
        let prefix = spec.prefix.as_deref().unwrap_or_default();
        let key = |name: &str| format!("{prefix}{name}");
        let tensors = numbered(checkpoint, &key("tt_cores."))?;
        let mut slices = Vec::new();
        let mut slice_lens = Vec::new();
        let mut tables = None;
        for core in &tensors {
            let (name, shape) = (core.name(), core.shape());
            let &[stacked, rows, slice_len] = shape else {
                bail!(
                    "tensor {name:?} has shape {shape:?}: expected tables x p_k x (r_k q_k r_k+1)"
                );
            };
            let first = *tables.get_or_insert(stacked);
            ensure!(
                stacked == first,
                "tensor {name:?} holds {stacked} tables, but {:?} {first}",
                tensors[0].name()
            );
            slices.push(rows);
            slice_lens.push(slice_len);
        }
        let tables = tables.unwrap_or(0);
        let table = cores::table(tensors[0], tables, spec)?;
        let row_factors = cores::row_factors(&tensors, &slices, spec)?;
        let order = match checkpoint.tensor(&key("L")) {
            Some(strides) => digit_order(strides, &row_factors)?,
            None => DigitOrder::MostSignificantFirst,
        };
        if tables > 1 {
            for name in ["hashtbl", "cache_state", "cache_weight"] {
                let empty = checkpoint.tensor(&key(name)).is_none_or(|tensor| tensor.is_empty());
                ensure!(
                    empty,
                    "tensor {:?}: a cache that {tables} tables share is not supported",
                    key(name)
                );
            }
        }
        let cache = checkpoint.tensor(&key("cache_weight")).filter(|_| tables == 1);
        let embedding_dim = match cache.map(|cache| cache.shape()) {
            None => None,
            Some(&[_, columns]) => Some(columns),
            Some(shape) => bail!(
                "tensor {:?} has shape {shape:?}: expected rows x columns",
                key("cache_weight")
            ),
        };
        let split = split_slices(&slice_lens, spec, embedding_dim);
        let shape = cores::shape("FBTT", &row_factors, split, spec)?.with_digit_order(order);
        let overrides = match cache {
            Some(cache) => {
                let slots = require(checkpoint, &key("hashtbl"))?;
                let states = require(checkpoint, &key("cache_state"))?;
                read_cache(slots, states, cache, shape.num_embeddings())?
            }
            None => None,
        };
        // Within the tensor, because `table` is less than its first extent.
        let core = |(k, tensor): (usize, &&'c Tensor)| {
            Core::flat(tensor, table * (tensor.len() / tables), &shape, k)
        };
        let cores = tensors.iter().enumerate().map(core).collect();
        Ok(Weights::Tt { shape, cores, overrides })
    }
}

/// The order of the digits, from their strides `L`.
fn digit_order(tensor: &Tensor, row_factors: &[u32]) -> Result<DigitOrder> {
    let name = tensor.name();
    ensure!(
        tensor.len() == row_factors.len() as u64,
        "tensor {name:?} has {} elements: expected one per core",
        tensor.len()
    );
    let mut found = vec![0; row_factors.len()];
    tensor.read_i64(0, &mut found)?;
    let [most, least] = [DigitOrder::MostSignificantFirst, DigitOrder::LeastSignificantFirst];
    let expected = [most, least].map(|order| digit_strides(row_factors, order));
    match expected.iter().position(|strides| *strides == found) {
        Some(0) => Ok(most),
        Some(_) => Ok(least),
        None => bail!(
            "tensor {name:?} is {found:?}: expected the digit strides {:?} of {row_factors:?}, or \
             {:?}",
            expected[0],
            expected[1]
        ),
    }
}

/// The strides of a row's digits, core by core: FBTT's `L`.
pub fn digit_strides(row_factors: &[u32], order: DigitOrder) -> Vec<i64> {
    let mut strides = vec![1i64; row_factors.len()];
    let mut stride = 1i64;
    let mut put = |to: &mut i64, p: u32| {
        *to = stride;
        stride = stride.saturating_mul(p.into());
    };
    let pairs = strides.iter_mut().zip(row_factors);
    match order {
        DigitOrder::MostSignificantFirst => pairs.rev().for_each(|(to, &p)| put(to, p)),
        DigitOrder::LeastSignificantFirst => pairs.for_each(|(to, &p)| put(to, p)),
    }
    strides
}

/// The overridden rows of the trained cache, ascending.
fn read_cache<'c>(
    slots: &Tensor,
    states: &Tensor,
    cache: &'c Tensor,
    rows: u64,
) -> Result<Option<Overrides<'c>>> {
    require_float(cache)?;
    ensure!(
        slots.len() == states.len(),
        "tensors {:?} and {:?} have {} and {} elements: expected the same number",
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
            let id = id.with_context(|| {
                format!(
                    "tensor {:?}: slot {slot} holds row {row}, but the table has {rows} rows",
                    slots.name()
                )
            })?;
            let at = u64::try_from(state).ok().filter(|&at| at < cached);
            let at = at.with_context(|| {
                format!(
                    "tensor {:?}: slot {slot} holds cached row {state}, but the cache has {cached} \
                     rows",
                    states.name()
                )
            })?;
            ids.push((id, Some(at)));
        }
    }
    ids.sort_unstable();
    if let Some(pair) = ids.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        bail!("tensor {:?}: row {} occurs in two slots", slots.name(), pair[0].0);
    }
    Ok((!ids.is_empty()).then_some(Overrides { ids, tensor: Some(cache) }))
}
