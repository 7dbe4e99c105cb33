//! Codes: product quantisation of the rows themselves, or of their largest directions.
//!
//! The variances of the directions say how many of them go best with a number of codes. Some
//! numbers of codes are learned and measured as by `convert`, on all rows; the errors of those
//! between them are interpolated.

use super::{
    candidate::{Candidate, Context, Form, bytes},
    cost,
    low_rank::{MAX_COLUMNS, PROJECTION, interpolate},
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
/// The numbers of codes that are measured grow by this part of themselves.
const GROWTH: usize = 4;
/// Fewer codes than this part of the most that fit are not tried, with and without a projection.
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
    let Ok(learner) = Learner::new(rows, weights.as_deref(), BITS[0], true, &context.job()) else {
        return Ok(Vec::new());
    };
    let bits = BITS.into_iter().filter(|bits| n >= 2 << bits);
    let families: Vec<Family> = bits
        .flat_map(|bits| {
            [true, false].map(|projected| family(context, &learner, n, bits, projected))
        })
        .collect();
    let all: usize = families.iter().map(|family| family.measured.len()).sum();
    let (mut found, mut done) = (Vec::new(), 0);
    for Family { shapes, measured } in &families {
        // The numbers of codes and the logarithms of the squared errors, for each type.
        let mut points: [Vec<(f64, f64)>; DTYPES.len()] = Default::default();
        for &position in measured {
            share.reach(done, all);
            done += 1;
            let shape = &shapes[position];
            let books = learner.learn(shape, &context.job())?;
            for (dtype, points) in DTYPES.into_iter().zip(&mut points) {
                // Values that overflow rule this type out.
                let Ok(encoder) = Encoder::new(&books, dtype, PROJECTION) else { continue };
                let (_, errors) = encoder.encode(&context.values.values, columns);
                let squared: f64 =
                    errors.iter().zip(&context.sample.weights).map(|(e, weight)| e * weight).sum();
                points.push((shape.books as f64, squared.max(f64::MIN_POSITIVE).ln()));
            }
        }
        for (dtype, points) in DTYPES.into_iter().zip(points) {
            if points.len() < measured.len() {
                continue;
            }
            for shape in shapes {
                let squared = interpolate(&points, shape.books as f64).exp();
                let weights = shape.layout(n, columns, dtype, PROJECTION);
                let nanoseconds = cost::codes(n, shape, columns);
                found.push(context.candidate(
                    Form::Codes { shape: *shape },
                    weights,
                    squared,
                    nanoseconds,
                )?);
            }
        }
    }
    Ok(found)
}

/// The shapes of codes of so many bits that may be worth storing, by their number of codes, and the
/// positions of those that are measured.
///
/// The numbers that are measured do not depend on the budget, so that the same codes have the same
/// error in every plan.
fn family(
    context: &Context<'_>,
    learner: &Learner,
    num_embeddings: u64,
    bits: u32,
    projected: bool,
) -> Family {
    let columns = context.values.columns;
    let shape = |books: usize| {
        let rank = match learner.directions().filter(|_| projected) {
            Some(directions) => directions.rank_for(books, bits, num_embeddings),
            None => columns,
        };
        CodesShape { combine: Combining::Concat, books, bits, rank, projected }
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
        .map(shape)
        .collect();
    let most = shapes.iter().rposition(|shape| fits(shape) && shape.books <= worth);
    // The next number above those that fit closes the last gap.
    let grows = |&books: &usize| Some(books + (books / GROWTH).max(1));
    let numbers: Vec<usize> = std::iter::successors(Some(1), grows)
        .take_while(|&books| books < largest)
        .chain([largest])
        .collect();
    let is_measured =
        |shape: &CodesShape| !projected || numbers.binary_search(&shape.books).is_ok();
    let Some(most) = most else { return Family::default() };
    let least = shapes[most].books / if projected { FEWEST } else { FEWEST_PLAIN };
    let end = shapes[most..].iter().position(is_measured).map_or(most, |above| most + above);
    let start = shapes.iter().position(|shape| shape.books >= least && is_measured(shape));
    shapes.truncate(end + 1);
    shapes.drain(..start.unwrap_or(0));
    let measured = (0..shapes.len()).filter(|&at| is_measured(&shapes[at])).collect();
    Family { shapes, measured }
}
