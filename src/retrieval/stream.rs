//! Scores of rows that are stored, or computed one by one: a block of rows is transposed, so that
//! adjacent lanes have adjacent rows, and multiplied with the queries.

#![allow(
    clippy::arithmetic_side_effects,
    reason = "numbers of rows of a table, of at most 2^48, and positions within slices"
)]

use super::{Scope, receiver::Receiver};
use crate::{
    dtype::{Elements, Values, with_elements},
    isa::Tier,
    kernel::{
        ByteRowProducts, Consistent, Dims, Epilogue, RowProducts, chain_step, transpose, widen,
    },
    repr::{Codebook, Combine, Projected, Rows, Weights},
    table::{Table, codebook, dense, index_map::RowOf},
};
use core::ops::Range;

/// Elements of a block of rows: the nearest cache holds the block and its transpose.
const BLOCK: usize = 4096;
/// Rows of a block that is not transposed.
const DENSE_ROWS: usize = 64;
/// The most queries for which a block is not transposed.
const FEW_QUERIES: usize = 3;
/// The fewest and the most rows of a block.
const BLOCK_ROWS: Range<usize> = 16..256;

fn block_rows(dim: usize) -> usize {
    (BLOCK / dim.max(1)).clamp(BLOCK_ROWS.start, BLOCK_ROWS.end)
}

/// Scores of a block, the block, and its transpose.
pub(super) fn workspace_len(dim: usize, num_queries: usize) -> usize {
    let per_row = dim.saturating_mul(2).saturating_add(num_queries.min(super::MAX_QUERIES));
    block_rows(dim).saturating_mul(per_row)
}

/// Queries that are multiplied with the projection, and then what the short rows need.
pub(super) fn projected_workspace_len(table: &Projected<'_>, num_queries: usize) -> usize {
    let (rank, queries) = (table.rank(), num_queries.min(super::MAX_QUERIES));
    let dim = table.projection.len().checked_div(rank).unwrap_or(0);
    let contract = contract_workspace_len(rank, dim, queries);
    let walk = workspace_len(rank, num_queries).max(contract);
    walk.saturating_add(rank.saturating_mul(queries))
}

/// The most entries of all books for which a row's score is the sum of stored products.
const MAX_ENTRIES: usize = 1 << 16;

/// Whether the products of queries with all entries are stored.
pub(super) fn stores_products(table: &Codebook<'_>) -> bool {
    table.num_books.saturating_mul(table.book_len) <= MAX_ENTRIES
}

/// The products of queries with all entries, the queries before the projection, their columns of a
/// book, and what the projection, then the entries, and then a block of scores and its transpose
/// need.
pub(super) fn codebook_workspace_len(
    table: &Codebook<'_>,
    dim: usize,
    num_queries: usize,
) -> usize {
    let (inner, queries) = (table.inner_dim, num_queries.min(super::MAX_QUERIES));
    let contract = match table.projection {
        Some(_) => contract_workspace_len(inner, dim, queries),
        None => 0,
    };
    let entries = workspace_len(table.entry_len(), queries).max(2 * DENSE_ROWS * queries);
    table
        .num_books
        .saturating_mul(table.book_len)
        .saturating_add(inner)
        .saturating_add(table.entry_len())
        .saturating_mul(queries)
        .saturating_add(entries.max(contract))
}

/// What multiplying queries with a projection needs.
fn contract_workspace_len(rank: usize, dim: usize, num_queries: usize) -> usize {
    dim.saturating_add(rank).saturating_mul(num_queries).saturating_add(dim)
}

/// Scores all rows at `positions`: `fill` writes a row, with the rest of the workspace for scratch,
/// and `give` takes the number of a query and its scores of the rows from a position on.
fn stream(
    tier: Tier,
    dim: usize,
    queries: &[f32],
    positions: Range<u64>,
    workspace: &mut [f32],
    mut fill: impl FnMut(u64, &mut [f32], &mut [f32]) -> Consistent,
    mut give: impl FnMut(usize, u64, &[f32]) -> Consistent,
) -> Consistent {
    let (num_queries, block) = (queries.len().checked_div(dim)?, block_rows(dim));
    let (rows, workspace) = workspace.split_at_mut_checked(block * dim)?;
    let (columns, workspace) = workspace.split_at_mut_checked(block * dim)?;
    let (scores, scratch) = workspace.split_at_mut_checked(block * num_queries)?;
    let mut first = positions.start;
    while first < positions.end {
        let n = usize::try_from(positions.end - first).map_or(block, |left| left.min(block));
        let (rows, columns) = (rows.get_mut(..n * dim)?, columns.get_mut(..n * dim)?);
        for (row, position) in rows.chunks_exact_mut(dim.max(1)).zip(first..) {
            fill(position, row, scratch)?;
        }
        transpose(tier, rows, dim, columns)?;
        let scores = scores.get_mut(..num_queries * n)?;
        let size = Dims { m: num_queries, r: dim, n };
        chain_step(tier, size, queries, Elements::from_f32(columns), scores, Epilogue::Store)?;
        for (query, scores) in scores.chunks_exact(n).enumerate() {
            give(query, first, scores)?;
        }
        first += n as u64;
    }
    Some(())
}

/// As [`stream`] for dense rows and few queries: no block is transposed, since the products with a
/// query cost less than that.
fn stream_dense(
    tier: Tier,
    rows: &Rows<'_>,
    queries: &[f32],
    positions: Range<u64>,
    mut give: impl FnMut(usize, u64, &[f32]) -> Consistent,
) -> Consistent {
    let (dim, row_stride) = (rows.embedding_dim, rows.row_stride());
    let mut scores = [0.0; DENSE_ROWS];
    let mut first = positions.start;
    while first < positions.end {
        let left = usize::try_from(positions.end - first).unwrap_or(usize::MAX);
        let out = scores.get_mut(..left.min(DENSE_ROWS))?;
        let start = usize::try_from(first).ok()?.checked_mul(row_stride)?;
        // The rows after the block are prefetched.
        let elements = rows.elements.range(start..rows.elements.len())?;
        for (query, x) in queries.chunks_exact(dim.max(1)).enumerate() {
            match elements.0 {
                Values::I8(stored) if !tier.is_scalar() => {
                    let products = RowProducts { stored, row_stride, query: x, out: &mut *out };
                    tier.run_vector(ByteRowProducts(products))??;
                }
                _ => with_elements!(elements, stored => {
                    tier.run(RowProducts { stored, row_stride, query: x, out: &mut *out })
                })?,
            }
            give(query, first, out)?;
        }
        first += out.len() as u64;
    }
    Some(())
}

/// Rows as a lookup gives them, whatever the representation.
pub(super) fn visit_rows(
    table: &Table<'_>,
    queries: &[f32],
    scope: &Scope,
    receiver: &mut Receiver<'_>,
    workspace: &mut [f32],
) -> Consistent {
    let (tier, table) = (table.tier(), table.without_cache());
    let positions = scope.part_of(scope.rows.clone());
    if let Weights::Dense(rows) = &table.data().weights {
        let row_of = RowOf::new(table.data());
        return visit_dense(tier, rows, row_of, queries, positions, receiver, workspace);
    }
    stream(
        tier,
        table.embedding_dim(),
        queries,
        positions,
        workspace,
        |index, row, scratch| table.lookup(index, row, scratch).ok(),
        |query, first, scores| receiver.run(query, first, 1, scores),
    )
}

/// Rows as they are stored, at the positions that `row_of` gives.
fn visit_dense(
    tier: Tier,
    rows: &Rows<'_>,
    row_of: RowOf<'_>,
    queries: &[f32],
    positions: Range<u64>,
    receiver: &mut Receiver<'_>,
    workspace: &mut [f32],
) -> Consistent {
    let dim = rows.embedding_dim;
    let give = |query, first, scores: &[f32]| receiver.run(query, first, 1, scores);
    if queries.len() <= FEW_QUERIES * dim && matches!(row_of, RowOf::Identity) {
        return stream_dense(tier, rows, queries, positions, give);
    }
    let fill = |index, row: &mut [f32], _: &mut [f32]| {
        let position = usize::try_from(row_of.row(index)).ok()?;
        dense::write_row(tier, rows, position, row, Epilogue::Store)
    };
    stream(tier, dim, queries, positions, workspace, fill, give)
}

/// Short rows, with the queries times the projection: `q . (x P) = (P q) . x`.
pub(super) fn visit_projected(
    table: &Table<'_>,
    projected: &Projected<'_>,
    queries: &[f32],
    scope: &Scope,
    receiver: &mut Receiver<'_>,
    workspace: &mut [f32],
) -> Consistent {
    let (tier, rank, dim) = (table.tier(), projected.rank(), table.embedding_dim());
    let num_queries = queries.len().checked_div(dim)?;
    let (short, workspace) = workspace.split_at_mut_checked(num_queries * rank)?;
    contract(tier, projected.projection, queries, dim, short, workspace)?;
    let (row_of, positions) = (RowOf::new(table.data()), scope.part_of(scope.rows.clone()));
    visit_dense(tier, &projected.rows, row_of, short, positions, receiver, workspace)
}

/// Multiplies queries of `dim` columns with a projection, `rank x dim`, into `short`.
fn contract(
    tier: Tier,
    projection: Elements<'_>,
    queries: &[f32],
    dim: usize,
    short: &mut [f32],
    workspace: &mut [f32],
) -> Consistent {
    let num_queries = queries.len().checked_div(dim)?;
    let (columns, rest) = workspace.split_at_mut_checked(queries.len())?;
    let (products, rest) = rest.split_at_mut_checked(short.len())?;
    let row = rest.get_mut(..dim)?;
    transpose(tier, queries, dim, columns)?;
    for (position, products) in products.chunks_exact_mut(num_queries.max(1)).enumerate() {
        widen(tier, projection.chunk(position, dim)?, 1.0, -0.0, row, Epilogue::Store)?;
        let size = Dims { m: 1, r: dim, n: num_queries };
        chain_step(tier, size, row, Elements::from_f32(columns), products, Epilogue::Store)?;
    }
    transpose(tier, products, num_queries, short)
}

/// Rows of codes, whose scores are sums of the products of the query with their entries.
pub(super) fn visit_codes(
    table: &Table<'_>,
    codebook: &Codebook<'_>,
    queries: &[f32],
    scope: &Scope,
    receiver: &mut Receiver<'_>,
    workspace: &mut [f32],
) -> Consistent {
    let (tier, dim, inner) = (table.tier(), table.embedding_dim(), codebook.inner_dim);
    let (num_books, book_len) = (codebook.num_books, codebook.book_len);
    let (entry_len, num_queries) = (codebook.entry_len(), queries.len().checked_div(dim)?);
    let per_query = num_books * book_len;
    let (products, workspace) = workspace.split_at_mut_checked(num_queries * per_query)?;
    let (short, workspace) = workspace.split_at_mut_checked(num_queries * inner)?;
    let (segments, workspace) = workspace.split_at_mut_checked(num_queries * entry_len)?;
    match codebook.projection {
        Some(projection) => contract(tier, projection, queries, dim, short, workspace)?,
        None => short.copy_from_slice(queries),
    }
    for book in 0..num_books {
        let column = if codebook.combine == Combine::Concat {
            book * entry_len
        } else {
            0
        };
        for (to, from) in segments
            .chunks_exact_mut(entry_len.max(1))
            .zip(short.chunks_exact(inner.max(1)))
        {
            to.copy_from_slice(from.get(column..)?.get(..entry_len)?);
        }
        stream(
            tier,
            entry_len,
            segments,
            0..book_len as u64,
            workspace,
            |entry, out, _| {
                let (scale, entry) = codebook.entry(book, u16::try_from(entry).ok()?)?;
                widen(tier, entry, scale, -0.0, out, Epilogue::Store)
            },
            |query, first, scores| {
                let start = (book * book_len + first as usize) * num_queries + query;
                let to = products.get_mut(start..)?.iter_mut().step_by(num_queries.max(1));
                to.zip(scores).for_each(|(to, &score)| *to = score);
                Some(())
            },
        )?;
    }
    // The scores of a row are a row of the table whose books have the products in place of the
    // entries, a column for each query, and whose entries are added.
    let (books, combine) = (Elements::from_f32(products), Combine::Add);
    let sums = Codebook {
        books,
        scales: &[],
        projection: None,
        combine,
        inner_dim: num_queries,
        ..*codebook
    };
    let (row_of, positions) = (RowOf::new(table.data()), scope.part_of(scope.rows.clone()));
    let (rows, workspace) = workspace.split_at_mut_checked(DENSE_ROWS * num_queries)?;
    let scores = workspace.get_mut(..DENSE_ROWS * num_queries)?;
    let mut first = positions.start;
    while first < positions.end {
        let left = usize::try_from(positions.end - first).unwrap_or(usize::MAX);
        let n = left.min(DENSE_ROWS);
        let (rows, scores) = (rows.get_mut(..n * num_queries)?, scores.get_mut(..n * num_queries)?);
        if num_queries == 1 {
            for (score, index) in scores.iter_mut().zip(first..) {
                let row = usize::try_from(row_of.row(index)).ok()?;
                *score = sum_of_products(codebook, row, products)?;
            }
        } else {
            let numbers = (first..).take(n).map(|index| row_of.row(index));
            write_sums(tier, &sums, numbers, rows)?;
            transpose(tier, rows, num_queries, scores)?;
        }
        for (query, scores) in scores.chunks_exact(n).enumerate() {
            receiver.run(query, first, 1, scores)?;
        }
        first += n as u64;
    }
    Some(())
}

/// The sum of the products of a row's entries with one query, book by book: less work than a row of
/// one column.
#[inline(always)]
fn sum_of_products(codebook: &Codebook<'_>, row: usize, products: &[f32]) -> Option<f32> {
    let last = codebook.book_len.checked_sub(1)?;
    // Adding -0.0 changes no value.
    let mut sum = -0.0;
    let mut books = products.chunks_exact(codebook.book_len.max(1));
    for code in codebook.row_codes(row)? {
        sum += books.next()?.get(usize::from(code).min(last))?;
    }
    Some(sum)
}

/// Writes the rows of these numbers, at most a block, one after another.
fn write_sums(
    tier: Tier,
    sums: &Codebook<'_>,
    numbers: impl Iterator<Item = u64> + Clone,
    out: &mut [f32],
) -> Consistent {
    // Each row is a bag.
    let offsets: [u32; DENSE_ROWS + 1] = core::array::from_fn(|row| row as u32);
    let (mut rows, mut n) = ([0; DENSE_ROWS], 0);
    for (row, number) in rows.iter_mut().zip(numbers.clone()) {
        // A number that is no u32 ends the block early, and then all rows are written one by one.
        let Ok(number) = u32::try_from(number) else { break };
        *row = number;
        n += 1;
    }
    if n * sums.inner_dim == out.len()
        && codebook::write_inner_rows(tier, sums, rows.get(..n)?, offsets.get(..=n)?, out).is_some()
    {
        return Some(());
    }
    for (out, number) in out.chunks_exact_mut(sums.inner_dim.max(1)).zip(numbers) {
        let row = usize::try_from(number).ok()?;
        codebook::write_inner_row(tier, sums, row, out, &mut [], Epilogue::Store)?;
    }
    Some(())
}

/// The overrides of a scope's rows.
pub(super) fn visit_overrides(
    table: &Table<'_>,
    ids: &[u64],
    queries: &[f32],
    scope: &Scope,
    receiver: &mut Receiver<'_>,
    workspace: &mut [f32],
) -> Consistent {
    let table = table.without_cache();
    let position = |index| ids.partition_point(|&id| id < index) as u64;
    let id = |position| ids.get(usize::try_from(position).ok()?..);
    stream(
        table.tier(),
        table.embedding_dim(),
        queries,
        scope.part_of(position(scope.rows.start)..position(scope.rows.end)),
        workspace,
        |position, row, scratch| table.lookup(*id(position)?.first()?, row, scratch).ok(),
        |query, first, scores| {
            let mut ids = id(first)?.iter().zip(scores);
            ids.try_for_each(|(&id, &score)| receiver.run(query, id, 1, &[score]))
        },
    )
}
