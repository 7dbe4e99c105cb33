//! Dense rows.

use crate::dtype::{Dtype, Elements};

/// Dense rows, one after another.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    pub(crate) elements: Elements<'a>,
    pub(crate) embedding_dim: usize,
}

impl<'a> Rows<'a> {
    /// Elements (bytes, if they are i4) from one row to the next, including the row's header if it
    /// has one.
    pub(crate) fn row_stride(&self) -> usize {
        let dtype = self.dtype();
        self.elements.units_of(self.embedding_dim).saturating_add(match dtype {
            Dtype::I8 | Dtype::I4 => dtype.row_header_len(),
            _ => 0,
        })
    }

    /// Scale, offset and elements of the row at `position`.
    pub(crate) fn row(&self, position: usize) -> Option<(f32, f32, Elements<'a>)> {
        self.elements.chunk(position, self.row_stride())?.split_row()
    }

    /// The elements of all rows. Each i8 or i4 row begins with its scale and offset.
    pub fn elements(&self) -> Elements<'a> {
        self.elements
    }

    /// Elements per row.
    pub fn embedding_dim(&self) -> usize {
        self.embedding_dim
    }

    /// The stored type.
    pub fn dtype(&self) -> Dtype {
        self.elements.dtype()
    }
}
