//! The shapes of codes that may be worth storing.
//!
//! The variances of the directions determine the best number of directions for each number of
//! codes. In a small table, one more code for each row can take a large part of the budget. So its
//! codes are also tried with more directions: at most as many more as take the bytes of one more
//! code.
//! And few codes are tried with the multiple of their number below the best number of directions.
//!
//! Added codes leave less error than as many codes put end to end, but each of their books has all
//! columns. So they pay where books take few bytes in relation to the codes: in tables of many
//! rows. Their books also take long to learn, so that only few codes are tried.

use crate::{
    factorize::{CodesShape, Learner},
    plan::{
        candidate::{Context, bytes},
        low_rank::PROJECTION,
    },
    spec::Combining,
};
use ttrec::{blob::TableSpec, dtype::Dtype, limits::MAX_NUM_BOOKS};

/// The types of books to try, from the largest to the smallest.
pub(super) const DTYPES: [Dtype; 2] = [Dtype::F16, Dtype::I8];
/// The bits of codes; fewer than the first only where the books are a large part of the bytes.
pub(super) const BITS: [u32; 4] = [8, 7, 6, 5];
/// The most elements of a small table.
const SMALL: u64 = 1 << 20;
/// The numbers of codes that are measured of a small table grow by this part of themselves.
const GROWTH: usize = 8;
/// A small table is also tried with more directions. The directions that take as many bytes as one
/// more code are added in this many equal parts.
const MORE: usize = 4;
/// Those of a large table, which take seconds for each number, in relation to the most that fit.
const PARTS: [usize; 6] = [1, 2, 4, 8, 12, FEWEST];
/// Fewer codes of a large table than this part of the most that fit are not tried, with and without
/// a projection.
const FEWEST: usize = 16;
const FEWEST_PLAIN: usize = 4;
/// The numbers of added codes that are measured.
const ADDED: [usize; 4] = [2, 3, 5, 8];
/// The codes of a book of added codes take at least so many times the bytes of the book.
const BOOK: u128 = 2;

/// Shapes of growing numbers of codes, and the positions of those that are measured.
#[derive(Default)]
pub(super) struct Family {
    pub(super) shapes: Vec<CodesShape>,
    pub(super) measured: Vec<usize>,
    /// Whether the rest is given up once others have less error.
    pub(super) gives_up: bool,
}

/// What the codes of a family have in common.
#[derive(Clone, Copy)]
struct Kind {
    combine: Combining,
    bits: u32,
    /// `None` means no projection. With a projection, so many of [`MORE`] parts of the directions
    /// that one more code would pay for are added to the best number of directions.
    more: Option<usize>,
    /// Whether the number of directions is the multiple of the number of codes below the best.
    below: bool,
}

/// All families of a table, in the order in which they are measured: added codes are compared with
/// those put end to end.
pub(super) fn families(
    context: &Context<'_>,
    learner: &Learner,
    num_embeddings: u64,
) -> Vec<Family> {
    let more = if is_small(num_embeddings, context.values.columns) {
        MORE
    } else {
        0
    };
    let bits = || BITS.into_iter().filter(|bits| num_embeddings >= 2 << bits);
    let concat = bits().flat_map(|bits| {
        let kind = move |more, below| Kind { combine: Combining::Concat, bits, more, below };
        let above = (0..=more).map(Some).chain([None]).map(move |more| kind(more, false));
        above.chain([kind(Some(0), true)])
    });
    let add =
        bits().map(|bits| Kind { combine: Combining::Add, bits, more: Some(0), below: false });
    concat
        .chain(add)
        .map(|kind| kind.family(context, learner, num_embeddings))
        .collect()
}

fn is_small(num_embeddings: u64, columns: usize) -> bool {
    num_embeddings.saturating_mul(columns as u64) <= SMALL
}

impl Kind {
    /// The shapes that may be worth storing, by their number of codes, and the positions of those
    /// that are measured.
    ///
    /// Those of a small table do not depend on the budget, so that the same codes have the same
    /// error in every plan.
    fn family(self, context: &Context<'_>, learner: &Learner, num_embeddings: u64) -> Family {
        let columns = context.values.columns;
        let small = is_small(num_embeddings, columns);
        let fits = |shape: &CodesShape| {
            let layout = shape.layout(num_embeddings, columns, DTYPES[1], PROJECTION);
            bytes(&TableSpec::new(context.name, layout))
                .is_ok_and(|bytes| bytes <= context.options.most_bytes)
        };
        let mut shapes: Vec<CodesShape> = self
            .numbers(columns)
            .filter_map(|books| self.shape(books, columns, learner, num_embeddings))
            .collect();
        let fitting = shapes.iter().rposition(fits);
        let most = shapes.iter().rposition(|shape| self.is_worth(shape, columns, num_embeddings));
        let Some((fitting, most)) = fitting.zip(most) else { return Family::default() };
        let most = most.min(fitting);
        let numbers: Vec<usize> = match self.combine {
            Combining::Add => ADDED.to_vec(),
            Combining::Concat if self.more.is_none() => (1..=columns).collect(),
            Combining::Concat if small => {
                // The next number above those that fit closes the last gap.
                let last = shapes.last().map_or(columns, |shape| shape.books);
                let grows = |&books: &usize| Some(books + (books / GROWTH).max(1));
                let grid = std::iter::successors(Some(1), grows).take_while(|&books| books < last);
                grid.chain([last]).collect()
            }
            Combining::Concat => {
                PARTS.into_iter().map(|part| shapes[most].books * part / FEWEST).collect()
            }
        };
        let least = match self.combine {
            _ if small => 1,
            // About as many codes as would fit if books took no bytes.
            Combining::Add => {
                let most = context.options.most_bytes / num_embeddings.max(1);
                columns.min(usize::try_from(most).unwrap_or(columns)) / FEWEST
            }
            Combining::Concat if self.more.is_some() => shapes[fitting].books / FEWEST,
            Combining::Concat => shapes[fitting].books / FEWEST_PLAIN,
        };
        let is_measured = |shape: &CodesShape| numbers.binary_search(&shape.books).is_ok();
        let end = shapes[most..].iter().position(is_measured).map_or(most, |above| most + above);
        let start = shapes.iter().position(|shape| shape.books >= least && is_measured(shape));
        shapes.truncate(end + 1);
        shapes.drain(..start.unwrap_or(end + 1).min(end + 1));
        let measured = (0..shapes.len()).filter(|&at| is_measured(&shapes[at])).collect();
        // Few codes whose rank is rounded down may be worse than others, where more are better.
        let gives_up = !small && !self.below || self.combine == Combining::Add;
        Family { shapes, measured, gives_up }
    }

    /// The numbers of codes that are possible.
    fn numbers(self, columns: usize) -> impl Iterator<Item = usize> {
        let numbers = match self.combine {
            Combining::Concat => 1..=columns.min(MAX_NUM_BOOKS),
            Combining::Add => ADDED[0]..=ADDED[ADDED.len() - 1],
        };
        let plain = self.combine == Combining::Concat && self.more.is_none();
        numbers.filter(move |&books| !plain || columns.is_multiple_of(books))
    }

    /// The shape of so many codes, or `None` if it is the same with one part less.
    fn shape(
        self,
        books: usize,
        columns: usize,
        learner: &Learner,
        num_embeddings: u64,
    ) -> Option<CodesShape> {
        let Self { combine, bits, more, below } = self;
        let shape = CodesShape { combine, books, bits, rank: columns, projected: more.is_some() };
        let Some((directions, more)) = learner.directions().zip(more) else { return Some(shape) };
        let best = directions.rank_for(&shape, num_embeddings);
        if below {
            let rank = best / books * books;
            let differs = books <= 2 * GROWTH && (1..best).contains(&rank);
            return differs.then_some(CodesShape { rank, ..shape });
        }
        let per_code = directions.per_code(&shape, num_embeddings);
        let [fewer, rank] = [more.saturating_sub(1), more].map(|more| {
            let added = per_code * more as f64 / MORE as f64;
            let rank = columns.min(best.saturating_add(added.round() as usize));
            // All books have the same number of columns, so that the books of a rank between two
            // multiples store zeros. Larger numbers of codes are not all measured: there the rank
            // has to grow steadily, because the errors between them are interpolated.
            if combine == Combining::Concat && books <= 2 * GROWTH {
                rank.next_multiple_of(books).min(columns)
            } else {
                rank
            }
        });
        // A rotation of all columns changes nothing where whole rows are coded.
        let projected = combine == Combining::Concat || rank < columns;
        (more == 0 || fewer < rank).then_some(CodesShape { rank, projected, ..shape })
    }

    /// Whether it may be better than one bit more for each code, and than more codes.
    fn is_worth(self, shape: &CodesShape, columns: usize, num_embeddings: u64) -> bool {
        let (rows, bits) = (u128::from(num_embeddings), u128::from(self.bits));
        let most_bits = self.bits == BITS[0];
        match self.combine {
            // One bit less of each code saves half of the books.
            Combining::Concat => {
                let saved = 2 * (bits + 1) * ((columns as u128) << self.bits);
                most_bits || shape.books as u128 <= saved / rows
            }
            // It saves half of each book. A code more has a book of its own.
            Combining::Add => {
                let book = (shape.rank as u128) << self.bits;
                book * BOOK <= rows && (most_bits || book * (bits - 1) >= rows)
            }
        }
    }
}
