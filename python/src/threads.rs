//! Threads for one call.

use crate::error::Error;
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::{
    collections::HashMap,
    process,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

/// More would not make any table faster.
const MOST: usize = 256;

/// Pools by process and number of threads: a process that was forked from this one has the map, but
/// not the threads.
type Pools = HashMap<(u32, usize), Arc<ThreadPool>>;

/// The pools that calls have asked for.
static POOLS: LazyLock<Mutex<Pools>> = LazyLock::new(Mutex::default);

/// A pool of so many threads; `None` for one, which needs none.
pub(crate) fn several(threads: usize) -> Result<Option<Arc<ThreadPool>>, Error> {
    let pool = || pool(threads).map(Some);
    check(threads).and_then(|()| if threads == 1 { Ok(None) } else { pool() })
}

/// Refuses a number of threads that a caller cannot mean.
pub(crate) fn check(threads: usize) -> Result<(), Error> {
    if (1..=MOST).contains(&threads) {
        Ok(())
    } else {
        Err(Error::Value(format!("{threads} threads: expected 1 to {MOST}")))
    }
}

/// A pool of so many threads; with 0, as many as rayon takes by default.
pub(crate) fn pool(threads: usize) -> Result<Arc<ThreadPool>, Error> {
    let mut pools = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
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
