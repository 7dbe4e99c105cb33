//! Searches as C passes them, converted to the library's.

use crate::{
    boundary::{Given, ttrec_table},
    status::Error,
    ttrec_bags,
};
use std::mem::offset_of;
use ttrec::{Scored, Search, Table};

/// An index and its score.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ttrec_scored {
    /// The index of the row; UINT64_MAX if there is no row.
    pub index: u64,
    /// Its inner product with the query, plus its bias if there is one.
    pub score: f32,
}

// The library writes to the caller's array.
const _: () = assert!(
    size_of::<ttrec_scored>() == size_of::<Scored>()
        && align_of::<ttrec_scored>() == align_of::<Scored>()
        && offset_of!(ttrec_scored, index) == offset_of!(Scored, index)
        && offset_of!(ttrec_scored, score) == offset_of!(Scored, score)
);

/// Which rows ttrec_table_top_k() looks for. ttrec_search_best() fills this struct; then change
/// what differs.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ttrec_search {
    /// The number of rows for each query.
    pub k: usize,
    /// The first index that is searched.
    pub first_row: u64,
    /// The index after the last that is searched; UINT64_MAX for all from first_row on.
    pub end_row: u64,
    /// Which part of these rows is searched, from 0. Threads search different parts, and
    /// ttrec_merge_top_k() merges the results.
    pub part: usize,
    /// How many parts there are; 1 for all rows at once.
    pub num_parts: usize,
    /// Indices to leave out: one bag for each query, or one for all, with the indices of each bag
    /// in ascending order; or null.
    pub excluded: *const ttrec_bags,
    /// A dense table of one column whose row of the same index is added to each score; or null.
    pub bias: *const ttrec_table,
}

impl ttrec_search {
    /// The library's search in `table`.
    pub(crate) fn read<'c>(
        &self,
        given: &Given<'c>,
        table: &Table<'c>,
    ) -> Result<Search<'c>, Error<'c>> {
        let end = match self.end_row {
            u64::MAX => table.num_embeddings(),
            end => end,
        };
        let mut search =
            Search::new(self.k).in_rows(self.first_row..end).part(self.part, self.num_parts);
        if !self.excluded.is_null() {
            let bags = given.copy(self.excluded, "excluded")?.read(given)?;
            let bags = bags.map_err(|error| Error::Bags { table: table.name(), error })?;
            search = search.without(bags);
        }
        if !self.bias.is_null() {
            search = search.with_bias(*given.handle(self.bias, "bias")?.table());
        }
        Ok(search)
    }
}
