//! Index maps, prepared for lookups.

use crate::{
    divisor::Divisor,
    repr::{IndexMap, RowNumbers, TableData},
};

/// An [`IndexMap`], with the numbers of its table that it needs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RowOf<'a> {
    Identity,
    Modulo(Divisor),
    /// Modulo 2^32 rows or more.
    ModuloLarge(u64),
    /// The row of each index, and the table's last row.
    Remapped(RowNumbers<'a>, u64),
}

impl<'a> RowOf<'a> {
    pub(crate) fn new(table: &TableData<'a>) -> Self {
        match (table.index_map, u32::try_from(table.num_rows)) {
            (IndexMap::Identity, _) => Self::Identity,
            (IndexMap::Modulo, Ok(num_rows)) => Self::Modulo(Divisor::new(num_rows)),
            (IndexMap::Modulo, Err(_)) => Self::ModuloLarge(table.num_rows),
            (IndexMap::Remapped(rows), _) => Self::Remapped(rows, table.num_rows.saturating_sub(1)),
        }
    }

    /// The row of an index that is in range. It is below `num_rows`, whatever the payload says.
    #[inline(always)]
    pub(crate) fn row(&self, index: u64) -> u64 {
        match *self {
            Self::Identity => index,
            Self::Modulo(num_rows) => num_rows.divide_u64(index).1.into(),
            Self::ModuloLarge(num_rows) => index.checked_rem(num_rows).unwrap_or(0),
            Self::Remapped(rows, last) => {
                rows.get(index).map_or(last, |row| u64::from(row).min(last))
            }
        }
    }
}
