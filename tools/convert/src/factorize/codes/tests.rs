//! Codes against plain double-precision searches that share nothing with them.

use super::{
    k_means::Points,
    nearest::Searched,
    rotation::{deal, nearest_rotation},
    sums::Sums,
    *,
};
use crate::factorize::tests::{Table, noise};

/// Rows whose columns differ in size and depend on each other.
fn table(rows: usize, columns: usize, seed: u64) -> Table {
    let (noise, mixing) = (noise(seed, rows * columns), noise(seed + 1, columns * columns));
    let row = |row: &[f32]| -> Vec<f32> {
        (0..columns)
            .map(|to| {
                let of = |from: usize| row[from] * mixing[from * columns + to];
                (0..columns).map(|from| of(from) / (1 + from) as f32).sum::<f32>() + 0.1
            })
            .collect()
    };
    Table { columns, values: noise.chunks_exact(columns).flat_map(row).collect() }
}

fn shape(combine: Combining, books: usize, rank: usize, projected: bool) -> Shape {
    Shape { combine, books, bits: 4, rank, projected }
}

fn squared(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum()
}

fn learned(table: &Table, shape: &Shape) -> (Encoder, Vec<u16>, Vec<f64>) {
    let job = Job::default();
    let learner =
        Learner::new(table, None, shape.bits, ROWS_PER_ENTRY, shape.projected, &job).unwrap();
    let books = learner.learn(shape, &job).unwrap();
    let encoder = Encoder::new(&books, Dtype::F16, Dtype::F16).unwrap();
    let (codes, errors) = encoder.encode(&table.values, table.columns);
    (encoder, codes, errors)
}

/// Points that are few or many, narrow or wide: at the edges of what is compared at once.
#[test]
fn the_nearest_entry_is_found() {
    for (points, width, entries) in
        [(1, 1, 16), (31, 2, 16), (32, 3, 32), (33, 5, 64), (4097, 7, 16), (70, 40, 256)]
    {
        let (columns, book) = (noise(3, points * width), noise(4, entries * width));
        let (mut codes, mut distances) = (vec![0; points], vec![0.0; points]);
        Searched::new(&book, width).nearest(&columns, points, &mut codes, &mut distances);
        for at in 0..points {
            let point: Vec<f32> = (0..width).map(|column| columns[column * points + at]).collect();
            let of = |code: usize| squared(&point, &book[code * width..][..width]);
            let least = (0..entries).map(of).fold(f64::INFINITY, f64::min);
            let found = of(usize::from(codes[at]));
            assert!(found - least < 1e-5, "{points} {width} {entries} {at}: {found} {least}");
            let norm = squared(&point, &vec![0.0; width]);
            assert!((f64::from(distances[at]) - (found - norm) / 2.0).abs() < 1e-5);
        }
    }
}

/// Sixteen distinct points are sixteen entries, whatever their weights.
#[test]
fn as_many_entries_as_points_have_no_error() {
    let columns = noise(5, 16 * 3);
    let weights: Vec<f32> = (1..=16).map(|at| at as f32).collect();
    let points = Points { columns: &columns, count: 16, weights: Some(&weights) };
    let mut clusters = points.start(16, 1);
    points.improve(&mut clusters);
    for at in 0..16 {
        let entry = &clusters.entries[usize::from(clusters.codes[at]) * 3..][..3];
        let point = [columns[at], columns[16 + at], columns[32 + at]];
        assert_eq!(entry, point);
    }
}

/// An improvement never makes the weighted error larger, and leaves no entry without points while
/// others have many.
#[test]
fn improvements_improve() {
    let (count, width, book_len) = (3000, 2, 32);
    let columns = noise(6, count * width);
    let weights: Vec<f32> = noise(7, count).iter().map(|x| 1.0 + 3.0 * x.abs()).collect();
    let points = Points { columns: &columns, count, weights: Some(&weights) };
    let mut clusters = points.start(book_len, 2);
    let error = |clusters: &super::k_means::Clusters| -> f64 {
        (0..count)
            .map(|at| {
                let point = [columns[at], columns[count + at]];
                let entry = &clusters.entries[usize::from(clusters.codes[at]) * width..][..width];
                f64::from(weights[at]) * squared(&point, entry)
            })
            .sum()
    };
    let first = error(&clusters);
    let mut last = first;
    for _ in 0..20 {
        points.improve(&mut clusters);
        let next = error(&clusters);
        assert!(next <= last * (1.0 + 1e-6), "{next} after {last}");
        last = next;
    }
    assert!(last < first * 0.9, "{last} after {first}");
    assert!((0..32).all(|code| clusters.codes.contains(&code)));
}

/// All entries start at one point here: those without points take some of the others'.
#[test]
fn entries_without_points_are_split_off() {
    let columns = noise(8, 1000);
    let points = Points { columns: &columns, count: 1000, weights: None };
    let mut clusters =
        super::k_means::Clusters { width: 1, entries: vec![0.5; 16], codes: vec![0; 1000] };
    (0..30).for_each(|_| points.improve(&mut clusters));
    assert!((0..16).all(|code| clusters.codes.contains(&code)));
}

#[test]
fn directions_are_dealt_out_in_equal_products() {
    // 2^-1 to 2^-8 in four books of two: the largest with the smallest.
    let variances: Vec<f64> = (1..=8).map(|at| 0.5f64.powi(at)).collect();
    let order = deal(&variances, &[2; 4], 8);
    let mut sorted = order.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, [0, 1, 2, 3, 4, 5, 6, 7]);
    for book in order.chunks(2) {
        assert_eq!(book.iter().sum::<usize>(), 7, "{order:?}");
    }
    // A book of one direction gets a large one.
    let order = deal(&variances[..5], &[2, 2, 1], 8);
    assert_eq!(order[4], 0, "{order:?}");
}

#[test]
fn the_nearest_rotation_is_orthonormal_and_found_again() {
    let table = table(500, 6, 9);
    let training = Training::read(&table, None, 4, ROWS_PER_ENTRY, &Job::default()).unwrap();
    // An orthonormal matrix: of two reflections.
    let reflect = |v: &[f32; 6], x: &[f32]| -> Vec<f32> {
        let (of_v, dot): (f32, f32) =
            (v.iter().map(|v| v * v).sum(), v.iter().zip(x).map(|(v, x)| v * x).sum());
        x.iter().zip(v).map(|(x, v)| x - 2.0 * dot / of_v * v).collect()
    };
    let turn = |row: &[f32]| {
        reflect(&[1.0, 2.0, 0.5, -1.0, 0.3, 0.7], &reflect(&[0.2, -1.0, 1.0, 2.0, 0.1, 0.4], row))
    };
    let turned: Vec<Vec<f32>> = table.values.chunks_exact(6).map(turn).collect();
    let coded: Vec<f32> = (0..6).flat_map(|at| turned.iter().map(move |row| row[at])).collect();
    let found = nearest_rotation(&training, &coded).unwrap();
    for (at, column) in found.chunks_exact(6).enumerate() {
        let mut unit = [0.0; 6];
        for (row, x) in unit.iter_mut().enumerate() {
            let mut axis = [0.0; 6];
            axis[row] = 1.0;
            *x = turn(&axis)[at];
        }
        assert!(squared(column, &unit) < 1e-8, "{column:?} {unit:?}");
    }
}

/// What codes mean is computed here from the stored books, in f64; codes are compared with all
/// others of a book.
#[test]
fn errors_are_those_of_the_decoded_rows_and_codes_are_the_best() {
    let table = table(300, 10, 11);
    for (combine, books, rank, projected) in [
        (Combining::Concat, 5, 10, false),
        (Combining::Concat, 3, 10, true),
        (Combining::Concat, 4, 7, true),
        (Combining::Add, 3, 10, false),
        (Combining::Add, 2, 6, true),
    ] {
        let shape = shape(combine, books, rank, projected);
        let (encoder, codes, errors) = learned(&table, &shape);
        let (entries, projection) = encoder.stored();
        let decode = |codes: &[u16]| -> Vec<f64> {
            let mut inner = vec![0.0f64; shape.inner_dim()];
            for (book, &code) in codes.iter().enumerate() {
                let from = (book * shape.book_len() + usize::from(code)) * shape.width();
                let at = if combine == Combining::Add {
                    0
                } else {
                    book * shape.width()
                };
                inner[at..]
                    .iter_mut()
                    .zip(&entries[from..][..shape.width()])
                    .for_each(|(sum, &x)| *sum += f64::from(x));
            }
            match projection {
                None => inner,
                Some(matrix) => (0..10)
                    .map(|to| {
                        let rows = inner.iter().zip(matrix.chunks_exact(10));
                        rows.map(|(x, row)| x * f64::from(row[to])).sum()
                    })
                    .collect(),
            }
        };
        let distance = |row: &[f32], codes: &[u16]| -> f64 {
            let decoded = decode(codes);
            row.iter().zip(&decoded).map(|(&x, y)| (f64::from(x) - y).powi(2)).sum()
        };
        let rows = table.values.chunks_exact(10).zip(codes.chunks_exact(books)).zip(&errors);
        for ((row, codes), &error) in rows {
            let exact = distance(row, codes);
            assert!((error - exact).abs() < 1e-4 * (1.0 + exact), "{shape:?}: {error} {exact}");
            // A beam search need not find the best sum.
            let searched = if combine == Combining::Concat { 0..books } else { 0..0 };
            for book in searched {
                for code in 0..16 {
                    let mut other = codes.to_vec();
                    other[book] = code;
                    // The projection is rounded, so that its rows are not quite orthonormal.
                    let other = distance(row, &other);
                    assert!(exact <= other * 1.01 + 1e-4, "{shape:?}: {exact} {other}");
                }
            }
        }
    }
}

/// A beam search that compares all sums in f64. Elements are small integers, so that the products
/// of both searches are exact, and many sums are equally far.
#[test]
fn added_codes_are_those_of_a_plain_beam_search() {
    for (books, bits, rank) in [(1, 4, 3), (3, 4, 5), (4, 5, 2), (2, 8, 7)] {
        let shape = Shape { bits, ..shape(Combining::Add, books, rank, false) };
        let integers = |seed, len| -> Vec<f32> {
            noise(seed, len).iter().map(|x| (4.0 * x).round()).collect()
        };
        let entries = integers(21, books * shape.book_len() * rank);
        let rows = integers(22, 300 * rank);
        let entry = |book: usize, code: u16| {
            &entries[(book * shape.book_len() + usize::from(code)) * rank..][..rank]
        };
        let distance = |row: &[f32], codes: &[u16]| {
            let mut sum = vec![0.0; rank];
            for (book, &code) in codes.iter().enumerate() {
                sum.iter_mut().zip(entry(book, code)).for_each(|(sum, x)| *sum += x);
            }
            squared(row, &sum)
        };
        let codes = Sums::new(&shape, &entries).encode(&rows);
        for (row, codes) in rows.chunks_exact(rank).zip(codes.chunks_exact(books)) {
            let mut kept = vec![Vec::new()];
            for _ in 0..books {
                let codes = 0..shape.book_len() as u16;
                let mut all: Vec<Vec<u16>> = kept
                    .iter()
                    .flat_map(|sum| codes.clone().map(|code| [&sum[..], &[code]].concat()))
                    .collect();
                all.sort_by(|a, b| distance(row, a).total_cmp(&distance(row, b)));
                all.truncate(8);
                kept = all;
            }
            assert_eq!(codes, kept[0], "{shape:?}");
        }
    }
}

/// Rows of four large columns and eight small ones, smaller than what a few codes leave of the
/// large ones: those are not worth their bytes, with many codes they are.
#[test]
fn directions_below_the_rounding_of_others_are_left_out() {
    let (rows, columns) = (4000, 12);
    let size = |column: usize| if column < 4 { 1.0 } else { 0.01 };
    let values = noise(23, rows * columns);
    let values = values.iter().enumerate().map(|(at, x)| x * size(at % columns)).collect();
    let table = Table { columns, values };
    let learner = Learner::new(&table, None, 4, ROWS_PER_ENTRY, true, &Job::default()).unwrap();
    let directions = learner.directions().unwrap();
    for combine in [Combining::Concat, Combining::Add] {
        let rank = |books| directions.rank_for(&shape(combine, books, columns, true), 1 << 20);
        assert_eq!((rank(2), rank(12)), (4, 12), "{combine:?}");
    }
}

#[test]
fn rotations_and_more_codes_make_errors_smaller() {
    let table = table(2000, 12, 13);
    let error = |combine, books, rank, projected| -> f64 {
        learned(&table, &shape(combine, books, rank, projected)).2.iter().sum()
    };
    let plain = error(Combining::Concat, 3, 12, false);
    let rotated = error(Combining::Concat, 3, 12, true);
    let more = error(Combining::Concat, 4, 12, true);
    let added = error(Combining::Add, 3, 12, false);
    assert!(rotated < plain * 0.9, "{rotated} {plain}");
    assert!(more < rotated * 0.8, "{more} {rotated}");
    assert!(added < plain, "{added} {plain}");
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let table = table(9000, 12, 15);
    for combine in [Combining::Concat, Combining::Add] {
        let shape = shape(combine, 3, 12, true);
        let of = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| learned(&table, &shape).1)
        };
        assert_eq!(of(1), of(3), "{combine:?}");
    }
}

/// The sample of a table that is too large for the memory still gives good books.
#[test]
fn memory_is_bounded() {
    let table = table(6000, 8, 17);
    let shape = shape(Combining::Concat, 4, 8, true);
    let error = |memory: u64| -> Result<f64> {
        let job = Job { memory, ..Job::default() };
        let learner = Learner::new(&table, None, shape.bits, ROWS_PER_ENTRY, true, &job)?;
        let books = learner.learn(&shape, &job)?;
        let encoder = Encoder::new(&books, Dtype::I8, Dtype::F16)?;
        Ok(encoder.encode(&table.values, 8).1.iter().sum())
    };
    let whole = error(1 << 30).unwrap();
    let sampled = error(60_000).unwrap();
    assert!(sampled < whole * 1.25, "{sampled} {whole}");
    let refused = error(5_000).err().unwrap().to_string();
    assert!(refused.contains("memory limit of 5000 bytes is too small"), "{refused}");
}

#[test]
fn values_that_are_not_finite_are_refused() {
    let mut table = table(40, 4, 19);
    table.values[17] = f32::NAN;
    let refused = Learner::new(&table, None, 4, ROWS_PER_ENTRY, false, &Job::default())
        .err()
        .unwrap();
    assert!(refused.to_string().contains("not finite"), "{refused}");
}
