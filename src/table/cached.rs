//! Where a cache keeps the row of an index. [`crate::cache`] decides which rows it keeps; a lookup
//! needs only [`CachedRows::position`].

/// Rows that a set holds.
pub(crate) const WAYS: usize = 32;
/// Indices that a set counts: those of the rows that it holds, and as many candidates.
pub(crate) const KNOWN: usize = 2 * WAYS;
/// Marks a way that is not in use.
pub(crate) const NO_INDEX: u32 = u32::MAX;

/// The indices that a set counts and how often each was requested. It holds the rows of the first
/// [`WAYS`] indices.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct Set {
    pub(crate) indices: [u32; KNOWN],
    pub(crate) counts: [u32; KNOWN],
}

pub(crate) const SET_WORDS: usize = size_of::<Set>() / size_of::<f32>();

impl Set {
    /// The way that holds the row of `index`.
    #[inline(always)]
    fn held(&self, index: u32) -> Option<usize> {
        way_of(self.indices.first_chunk::<WAYS>()?, index)
    }
}

/// The position of `index`, which occurs once at most.
#[inline(always)]
pub(crate) fn way_of<const N: usize>(indices: &[u32; N], index: u32) -> Option<usize> {
    // No early exit: the compiler then compares several indices at once.
    let found = indices
        .iter()
        .zip(1u32..)
        .fold(0, |found, (&other, at)| found | if other == index { at } else { 0 });
    found.checked_sub(1).map(|at| at as usize)
}

/// Which of `num_sets` sets `index` belongs to: a multiplicative hash, scaled to their number.
#[inline(always)]
pub(crate) fn set_of(index: u32, num_sets: usize) -> usize {
    let hash = index.wrapping_mul(0x9E37_79B1);
    ((u64::from(hash).wrapping_mul(num_sets as u64)) >> 32) as usize
}

/// `index` as a set stores it; `None` if it is too large to be cached.
#[inline(always)]
pub(crate) fn cacheable(index: u64) -> Option<u32> {
    u32::try_from(index).ok().filter(|&index| index != NO_INDEX)
}

/// The cached rows, as lookups read them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CachedRows<'c> {
    pub(crate) sets: &'c [Set],
    /// [`WAYS`] rows for each set; the contents of unused ways do not matter.
    pub(crate) rows: &'c [f32],
}

impl CachedRows<'_> {
    /// The position of the row of `index` among the cached rows.
    #[inline(always)]
    pub(crate) fn position(&self, index: u64) -> Option<usize> {
        let index = cacheable(index)?;
        let set = set_of(index, self.sets.len());
        Some(set.wrapping_mul(WAYS).wrapping_add(self.sets.get(set)?.held(index)?))
    }
}
