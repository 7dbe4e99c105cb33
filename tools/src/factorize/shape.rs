//! Which factors a table gets unless the spec gives them.

use anyhow::{Context, Result, ensure};

/// The row and column factors of a tensor train.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Factors {
    pub(crate) rows: Vec<u32>,
    pub(crate) columns: Vec<u32>,
}

/// Row factors near the d-th root of `num_embeddings`, ascending, with as little padding as factors that near can have, and
/// column factors with the widest one last.
pub(crate) fn suggest_shape(num_embeddings: u64, embedding_dim: usize, d: usize) -> Result<Factors> {
    ensure!((2..=ttrec::shape::MAX_CORES).contains(&d), "{d} cores: expected 2 to {}", ttrec::shape::MAX_CORES);
    ensure!(num_embeddings > 0 && embedding_dim > 0, "a table of {num_embeddings} x {embedding_dim} has no factors");
    Ok(Factors { rows: row_factors(num_embeddings, d)?, columns: column_factors(embedding_dim, d)? })
}

fn row_factors(num_embeddings: u64, d: usize) -> Result<Vec<u32>> {
    let mut factors = Vec::with_capacity(d);
    let mut rest = num_embeddings;
    for left in (1..=d).rev() {
        // Rounded up each time, so that what is left is never more than the roots left can cover.
        let root = ceil_root(rest, left as u32);
        factors.push(u32::try_from(root).context("too many rows for so few cores")?);
        rest = rest.div_ceil(root);
    }
    factors.sort_unstable();
    Ok(factors)
}

/// The least r with r^k >= n.
fn ceil_root(n: u64, k: u32) -> u64 {
    let mut root = (n as f64).powf(1.0 / f64::from(k)).round().max(1.0) as u64;
    while root > 1 && (root - 1).checked_pow(k).is_none_or(|power| power >= n) {
        root -= 1;
    }
    while root.checked_pow(k).is_some_and(|power| power < n) {
        root += 1;
    }
    root
}

/// Prime factors, largest first, each to the factor that is smallest so far.
fn column_factors(embedding_dim: usize, d: usize) -> Result<Vec<u32>> {
    let mut primes = Vec::new();
    let mut rest = u32::try_from(embedding_dim)?;
    let mut divisor = 2;
    while divisor * divisor <= rest {
        while rest.is_multiple_of(divisor) {
            primes.push(divisor);
            rest /= divisor;
        }
        divisor += 1;
    }
    primes.push(rest);
    let mut factors = vec![1; d];
    for &prime in primes.iter().rev() {
        let smallest = factors.iter_mut().min().context("no cores")?;
        *smallest *= prime;
    }
    factors.sort_unstable();
    Ok(factors)
}
