//! Threads for one call.

use crate::error::Error;
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::{
    collections::HashMap,
    process,
    sync::{Arc, Mutex, PoisonError},
};

/// More would not make any table faster.
const MOST: usize = 256;

/// The pools that calls have asked for, by process and number of threads: a process that was forked
/// from this one has the map, but not the threads.
static POOLS: Mutex<Option<HashMap<(u32, usize), Arc<ThreadPool>>>> = Mutex::new(None);

/// A pool of so many threads.
pub(crate) fn pool(threads: usize) -> Result<Arc<ThreadPool>, Error> {
    if !(1..=MOST).contains(&threads) {
        return Err(Error::Value(format!("{threads} threads: expected 1 to {MOST}")));
    }
    let mut pools = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
    let pools = pools.get_or_insert_default();
    let key = (process::id(), threads);
    if let Some(pool) = pools.get(&key) {
        return Ok(Arc::clone(pool));
    }
    let pool = ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = Arc::new(pool.map_err(|error| Error::Defect(error.to_string()))?);
    pools.insert(key, Arc::clone(&pool));
    Ok(pool)
}

/// The bounds of `parts` parts of `len` things, all of about the same size and none empty.
pub(crate) fn bounds(len: usize, parts: usize) -> Vec<usize> {
    let parts = parts.clamp(1, len.max(1));
    let (each, more) = (len / parts, len % parts);
    (0..=parts).map(|part| part * each + part.min(more)).collect()
}
