//! What the CPU can do: tiers, and tokens that prove them.
//!
//! A tier is a set of instructions with the few vector operations that the kernels are written in,
//! one file each. Its token is a zero-sized value with a private field: only detection hands it
//! out, or the token of a tier that has all of its features (which is checked at compile time). So
//! code that holds a token may execute the tier's instructions. `for_each_tier!` is the one list of
//! tiers and their features; detection, tokens and the files' `features!` are made from it. Kernels
//! are written once, as an `Op` generic over `Isa`, and `Tier::run` compiles them for every tier.
//!
//! To add a tier: its line in `for_each_tier!`, a file with its `Isa`, and, on a new architecture,
//! its features in `detect`.
//!
//! All `unsafe` of the crate is in this folder: the intrinsics, and the one call into a function
//! that was compiled for more than the baseline.

#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod detect;
#[cfg(target_arch = "aarch64")]
mod neon;
mod operands;
mod scalar;

use core::sync::atomic::{AtomicU8, Ordering};
use half::{bf16, f16};
pub(crate) use operands::{Operands, OutputRows, Steps};
pub(crate) use scalar::Scalar;
use sealed::Sealed;

mod sealed {
    pub(crate) trait Sealed {}
}

/// Whether code size matters more than speed: on 32-bit boards without an operating system, which
/// have no vectors.
pub(crate) const PREFERS_SMALL_CODE: bool =
    cfg!(all(target_os = "none", target_pointer_width = "32"));

/// The vector operations of a tier. Each is a few instructions when it is called from inside
/// [`Tier::run`].
pub(crate) trait Isa: Copy + Sealed {
    /// f32 lanes of a vector: 4, 8 or 16.
    const LANES: usize;
    /// The register tiles of the matrix product, as rows and vectors: the widest tile for 1, 2, 3,
    /// 4, 6 and 8 rows. `kernel::product` derives the sizes, and uses narrower tiles of the same
    /// rows for the columns that are left. A tier without tiles uses loops that are small rather
    /// than fast.
    const TILES: &'static [[usize; 2]];
    /// The same for right operands of f16.
    const TILES_F16: &'static [[usize; 2]] = Self::TILES;
    /// Whether left operands are loaded four at a time ([`quad`](Self::quad)), because broadcasting
    /// one from memory would take the multiply-add's pipes.
    const QUADS: bool;
    /// A vector of f32.
    type F32: Copy;
    /// Four f32 of a left operand, of which [`fma_lane`](Self::fma_lane) uses one: in a register,
    /// or in memory.
    type Quad<'q>: Copy;
    /// The same tier on vectors of half as many lanes, but at least four.
    type Half: Isa;
    /// The same tier on vectors of four lanes.
    type Narrow: FourLanes;
    /// Vectors of several rows of four columns, if this tier [has them](Self::fours).
    type Fours: Groups;
    /// Vectors of several rows of eight columns, if this tier [has them](Self::eights).
    type Eights: Groups;

    /// Vectors whose lanes hold different rows.
    type Rows: RowLanes;

    fn rows(self) -> Self::Rows;
    /// Runs `op` in a function of its own, compiled for this tier.
    fn call<O: Op>(self, op: O) -> O::Output;
    fn half(self) -> Self::Half;
    fn narrow(self) -> Self::Narrow;
    #[inline(always)]
    fn fours(self) -> Option<Self::Fours> {
        None
    }
    #[inline(always)]
    fn eights(self) -> Option<Self::Eights> {
        None
    }
    fn splat(self, x: f32) -> Self::F32;
    /// The first `LANES` elements; zeros where there are fewer. So do the loads below.
    fn load_f32(self, xs: &[f32]) -> Self::F32;
    fn load_f16(self, xs: &[f16]) -> Self::F32;
    fn load_bf16(self, xs: &[bf16]) -> Self::F32;
    fn load_i8(self, xs: &[i8]) -> Self::F32;
    /// Half-bytes, the low one first, as 0 to 15.
    fn load_u4(self, xs: &[u8]) -> Self::F32;
    /// Writes the first `LANES` elements, or as many as there are.
    fn store(self, v: Self::F32, out: &mut [f32]);
    /// `a * b + c`; rounded once on every tier but the scalar one.
    fn fma(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a > b ? a : b` in every lane.
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// Whether any lane of `vs` is at least that of `bound`. NaN is not.
    fn any_at_least(self, vs: &[Self::F32], bound: Self::F32) -> bool;
    fn quad(self, xs: &[f32; 4]) -> Self::Quad<'_>;
    /// `quad[LANE] * b + c`, as [`fma`](Self::fma).
    fn fma_lane<const LANE: usize>(
        self,
        quad: Self::Quad<'_>,
        b: Self::F32,
        c: Self::F32,
    ) -> Self::F32;
    /// Prefetches the cache line at the start of `xs`. Changes no result.
    fn prefetch<T>(self, xs: &[T]);
}

/// Vectors of four lanes.
pub(crate) trait FourLanes: Isa {
    /// Lane j of row i becomes lane i of row j.
    fn transpose(self, rows: [Self::F32; 4]) -> [Self::F32; 4];
}

/// Vectors whose lanes hold different rows.
pub(crate) trait RowLanes: Copy {
    /// Lanes, in fours: 1, 2 or 4.
    const FOURS: usize;
    /// The tier's vectors.
    type Wide: Isa;
    /// Vectors of four lanes.
    type Narrow: Isa;

    fn wide(self) -> Self::Wide;
    fn narrow(self) -> Self::Narrow;
    /// Vectors of four lanes end to end. Those past [`FOURS`](Self::FOURS) do not matter.
    fn join(self, fours: [<Self::Narrow as Isa>::F32; MAX_FOURS]) -> <Self::Wide as Isa>::F32;
    /// Within each four lanes, lane j of vector i becomes lane i of vector j.
    fn transpose(self, vs: [<Self::Wide as Isa>::F32; 4]) -> [<Self::Wide as Isa>::F32; 4];
    /// Byte `BYTE` of each lane, as a signed integer. Byte 0 is the lowest.
    fn signed_byte<const BYTE: usize>(
        self,
        v: <Self::Wide as Isa>::F32,
    ) -> <Self::Wide as Isa>::F32;
}

/// The most fours of lanes that a vector has.
pub(crate) const MAX_FOURS: usize = 4;

/// Vectors that hold several rows side by side, for right operands of few columns, which would
/// leave most of a vector empty.
pub(crate) trait Groups: Copy {
    /// Number of rows: at most [`MAX_GROUP`].
    const ROWS: usize;
    /// The tier's vectors.
    type Wide: Isa;
    /// Vectors of one row.
    type Narrow: Isa;

    fn wide(self) -> Self::Wide;
    fn narrow(self) -> Self::Narrow;
    /// Repeats a vector of one row in every row.
    fn repeat(self, v: NarrowF32<Self>) -> WideF32<Self>;
    /// The vector of each row. Entries past the last row do not matter.
    fn parts(self, v: WideF32<Self>) -> [NarrowF32<Self>; MAX_GROUP];
    /// Loads four elements of the left operand of each row, for [`fma_lane`](Self::fma_lane).
    fn quads(self, rows: &[[f32; 4]; MAX_GROUP]) -> WideF32<Self>;
    /// In each row, element `LANE` of its quad, times `b`, plus `c`.
    fn fma_lane<const LANE: usize>(
        self,
        quads: WideF32<Self>,
        b: WideF32<Self>,
        c: WideF32<Self>,
    ) -> WideF32<Self>;
}

/// The most rows that a vector has.
pub(crate) const MAX_GROUP: usize = 4;
/// The vectors of all rows.
pub(crate) type WideF32<G> = <<G as Groups>::Wide as Isa>::F32;
/// The vectors of one row.
pub(crate) type NarrowF32<G> = <<G as Groups>::Narrow as Isa>::F32;

/// The groups of a tier that has none.
#[derive(Clone, Copy)]
pub(crate) enum NoGroups {}

impl Groups for NoGroups {
    const ROWS: usize = 1;
    type Wide = Scalar;
    type Narrow = Scalar;

    fn wide(self) -> Scalar {
        match self {}
    }
    fn narrow(self) -> Scalar {
        match self {}
    }
    fn repeat(self, _: [f32; 4]) -> [f32; 4] {
        match self {}
    }
    fn parts(self, _: [f32; 4]) -> [[f32; 4]; MAX_GROUP] {
        match self {}
    }
    fn quads(self, _: &[[f32; 4]; MAX_GROUP]) -> [f32; 4] {
        match self {}
    }
    fn fma_lane<const LANE: usize>(self, _: [f32; 4], _: [f32; 4], _: [f32; 4]) -> [f32; 4] {
        match self {}
    }
}

/// A loop that is written once and compiled for every tier.
pub(crate) trait Op {
    type Output;
    /// The loop. Must be `#[inline(always)]`, as must all that it calls, to be compiled for the
    /// tier's instructions.
    fn run<I: Isa>(self, isa: I) -> Self::Output;
}

/// Every tier above the scalar one, best first: module, token, name, features. This is the only
/// list of them.
macro_rules! for_each_tier {
    ($callback:ident) => {
        $callback! { ($)
            #[cfg(target_arch = "x86_64")]
            avx512 Avx512 "avx512" ["avx512f", "avx512vl", "avx2", "fma", "f16c"];
            #[cfg(target_arch = "x86_64")]
            avx2 Avx2 "avx2" ["avx2", "fma", "f16c"];
            #[cfg(target_arch = "aarch64")]
            neon Neon "neon" ["neon"];
        }
    };
}

macro_rules! tiers {
    (($d:tt) $(
        #[$cfg:meta] $module:ident $Token:ident $name:literal [$($feature:literal),+];
    )*) => {
        $(
            #[doc = concat!("Proof that the CPU has ", $($feature, " "),+)]
            #[$cfg]
            #[derive(Clone, Copy, Debug, PartialEq, Eq)]
            pub(crate) struct $Token(());

            #[$cfg]
            impl Sealed for $Token {}

            #[$cfg]
            impl $Token {
                const FEATURES: &'static [&'static str] = &[$($feature),+];
            }
        )*

        /// `features! { module callback ... }` gives `callback!` the features of the tier of this
        /// module, and what follows.
        #[allow(unused_macros, reason = "on architectures with the scalar tier alone")]
        macro_rules! features {
            $( ($module $d callback:ident $d ($d rest:tt)*) => {
                $d callback! { [$($feature),+] $d ($d rest)* }
            }; )*
        }
        #[allow(unused_imports, reason = "as above")]
        use features;

        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        enum Token {
            $( #[$cfg] $Token($Token), )*
            Scalar(Scalar),
        }

        impl Token {
            /// The tier at this position among all of this architecture, best first, if the CPU
            /// can run it.
            fn detect(position: u8) -> Option<Self> {
                let tiers = [$( #[$cfg] Self::$Token($Token(())), )* Self::Scalar(Scalar)];
                let is_available = Self::available() >> position & 1 == 1;
                tiers.get(usize::from(position)).copied().filter(|_| is_available)
            }

            /// A bit for each position. The CPU is asked once: in a virtual machine CPUID takes
            /// microseconds.
            fn available() -> u8 {
                /// 0 until the CPU has been asked, since the scalar tier's bit is always set.
                static AVAILABLE: AtomicU8 = AtomicU8::new(0);
                let known = AVAILABLE.load(Ordering::Relaxed);
                if known != 0 {
                    return known;
                }
                let runs = [$( #[$cfg] $Token::FEATURES.iter().all(|&f| detect::has(f)), )* true];
                let available =
                    runs.into_iter().rev().fold(0, |bits, runs| bits << 1 | u8::from(runs));
                AVAILABLE.store(available, Ordering::Relaxed);
                available
            }
        }

        /// How many tiers this architecture has.
        const NUM_TIERS: u8 = [$( #[$cfg] $name, )* "scalar"].len() as u8;

        impl Tier {
            /// `scalar`, `avx2`, `avx512` or `neon`.
            pub fn name(self) -> &'static str {
                match self.0 {
                    $( #[$cfg] Token::$Token(_) => $name, )*
                    Token::Scalar(_) => "scalar",
                }
            }

            /// Runs `op`, compiled for this tier, or returns `None` on the scalar tier: for loops
            /// that the scalar tier never runs, so that no code is generated for it.
            #[inline(always)]
            #[allow(unused_variables, reason = "on architectures with the scalar tier alone")]
            pub(crate) fn run_vector<O: Op>(self, op: O) -> Option<O::Output> {
                match self.0 {
                    $(
                        #[$cfg]
                        Token::$Token(token) => Some(token.call(op)),
                    )*
                    Token::Scalar(_) => None,
                }
            }

            /// Runs `op`, compiled for this tier.
            #[inline]
            pub(crate) fn run<O: Op>(self, op: O) -> O::Output {
                match self.0 {
                    $(
                        #[$cfg]
                        Token::$Token(token) => token.call(op),
                    )*
                    Token::Scalar(token) => token.call(op),
                }
            }
        }
    };
}
for_each_tier!(tiers);

/// A set of instructions that this CPU is known to have.
///
/// A [`Table`](crate::Table) uses the best; [`Table::with_tier`](crate::Table::with_tier) makes it
/// use another. Tiers with fused multiply-add agree bit for bit; the scalar one differs by the
/// rounding of its products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tier(Token);

impl Tier {
    /// The tiers that this CPU can run, best first; the last is `scalar`.
    pub fn available() -> impl Iterator<Item = Self> {
        (0..NUM_TIERS).filter_map(Token::detect).map(Self)
    }

    /// The best tier that this CPU can run. Detected once.
    pub fn best() -> Self {
        Self::available().next().unwrap_or(Self(Token::Scalar(Scalar)))
    }

    /// Whether this is the scalar tier.
    pub(crate) fn is_scalar(self) -> bool {
        self.scalar().is_some()
    }

    /// The token of the scalar tier, if it is that.
    pub(crate) fn scalar(self) -> Option<Scalar> {
        match self.0 {
            Token::Scalar(token) => Some(token),
            #[allow(unreachable_patterns, reason = "where there is no other tier")]
            _ => None,
        }
    }

    /// The tier of this name, if this CPU can run it.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::available().find(|tier| tier.name() == name)
    }
}

/// Whether all of `some` are among `all`.
#[cfg(target_arch = "x86_64")]
const fn includes(all: &[&str], some: &[&str]) -> bool {
    const fn is_same(a: &[u8], b: &[u8]) -> bool {
        match (a, b) {
            ([], []) => true,
            ([a, rest @ ..], [b, others @ ..]) => *a == *b && is_same(rest, others),
            _ => false,
        }
    }
    const fn is_among(all: &[&str], one: &str) -> bool {
        match all {
            [] => false,
            [first, rest @ ..] => is_same(first.as_bytes(), one.as_bytes()) || is_among(rest, one),
        }
    }
    match some {
        [] => true,
        [first, rest @ ..] => is_among(all, first) && includes(all, rest),
    }
}

/// [`Isa::call`] for a tier with these features.
#[allow(unused_macros, reason = "on architectures with the scalar tier alone")]
macro_rules! call_with_features {
    ([$($feature:literal),+]) => {
        #[inline(always)]
        fn call<O: Op>(self, op: O) -> O::Output {
            #[inline(never)]
            $( #[target_feature(enable = $feature)] )+
            fn compiled<I: Isa, O: Op>(isa: I, op: O) -> O::Output {
                op.run(isa)
            }
            // SAFETY: `self` proves that the CPU has these features.
            unsafe { compiled(self, op) }
        }
    };
}
#[allow(unused_imports, reason = "as above")]
use call_with_features;

/// Wraps intrinsics: each body is compiled with the tier's features, where value intrinsics are
/// safe to call.
#[allow(unused_macros, reason = "as above")]
macro_rules! with_features {
    ($features:tt $( fn $name:ident(self $(, $arg:ident : $t:ty)*) -> $r:ty $body:block )*) => {
        $( with_features!(@one $features $name ($($arg: $t),*) $r $body); )*
    };
    (@one [$($feature:literal),+] $name:ident ($($arg:ident : $t:ty),*) $r:ty $body:block) => {
        #[inline(always)]
        fn $name(self $(, $arg: $t)*) -> $r {
            #[inline]
            $( #[target_feature(enable = $feature)] )+
            fn body($($arg: $t),*) -> $r $body
            // SAFETY: `self` proves that the CPU has these features.
            unsafe { body($($arg),*) }
        }
    };
}
#[allow(unused_imports, reason = "as above")]
use with_features;

/// The first N elements, with zeros where there are fewer.
#[allow(dead_code, reason = "as above")]
#[inline(always)]
fn padded<T: Copy + Default, const N: usize>(xs: &[T]) -> [T; N] {
    match xs.first_chunk::<N>() {
        Some(xs) => *xs,
        None => {
            let mut padded = [T::default(); N];
            padded.iter_mut().zip(xs).for_each(|(to, from)| *to = *from);
            padded
        }
    }
}
