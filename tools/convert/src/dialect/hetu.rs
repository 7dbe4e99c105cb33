//! Hetu: EL-Rec's cores, but core 0 takes the least significant digit. No key tells, so only the
//! spec can.

use super::{Dialect, Survey, Weights, el_rec};
use crate::{checkpoint::Checkpoint, spec::TableSpec};
use anyhow::Result;
use ttrec::DigitOrder;

pub(super) struct Hetu;

impl Dialect for Hetu {
    fn name(&self) -> &'static str {
        "hetu"
    }

    fn detect(&self, _: &mut Survey<'_>) {}

    fn open<'c>(&self, checkpoint: &'c Checkpoint, spec: &TableSpec) -> Result<Weights<'c>> {
        el_rec::open(checkpoint, "Hetu", self.name(), DigitOrder::LeastSignificantFirst, spec)
    }
}
