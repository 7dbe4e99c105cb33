//! Codes: product quantisation of the rows themselves, or of their largest directions.
//!
//! The variances of the directions determine the best number of directions for each number of
//! codes. Codes of some numbers are learned from some of the rows and measured on a sample of all
//! rows. For the numbers between them, the errors are interpolated. In a small table, one more code
//! for each row can take a large part of the budget. So its codes are also tried with more
//! directions: at most as many more as take the bytes of one more code.

use super::{
    candidate::{Candidate, Context, Form, bytes},
    low_rank::{MAX_COLUMNS, PROJECTION, ROUNDED, interpolate},
    sample::{Sample, squared_norm},
    tensor_train::weights,
};
use crate::{
    factorize::{CodesShape, Encoder, Learner, Rows},
    progress::Share,
    spec::Combining,
};
use anyhow::Result;
use ttrec::{blob::TableSpec, dtype::Dtype, limits::MAX_NUM_BOOKS};

/// The stored types that are tried for books.
const DTYPES: [Dtype; 2] = [Dtype::F16, Dtype::I8];
/// The bits of codes; fewer than the first only where the books are a large part of the bytes.
const BITS: [u32; 4] = [8, 7, 6, 5];
/// The rows for each entry that books are learned from, a part of those that `convert` takes.
const ROWS_PER_ENTRY: u64 = 64;
/// The most elements of a small table.
const SMALL: u64 = 1 << 20;
/// The numbers of codes that are measured of a small table grow by this part of themselves.
const GROWTH: usize = 4;
/// A small table is also tried with more directions. The directions that take as many bytes as one
/// more code are added in this many equal parts.
const MORE: usize = 4;
/// Those of a large table, which take seconds for each number, in relation to the most that fit.
const PARTS: [usize; 6] = [1, 2, 4, 8, 12, FEWEST];
/// In a large table, codes whose error is so many times that of others in as many bytes are given
/// up, and so are more codes of their kind.
const BEATEN: f64 = 1.05;
/// Fewer codes of a large table than this part of the most that fit are not tried, with and without
/// a projection.
const FEWEST: usize = 16;
const FEWEST_PLAIN: usize = 4;

/// Shapes of growing numbers of codes, and the positions of those that are measured.
#[derive(Default)]
struct Family {
    shapes: Vec<CodesShape>,
    measured: Vec<usize>,
}

/// Codes of every number, in each stored type of the books.
pub(super) fn candidates(
    context: &Context<'_>,
    rows: &dyn Rows,
    share: &Share<'_>,
) -> Result<Vec<Candidate>> {
    let (n, columns) = (rows.num_embeddings(), rows.embedding_dim());
    // A row of codes cannot be zeros exactly.
    if context.found.padding_idx.is_some() || !(2..=MAX_COLUMNS).contains(&columns) {
        return Ok(Vec::new());
    }
    let weights = weights(context, n)?;
    // The memory may be too small, or a value not finite.
    let Ok(learner) =
        Learner::new(rows, weights.as_deref(), BITS[0], ROWS_PER_ENTRY, true, &context.job())
    else {
        return Ok(Vec::new());
    };
    let bits = BITS.into_iter().filter(|bits| n >= 2 << bits);
    let more = if is_small(n, columns) { MORE } else { 0 };
    let families: Vec<Family> = bits
        .flat_map(|bits| (0..=more).map(Some).chain([None]).map(move |more| (bits, more)))
        .map(|(bits, more)| family(context, &learner, n, bits, more))
        .collect();
    let few = Sample::draw(n, ROUNDED, context.options.frequencies);
    let values = few.read(rows)?;
    let part = context.energy / few.sum(&values, squared_norm).max(f64::MIN_POSITIVE);
    let all: usize = families.iter().map(|family| family.measured.len()).sum();
    let (mut found, mut done) = (Vec::new(), 0);
    for Family { shapes, measured } in &families {
        // The numbers of codes and the logarithms of the squared errors, for each type.
        let mut points: [Vec<(f64, f64)>; DTYPES.len()] = Default::default();
        let candidate = |shape: &CodesShape, dtype, points: &[(f64, f64)]| {
            let squared = interpolate(points, shape.books as f64).exp();
            let weights = shape.layout(n, columns, dtype, PROJECTION);
            let form = Form::Codes { shape: *shape };
            context.candidate(form, weights, squared)
        };
        for (tried, &position) in measured.iter().enumerate() {
            share.reach(done + tried, all);
            let shape = &shapes[position];
            let books = learner.learn(shape, &context.job())?;
            let mut worth = false;
            for (dtype, points) in DTYPES.into_iter().zip(&mut points) {
                // Values that overflow rule this type out from here on.
                let Ok(encoder) = Encoder::new(&books, dtype, PROJECTION) else { continue };
                if points.len() < tried {
                    continue;
                }
                let (_, errors) = encoder.encode(&values.values, columns);
                let squared: f64 =
                    errors.iter().zip(&few.weights).map(|(e, weight)| e * weight).sum();
                points.push((shape.books as f64, (squared * part).max(f64::MIN_POSITIVE).ln()));
                let this = candidate(shape, dtype, points)?;
                worth |= !found.iter().any(|other: &Candidate| {
                    other.bytes <= this.bytes && other.error * BEATEN < this.error
                });
            }
            if !worth && !is_small(n, columns) {
                break;
            }
        }
        done += measured.len();
        for (dtype, points) in DTYPES.into_iter().zip(points) {
            let Some(&(last, _)) = points.last() else { continue };
            for shape in shapes.iter().take_while(|shape| shape.books as f64 <= last) {
                found.push(candidate(shape, dtype, &points)?);
            }
        }
    }
    Ok(found)
}

fn is_small(num_embeddings: u64, columns: usize) -> bool {
    num_embeddings.saturating_mul(columns as u64) <= SMALL
}

/// The shapes of codes of so many bits that may be worth storing, by their number of codes, and the
/// positions of those that are measured. `None` for `more` means no projection. With a projection,
/// `more` of [`MORE`] parts of the directions that one more code would pay for are added to the
/// best number of directions. Shapes that are the same with one part less are left out.
///
/// Those of a small table do not depend on the budget, so that the same codes have the same error
/// in every plan.
fn family(
    context: &Context<'_>,
    learner: &Learner,
    num_embeddings: u64,
    bits: u32,
    more: Option<usize>,
) -> Family {
    let columns = context.values.columns;
    let projected = more.is_some();
    let directions = learner.directions().zip(more);
    let rank = |books: usize| {
        let Some((directions, more)) = directions else { return Some(columns) };
        let best = directions.rank_for(books, bits, num_embeddings);
        let per_code = directions.per_code(bits, num_embeddings);
        let [fewer, this] = [more.saturating_sub(1), more].map(|more| {
            let added = per_code * more as f64 / MORE as f64;
            let rank = columns.min(best.saturating_add(added.round() as usize));
            // All books have the same number of columns, so that rounding up takes no more bytes.
            // Larger numbers of codes are not all measured: there the rank has to grow steadily,
            // because the errors between them are interpolated.
            if books <= 2 * GROWTH {
                rank.next_multiple_of(books).min(columns)
            } else {
                rank
            }
        });
        (more == 0 || fewer < this).then_some(this)
    };
    let shape = |books: usize| {
        let rank = rank(books)?;
        Some(CodesShape { combine: Combining::Concat, books, bits, rank, projected })
    };
    let fits = |shape: &CodesShape| {
        let layout = shape.layout(num_embeddings, columns, DTYPES[1], PROJECTION);
        bytes(&TableSpec::new(context.name, layout))
            .is_ok_and(|bytes| bytes <= context.options.most_bytes)
    };
    // One bit less of each code saves half of the books.
    let worth = 2 * u128::from(bits + 1) * ((columns as u128) << bits) / u128::from(num_embeddings);
    let worth = if bits == BITS[0] { usize::MAX } else { worth as usize };
    let largest = columns.min(MAX_NUM_BOOKS);
    let mut shapes: Vec<CodesShape> = (1..=largest)
        .filter(|books| projected || columns.is_multiple_of(*books))
        .filter_map(shape)
        .collect();
    let fitting = shapes.iter().rposition(fits);
    let most = shapes.iter().rposition(|shape| shape.books <= worth);
    let Some((fitting, most)) = fitting.zip(most) else { return Family::default() };
    let most = most.min(fitting);
    let numbers: Vec<usize> = if is_small(num_embeddings, columns) {
        // The next number above those that fit closes the last gap.
        let grows = |&books: &usize| Some(books + (books / GROWTH).max(1));
        let last = shapes.last().map_or(largest, |shape| shape.books);
        let grid = std::iter::successors(Some(1), grows).take_while(|&books| books < last);
        grid.chain([last]).collect()
    } else {
        PARTS.into_iter().map(|part| shapes[most].books * part / FEWEST).collect()
    };
    let is_measured =
        |shape: &CodesShape| !projected || numbers.binary_search(&shape.books).is_ok();
    let least = match projected {
        _ if is_small(num_embeddings, columns) => 1,
        true => shapes[fitting].books / FEWEST,
        false => shapes[fitting].books / FEWEST_PLAIN,
    };
    let end = shapes[most..].iter().position(is_measured).map_or(most, |above| most + above);
    let start = shapes.iter().position(|shape| shape.books >= least && is_measured(shape));
    shapes.truncate(end + 1);
    shapes.drain(..start.unwrap_or(end + 1).min(end + 1));
    let measured = (0..shapes.len()).filter(|&at| is_measured(&shapes[at])).collect();
    Family { shapes, measured }
}
