//! Every kernel on every tier that this CPU can run, for every dtype it takes, at every size around
//! the edges of its tiles.
//!
//! Each element is held against three things: an oracle in f64 with its bound (integers must come
//! out exactly), the bits of the documented order of operations, done one number at a time in f32,
//! and the bits of the same row computed alone. The second makes tiers that never meet on one
//! machine agree: each fused tier is compared with the same chain.
//!
//! `EXPECT_ISA` names the tiers that there must be. `TTREC_KERNEL_CASES=small` takes a part of the
//! cases, for emulators and valgrind.

use crate::support::{
    format,
    oracle::{Approx, Mode, Reference, element, pool},
    rng::Rng,
    tiers::{self, fuses},
};
use half::{bf16, f16};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    panic::{AssertUnwindSafe, catch_unwind},
};
use ttrec::{
    Bags, Blob, Pooling, Tier,
    dtype::{Dtype, Elements},
    kernel::{self, Dims, Epilogue},
};

/// Makes a test of each kernel, and the list of their names.
macro_rules! kernels {
    ($( $(#[$cfg:meta])? $name:ident $dtypes:expr, $check:expr; )+) => {
        $(
            $(#[$cfg])?
            #[test]
            fn $name() {
                run(stringify!($name), $dtypes, $check);
            }
        )+

        const KERNELS: &[&str] = &[$( stringify!($name) ),+];
    };
}

const F32: &[Dtype] = &[Dtype::F32];
const CORES: &[Dtype] = &[Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::I8];

kernels! {
    chain_step CORES, check_chain_step;
    linear_layer CORES, check_linear_layer;
    widen Dtype::ALL, check_widen;
    transpose F32, check_transpose;
    gradients F32, check_gradients;
    dot_interaction F32, check_dot_interaction;
    dense_bags Dtype::ALL, check_dense_bags;
    fma_chains F32, check_fma_chains;
    read_all F32, check_read_all;
    #[cfg(feature = "train")] sgd F32, |cases| updates::check(cases, updates::Rule::Sgd);
    #[cfg(feature = "train")] sgd_of_few F32, updates::check_few;
    #[cfg(feature = "train")] adagrad F32, |cases| updates::check(cases, updates::Rule::Adagrad);
    #[cfg(feature = "train")] row_wise_adagrad F32,
        |cases| updates::check(cases, updates::Rule::RowWiseAdagrad);
    #[cfg(feature = "train")] adam F32, |cases| updates::check(cases, updates::Rule::Adam);
}

#[test]
fn every_public_kernel_is_registered() {
    let exports = include_str!("../../src/kernel/mod.rs")
        .lines()
        .filter_map(|line| line.strip_prefix("pub use "));
    let names = exports
        .flat_map(|line| line.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')));
    // Modules end in colons, types begin with a capital.
    let is_kernel = |name: &str| {
        name.starts_with(|c: char| c.is_lowercase()) && !name.ends_with("_workspace_len")
    };
    let names: BTreeSet<&str> = names
        .map(|name| name.rsplit("::").next().unwrap())
        .filter(|n| is_kernel(n))
        .collect();
    assert!(names.contains("chain_step") && names.len() >= 6, "{names:?}");
    let missing: Vec<_> = names.iter().filter(|name| !KERNELS.contains(name)).collect();
    assert!(missing.is_empty(), "without a test: {missing:?}");
}

// The runner.

type Outcome = Result<(), String>;

/// The cases of one kernel for one tier and dtype.
struct Cases {
    tier: Tier,
    dtype: Dtype,
    /// One case in so many is run.
    stride: usize,
    offered: usize,
    ran: usize,
    failures: Vec<String>,
}

impl Cases {
    /// Runs a case with numbers from a generator of its own; a panic is a failure like any other.
    fn case(&mut self, name: impl Debug, check: impl FnOnce(&mut Rng) -> Outcome) {
        self.offered += 1;
        if !self.offered.is_multiple_of(self.stride) {
            return;
        }
        self.ran += 1;
        let mut rng = Rng::new(self.offered as u64);
        let outcome = catch_unwind(AssertUnwindSafe(|| check(&mut rng)));
        if let Err(failure) = outcome.unwrap_or(Err("panicked".into())) {
            self.failures.push(format!(
                "{} {} {name:?}: {failure}",
                self.tier.name(),
                self.dtype.name()
            ));
        }
    }

    fn fused(&self) -> bool {
        fuses(self.tier)
    }
}

/// Runs `check` for every tier and dtype, and reports all cases that failed together. None at all
/// is a failure too.
fn run(kernel: &str, dtypes: &[Dtype], check: fn(&mut Cases)) {
    let stride = if tiers::few_cases() { 19 } else { 1 };
    let tiers = tiers::available();
    let names: Vec<&str> = tiers.iter().map(|tier| tier.name()).collect();
    println!("tiers: {}", names.join(" "));
    let mut failures = Vec::new();
    for &tier in &tiers {
        let mut counts = BTreeMap::new();
        for &dtype in dtypes {
            let mut cases = Cases { tier, dtype, stride, offered: 0, ran: 0, failures: Vec::new() };
            check(&mut cases);
            counts.insert(dtype.name(), cases.ran);
            failures.append(&mut cases.failures);
            if cases.ran == 0 {
                failures.push(format!("{} {}: no cases", tier.name(), dtype.name()));
            }
        }
        println!("{kernel} {}: {counts:?}", tier.name());
    }
    let shown = failures
        .iter()
        .take(60)
        .map(|failure| format!("\n  {failure}"))
        .collect::<String>();
    assert!(failures.is_empty(), "{kernel}: {} failures:{shown}", failures.len());
}

#[test]
#[should_panic(expected = "scalar f16: no cases")]
fn a_dtype_without_cases_is_a_failure() {
    run("none", &[Dtype::F32, Dtype::F16], |cases| {
        if cases.dtype == Dtype::F32 {
            (0..100).for_each(|n| cases.case(n, |_| Ok(())));
        }
    });
}

#[test]
#[should_panic(
    expected = "two: 2 failures:\n  scalar i8 \"a\": wrong\n  scalar i8 \"b\": panicked"
)]
fn all_failures_are_reported_together() {
    run("two", &[Dtype::I8], |cases| {
        cases.stride = 1;
        let fused = cases.fused();
        cases.case("a", |_| if fused { Ok(()) } else { Err("wrong".into()) });
        cases.case("b", |_| if fused { Ok(()) } else { panic!("on purpose") });
    });
}

// Tiers.

#[test]
fn the_tiers_are_the_expected_ones() {
    let names: Vec<&str> = tiers::available().iter().map(|tier| tier.name()).collect();
    println!("tiers: {}", names.join(" "));
}

#[test]
fn a_set_of_tiers_is_as_expected_in_any_order_and_not_otherwise() {
    for expected in ["avx2,scalar", "scalar,avx2", " scalar , avx2 "] {
        assert_eq!(tiers::expect(&["avx2", "scalar"], expected), Ok(()));
    }
    for unexpected in [
        "scalar",
        "avx2",
        "scalar,neon",
        "scalar,avx2,neon",
        "scalar,avx2,avx2",
        "scalar,avx2,",
        "",
    ] {
        assert!(tiers::expect(&["avx2", "scalar"], unexpected).is_err(), "{unexpected:?}");
    }
    assert!(tiers::expect(&["scalar"], "scalar,avx2").is_err());
    assert_eq!(tiers::expect(&["scalar"], "scalar"), Ok(()));
}

#[test]
fn tiers_are_found_by_name_and_the_best_comes_first() {
    let tiers: Vec<Tier> = Tier::available().collect();
    assert_eq!(tiers.last().map(|tier| tier.name()), Some("scalar"));
    assert_eq!(tiers.first(), Some(&Tier::best()));
    assert_eq!(Tier::best(), Tier::best(), "asked again");
    for (position, &tier) in tiers.iter().enumerate() {
        assert_eq!(Tier::from_name(tier.name()), Some(tier));
        assert!(!tiers[..position].contains(&tier), "{} is there twice", tier.name());
    }
    for unknown in ["", "Scalar", "scalar ", "avx", "sse9"] {
        assert_eq!(Tier::from_name(unknown), None, "{unknown:?}");
    }
}

// Numbers.

#[derive(Clone, Copy, Debug, PartialEq)]
enum Numbers {
    /// Small enough that every result is an integer that f32 holds.
    Integers,
    /// Magnitudes from 2^-6 to 2, and zeros.
    Reals,
}

impl Numbers {
    /// A number that every dtype but i8 and i4 can hold, in its precision.
    fn draw(self, rng: &mut Rng, dtype: Dtype) -> f32 {
        let x = match self {
            Self::Integers => rng.below(7) as f32 - 3.0,
            Self::Reals if rng.one_in(16) => 0.0,
            Self::Reals => {
                // Sign and fraction, then the exponent.
                let (bits, exponent) = (rng.next() as u32, 121 + rng.below(7) as u32);
                f32::from_bits((bits & 0x807f_ffff) | (exponent << 23))
            }
        };
        match dtype {
            Dtype::F16 => f16::from_f32(x).to_f32(),
            Dtype::Bf16 => bf16::from_f32(x).to_f32(),
            _ => x,
        }
    }

    fn list(self, rng: &mut Rng, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.draw(rng, Dtype::F32)).collect()
    }
}

/// Stored elements at the very end of an allocation, so that a tool that watches memory sees a read
/// past them, after `skip` more, so that they need not be aligned to more than one element.
struct Stored {
    dtype: Dtype,
    bytes: Vec<u64>,
    len: usize,
}

impl Stored {
    fn draw(rng: &mut Rng, dtype: Dtype, numbers: Numbers, skip: usize, count: usize) -> Self {
        let stored: Vec<u8> = match dtype {
            Dtype::F32 => (0..count).flat_map(|_| numbers.draw(rng, dtype).to_le_bytes()).collect(),
            Dtype::F16 => (0..count)
                .flat_map(|_| f16::from_f32(numbers.draw(rng, dtype)).to_le_bytes())
                .collect(),
            Dtype::Bf16 => (0..count)
                .flat_map(|_| bf16::from_f32(numbers.draw(rng, dtype)).to_le_bytes())
                .collect(),
            _ => (0..dtype.bytes_of(count)).map(|_| rng.next() as u8).collect(),
        };
        let mut bytes = vec![u64::MAX; (stored.len() + dtype.bytes_of(1) * skip).div_ceil(8)];
        let all: &mut [u8] = bytemuck::cast_slice_mut(&mut bytes);
        let start = all.len() - stored.len();
        all[start..].copy_from_slice(&stored);
        Self { dtype, bytes, len: stored.len() }
    }

    fn as_bytes(&self) -> &[u8] {
        let all: &[u8] = bytemuck::cast_slice(&self.bytes);
        &all[all.len() - self.len..]
    }

    fn elements(&self) -> Elements<'_> {
        Elements::from_bytes(self.as_bytes(), self.dtype).unwrap()
    }

    /// What the oracle reads.
    fn values(&self, count: usize) -> Vec<f32> {
        (0..count)
            .map(|i| element(self.as_bytes(), self.dtype as u8, i) as f32)
            .collect()
    }
}

/// An output between numbers that must not change, and on an alignment of one element.
struct Guarded(Vec<f32>);

impl Guarded {
    const PAD: usize = 64;
    const CANARY: f32 = -7.0e37;

    fn new(before: &[f32]) -> Self {
        let pad = [Self::CANARY; Self::PAD + 1];
        Self([&pad[..], before, &pad[..]].concat())
    }

    fn out(&mut self) -> &mut [f32] {
        let end = self.0.len() - Self::PAD - 1;
        &mut self.0[Self::PAD + 1..end]
    }

    fn finish(mut self) -> Result<Vec<f32>, String> {
        let out = self.out().to_vec();
        let pads = self.0.iter().take(Self::PAD + 1).chain(self.0.iter().rev().take(Self::PAD + 1));
        if pads.into_iter().all(|x| x.to_bits() == Self::CANARY.to_bits()) {
            Ok(out)
        } else {
            Err("wrote outside of its output".into())
        }
    }
}

// The naive reference.

/// `a * b + c` as the tier rounds it.
fn multiply_add(fused: bool, a: f32, b: f32, c: f32) -> f32 {
    if fused { a.mul_add(b, c) } else { a * b + c }
}

/// The documented chain: `s <- s + x_k * g_k` from zero, k ascending.
fn chain(fused: bool, terms: impl Iterator<Item = (f32, f32)>) -> f32 {
    terms.fold(0.0, |sum, (x, g)| multiply_add(fused, x, g, sum))
}

/// What an element must be: its bits, and what the oracle admits.
#[derive(Clone, Copy, Debug)]
struct Expected {
    bits: f32,
    approx: Approx,
}

fn dot(fused: bool, x: &[f32], g: impl Iterator<Item = f32> + Clone) -> Expected {
    let terms = x.iter().copied().zip(g);
    let exact = terms.clone().map(|(x, g)| (Approx::exact(g.into()), f64::from(x)));
    Expected { approx: Approx::dot(exact, 0), bits: chain(fused, terms) }
}

/// What `epilogue` makes of an element of `column` where `before` was.
fn finish(
    fused: bool,
    x: Expected,
    before: f32,
    column: usize,
    epilogue: Epilogue<'_>,
) -> Expected {
    let (v, exact) = (x.bits, Approx::exact);
    let sum = |weight: f32, other: f32| {
        Approx::dot([(x.approx, weight.into()), (exact(other.into()), 1.0)], 0)
    };
    let (bits, approx) = match epilogue {
        Epilogue::Store => (v, x.approx),
        Epilogue::StoreScaled(scale) => (scale * v, Approx::dot([(x.approx, scale.into())], 0)),
        Epilogue::AddScaled(weight) => {
            (multiply_add(fused, weight, v, before), sum(weight, before))
        }
        Epilogue::MaxScaled(_) if v.is_nan() || before.is_nan() => (before, exact(before.into())),
        Epilogue::MaxScaled(scale) => {
            let (v, scaled) = (scale * v, Approx::dot([(x.approx, scale.into())], 0));
            (
                if v > before { v } else { before },
                Approx { value: scaled.value.max(before.into()), ..scaled },
            )
        }
        Epilogue::Bias { scales, bias, relu } => {
            let (v, y) = match scales.get(column) {
                None => (v + bias[column], sum(1.0, bias[column])),
                Some(&scale) => {
                    (multiply_add(fused, scale, v, bias[column]), sum(scale, bias[column]))
                }
            };
            // A NaN is not below zero.
            let negative = relu && y.value < 0.0;
            (
                if relu && v < 0.0 { 0.0 } else { v },
                if negative { Approx { value: 0.0, ..y } } else { y },
            )
        }
    };
    Expected { bits, approx }
}

fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
}

/// Every element is what it must be.
fn agree(found: &[f32], expected: &[Expected], width: usize, numbers: Numbers) -> Outcome {
    assert_eq!(found.len(), expected.len());
    for (at, (&x, y)) in found.iter().zip(expected).enumerate() {
        let at = (at / width.max(1), at % width.max(1));
        let close = if y.approx.value.is_nan() {
            x.is_nan()
        } else {
            y.approx.admits(x)
        };
        if !close {
            return Err(format!("row and column {at:?}: {x} is not {:?}", y.approx));
        }
        let exact = y.approx.value.is_nan() || f64::from(x) == y.approx.value;
        if numbers == Numbers::Integers && !exact {
            return Err(format!("row and column {at:?}: {x} is not exactly {}", y.approx.value));
        }
        if !same(x, y.bits) {
            return Err(format!("row and column {at:?}: {x:e} has other bits than {:e}", y.bits));
        }
    }
    Ok(())
}

fn same_bits(found: &[f32], expected: &[f32], what: &str) -> Outcome {
    match found.iter().zip(expected).position(|(&a, &b)| !same(a, b)) {
        Some(at) => Err(format!("{what}: element {at} is {:e}, not {:e}", found[at], expected[at])),
        None => Ok(()),
    }
}

/// A call that must be refused, and write nothing.
fn refused(before: &[f32], call: impl FnOnce(&mut [f32]) -> Option<()>) -> Outcome {
    let mut out = Guarded::new(before);
    if call(out.out()).is_some() {
        return Err("not refused".into());
    }
    same_bits(&out.finish()?, before, "refused, but it wrote")
}

// Products.

fn row_counts() -> impl Iterator<Item = usize> + Clone {
    (0..=14).chain([16, 17, 23, 24, 25])
}

const RANKS: [usize; 12] = [1, 2, 3, 4, 5, 7, 8, 9, 16, 31, 32, 33];

/// Around one to eight vectors of four, eight or sixteen lanes, and around tiles of them.
fn column_counts() -> impl Iterator<Item = usize> + Clone {
    let edges =
        [23, 24, 25, 26, 31, 32, 33, 47, 48, 49, 63, 64, 65, 79, 80, 81, 92, 104, 127, 128, 129];
    (0..=20).chain(edges)
}

/// Every number of rows with every number of columns, each pair with a quarter of the ranks, and
/// each of the four dtypes with another quarter: in every dtype every rank meets every number of
/// rows and of columns, and all dtypes together have every combination. And more rows, where
/// several share a vector.
fn product_sizes(dtype: Dtype) -> impl Iterator<Item = [usize; 3]> {
    let quarter = CORES.iter().position(|&core| core == dtype).unwrap();
    let pairs = row_counts()
        .enumerate()
        .flat_map(|(i, m)| column_counts().enumerate().map(move |(j, n)| (i + j, m, n)));
    let sizes = pairs.flat_map(move |(at, m, n)| {
        RANKS.into_iter().skip((at + quarter) % 4).step_by(4).map(move |r| [m, r, n])
    });
    let tall = [31, 32, 33, 36, 37, 40, 48, 56].into_iter();
    sizes.chain(tall.flat_map(|m| [4, 5, 8, 12, 28, 36, 37].map(|n| [m, 6, n])))
}

fn check_chain_step(cases: &mut Cases) {
    check_product(cases, |rng, numbers, _| {
        let mut draw = || numbers.draw(rng, Dtype::F32);
        vec![
            Epilogue::Store,
            Epilogue::StoreScaled(draw()),
            Epilogue::AddScaled(draw()),
            Epilogue::MaxScaled(draw()),
        ]
    });
}

fn check_linear_layer(cases: &mut Cases) {
    check_product(cases, |_, _, bias| {
        let scales = [&[], &[], bias];
        let with = |(scales, relu)| Epilogue::Bias { scales, bias, relu };
        scales.into_iter().zip([false, true, true]).map(with).collect()
    });
}

fn check_product(
    cases: &mut Cases,
    epilogues: for<'e> fn(&mut Rng, Numbers, &'e [f32]) -> Vec<Epilogue<'e>>,
) {
    let (tier, dtype, fused) = (cases.tier, cases.dtype, cases.fused());
    for (position, [m, r, n]) in product_sizes(dtype).enumerate() {
        let numbers = if position % 2 == 0 {
            Numbers::Integers
        } else {
            Numbers::Reals
        };
        let skip = position / 2 % 2;
        cases.case([m, r, n], |rng| {
            let mut x = numbers.list(rng, skip + m * r);
            if numbers == Numbers::Reals && m > 0 && rng.one_in(4) {
                x[skip + m / 2 * r + r / 2] = f32::NAN;
            }
            let x = &x[skip..];
            let slice = Stored::draw(rng, dtype, numbers, skip, r * n);
            let values = slice.values(r * n);
            let bias = numbers.list(rng, skip + n);
            let bias = &bias[skip..];
            let mut before = numbers.list(rng, m * n);
            if numbers == Numbers::Reals {
                before.iter_mut().filter(|_| rng.one_in(9)).for_each(|x| *x = f32::NAN);
            }
            let product = |at: usize| {
                dot(fused, &x[at / n * r..][..r], values[at % n..].iter().step_by(n).copied())
            };
            let products: Vec<Expected> = (0..m * n).map(product).collect();

            let epilogues = epilogues(rng, numbers, bias);
            // The rows alone with one epilogue a case, since each takes as long as all rows.
            let of_rows = position / 4 % epilogues.len();
            for (which, epilogue) in epilogues.into_iter().enumerate() {
                let run = || {
                    let mut out = Guarded::new(&before);
                    kernel::chain_step(
                        tier,
                        Dims { m, r, n },
                        x,
                        slice.elements(),
                        out.out(),
                        epilogue,
                    )
                    .ok_or("refused")?;
                    let found = out.finish()?;
                    let finished = products.iter().zip(&before).enumerate();
                    let expected: Vec<Expected> = finished
                        .map(|(at, (&x, &before))| finish(fused, x, before, at % n, epilogue))
                        .collect();
                    agree(&found, &expected, n, numbers)?;
                    if which != of_rows {
                        return Ok(());
                    }
                    for (row, found) in found.chunks(n.max(1)).enumerate() {
                        let mut alone = before[row * n..][..n].to_vec();
                        let x = &x[row * r..][..r];
                        kernel::chain_step(
                            tier,
                            Dims { m: 1, r, n },
                            x,
                            slice.elements(),
                            &mut alone,
                            epilogue,
                        )
                        .ok_or("refused")?;
                        same_bits(found, &alone, "a row alone")?;
                    }
                    Ok(())
                };
                run().map_err(|failure: String| {
                    format!("{numbers:?} {}: {failure}", name_of(epilogue))
                })?;
            }
            Ok(())
        });
    }
}

/// Without the bias itself, which may be long.
fn name_of(epilogue: Epilogue<'_>) -> String {
    match epilogue {
        Epilogue::Bias { scales, relu, .. } => {
            format!("Bias {{ {} scales, relu: {relu} }}", scales.len())
        }
        other => format!("{other:?}"),
    }
}

#[test]
fn products_of_the_wrong_lengths_are_refused() {
    run("chain_step", CORES, |cases| {
        let (tier, dtype) = (cases.tier, cases.dtype);
        cases.stride = 1;
        for [m, r, n] in [[1, 1, 1], [2, 3, 5], [6, 4, 16], [4, 8, 33]] {
            for epilogue in [0, 1, 2, 3, 4, 5] {
                cases.case(([m, r, n], epilogue), |rng| {
                    let numbers = Numbers::Reals;
                    let (x, bias) = (numbers.list(rng, m * r + 1), numbers.list(rng, n + 1));
                    let before = numbers.list(rng, m * n + 1);
                    let slices = [r * n - 1, r * n, r * n + 1]
                        .map(|len| Stored::draw(rng, dtype, numbers, 0, len));
                    let epilogue = |len: usize| match epilogue {
                        0 => Epilogue::Store,
                        1 => Epilogue::StoreScaled(2.0),
                        2 => Epilogue::AddScaled(2.0),
                        3 => Epilogue::MaxScaled(2.0),
                        4 => Epilogue::Bias { scales: &[], bias: &bias[..len], relu: true },
                        _ => Epilogue::Bias { scales: &bias[..len], bias: &bias[..n], relu: true },
                    };
                    let call = |[m, r, n]: [usize; 3],
                                x_len: usize,
                                slice: usize,
                                out_len: usize,
                                bias_len| {
                        refused(&before[..out_len], |out| {
                            let slice = slices[slice].elements();
                            kernel::chain_step(
                                tier,
                                Dims { m, r, n },
                                &x[..x_len],
                                slice,
                                out,
                                epilogue(bias_len),
                            )
                        })
                    };
                    call([m, r, n], m * r - 1, 1, m * n, n).map_err(|e| format!("short x: {e}"))?;
                    call([m, r, n], m * r + 1, 1, m * n, n).map_err(|e| format!("long x: {e}"))?;
                    call([m, r, n], m * r, 0, m * n, n).map_err(|e| format!("short slice: {e}"))?;
                    call([m, r, n], m * r, 2, m * n, n).map_err(|e| format!("long slice: {e}"))?;
                    call([m, r, n], m * r, 1, m * n - 1, n)
                        .map_err(|e| format!("short out: {e}"))?;
                    call([m, r, n], m * r, 1, m * n + 1, n)
                        .map_err(|e| format!("long out: {e}"))?;
                    call([usize::MAX, r + 1, n], m * r, 1, m * n, n)
                        .map_err(|e| format!("overflow: {e}"))?;
                    // Modulo 2^64 the lengths would fit.
                    let wraps = 1 << (usize::BITS - 1);
                    call([wraps, 2, 2], 0, 1, 0, n).map_err(|e| format!("wrapping: {e}"))?;
                    if matches!(epilogue(n), Epilogue::Bias { .. }) {
                        // No scales are as good as all.
                        if n > 1 || !matches!(epilogue(1), Epilogue::Bias { scales: &[_], .. }) {
                            call([m, r, n], m * r, 1, m * n, n - 1)
                                .map_err(|e| format!("short bias: {e}"))?;
                        }
                        call([m, r, n], m * r, 1, m * n, n + 1)
                            .map_err(|e| format!("long bias: {e}"))?;
                    }
                    let nothing = Stored::draw(rng, dtype, numbers, 0, 0);
                    refused(&before[..m * n], |out| {
                        kernel::chain_step(
                            tier,
                            Dims { m, r: 0, n },
                            &[],
                            nothing.elements(),
                            out,
                            epilogue(n),
                        )
                    })
                    .map_err(|e| format!("rank 0: {e}"))?;
                    let nibbles = Stored::draw(rng, Dtype::I4, numbers, 0, 2 * r * n);
                    refused(&before[..m * n], |out| {
                        kernel::chain_step(
                            tier,
                            Dims { m, r, n },
                            &x[..m * r],
                            nibbles.elements(),
                            out,
                            epilogue(n),
                        )
                    })
                    .map_err(|e| format!("i4: {e}"))
                });
            }
        }
    });
}

// Rows.

fn check_widen(cases: &mut Cases) {
    let (tier, dtype, fused) = (cases.tier, cases.dtype, cases.fused());
    for (position, n) in column_counts().flat_map(|n| [n; 4]).enumerate() {
        let numbers = if position % 2 == 0 {
            Numbers::Integers
        } else {
            Numbers::Reals
        };
        // More may be stored than is taken.
        let more = position / 2 % 2 * 3;
        cases.case((numbers, n, more), |rng| {
            let stored = Stored::draw(rng, dtype, numbers, position % 3, n + more);
            let values = stored.values(n);
            let mut before = numbers.list(rng, n);
            if numbers == Numbers::Reals {
                before.iter_mut().filter(|_| rng.one_in(5)).for_each(|x| *x = f32::NAN);
            }
            let (bias, weight) = (numbers.list(rng, n), numbers.draw(rng, Dtype::F32));
            let as_it_is = (1.0, -0.0);
            for (scale, offset) in
                [as_it_is, (numbers.draw(rng, Dtype::F32), numbers.draw(rng, Dtype::F32))]
            {
                for epilogue in [
                    Epilogue::Store,
                    Epilogue::StoreScaled(weight),
                    Epilogue::AddScaled(weight),
                    Epilogue::MaxScaled(weight),
                    Epilogue::Bias { scales: &[], bias: &bias, relu: false },
                    Epilogue::Bias { scales: &[], bias: &bias, relu: true },
                    Epilogue::Bias { scales: &bias, bias: &bias, relu: false },
                ] {
                    let mut out = Guarded::new(&before);
                    kernel::widen(tier, stored.elements(), scale, offset, out.out(), epilogue)
                        .ok_or("refused")?;
                    let expected: Vec<Expected> = values
                        .iter()
                        .zip(&before)
                        .enumerate()
                        .map(|(column, (&x, &before))| {
                            let terms = [
                                (Approx::exact(x.into()), f64::from(scale)),
                                (Approx::exact(offset.into()), 1.0),
                            ];
                            let bits = multiply_add(fused, scale, x, offset);
                            finish(
                                fused,
                                Expected { bits, approx: Approx::dot(terms, 0) },
                                before,
                                column,
                                epilogue,
                            )
                        })
                        .collect();
                    agree(&out.finish()?, &expected, n, numbers).map_err(|failure| {
                        format!("{scale} {offset} {}: {failure}", name_of(epilogue))
                    })?;
                }
            }
            let longer = numbers.list(rng, n + more + 2);
            refused(&longer, |out| {
                kernel::widen(tier, stored.elements(), 1.0, 0.0, out, Epilogue::Store)
            })?;
            for len in [n.wrapping_sub(1), n + 1].into_iter().filter(|&len| len <= n + 1) {
                let bias = vec![0.5; len];
                let epilogue = Epilogue::Bias { scales: &[], bias: &bias, relu: false };
                refused(&before, |out| {
                    kernel::widen(tier, stored.elements(), 1.0, 0.0, out, epilogue)
                })
                .map_err(|failure| format!("a bias of {len}: {failure}"))?;
            }
            Ok(())
        });
    }
}

fn check_dense_bags(cases: &mut Cases) {
    const ROWS: usize = 21;
    // Around the 32 rows that are asked for ahead.
    const LENGTHS: [usize; 11] = [0, 1, 2, 12, 31, 32, 33, 34, 70, 0, 3];
    let (tier, dtype, fused) = (cases.tier, cases.dtype, cases.fused());
    let code = dtype as u8;
    let dims = (1..=20).chain([24, 31, 32, 33, 63, 64, 65, 72, 127, 128, 129]);
    for (position, (dim, numbers)) in dims
        .flat_map(|dim| [Numbers::Integers, Numbers::Reals].map(|numbers| (dim, numbers)))
        .enumerate()
    {
        cases.case((numbers, dim), |rng| {
            let mut rows: Vec<u8> = Vec::new();
            for _ in 0..ROWS {
                if let Some(header) = format::row_header(code) {
                    let offset = numbers.draw(rng, Dtype::F16);
                    let scale = numbers.draw(rng, Dtype::F16).abs().max(0.5);
                    let scale = if numbers == Numbers::Integers {
                        scale.ceil()
                    } else {
                        scale
                    };
                    for x in [scale, offset] {
                        match header {
                            format::DTYPE_F16 => rows.extend(f16::from_f32(x).to_le_bytes()),
                            _ => rows.extend(x.to_le_bytes()),
                        }
                    }
                }
                rows.extend(Stored::draw(rng, dtype, numbers, 0, dim).as_bytes());
            }
            let blob = format::dense_blob(&rows, ROWS as u64, dim, code);
            let table = Blob::parse(&blob).unwrap().table("t").unwrap().with_tier(tier);
            let reference = Reference::new(&blob, 0);
            let row = |row: u64| -> Vec<Expected> {
                let bytes = &rows[row as usize * format::row_len(code, dim)..]
                    [..format::row_len(code, dim)];
                let value = |column: usize| match format::row_header(code) {
                    None => element(bytes, code, column) as f32,
                    Some(header) => {
                        let float = |at: usize| element(bytes, header, at) as f32;
                        let stored =
                            element(&bytes[format::bytes_of(header, 2)..], code, column) as f32;
                        multiply_add(fused, float(0), stored, float(1))
                    }
                };
                let expected = reference.row(row).into_iter().enumerate();
                expected
                    .map(|(column, approx)| Expected { bits: value(column), approx })
                    .collect()
            };
            let table_rows: Vec<Vec<Expected>> = (0..ROWS as u64).map(row).collect();
            for (row, expected) in (0..).zip(&table_rows) {
                let mut out = Guarded::new(&vec![0.5; dim]);
                table.lookup(row, out.out(), &mut []).unwrap();
                agree(&out.finish()?, expected, dim, numbers)
                    .map_err(|failure| format!("row {row}: {failure}"))?;
            }

            let mut offsets = vec![0u64];
            for at in 0..LENGTHS.len() {
                offsets.push(offsets[at] + LENGTHS[(at + position) % LENGTHS.len()] as u64);
            }
            let indices: Vec<u64> =
                (0..offsets[LENGTHS.len()]).map(|_| rng.below(ROWS as u64)).collect();
            let weights = numbers.list(rng, indices.len());
            for mode in Mode::ALL {
                let pooling = match mode {
                    Mode::Sum | Mode::Weighted => Pooling::Sum,
                    Mode::Mean => Pooling::Mean,
                    Mode::Max => Pooling::Max,
                };
                let pool_bags = |indices: &[u64],
                                 offsets: &[u64],
                                 weights: &[f32]|
                 -> Result<Vec<f32>, String> {
                    let mut out = Guarded::new(&vec![0.5; (offsets.len() - 1) * dim]);
                    let mut bags = Bags::new(indices, offsets).unwrap();
                    if mode == Mode::Weighted {
                        bags = bags.with_per_sample_weights(weights).unwrap();
                    }
                    table
                        .pool(&bags, pooling, out.out(), &mut [])
                        .map_err(|error| error.to_string())?;
                    out.finish()
                };
                let found = pool_bags(&indices, &offsets, &weights)?;
                for (range, found) in offsets.windows(2).zip(found.chunks(dim)) {
                    let range = range[0] as usize..range[1] as usize;
                    let (bag, weights) = (&indices[range.clone()], &weights[range]);
                    let rows: Vec<&[Expected]> =
                        bag.iter().map(|&row| &table_rows[row as usize][..]).collect();
                    let expected = naive_bag(fused, &rows, weights, mode, dim);
                    let failed = |failure: String| format!("{mode:?} of {}: {failure}", bag.len());
                    // A mean of integers need not be one.
                    let numbers = if mode == Mode::Mean { Numbers::Reals } else { numbers };
                    agree(found, &expected, dim, numbers).map_err(failed)?;
                    let alone = pool_bags(bag, &[0, bag.len() as u64], weights).map_err(failed)?;
                    same_bits(found, &alone, "a bag alone").map_err(failed)?;
                }
                let narrow: Vec<u32> = indices.iter().map(|&index| index as u32).collect();
                let narrow_offsets: Vec<u32> =
                    offsets.iter().map(|&offset| offset as u32).collect();
                if mode != Mode::Weighted {
                    let mut out = Guarded::new(&vec![0.5; found.len()]);
                    let bags = Bags::new(&narrow, &narrow_offsets).unwrap();
                    table
                        .pool(&bags, pooling, out.out(), &mut [])
                        .map_err(|error| error.to_string())?;
                    same_bits(&out.finish()?, &found, "u32 indices")?;
                }
            }
            Ok(())
        });
    }
}

/// One bag, a row at a time, in the documented order.
fn naive_bag(
    fused: bool,
    rows: &[&[Expected]],
    weights: &[f32],
    mode: Mode,
    dim: usize,
) -> Vec<Expected> {
    let approx: Vec<Vec<Approx>> =
        rows.iter().map(|row| row.iter().map(|x| x.approx).collect()).collect();
    let approx: Vec<&[Approx]> = approx.iter().map(|row| &row[..]).collect();
    let approx = pool(&approx, weights, mode, dim);
    let bits = |column: usize| {
        let mut values = rows.iter().map(|row| row[column].bits);
        match mode {
            Mode::Sum => values.fold(0.0, |sum, x| sum + x),
            Mode::Weighted => {
                values.zip(weights).fold(0.0, |sum, (x, &w)| multiply_add(fused, w, x, sum))
            }
            Mode::Mean if rows.is_empty() => 0.0,
            Mode::Mean => values.fold(0.0, |sum, x| sum + x) / rows.len() as f32,
            Mode::Max => {
                let first = values.next().unwrap_or_default();
                values.fold(first, |max, x| if x > max { x } else { max })
            }
        }
    };
    approx
        .into_iter()
        .enumerate()
        .map(|(column, approx)| Expected { bits: bits(column), approx })
        .collect()
}

#[test]
fn a_nan_stays_where_it_is_the_first_of_a_bag_and_is_passed_over_later() {
    run("dense_bags", &[Dtype::F32, Dtype::F16, Dtype::Bf16], |cases| {
        let (tier, dtype) = (cases.tier, cases.dtype);
        cases.stride = 1;
        for dim in [1, 3, 4, 5, 8, 17, 33, 64, 129] {
            cases.case(dim, |_| {
                let encode = |x: f32| match dtype {
                    Dtype::F32 => x.to_le_bytes().to_vec(),
                    Dtype::F16 => f16::from_f32(x).to_le_bytes().to_vec(),
                    _ => bf16::from_f32(x).to_le_bytes().to_vec(),
                };
                let row = |x: f32| encode(x).repeat(dim);
                let rows = [row(f32::NAN), row(1.0), row(-2.0), row(f32::NEG_INFINITY)].concat();
                let blob = format::dense_blob(&rows, 4, dim, dtype as u8);
                let table = Blob::parse(&blob).unwrap().table("t").unwrap().with_tier(tier);
                let cases: [(&[u32], f32); 7] = [
                    (&[0, 1, 2], f32::NAN),
                    (&[1, 0, 2], 1.0),
                    (&[2, 0, 1, 0], 1.0),
                    (&[0], f32::NAN),
                    (&[2, 2, 0], -2.0),
                    (&[3, 0], f32::NEG_INFINITY),
                    (&[3, 2], -2.0),
                ];
                for (indices, expected) in cases {
                    let offsets = [0, indices.len() as u32];
                    let mut out = vec![0.5; dim];
                    table
                        .pool(
                            &Bags::new(indices, &offsets).unwrap(),
                            Pooling::Max,
                            &mut out,
                            &mut [],
                        )
                        .unwrap();
                    same_bits(&out, &vec![expected; dim], &format!("{indices:?}"))?;
                }
                Ok(())
            });
        }
    });
}

// Transposed products.

/// Around the blocks that are transposed together.
fn block_sizes() -> impl Iterator<Item = usize> + Clone {
    (1..=10).chain([15, 16, 17, 31, 32, 33])
}

fn check_transpose(cases: &mut Cases) {
    let tier = cases.tier;
    let small = [0]
        .into_iter()
        .chain(block_sizes())
        .flat_map(|m| block_sizes().map(move |n| (m, n)));
    // Around 8192 elements, from where on panels of 16 columns are finished one by one.
    let large = [(128, 64), (128, 65), (131, 79), (683, 12), (520, 18), (3, 2731), (2731, 3)];
    for (m, n) in small.chain(large) {
        cases.case([m, n], |rng| {
            let x = Numbers::Reals.list(rng, 1 + m * n);
            let x = &x[1..];
            let mut out = Guarded::new(&vec![0.5; m * n]);
            kernel::transpose(tier, x, n, out.out()).ok_or("refused")?;
            let expected: Vec<f32> = (0..m * n).map(|at| x[at % m * n + at / m]).collect();
            same_bits(&out.finish()?, &expected, "transposed")?;

            let before = vec![0.5; m * n + 1];
            refused(&before, |out| kernel::transpose(tier, x, n, out))?;
            refused(&before[..m * n], |out| kernel::transpose(tier, x, 0, out))?;
            if m > 0 {
                refused(&before[..m * n - 1], |out| kernel::transpose(tier, x, n, out))?;
            }
            // A row that is cut.
            let cut = (m * n).saturating_sub(1);
            if cut % n != 0 {
                refused(&before[..cut], |out| kernel::transpose(tier, &x[..cut], n, out))
            } else {
                Ok(())
            }
        });
    }
}

/// The products that `transpose` is documented for: `g . G'`, and `X' . g`.
fn check_gradients(cases: &mut Cases) {
    let (tier, fused) = (cases.tier, cases.fused());
    let sizes = block_sizes()
        .enumerate()
        .flat_map(|(i, m)| block_sizes().enumerate().map(move |(j, n)| (i, j, m, n)));
    for (position, [m, r, n]) in
        sizes.map(|(i, j, m, n)| [m, RANKS[(i + 5 * j) % RANKS.len()], n]).enumerate()
    {
        let numbers = if position % 2 == 0 {
            Numbers::Integers
        } else {
            Numbers::Reals
        };
        cases.case((numbers, [m, r, n]), |rng| {
            let (x, slice, g) =
                (numbers.list(rng, m * r), numbers.list(rng, r * n), numbers.list(rng, m * n));
            let (before_x, before_slice) = (numbers.list(rng, m * r), numbers.list(rng, r * n));

            let mut transposed = vec![f32::NAN; n * r];
            kernel::transpose(tier, &slice, n, &mut transposed).ok_or("refused")?;
            let mut out = Guarded::new(&before_x);
            let rhs = Elements::from_f32(&transposed);
            kernel::chain_step(tier, Dims { m, r: n, n: r }, &g, rhs, out.out(), Epilogue::Store)
                .ok_or("refused")?;
            let expected: Vec<Expected> = (0..m * r)
                .map(|at| dot(fused, &g[at / r * n..][..n], slice[at % r * n..].iter().copied()))
                .collect();
            agree(&out.finish()?, &expected, r, numbers)
                .map_err(|failure| format!("g . G': {failure}"))?;

            let mut transposed = vec![f32::NAN; r * m];
            kernel::transpose(tier, &x, r, &mut transposed).ok_or("refused")?;
            let mut out = Guarded::new(&before_slice);
            let add = Epilogue::AddScaled(1.0);
            kernel::chain_step(
                tier,
                Dims { m: r, r: m, n },
                &transposed,
                Elements::from_f32(&g),
                out.out(),
                add,
            )
            .ok_or("refused")?;
            let sum = |at: usize| {
                let column: Vec<f32> = x[at / n..].iter().step_by(r).copied().collect();
                let product = dot(fused, &column, g[at % n..].iter().step_by(n).copied());
                finish(fused, product, before_slice[at], at % n, add)
            };
            let expected: Vec<Expected> = (0..r * n).map(sum).collect();
            agree(&out.finish()?, &expected, n, numbers)
                .map_err(|failure| format!("X' . g: {failure}"))
        });
    }
}

/// Steps of optimisers, beside their formulas in f64 and the bits of every other tier.
#[cfg(feature = "train")]
mod updates {
    use super::{Cases, Guarded, Numbers, refused, same_bits};
    use ttrec::{
        Tier,
        kernel::{self, AdamFactors, Dims},
    };

    #[derive(Clone, Copy, Debug, PartialEq)]
    pub(super) enum Rule {
        Sgd,
        Adagrad,
        RowWiseAdagrad,
        Adam,
    }

    const RATE: f32 = 0.25;
    const EPSILON: f32 = 0.125;
    const FACTORS: AdamFactors =
        AdamFactors { step_size: RATE, mean: 0.25, square: 0.125, epsilon: EPSILON };

    impl Rule {
        fn run(
            self,
            tier: Tier,
            g: &[f32],
            s: &mut [f32],
            v: &mut [f32],
            x: &mut [f32],
        ) -> Option<()> {
            match self {
                Self::Sgd => kernel::sgd(tier, RATE, g, x),
                Self::Adagrad => kernel::adagrad(tier, [RATE, EPSILON], g, s, x),
                Self::RowWiseAdagrad => {
                    kernel::row_wise_adagrad(tier, [RATE, EPSILON], g, &mut s[0], x)
                }
                Self::Adam => kernel::adam(tier, FACTORS, g, s, v, x),
            }
        }

        /// s, v and x after it.
        fn expected(self, [g, s, v, x]: [f64; 4], mean_square: f64) -> [f64; 3] {
            let (rate, epsilon) = (f64::from(RATE), f64::from(EPSILON));
            match self {
                Self::Sgd => [s, v, x - rate * g],
                Self::Adagrad => [s + g * g, v, x - rate * g / ((s + g * g).sqrt() + epsilon)],
                Self::RowWiseAdagrad => {
                    [s + mean_square, v, x - rate * g / ((s + mean_square).sqrt() + epsilon)]
                }
                Self::Adam => {
                    let (s, v) = (0.75 * s + 0.25 * g, 0.875 * v + 0.125 * g * g);
                    [s, v, x - rate * s / (v.sqrt() + epsilon)]
                }
            }
        }
    }

    /// The one pass over a slice beside the two products that it stands for, in f64.
    pub(super) fn check_few(cases: &mut Cases) {
        let tier = cases.tier;
        let sizes = (1..=kernel::FEW).flat_map(|m| [1, 2, 5, 16, 33].map(|r| (m, r)));
        for (m, r, n) in
            sizes.flat_map(|(m, r)| [1, 2, 15, 16, 17, 31, 32, 64, 65].map(|n| (m, r, n)))
        {
            cases.case((m, r, n), |rng| {
                let [x, d, slice] = [m * r, m * n, r * n].map(|len| Numbers::Reals.list(rng, len));
                let step = |tier| -> Result<[Vec<f32>; 2], String> {
                    let (mut slice, mut dx) =
                        (Guarded::new(&slice), Guarded::new(&vec![f32::NAN; m * r]));
                    kernel::sgd_of_few(tier, Dims { m, r, n }, RATE, &x, &d, slice.out(), dx.out())
                        .ok_or("refused")?;
                    Ok([slice.finish()?, dx.finish()?])
                };
                let found = step(tier)?;
                let fuses = |tier: Tier| tier.name() != "scalar";
                for other in Tier::available().filter(|other| fuses(*other) == fuses(tier)) {
                    for (found, other) in found.iter().zip(step(other)?) {
                        same_bits(found, &other, "another tier")?;
                    }
                }
                let at = |xs: &[f32], at: usize| f64::from(xs[at]);
                let sum =
                    |terms: &dyn Fn(usize) -> f64, count: usize| (0..count).map(terms).sum::<f64>();
                let close = |found: f32, expected: f64| {
                    (f64::from(found) - expected).abs() <= 1e-5 * expected.abs().max(1.0)
                };
                for (a, j) in (0..r).flat_map(|a| (0..n).map(move |j| (a, j))) {
                    let gradient = sum(&|i| at(&x, i * r + a) * at(&d, i * n + j), m);
                    let expected = at(&slice, a * n + j) - f64::from(RATE) * gradient;
                    if !close(found[0][a * n + j], expected) {
                        return Err(format!(
                            "slice [{a}, {j}]: {} is not {expected}",
                            found[0][a * n + j]
                        ));
                    }
                }
                for (i, a) in (0..m).flat_map(|i| (0..r).map(move |a| (i, a))) {
                    let expected = sum(&|j| at(&d, i * n + j) * at(&slice, a * n + j), n);
                    if !close(found[1][i * r + a], expected) {
                        return Err(format!(
                            "dx [{i}, {a}]: {} is not {expected}",
                            found[1][i * r + a]
                        ));
                    }
                }
                let mut dx = vec![0.0; m * r];
                refused(&slice, |slice| {
                    kernel::sgd_of_few(tier, Dims { m, r, n }, RATE, &x[1..], &d, slice, &mut dx)
                })?;
                refused(&slice, |slice| {
                    kernel::sgd_of_few(tier, Dims { m, r, n }, RATE, &x, &d[1..], slice, &mut dx)
                })?;
                refused(&slice, |slice| {
                    kernel::sgd_of_few(tier, Dims { m, r, n }, RATE, &x, &d, slice, &mut dx[1..])
                })?;
                refused(&slice[1..], |slice| {
                    kernel::sgd_of_few(tier, Dims { m, r, n }, RATE, &x, &d, slice, &mut dx)
                })
            });
        }
        cases.case("no row, and too many", |_| {
            refused(&[0.0], |slice| {
                kernel::sgd_of_few(tier, Dims { m: 0, r: 1, n: 1 }, RATE, &[], &[], slice, &mut [])
            })?;
            // Sizes that are 0 modulo the address space.
            let around = usize::MAX / 4 + 1;
            refused(&[], |slice| {
                kernel::sgd_of_few(
                    tier,
                    Dims { m: 4, r: around, n: 4 },
                    RATE,
                    &[],
                    &[0.0; 16],
                    slice,
                    &mut [],
                )
            })?;
            kernel::sgd_of_few(
                tier,
                Dims { m: 1, r: 0, n: 1 },
                RATE,
                &[],
                &[0.0],
                &mut [],
                &mut [],
            )
            .ok_or("nothing to do is done")?;
            let many = [0.0; kernel::FEW + 1];
            refused(&[0.0], |slice| {
                kernel::sgd_of_few(
                    tier,
                    Dims { m: many.len(), r: 1, n: 1 },
                    RATE,
                    &many,
                    &many,
                    slice,
                    &mut many.clone(),
                )
            })
        });
    }

    pub(super) fn check(cases: &mut Cases, rule: Rule) {
        let tier = cases.tier;
        for len in (1..=36).chain([47, 48, 49, 63, 64, 65, 127, 128, 129, 1000]) {
            cases.case(len, |rng| {
                let g = Numbers::Reals.list(rng, len);
                let before = [0, 1, 2].map(|_| Numbers::Reals.list(rng, len));
                // Of which roots are taken.
                let state = |at: usize| {
                    before[at]
                        .iter()
                        .map(move |x| if rule == Rule::Adam && at == 0 { *x } else { x.abs() })
                };
                let before = [state(0).collect(), state(1).collect(), before[2].clone()];
                let step = |tier| -> Result<[Vec<f32>; 3], String> {
                    let [mut s, mut v, mut x] =
                        before.each_ref().map(|before: &Vec<f32>| Guarded::new(before));
                    rule.run(tier, &g, s.out(), v.out(), x.out()).ok_or("refused")?;
                    Ok([s.finish()?, v.finish()?, x.finish()?])
                };
                let found = step(tier)?;
                for other in Tier::available() {
                    for (found, other) in found.iter().zip(step(other)?) {
                        same_bits(found, &other, "another tier")?;
                    }
                }
                let wide = |xs: &[f32], at: usize| f64::from(xs[at]);
                let mean_square =
                    g.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>() / len as f64;
                for at in 0..len {
                    let of_state = if rule == Rule::RowWiseAdagrad { 0 } else { at };
                    let inputs = [
                        wide(&g, at),
                        wide(&before[0], of_state),
                        wide(&before[1], at),
                        wide(&before[2], at),
                    ];
                    let expected = rule.expected(inputs, mean_square);
                    let found =
                        [wide(&found[0], of_state), wide(&found[1], at), wide(&found[2], at)];
                    if found
                        .iter()
                        .zip(expected)
                        .any(|(x, y)| (x - y).abs() > 1e-5 * y.abs().max(1.0))
                    {
                        return Err(format!("element {at}: {found:?} is not {expected:?}"));
                    }
                }
                let (mut s, mut v) = (before[0].clone(), before[1].clone());
                refused(&before[2], |x| rule.run(tier, &g[1..], &mut s, &mut v, x))?;
                if matches!(rule, Rule::Adagrad | Rule::Adam) {
                    refused(&before[2], |x| rule.run(tier, &g, &mut s[1..], &mut v, x))?;
                }
                Ok(())
            });
        }
    }
}

fn check_dot_interaction(cases: &mut Cases) {
    let (tier, fused) = (cases.tier, cases.fused());
    let dims: Vec<usize> = column_counts().skip(1).collect();
    let counts = (1..=14).chain([16, 17, 25, 26, 27, 33]);
    let sizes = counts.flat_map(|f| dims.iter().map(move |&dim| (f, dim)));
    for (position, (f, dim)) in sizes.enumerate().filter(|(position, _)| position % 3 == 0) {
        let numbers = if position % 2 == 0 {
            Numbers::Integers
        } else {
            Numbers::Reals
        };
        cases.case((numbers, f, dim), |rng| {
            let features = numbers.list(rng, 1 + f * dim);
            let features = &features[1..];
            let mut expected = Vec::new();
            for i in 0..f {
                let vector = |i: usize| &features[i * dim..][..dim];
                expected.extend((0..i).map(|j| dot(fused, vector(i), vector(j).iter().copied())));
            }
            let len = kernel::dot_interaction_workspace_len(f, dim);
            let mut out = Guarded::new(&vec![0.5; expected.len()]);
            let mut workspace = vec![f32::NAN; len + 3];
            kernel::dot_interaction(tier, features, f, out.out(), &mut workspace)
                .ok_or("refused")?;
            agree(&out.finish()?, &expected, expected.len(), numbers)?;
            if !workspace[len..].iter().all(|x| x.is_nan()) {
                return Err("used more workspace than it asks for".into());
            }

            let before = vec![0.5; expected.len() + 1];
            let pairs = expected.len();
            let mut call = |features: &[f32], f: usize, out_len: usize, workspace_len: usize| {
                let workspace = &mut workspace[..workspace_len];
                refused(&before[..out_len], |out| {
                    kernel::dot_interaction(tier, features, f, out, workspace)
                })
            };
            call(features, f, pairs + 1, len).map_err(|e| format!("long out: {e}"))?;
            call(features, f, pairs, len - 1).map_err(|e| format!("short workspace: {e}"))?;
            call(features, 0, 0, len).map_err(|e| format!("no features: {e}"))?;
            if pairs > 0 {
                call(features, f, pairs - 1, len).map_err(|e| format!("short out: {e}"))?;
                call(&features[1..], f, pairs, len).map_err(|e| format!("a cut feature: {e}"))?;
            }
            Ok(())
        });
    }
}

// The roofline.

fn check_fma_chains(cases: &mut Cases) {
    let tier = cases.tier;
    for rounds in (0..30).chain([100]) {
        cases.case(rounds, |_| {
            // Thirteen sums of 1 and `rounds` more steps of twelve of them.
            let (operations, sum) = kernel::fma_chains(tier, rounds, 1.0, 1.0);
            let (_, powers) = kernel::fma_chains(tier, rounds % 8, 2.0, 1.0);
            let expected = (13 + 12 * rounds) as f32;
            let expected_powers = (1 + 12 * ((1 << (rounds % 8 + 1)) - 1)) as f32;
            if (sum, powers) != (expected, expected_powers) {
                return Err(format!("{sum} and {powers}, not {expected} and {expected_powers}"));
            }
            let per_round = operations.checked_div(rounds).unwrap_or(12 * 2);
            let lanes_of_twelve =
                per_round % (12 * 2) == 0 && per_round > 0 && per_round * rounds == operations;
            if lanes_of_twelve {
                Ok(())
            } else {
                Err(format!("{operations} operations"))
            }
        });
    }
}

fn check_read_all(cases: &mut Cases) {
    let tier = cases.tier;
    for len in (0..=140).chain([255, 256, 257, 1000]) {
        cases.case(len, |rng| {
            let xs = Numbers::Integers.list(rng, len + 1);
            let expected: f32 = xs[1..].iter().sum();
            let found = kernel::read_all(tier, &xs[1..]);
            if found == expected {
                Ok(())
            } else {
                Err(format!("{found} is not {expected}"))
            }
        });
    }
}
