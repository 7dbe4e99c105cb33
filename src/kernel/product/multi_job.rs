//! Several products of few rows side by side, so that there are enough sums to hide a
//! multiply-add's latency.

use super::{Job, Product, operands, tile};
use crate::{
    dtype::Weight,
    isa::{Isa, Op, Operands, OutputRows},
};

/// Products of `M` rows and `V` vectors each, computed `J` at a time and added to the output.
pub(super) struct MultiJob<'p, 's, 'o, W, const M: usize, const V: usize, const J: usize> {
    pub(super) product: &'p mut Product<'s, 'o, W>,
}

impl<'s, W: Weight, const M: usize, const V: usize, const J: usize> Op
    for MultiJob<'_, 's, '_, W, M, V, J>
{
    /// The jobs that are left.
    type Output = Option<&'s [Job<'s, W>]>;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Self::Output {
        let (r, n) = (self.product.r, V * I::LANES);
        let mut jobs = self.product.jobs;
        while let Some((group, rest)) = jobs.split_first_chunk::<J>() {
            jobs = rest;
            let products = operands(group);
            let operands = Operands::<W, M, J>::new(products, [r, n], 0, n)?;
            let mut sums = [[[isa.splat(0.0); V]; M]; J];
            tile::multiply(isa, operands, &mut sums);
            for (job, sums) in group.iter().zip(&sums) {
                let out = OutputRows::new(self.product.out.get_mut(job.out..)?, n, n)?;
                tile::store::<I, W, M, V>(isa, job.scale, true, sums, out);
            }
        }
        Some(jobs)
    }
}
