//! The cores of a tensor train ([`TtShape`] has the formula), and stored products of prefixes.

use super::id_index::{Line, position};
use crate::{
    dtype::{Dtype, Elements},
    isa::PREFERS_SMALL_CODE,
    shape::{DigitOrder, MAX_CORES, TtShape},
};

/// The cores of a tensor-train table.
#[derive(Clone, Copy, Debug)]
pub struct TtCores<'a> {
    pub(crate) shape: TtShape,
    /// The first `shape.num_cores()` are in use.
    pub(crate) cores: [Core<'a>; MAX_CORES],
    pub(crate) prefixes: Option<Prefixes<'a>>,
    /// Whether its rows are multiplied out one by one ([`TtCores::new`]).
    pub(crate) is_small: bool,
    /// The steps that multiply out a row, if rows are small, and entries that are not in use. The
    /// first multiplies by core 1.
    pub(crate) steps: [SmallStep; SMALL_STEPS],
    /// [`workspace_len`](Self::workspace_len), if it is kept.
    workspace_len: [usize; KEEPS_WORKSPACE_LEN as usize],
}

/// Whether the least workspace is computed once, because each lookup needs it, and not again by
/// each lookup, which takes less code.
const KEEPS_WORKSPACE_LEN: bool = !PREFERS_SMALL_CODE;

/// The most steps of a small row. Where code size matters more than speed, rows are never small.
const SMALL_STEPS: usize = if PREFERS_SMALL_CODE { 0 } else { MAX_CORES - 1 };

/// The most multiply-adds of a row that is multiplied out by itself, also in a batch.
///
/// A lookup of `a` multiply-adds takes `220 + 0.25 a` instructions by itself, and at least `450 +
/// 0.27 (a - s)` in a batch that is planned, where other lookups share s of them (`.ci/instructions
/// avx2` with ranks 4 to 32, f32, 512 bags of 20). Planning pays from s = 850 + 0.07 a on. Uniform
/// indices of 11,000,000 rows share at most 0.11 a, so that it pays from a = 21,000 on, if at all;
/// of Zipf's (exponent 1.05) 10,240 lookups have 2200 prefixes, and share nearly 0.4 a, so that it
/// pays from a = 2600 on. The limit is below that. It ignores products of sizes for which the
/// kernel has no tile (of rank 12, for example). By themselves they take `220 + 0.5 a` or more, so
/// that planning would pay from about a = 1000 on.
const MAX_SMALL: usize = 2048;

impl<'a> TtCores<'a> {
    /// Its rows are small if they take at most [`MAX_SMALL`] multiply-adds, the cores have one
    /// dtype, and each step's product has a multiple of four columns. Where code size matters more
    /// than speed, they never are.
    pub(crate) fn new(
        shape: TtShape,
        cores: [Core<'a>; MAX_CORES],
        prefixes: Option<Prefixes<'a>>,
    ) -> Self {
        let workspace_len = [workspace_len(&shape); KEEPS_WORKSPACE_LEN as usize];
        let mut steps = [SmallStep::default(); SMALL_STEPS];
        let mut m = 1usize;
        for (step, k) in steps.iter_mut().zip(1usize..) {
            m = m.saturating_mul(shape.column_factor(k.wrapping_sub(1)));
            let n = shape.column_factor(k).saturating_mul(shape.rank(k.wrapping_add(1)));
            *step = SmallStep::new(m, shape.rank(k), n);
        }
        let tt = Self { shape, cores, prefixes, is_small: false, steps, workspace_len };
        let is_small = !PREFERS_SMALL_CODE && shape.has_small_rows(MAX_SMALL) && tt.has_one_dtype();
        Self { is_small, ..tt }
    }

    fn has_one_dtype(&self) -> bool {
        let mut dtypes = self.cores().iter().map(|core| core.slices.dtype());
        let first = dtypes.next();
        dtypes.all(|dtype| Some(dtype) == first)
    }

    /// The least workspace of a lookup or a bag.
    pub(crate) fn workspace_len(&self) -> usize {
        match self.workspace_len.first() {
            Some(&len) => len,
            None => workspace_len(&self.shape),
        }
    }

    /// The factors and ranks.
    pub fn shape(&self) -> &TtShape {
        &self.shape
    }

    /// The cores, in order.
    pub fn cores(&self) -> &[Core<'a>] {
        self.cores.get(..self.shape.num_cores()).unwrap_or_default()
    }

    /// The products of some prefixes, if any are stored.
    pub fn prefixes(&self) -> Option<Prefixes<'a>> {
        self.prefixes
    }
}

/// The sizes of the product of a step, `x[m x r] . slice[r x n]`. They fit u16 if rows are
/// small.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SmallStep {
    pub(crate) m: u16,
    pub(crate) r: u16,
    pub(crate) n: u16,
    /// [`size_class`](Self::size_class) of the product.
    pub(crate) class: u16,
}

impl SmallStep {
    fn new(m: usize, r: usize, n: usize) -> Self {
        let short = |size: usize| u16::try_from(size).unwrap_or(u16::MAX);
        Self { m: short(m), r: short(r), n: short(n), class: Self::size_class(m, n) }
    }

    /// A number for the size of a product, so that one comparison finds the kernel's tile for it.
    /// Each size that a kernel may have a tile for has its own number: m is 1, 2 or 4, and n a
    /// power of two up to 128. All other sizes have the same number.
    pub(crate) const fn size_class(m: usize, n: usize) -> u16 {
        if m.is_power_of_two() && m <= 4 && n.is_power_of_two() && n <= 128 {
            (m.trailing_zeros() << 3 | n.trailing_zeros()) as u16
        } else {
            u16::MAX
        }
    }
}

/// The least workspace of a lookup or a bag: the partial products of one prefix, and a sum of
/// slices of the last core.
fn workspace_len(shape: &TtShape) -> usize {
    let last = shape.num_cores().saturating_sub(1);
    let len = shape
        .partial_len()
        .saturating_mul(shape.num_partials())
        .saturating_add(shape.slice_len(last));
    if shape.column_order() == DigitOrder::MostSignificantFirst {
        len
    } else {
        len.max(shape.embedding_dim())
    }
}

/// One core: `p_k` slices of `r_k x q_k x r_{k+1}` elements, each row-major, one after another.
#[derive(Clone, Copy, Debug)]
pub struct Core<'a> {
    pub(crate) slices: Elements<'a>,
    pub(crate) scales: &'a [f32],
}

impl<'a> Core<'a> {
    /// The slices.
    pub fn slices(&self) -> Elements<'a> {
        self.slices
    }

    /// One scale per slice if the elements are i8, else empty.
    pub fn scales(&self) -> &'a [f32] {
        self.scales
    }

    /// What the elements of a slice are multiplied by.
    #[inline]
    pub(crate) fn scale(&self, slice: usize) -> Option<f32> {
        if self.slices.dtype() == Dtype::I8 {
            self.scales.get(slice).copied()
        } else {
            Some(1.0)
        }
    }
}

/// The products of some prefixes, stored so that lookups need not compute them: those of frequently
/// requested rows.
#[derive(Clone, Copy, Debug)]
pub struct Prefixes<'a> {
    pub(crate) ids: &'a [u64],
    pub(crate) products: &'a [f32],
    pub(crate) index: &'a [Line],
}

impl<'a> Prefixes<'a> {
    /// The numbers of these prefixes ([`TtShape::prefix`]), strictly ascending.
    pub fn ids(&self) -> &'a [u64] {
        self.ids
    }

    /// Their products, [`TtShape::prefix_len`] elements per id.
    pub fn products(&self) -> &'a [f32] {
        self.products
    }

    /// The product of a prefix, if it is stored: `len` elements.
    #[inline]
    pub(crate) fn product(&self, prefix: u64, len: usize) -> Option<&'a [f32]> {
        let start = position(self.ids, self.index, prefix)?.checked_mul(len)?;
        self.products.get(start..)?.get(..len)
    }
}
