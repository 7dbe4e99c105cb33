//! The default factors of a table.

use crate::error::Error;
use anyhow::{Context, Result, ensure};

/// The row and column factors of a tensor train.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Factors {
    /// One for each core; their product is at least the number of rows.
    pub rows: Vec<u32>,
    /// One for each core; their product is the number of columns.
    pub columns: Vec<u32>,
}

/// Row factors near the d-th root of `num_embeddings`, ascending, with the least padding among such
/// factors, and column factors with the widest one last.
///
/// # Errors
/// If the table is empty, or too large for `d` cores, or `d` is not 2 to 5.
pub fn suggest_shape(
    num_embeddings: u64,
    embedding_dim: usize,
    d: usize,
) -> Result<Factors, Error> {
    Ok(suggest(num_embeddings, embedding_dim, d)?)
}

fn suggest(num_embeddings: u64, embedding_dim: usize, d: usize) -> Result<Factors> {
    ensure!(
        (2..=ttrec::limits::MAX_CORES).contains(&d),
        "{d} cores: expected 2 to {}",
        ttrec::limits::MAX_CORES
    );
    ensure!(
        num_embeddings > 0 && embedding_dim > 0,
        "a table of {num_embeddings} x {embedding_dim} has no factors"
    );
    Ok(Factors {
        rows: row_factors(num_embeddings, d)?,
        columns: column_factors(embedding_dim, d)?,
    })
}

fn row_factors(num_embeddings: u64, d: usize) -> Result<Vec<u32>> {
    let mut factors = Vec::with_capacity(d);
    let mut rest = num_embeddings;
    for left in (1..=d).rev() {
        // Rounded up each time, so that the remaining factors always cover the remaining rows.
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
    let mut divisor = 2u32;
    while u64::from(divisor) * u64::from(divisor) <= rest.into() {
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

/// Column factors for trained tables, the best ones at equal bytes in docs/quality.md: the least
/// prime factor last, with the least significant digit, and all others first, so that neighbouring
/// rows share nearly all of their columns.
pub fn widest_first(embedding_dim: usize, d: usize) -> Vec<u32> {
    let dim = embedding_dim as u32;
    let divides = |q: &u32| dim.is_multiple_of(*q);
    let last = (2..)
        .take_while(|&q| u64::from(q) * u64::from(q) <= dim.into())
        .find(divides)
        .unwrap_or(1);
    let mut factors = vec![1; d];
    if let [first, .., end] = &mut factors[..] {
        (*first, *end) = (dim / last, last);
    }
    factors
}

#[cfg(test)]
mod tests {
    use super::{suggest_shape, widest_first};

    #[test]
    fn all_columns_but_a_prime_go_first() {
        for (dim, factors) in [
            (32, [16, 1, 2]),
            (15, [5, 1, 3]),
            (9, [3, 1, 3]),
            (2, [2, 1, 1]),
            (17, [17, 1, 1]),
            (1, [1, 1, 1]),
        ] {
            assert_eq!(widest_first(dim, 3), factors);
        }
        assert_eq!(widest_first(64, 2), [32, 2]);
    }

    #[test]
    fn factors_cover_the_table_with_little_padding() {
        for d in 2..=6 {
            for rows in (1..200).chain([3706, 6040, 30_522, 32_000, 341_000, 11_000_000, 1 << 40]) {
                let factors = suggest_shape(rows, 64, d).unwrap();
                let covered: u64 = factors.rows.iter().map(|&p| u64::from(p)).product();
                assert!(covered >= rows);
                assert!(factors.rows.is_sorted() && factors.columns.is_sorted());
                if rows > 3000 && d <= 3 {
                    assert!(
                        (covered - rows) as f64 <= 0.05 * rows as f64,
                        "{rows} rows, {d} cores: {factors:?}"
                    );
                    assert!(factors.rows[d - 1] <= 2 * factors.rows[0], "{factors:?}");
                }
            }
        }
    }

    #[test]
    fn column_factors_multiply_to_the_columns_and_the_widest_is_last() {
        for (dim, d, expected) in [
            (64, 3, vec![4, 4, 4]),
            (16, 3, vec![2, 2, 4]),
            (384, 3, vec![6, 8, 8]),
            (100, 3, vec![4, 5, 5]),
            (7, 3, vec![1, 1, 7]),
            (1, 2, vec![1, 1]),
            (32, 2, vec![4, 8]),
        ] {
            let factors = suggest_shape(1000, dim, d).unwrap();
            assert_eq!(factors.columns, expected, "{dim} columns, {d} cores");
        }
    }
}
