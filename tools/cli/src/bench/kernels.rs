//! The kernels alone, with operands in the L1 cache, aligned as in a blob.

use super::{
    payload::fill_elements,
    roofline::{Roofline, time},
    traffic::{compare, scalar},
};
use crate::progress::Bar;
use anyhow::{Context, Result};
use std::hint::black_box;
use ttrec::{
    AlignedBuf, Tier,
    dtype::{Dtype, Elements},
    kernel::{Dims, Epilogue, chain_step},
};

/// Chain steps that are measured with every dtype: m, r, n.
const TALL: [[usize; 3]; 3] = [[24, 32, 128], [24, 64, 256], [24, 16, 64]];
/// Chain steps that are measured with f32 only.
const FLAT: [[usize; 3]; 3] = [[4, 32, 128], [2, 32, 64], [5, 33, 129]];
/// Widths of the last step, which adds to a bag.
const LAST: [usize; 4] = [4, 8, 16, 64];
/// The scale of i8 slices, by which steps multiply.
const SCALE: f32 = 1.0 / 64.0;
/// The weight in the checked call.
const WEIGHT: f32 = -1.5;

struct Kernel {
    name: String,
    dtype: Dtype,
    size: [usize; 3],
    adds: bool,
    x: AlignedBuf,
    slice: AlignedBuf,
    out: AlignedBuf,
    /// The number of calls in one measurement.
    calls: u32,
    /// The seconds of the fastest measurement.
    seconds_per_call: f64,
}

/// Measures each kernel: its name and floating-point operations per second.
pub(super) fn measure(roofline: &mut Roofline, quick: bool) -> Result<Vec<(String, f64)>> {
    let (rounds, burst) = if quick { (5, 50e-6) } else { (150, 500e-6) };
    let tier = roofline.tier();
    let steps = [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::I8].into_iter().flat_map(|dtype| {
        let flat = if dtype == Dtype::F32 { &FLAT[..] } else { &[] };
        TALL.iter().chain(flat).map(move |&size| (dtype, size, false))
    });
    let last = LAST.iter().map(|&n| (Dtype::F32, [16, 32, n], true));
    let kernels = steps.chain(last).map(|(dtype, size, adds)| Kernel::new(dtype, size, adds));
    let mut kernels: Vec<Kernel> = kernels.collect();
    for kernel in &mut kernels {
        kernel.check(tier)?;
        while kernel.time(tier) < burst {
            kernel.calls *= 2;
        }
    }
    // Rounds over all kernels, so that a busy moment of the machine spoils no kernel entirely.
    let progress = Bar::new("kernels", rounds);
    for _ in 0..rounds {
        for kernel in &mut kernels {
            roofline.measure_flops();
            let seconds = kernel.time(tier) / f64::from(kernel.calls);
            kernel.seconds_per_call = kernel.seconds_per_call.min(seconds);
        }
        progress.add(1);
    }
    let flops = |kernel: &Kernel| {
        2.0 * kernel.size.iter().product::<usize>() as f64 / kernel.seconds_per_call
    };
    Ok(kernels
        .into_iter()
        .map(|kernel| (kernel.name.clone(), flops(&kernel)))
        .collect())
}

impl Kernel {
    fn new(dtype: Dtype, size @ [m, r, n]: [usize; 3], adds: bool) -> Self {
        let operand = |dtype: Dtype, seed, len| {
            let mut buf = AlignedBuf::zeroed(dtype.bytes_of(len));
            fill_elements(dtype, seed, &mut buf);
            buf
        };
        Self {
            name: format!("{}-{}-m{m}-r{r}-n{n}", if adds { "last" } else { "step" }, dtype.name()),
            dtype,
            size,
            adds,
            x: operand(Dtype::F32, 1, m * r),
            slice: operand(dtype, 2, r * n),
            out: operand(Dtype::F32, 3, m * n),
            calls: 1,
            seconds_per_call: f64::INFINITY,
        }
    }

    /// Compares one call with the scalar tier.
    fn check(&mut self, tier: Tier) -> Result<()> {
        let before = AlignedBuf::from_slice(&self.out);
        self.call(scalar()?, WEIGHT)
            .with_context(|| format!("{}: the operands were refused", self.name))?;
        let expected = std::mem::replace(&mut self.out, before);
        self.call(tier, WEIGHT)
            .with_context(|| format!("{}: the operands were refused", self.name))?;
        compare(&self.name, bytemuck::cast_slice(&self.out), bytemuck::cast_slice(&expected))
    }

    /// Seconds for `calls` calls.
    fn time(&mut self, tier: Tier) -> f64 {
        time(|| {
            for call in 0..self.calls {
                // Signs alternate, so that sums stay small.
                let weight = if call % 2 == 0 { 1.0 } else { -1.0 };
                black_box(self.call(tier, black_box(weight)));
            }
        })
    }

    fn call(&mut self, tier: Tier, weight: f32) -> Option<()> {
        let epilogue = match self.dtype {
            _ if self.adds => Epilogue::AddScaled(weight),
            Dtype::I8 => Epilogue::StoreScaled(self.scale()),
            _ => Epilogue::Store,
        };
        let slice = Elements::from_bytes(&self.slice, self.dtype)?;
        let (x, out) = (bytemuck::cast_slice(&self.x), bytemuck::cast_slice_mut(&mut self.out));
        let [m, r, n] = self.size;
        chain_step(tier, Dims { m, r, n }, black_box(x), black_box(slice), out, epilogue)
    }

    fn scale(&self) -> f32 {
        if self.dtype == Dtype::I8 { SCALE } else { 1.0 }
    }
}
