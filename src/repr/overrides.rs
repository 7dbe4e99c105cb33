//! Overrides: rows that replace those of some indices.

use super::{
    Rows,
    id_index::{Line, position},
};

/// Rows that replace those of some indices: a row that its tensor train approximates badly, for
/// instance, or a row of FBTT's trained cache.
#[derive(Clone, Copy, Debug)]
pub struct Overrides<'a> {
    pub(crate) ids: &'a [u64],
    pub(crate) rows: Rows<'a>,
    pub(crate) index: &'a [Line],
}

impl<'a> Overrides<'a> {
    /// The indices that have an override, strictly ascending.
    pub fn ids(&self) -> &'a [u64] {
        self.ids
    }

    /// Their rows, one per id.
    pub fn rows(&self) -> Rows<'a> {
        self.rows
    }

    /// The position of `index` among the ids.
    #[inline]
    pub(crate) fn position(&self, index: u64) -> Option<usize> {
        position(self.ids, self.index, index)
    }
}
