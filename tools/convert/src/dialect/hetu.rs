//! Hetu: EL-Rec's cores, but core 0 takes the least significant digit. The keys are the same, so a
//! table is Hetu's only if the spec says so.

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
