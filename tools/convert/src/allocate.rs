//! Allocations whose length comes from a file.

use crate::error::Error;

/// `len` zeros, or an error where an allocation would end the process: lengths come from files.
///
/// # Errors
/// If the memory cannot be reserved.
pub fn zeros(len: usize) -> Result<Vec<f32>, Error> {
    let mut zeros = Vec::new();
    zeros
        .try_reserve_exact(len)
        .map_err(|_| Error::Input(format!("{len} float32 elements do not fit in memory")))?;
    zeros.resize(len, 0.0);
    Ok(zeros)
}
