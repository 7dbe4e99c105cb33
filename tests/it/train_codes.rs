//! Trainable tables of codes: their gradients against central differences and a plain loop, and
//! what is promised of threads, checkpoints and refusals.

use crate::support::{rng::Rng, tiers};
use half::f16;
use std::iter::zip;
use ttrec::{
    Bags, Pooling, ShapeError,
    dtype::Dtype,
    repr::Combine,
    train::{
        Checkpointed, CodesShape, CodesTable, Embedding, Optimizer, Quantity, TrainError,
        Unsupported,
    },
};

const ROWS: u64 = 90;

/// Both ways to combine entries, with codes of each stored type.
fn shapes() -> Vec<CodesShape> {
    let shape = |embedding_dim, num_books, book_len, combine| CodesShape {
        num_embeddings: ROWS,
        embedding_dim,
        num_books,
        book_len,
        combine,
    };
    vec![
        shape(8, 4, 16, Combine::Concat),
        shape(12, 3, 300, Combine::Concat),
        shape(5, 1, 20, Combine::Concat),
        shape(6, 2, 5000, Combine::Concat),
        shape(7, 3, 16, Combine::Add),
        shape(16, 2, 256, Combine::Add),
    ]
}

fn real(rng: &mut Rng) -> f32 {
    rng.below(1 << 20) as f32 / (1 << 19) as f32 - 1.0
}

fn reals(rng: &mut Rng, count: usize) -> Vec<f32> {
    (0..count).map(|_| real(rng)).collect()
}

/// Codes, of which some occur in many rows, and books.
fn draw(rng: &mut Rng, shape: &CodesShape) -> (Vec<u16>, Vec<f32>) {
    let codes = (0..ROWS as usize * shape.num_books).map(|_| {
        let limit = if rng.one_in(2) { 3 } else { shape.book_len as u64 };
        rng.below(limit) as u16
    });
    let codes = codes.collect();
    (codes, reals(rng, shape.num_books * shape.book_len * shape.entry_len()))
}

/// Bags, with the factor of each lookup.
fn draw_bags(rng: &mut Rng) -> (Vec<u32>, Vec<u32>, Vec<f32>) {
    let (mut indices, mut offsets) = (Vec::new(), vec![0]);
    for _ in 0..12 {
        indices.extend((0..rng.below(5)).map(|_| rng.below(ROWS) as u32));
        offsets.push(indices.len() as u32);
    }
    let weights = reals(rng, indices.len());
    (indices, offsets, weights)
}

/// The elements of the books that make element `column` of `row`.
fn elements(shape: &CodesShape, codes: &[u16], row: usize, column: usize) -> Vec<usize> {
    let len = shape.entry_len();
    let at = |book: usize, column: usize| {
        let code = usize::from(codes[row * shape.num_books + book]);
        (book * shape.book_len + code) * len + column
    };
    match shape.combine {
        Combine::Concat => vec![at(column / len, column % len)],
        _ => (0..shape.num_books).map(|book| at(book, column)).collect(),
    }
}

/// The pooled rows, in f64.
fn pooled(
    shape: &CodesShape,
    codes: &[u16],
    books: &[f64],
    (indices, offsets, weights): &(Vec<u32>, Vec<u32>, Vec<f32>),
) -> Vec<f64> {
    let mut out = Vec::new();
    for bag in offsets.windows(2) {
        for column in 0..shape.embedding_dim {
            let lookups = bag[0] as usize..bag[1] as usize;
            out.push(lookups.fold(0.0, |sum, at| {
                let elements = elements(shape, codes, indices[at] as usize, column);
                let x: f64 = elements.into_iter().map(|at| books[at]).sum();
                sum + f64::from(weights[at]) * x
            }));
        }
    }
    out
}

/// The derivatives of the sum of the pooled rows times `gradient`.
fn derivatives(
    shape: &CodesShape,
    codes: &[u16],
    len: usize,
    (indices, offsets, weights): &(Vec<u32>, Vec<u32>, Vec<f32>),
    gradient: &[f32],
) -> Vec<f64> {
    let mut derivatives = vec![0.0; len];
    for (bag, gradient) in zip(offsets.windows(2), gradient.chunks(shape.embedding_dim)) {
        for at in bag[0] as usize..bag[1] as usize {
            for (column, &g) in gradient.iter().enumerate() {
                for element in elements(shape, codes, indices[at] as usize, column) {
                    derivatives[element] += f64::from(weights[at]) * f64::from(g);
                }
            }
        }
    }
    derivatives
}

fn table(shape: CodesShape, codes: &[u16], books: &[f32], optimizer: Optimizer) -> CodesTable {
    CodesTable::new(shape, codes, books.to_vec(), optimizer).unwrap()
}

#[test]
fn gradients_agree_with_central_differences() {
    for (seed, shape) in shapes().into_iter().enumerate() {
        let mut rng = Rng::new(seed as u64);
        let (codes, books) = draw(&mut rng, &shape);
        let batch = draw_bags(&mut rng);
        let (indices, offsets, weights) = &batch;
        let bags = Bags::new(indices, offsets).unwrap().with_per_sample_weights(weights).unwrap();
        let gradient = reals(&mut rng, bags.len() * shape.embedding_dim);
        let expected = derivatives(&shape, &codes, books.len(), &batch, &gradient);

        // The derivatives against differences.
        let loss = |books: &[f64]| -> f64 {
            let pooled = pooled(&shape, &codes, books, &batch);
            zip(pooled, &gradient).map(|(x, &g)| x * f64::from(g)).sum()
        };
        let mut wide: Vec<f64> = books.iter().map(|&x| x.into()).collect();
        for at in (0..books.len()).step_by(books.len() / 200 + 1) {
            let mut at_offset = |offset: f64| {
                let before = wide[at];
                wide[at] += offset;
                let loss = loss(&wide);
                wide[at] = before;
                loss
            };
            let difference = (at_offset(0.5) - at_offset(-0.5)) / 1.0;
            assert!((difference - expected[at]).abs() < 1e-9, "{shape:?} {at}: {difference}");
        }

        // The crate against the derivatives: a step of SGD with rate 1 is the gradient.
        for tier in tiers::available() {
            let mut table = table(shape, &codes, &books, Optimizer::Sgd).with_tier(tier);
            let mut found = vec![f32::NAN; gradient.len()];
            table.forward(&bags, Pooling::Sum, &mut found, &mut Vec::new()).unwrap();
            for (found, expected) in zip(found, pooled(&shape, &codes, &wide, &batch)) {
                assert!(
                    (f64::from(found) - expected).abs() < 1e-5,
                    "{shape:?}: {found} {expected}"
                );
            }
            table.step(&bags, Pooling::Sum, &gradient, 1.0).unwrap();
            for (at, (after, before)) in zip(table.parameters()[0].values(), &books).enumerate() {
                let found = f64::from(*before) - f64::from(*after);
                assert!((found - expected[at]).abs() < 1e-5, "{shape:?} {at}: {found}");
            }
        }
    }
}

#[test]
fn an_entry_is_a_slice_of_the_optimizer_and_others_stay() {
    for (seed, shape) in shapes().into_iter().enumerate() {
        let mut rng = Rng::new(seed as u64 + 10);
        let (codes, books) = draw(&mut rng, &shape);
        for tier in tiers::available() {
            let mut table = table(shape, &codes, &books, Optimizer::ADAGRAD).with_tier(tier);
            let mut wide: Vec<f64> = books.iter().map(|&x| x.into()).collect();
            let mut sums = vec![0.0; wide.len()];
            for _ in 0..3 {
                let mut batch = draw_bags(&mut rng);
                for bag in batch.1.windows(2) {
                    let count = (bag[1] - bag[0]) as f32;
                    batch.2[bag[0] as usize..bag[1] as usize].fill(1.0 / count);
                }
                let bags = Bags::new(&batch.0, &batch.1).unwrap();
                let gradient = reals(&mut rng, bags.len() * shape.embedding_dim);
                let before = table.parameters()[0].values().to_vec();
                table.step(&bags, Pooling::Mean, &gradient, 0.1).unwrap();
                let expected = derivatives(&shape, &codes, books.len(), &batch, &gradient);
                for (at, g) in expected.iter().enumerate().filter(|(_, g)| **g != 0.0) {
                    sums[at] += g * g;
                    wide[at] -= 0.1 * g / (f64::sqrt(sums[at]) + 1e-10);
                }
                for (at, &found) in table.parameters()[0].values().iter().enumerate() {
                    assert!((f64::from(found) - wide[at]).abs() < 1e-3, "{shape:?} {at}: {found}");
                    let is_same = found.to_bits() == before[at].to_bits();
                    assert!(expected[at] != 0.0 || is_same, "{shape:?}: entry of {at} moved");
                }
            }
        }
    }
}

/// The values of books that a blob stores as `dtype`, f16 or i8.
fn stored(shape: &CodesShape, exact: &[f64], dtype: Dtype) -> Vec<f64> {
    let of_book = |book: &[f64]| -> Vec<f64> {
        let scale = book.iter().fold(0.0, |largest: f64, x| largest.max(x.abs())) / 127.0;
        book.iter()
            .map(|&x| match dtype {
                Dtype::I8 => (x / scale).round_ties_even() * scale,
                _ => f16::from_f64(x).into(),
            })
            .collect()
    };
    exact.chunks(shape.book_len * shape.entry_len()).flat_map(of_book).collect()
}

#[test]
fn exact_books_move_by_the_gradients_and_lookups_read_the_stored_ones() {
    for (seed, shape) in shapes().into_iter().enumerate() {
        for dtype in [Dtype::I8, Dtype::F16] {
            let mut rng = Rng::new(seed as u64 + 20);
            let (codes, books) = draw(&mut rng, &shape);
            let mut table = table(shape, &codes, &books, Optimizer::Sgd).with_dtype(dtype).unwrap();
            let mut wide: Vec<f64> = books.iter().map(|&x| x.into()).collect();
            for _ in 0..3 {
                let read = stored(&shape, &wide, dtype);
                // A value halfway between two that can be stored may become either.
                let bound = wide.iter().fold(0.0, |largest: f64, x| largest.max(x.abs())) / 120.0;
                let far = |(found, read): &(&f32, &f64)| (f64::from(**found) - **read).abs() > 1e-4;
                let values = table.parameters()[0].values();
                assert!(zip(values, &read).filter(far).count() <= values.len() / 100, "{shape:?}");
                for (exact, &value) in zip(&wide, values) {
                    assert!((exact - f64::from(value)).abs() < bound, "{shape:?} {dtype:?}");
                }
                let values: Vec<f64> = values.iter().map(|&x| x.into()).collect();
                let batch = draw_bags(&mut rng);
                let bags = Bags::new(&batch.0, &batch.1).unwrap();
                let bags = bags.with_per_sample_weights(&batch.2).unwrap();
                let gradient = reals(&mut rng, bags.len() * shape.embedding_dim);
                let mut found = vec![f32::NAN; gradient.len()];
                table.forward(&bags, Pooling::Sum, &mut found, &mut Vec::new()).unwrap();
                for (found, expected) in zip(found, pooled(&shape, &codes, &values, &batch)) {
                    assert!((f64::from(found) - expected).abs() < 1e-5, "{shape:?}: {found}");
                }
                table.step(&bags, Pooling::Sum, &gradient, 0.1).unwrap();
                let expected = derivatives(&shape, &codes, books.len(), &batch, &gradient);
                zip(&mut wide, expected).for_each(|(x, g)| *x -= 0.1 * g);
                for (&found, expected) in zip(table.parameters()[0].exact(), &wide) {
                    assert!((f64::from(found) - expected).abs() < 1e-5, "{shape:?}: {found}");
                }
            }
        }
    }
}

#[test]
fn learned_rows_move_by_the_gradients_of_coded_rows_and_books_stay() {
    for (seed, shape) in shapes().into_iter().enumerate() {
        let mut rng = Rng::new(seed as u64 + 40);
        let (codes, books) = draw(&mut rng, &shape);
        let dim = shape.embedding_dim;
        let rows = reals(&mut rng, ROWS as usize * dim);
        let read: Vec<f64> = books.iter().map(|&x| x.into()).collect();
        for tier in tiers::available() {
            let table = table(shape, &codes, &books, Optimizer::Sgd).with_tier(tier);
            let mut table = table.with_rows(rows.clone()).unwrap();
            let mut wide: Vec<f64> = rows.iter().map(|&x| x.into()).collect();
            for _ in 0..3 {
                let (indices, offsets, weights) = draw_bags(&mut rng);
                let bags = Bags::new(&indices, &offsets).unwrap();
                let bags = bags.with_per_sample_weights(&weights).unwrap();
                let gradient = reals(&mut rng, bags.len() * dim);
                table.step(&bags, Pooling::Sum, &gradient, 0.1).unwrap();
                for (bag, gradient) in zip(offsets.windows(2), gradient.chunks(dim)) {
                    for at in bag[0] as usize..bag[1] as usize {
                        let row = &mut wide[indices[at] as usize * dim..][..dim];
                        let scale = 0.1 * f64::from(weights[at]);
                        zip(row, gradient).for_each(|(x, &g)| *x -= scale * f64::from(g));
                    }
                }
                let [of_books, of_rows] = table.parameters() else { panic!("not two") };
                assert_eq!(of_books.values(), &books[..], "{shape:?}");
                for (&found, expected) in zip(of_rows.values(), &wide) {
                    assert!((f64::from(found) - expected).abs() < 1e-5, "{shape:?}: {found}");
                }
                let mut found = vec![f32::NAN; gradient.len()];
                table.forward(&bags, Pooling::Sum, &mut found, &mut Vec::new()).unwrap();
                let batch = (indices, offsets, weights);
                for (found, expected) in zip(found, pooled(&shape, &codes, &read, &batch)) {
                    assert!((f64::from(found) - expected).abs() < 1e-5, "{shape:?}: {found}");
                }
            }
        }
        let short = table(shape, &codes, &books, Optimizer::Sgd).with_rows(rows[1..].to_vec());
        let expected = rows.len() as u64;
        let error = TrainError::Count { of: Quantity::Values(1), found: expected - 1, expected };
        assert_eq!(short.map(|_| ()).unwrap_err(), error);
    }
}

#[test]
fn what_is_restored_goes_on_to_the_bit() {
    for (optimizer, dtype, learns_rows) in [
        (Optimizer::Sgd, Dtype::F32, false),
        (Optimizer::ROW_WISE_ADAGRAD, Dtype::I8, false),
        (Optimizer::ADAM, Dtype::F32, false),
        (Optimizer::ADAM, Dtype::I8, true),
    ] {
        let table = |shape: CodesShape, codes: &[u16], books: &[f32], optimizer| {
            let table = table(shape, codes, books, optimizer).with_dtype(dtype).unwrap();
            if learns_rows {
                table.with_rows(vec![0.5; ROWS as usize * shape.embedding_dim]).unwrap()
            } else {
                table
            }
        };
        let shape = shapes()[1];
        let mut rng = Rng::new(30);
        let (codes, books) = draw(&mut rng, &shape);
        let mut first = table(shape, &codes, &books, optimizer);
        let mut restored = table(shape, &codes, &vec![0.0; books.len()], optimizer);
        for at in 0..6 {
            let (indices, offsets, weights) = draw_bags(&mut rng);
            let bags = Bags::new(&indices, &offsets).unwrap();
            let bags = bags.with_per_sample_weights(&weights).unwrap();
            let gradient = reals(&mut rng, bags.len() * shape.embedding_dim);
            if at == 3 {
                for (to, from) in zip(restored.parameters_mut(), first.parameters()) {
                    to.values_mut().copy_from_slice(from.exact());
                    zip(to.state_mut(), from.state())
                        .for_each(|(to, from)| to.copy_from_slice(from));
                }
                restored.set_steps(first.steps());
            }
            first.step(&bags, Pooling::Sum, &gradient, 0.1).unwrap();
            if at >= 3 {
                restored.step(&bags, Pooling::Sum, &gradient, 0.1).unwrap();
            }
        }
        let bits = |table: &CodesTable| -> Vec<u32> {
            table
                .parameters()
                .iter()
                .flat_map(|parameters| parameters.values().iter().map(|x| x.to_bits()))
                .collect()
        };
        assert_eq!(bits(&first), bits(&restored), "{optimizer:?}");
    }
}

#[test]
fn every_refusal_has_its_own_error() {
    let good = shapes()[0];
    let (codes, books) = draw(&mut Rng::new(1), &good);
    let new = |shape, codes: &[u16], books: &[f32]| {
        CodesTable::new(shape, codes, books.to_vec(), Optimizer::Sgd)
            .map(|_| ())
            .unwrap_err()
    };
    let count = |of, found, expected| TrainError::Count { of, found, expected };
    let [num_codes, len] = [codes.len(), books.len()].map(|len| len as u64);
    assert_eq!(new(good, &codes[1..], &books), count(Quantity::Codes, num_codes - 1, num_codes));
    assert_eq!(new(good, &codes, &books[1..]), count(Quantity::Values(0), len - 1, len));
    let mut wrong = codes.clone();
    wrong[7] = 16;
    assert_eq!(new(good, &wrong, &books), TrainError::Code { position: 7, book_len: 16 });
    let i4 = table(good, &codes, &books, Optimizer::Sgd).with_dtype(Dtype::I4).map(|_| ());
    let unsupported = Unsupported::Dtype { dtype: Dtype::I4 };
    assert_eq!(i4.unwrap_err(), TrainError::Unsupported(unsupported));
    let multiplied = CodesShape { combine: Combine::Mult, ..good };
    let unsupported = TrainError::Unsupported(Unsupported::MultipliedEntries);
    assert_eq!(new(multiplied, &codes, &books), unsupported);
    for shape in [
        CodesShape { num_books: 3, ..good },
        CodesShape { num_books: 0, ..good },
        CodesShape { book_len: 0, ..good },
        CodesShape { book_len: 1 << 17, ..good },
    ] {
        let CodesShape { num_books, book_len, embedding_dim: inner_dim, .. } = shape;
        let error = ShapeError::Codebook { num_books, book_len, inner_dim };
        assert_eq!(new(shape, &codes, &books), TrainError::Shape(error));
    }
    let huge = CodesShape { num_embeddings: 1 << 33, ..good };
    let (found, limit) = (1 << 33, u32::MAX.into());
    assert_eq!(new(huge, &codes, &books), TrainError::Limit { of: Quantity::Rows, found, limit });
}
