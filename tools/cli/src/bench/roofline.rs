//! The roofline: what this core and its memory can do at best, measured again and again during a
//! run.

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
/// Seconds of a pass at least: a shorter one is repeated.
const BURST: f64 = 2e-3;

/// Parts of a pass, each timed by itself: an interruption spoils one of them, and not all.
const PARTS: usize = 20;

/// Something to be timed, a part after another.
pub(super) struct Pass<'p> {
    len: usize,
    run: Box<dyn FnMut(Range<usize>) -> Result<(), LookupError> + 'p>,
}

impl<'p> Pass<'p> {
    /// `run` does some of `len` things.
    pub(super) fn new(
        len: usize,
        run: impl FnMut(Range<usize>) -> Result<(), LookupError> + 'p,
    ) -> Self {
        Self { len, run: Box::new(run) }
    }

    fn parts(&self) -> usize {
        self.len.clamp(1, PARTS)
    }

    /// Seconds that a part takes.
    fn time(&mut self, part: usize) -> Result<f64> {
        let range = self.len * part / self.parts()..self.len * (part + 1) / self.parts();
        let mut result = Ok(());
        let seconds = time(|| result = (self.run)(range));
        result?;
        Ok(seconds)
    }
}

/// What the caches hold of a pass when it begins.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Caches {
    /// What the pass before it, which was the same, has left there.
    Warm,
    /// Nothing: something larger than any cache has been read.
    Cold,
}

/// The best rates seen so far.
pub(super) struct Roofline {
    tier: Tier,
    /// Of what is timed; the fastest counts.
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
        let usual_len = largest_cache() * if quick { 2 } else { 4 };
        let len = usual_len.min(available_memory() / 4).next_multiple_of(64);
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
        // Sums of so few ones, zeros and minus ones are exact in any order.
        ensure!(
            read_all(tier, roofline.floats()) as i64 == sum,
            "memory: wrong answer; nothing was timed"
        );
        // s <- s / 2 + 1 ends at 2; the answer is the sum of the twelve chains and another 1.
        ensure!(
            fma_chains(tier, 100, 0.5, 1.0).1 == 25.0,
            "multiply-adds: wrong answer; nothing was timed"
        );
        let fma = |rounds| time(|| _ = black_box(fma_chains(tier, black_box(rounds), 0.5, 1.0)));
        while fma(roofline.fma_rounds) < 200e-6 {
            roofline.fma_rounds *= 2;
        }
        roofline.measure_flops();
        roofline.measure_memory();
        Ok(roofline)
    }

    /// What could not be measured as usual.
    pub(super) fn notes(&self) -> Vec<String> {
        let short = (self.buffer.len() < self.usual_len).then(|| {
            let (found, usual) = (self.buffer.len() / MIB, self.usual_len / MIB);
            format!(
                "memory bandwidth is that of {found} MiB, for want of {usual} MiB: caches may \
                 have helped"
            )
        });
        short.into_iter().collect()
    }

    /// A fraction of a millisecond of multiply-adds.
    pub(super) fn measure_flops(&mut self) {
        let mut flops = 0;
        let seconds = time(|| {
            flops = black_box(fma_chains(self.tier, black_box(self.fma_rounds), 0.5, 1.0)).0
        });
        self.flops = self.flops.max(flops as f64 / seconds);
    }

    /// The whole buffer, once.
    pub(super) fn measure_memory(&mut self) {
        let seconds = time(|| _ = black_box(read_all(self.tier, self.floats())));
        self.bytes_per_second = self.bytes_per_second.max(self.buffer.len() as f64 / seconds);
    }

    /// The least seconds that each of `runs` takes, part by part, of several passes over all of
    /// them in turn: so they see the same machine, and the multiply-adds of the roofline too.
    pub(super) fn fastest<const N: usize>(
        &mut self,
        caches: Caches,
        mut runs: [Pass<'_>; N],
    ) -> Result<[f64; N]> {
        let mut least = runs.each_ref().map(|run| vec![f64::INFINITY; run.parts()]);
        let mut calls = [1; N];
        // One more: the first shows how often the others call.
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

    /// Floating-point operations per second at best: two for each multiply-add.
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

/// Seconds that `work` takes; never none.
pub(super) fn time(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().max(Duration::from_nanos(1)).as_secs_f64()
}

/// Bytes that can be had without swapping; a guess where the system does not say.
pub(super) fn available_memory() -> usize {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<usize>().ok());
    kib.map_or(1024 * MIB, |kib| kib.saturating_mul(1024))
}

/// Bytes of the largest cache that the first core sees; a generous guess where the system does not
/// say.
fn largest_cache() -> usize {
    let sizes = (0..8).filter_map(|index| {
        let size =
            fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size"))
                .ok()?;
        Some(size.trim().strip_suffix('K')?.parse::<usize>().ok()? * 1024)
    });
    sizes.max().unwrap_or(32 * MIB).max(8 * MIB)
}
