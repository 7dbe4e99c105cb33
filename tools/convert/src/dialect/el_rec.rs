//! EL-Rec: `tt_cores.{k}` of `p_k x (r_k q_k r_{k+1})`, slices row-major, core 0 most significant:
//! FBTT's cores without the dimension of tables.

use super::{
    Dialect, Survey, Weights,
    cores::{self, Core, numbered, split_slices},
    refuse,
};
use crate::{checkpoint::Checkpoint, spec::TableSpec};
use anyhow::{Result, bail};
use ttrec::DigitOrder;

pub(super) struct ElRec;

impl Dialect for ElRec {
    fn name(&self) -> &'static str {
        "el-rec"
    }

    fn detect(&self, survey: &mut Survey<'_>) {
        for (prefix, first) in survey.first_cores("tt_cores.0") {
            if let [_, _] = first.shape() {
                survey.take_numbered(&format!("{prefix}tt_cores."));
                survey.offer(TableSpec { prefix: Some(prefix.to_owned()), ..TableSpec::default() });
            }
        }
    }

    fn open<'c>(&self, checkpoint: &'c Checkpoint, spec: &TableSpec) -> Result<Weights<'c>> {
        open(checkpoint, "EL-Rec", self.name(), DigitOrder::MostSignificantFirst, spec)
    }
}

/// A table of two-dimensional cores in this digit order.
pub(super) fn open<'c>(
    checkpoint: &'c Checkpoint,
    program: &str,
    dialect: &str,
    order: DigitOrder,
    spec: &TableSpec,
) -> Result<Weights<'c>> {
    refuse(spec.tensor.is_some(), "tensor", dialect)?;
    refuse(spec.table.is_some(), "table", dialect)?;
    let tensors =
        numbered(checkpoint, &format!("{}tt_cores.", spec.prefix.as_deref().unwrap_or_default()))?;
    let (mut slices, mut slice_lens) = (Vec::new(), Vec::new());
    for core in &tensors {
        let &[rows, slice_len] = core.shape() else {
            bail!(
                "tensor {:?} has shape {:?}: expected p_k x (r_k q_k r_k+1)",
                core.name(),
                core.shape()
            );
        };
        slices.push(rows);
        slice_lens.push(slice_len);
    }
    let row_factors = cores::row_factors(&tensors, &slices, spec)?;
    let split = split_slices(&slice_lens, spec, None);
    let shape = cores::shape(program, &row_factors, split, spec)?.with_digit_order(order);
    let cores = tensors
        .iter()
        .enumerate()
        .map(|(k, tensor)| Core::flat(tensor, 0, &shape, k))
        .collect();
    Ok(Weights::Tt { shape, cores, overrides: None })
}
