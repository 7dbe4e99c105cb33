//! Dense rows: widened where they lie.

use crate::{
    blob::{Rows, row_header},
    dtype::{Elements, with_elements},
    kernel::{Epilogue, widen_row},
};

/// Gives every element of stored row `position` to `epilogue`.
pub(super) fn put_row<E: Epilogue>(rows: &Rows<'_>, position: usize, out: &mut [f32], epilogue: E) -> Option<()> {
    let row = rows.elements.chunk(position, rows.row_stride())?;
    let (scale, offset, row) = match row {
        Elements::I8(row) => {
            let (scale, offset, row) = row_header(row)?;
            (scale, offset, Elements::I8(row))
        }
        row => (1.0, -0.0, row),
    };
    with_elements!(row, row => widen_row(row, scale, offset, out, epilogue));
    Some(())
}
