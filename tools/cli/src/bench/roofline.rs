//! The roofline: the peak of this core and its memory, measured repeatedly during a run.

use crate::random::random;
use anyhow::{Result, ensure};
use std::{
    fs,
    hint::black_box,
    ops::Range,
    time::{Duration, Instant},
};
use ttrec::{
    AlignedBuf, LookupError, Tier,
    kernel::{fma_chains, read_all},
};

const MIB: usize = 1 << 20;
/// The least seconds of a pass: a shorter one is repeated.
const BURST: f64 = 2e-3;

/// The most bytes of the buffer in a quick run. Some servers have shared caches of half a gigabyte,
/// and filling a buffer of several times as much takes long.
const QUICK_LEN: usize = 32 * MIB;

/// The parts of a pass, each timed separately, so that an interruption spoils only one of them.
const PARTS: usize = 20;

/// Work that is timed in parts.
pub(super) struct Pass<'p> {
    len: usize,
    run: Box<dyn FnMut(Range<usize>) -> Result<(), LookupError> + 'p>,
}

impl<'p> Pass<'p> {
    /// `run` does a range of `len` units of work.
    pub(super) fn new(
        len: usize,
        run: impl FnMut(Range<usize>) -> Result<(), LookupError> + 'p,
    ) -> Self {
        Self { len, run: Box::new(run) }
    }

    fn parts(&self) -> usize {
        self.len.clamp(1, PARTS)
    }

    /// The seconds of a part.
    fn time(&mut self, part: usize) -> Result<f64> {
        let range = self.len * part / self.parts()..self.len * (part + 1) / self.parts();
        let mut result = Ok(());
        let seconds = time(|| result = (self.run)(range));
        result?;
        Ok(seconds)
    }
}

/// The contents of the caches at the start of a pass.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Caches {
    /// As the previous, equal pass left them.
    Warm,
    /// None of the pass's data: a buffer larger than any cache has been read.
    Cold,
}

/// The best rates seen so far.
pub(super) struct Roofline {
    tier: Tier,
    /// Multiply-adds between the timed parts; the fastest counts.
    passes: u32,
    fma_rounds: u64,
    /// Larger than any cache.
    buffer: AlignedBuf,
    usual_len: usize,
    flops: f64,
    bytes_per_second: f64,
}

impl Roofline {
    pub(super) fn new(tier: Tier, quick: bool) -> Result<Self> {
        let usual_len = largest_cache() * 4;
        let most = if quick { QUICK_LEN } else { available_memory() / 4 };
        let len = usual_len.min(most).next_multiple_of(64);
        let mut buffer = AlignedBuf::zeroed(len);
        let mut sum = 0i64;
        for (word, position) in buffer.chunks_exact_mut(4).zip(0..) {
            let value = random(0, position) as i64 % 2;
            sum += value;
            word.copy_from_slice(&(value as f32).to_le_bytes());
        }
        let passes = if quick { 2 } else { 7 };
        let mut roofline = Self {
            tier,
            passes,
            fma_rounds: 100,
            buffer,
            usual_len,
            flops: 0.0,
            bytes_per_second: 0.0,
        };
        // Sums of ones, zeros and minus ones of this length are exact in any order.
        ensure!(
            read_all(tier, roofline.floats()) as i64 == sum,
            "memory: wrong result (this is a bug in ttrec): nothing was measured"
        );
        // s <- s / 2 + 1 converges to 2; the result is the sum of the twelve chains, plus 1.
        ensure!(
            fma_chains(tier, 100, 0.5, 1.0).1 == 25.0,
            "multiply-adds: wrong result (this is a bug in ttrec): nothing was measured"
        );
        let fma = |rounds| time(|| _ = black_box(fma_chains(tier, black_box(rounds), 0.5, 1.0)));
        while fma(roofline.fma_rounds) < 200e-6 {
            roofline.fma_rounds *= 2;
        }
        roofline.measure_flops();
        roofline.measure_memory();
        Ok(roofline)
    }

    /// Notes on measurements with a smaller buffer.
    pub(super) fn notes(&self) -> Vec<String> {
        let short = (self.buffer.len() < self.usual_len).then(|| {
            let (found, usual) = (self.buffer.len() / MIB, self.usual_len / MIB);
            format!(
                "measured memory bandwidth on {found} MiB instead of {usual} MiB: caches may have \
                 helped"
            )
        });
        short.into_iter().collect()
    }

    /// Measures a fraction of a millisecond of multiply-adds.
    pub(super) fn measure_flops(&mut self) {
        let mut flops = 0;
        let seconds = time(|| {
            flops = black_box(fma_chains(self.tier, black_box(self.fma_rounds), 0.5, 1.0)).0
        });
        self.flops = self.flops.max(flops as f64 / seconds);
    }

    /// Reads the whole buffer once.
    pub(super) fn measure_memory(&mut self) {
        let seconds = time(|| _ = black_box(read_all(self.tier, self.floats())));
        self.bytes_per_second = self.bytes_per_second.max(self.buffer.len() as f64 / seconds);
    }

    /// The seconds of each of `runs`: for each part the least of several passes. The passes
    /// alternate between the runs and the multiply-adds of the roofline, so that all are measured
    /// in the same state of the machine.
    pub(super) fn fastest<const N: usize>(
        &mut self,
        caches: Caches,
        mut runs: [Pass<'_>; N],
    ) -> Result<[f64; N]> {
        let mut least = runs.each_ref().map(|run| vec![f64::INFINITY; run.parts()]);
        let mut calls = [1; N];
        // One more pass: the first one decides how often the others repeat.
        for pass in 0..=self.passes {
            self.measure_flops();
            for ((run, calls), least) in runs.iter_mut().zip(&mut calls).zip(&mut least) {
                if caches == Caches::Cold {
                    self.measure_memory();
                }
                let mut total = 0.0;
                for _ in 0..*calls {
                    for (part, least) in least.iter_mut().enumerate() {
                        let seconds = run.time(part)?;
                        *least = least.min(seconds);
                        total += seconds;
                    }
                }
                if pass == 0 && caches == Caches::Warm {
                    *calls = ((BURST / total).ceil() as u32).max(2);
                }
            }
        }
        Ok(least.map(|parts| parts.iter().sum()))
    }

    pub(super) fn tier(&self) -> Tier {
        self.tier
    }

    /// Peak floating-point operations per second, two for each multiply-add.
    pub(super) fn flops(&self) -> f64 {
        self.flops
    }

    pub(super) fn bytes_per_second(&self) -> f64 {
        self.bytes_per_second
    }

    fn floats(&self) -> &[f32] {
        bytemuck::cast_slice(&self.buffer)
    }
}

/// The seconds that `work` takes, never 0.
pub(super) fn time(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().max(Duration::from_nanos(1)).as_secs_f64()
}

/// The available bytes of memory; a guess if the system does not report them.
pub(super) fn available_memory() -> usize {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<usize>().ok());
    kib.map_or(1024 * MIB, |kib| kib.saturating_mul(1024))
}

/// The bytes of the largest cache of core 0; a generous guess if the system does not report them.
fn largest_cache() -> usize {
    let sizes = (0..8).filter_map(|index| {
        let size =
            fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size"))
                .ok()?;
        Some(size.trim().strip_suffix('K')?.parse::<usize>().ok()? * 1024)
    });
    sizes.max().unwrap_or(32 * MIB).max(8 * MIB)
}
