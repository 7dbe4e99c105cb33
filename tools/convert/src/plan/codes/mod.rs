//! Codes: entries put end to end or added, of the rows themselves or of their largest directions.
//!
//! Codes of some numbers are learned from some of the rows and measured on a sample of all rows.
//! For the numbers between them, the errors are interpolated.

mod family;

use super::{
    candidate::{Candidate, Context, Form},
    low_rank::{MAX_COLUMNS, PROJECTION, interpolate},
    sample::{Sample, squared_norm},
    tensor_train::weights,
};
use crate::{
    factorize::{CodesShape, Encoder, Learner, Rows},
    progress::Share,
};
use anyhow::Result;
use family::{BITS, DTYPES, Family, families};

/// The rows for each entry that books are learned from, a part of those that `convert` takes.
const ROWS_PER_ENTRY: u64 = 64;
/// The most rows that errors are measured on.
const MEASURED: usize = 8192;
/// Codes whose error is so many times that of others in as many bytes may be given up, and then so
/// are more codes of their kind.
const BEATEN: f64 = 1.05;

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
    let families = families(context, &learner, n);
    let few = measured_rows(context, &learner, n);
    let values = few.read(rows)?;
    let part = context.energy / few.sum(&values, squared_norm).max(f64::MIN_POSITIVE);
    let all: usize = families.iter().map(|family| family.measured.len()).sum();
    let (mut found, mut done) = (Vec::new(), 0);
    for Family { shapes, measured, gives_up } in &families {
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
            if !worth && *gives_up {
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

/// The rows that errors are measured on. Errors are smaller on the rows that books are learned
/// from, and larger on others, than those of `convert`, which learns from more rows. So half of
/// these rows are of the former.
fn measured_rows(context: &Context<'_>, learner: &Learner, num_embeddings: u64) -> Sample {
    let frequencies = context.options.frequencies;
    if num_embeddings <= MEASURED as u64 || frequencies.is_some() {
        return Sample::draw(num_embeddings, MEASURED, frequencies);
    }
    let id = |at: usize| match at % 2 {
        0 => learner.row(spread(at, learner.num_rows() as u64) as usize),
        _ => spread(at, num_embeddings),
    };
    let weight = num_embeddings as f64 / MEASURED as f64;
    let ids = (0..MEASURED).map(id).collect();
    Sample { ids, weights: vec![weight; MEASURED], complete: false }
}

/// A position among `count`. Positions are spread evenly by multiples of the golden ratio: rows at
/// equal distances may have something in common.
fn spread(at: usize, count: u64) -> u64 {
    let fraction = (at as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    ((u128::from(fraction) * u128::from(count)) >> 64) as u64
}
