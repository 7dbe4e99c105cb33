//! Scratch memory, kept for the next call of the thread, because fresh zeros cost page faults. It
//! grows to what the largest call needs.

use crate::error::Error;
use std::cell::Cell;
use ttrec_convert::zeros;

thread_local! {
    static IDLE: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Runs `work` on `len` elements of any values.
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
