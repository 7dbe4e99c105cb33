//! Scratch memory, which the calls of a thread reuse.

use crate::error::Error;
use std::cell::Cell;
use ttrec_convert::zeros;

thread_local! {
    static IDLE: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Runs `work` with `len` elements, whose values do not matter.
pub(crate) fn with<T>(
    len: usize,
    work: impl FnOnce(&mut [f32]) -> Result<T, Error>,
) -> Result<T, Error> {
    let mut memory = IDLE.take();
    if memory.len() < len {
        memory = zeros(len)?;
    }
    let done = work(memory.get_mut(..len).unwrap_or_default());
    IDLE.set(memory);
    done
}
