//! The shape of a tensor-train table: how `num_embeddings x embedding_dim` splits into small
//! cores.
//!
//! Core k is a stack of `p_k` slices; slice `G_k[i_k]` is an `r_k x q_k x r_{k+1}` array. Row i of
//! the table is the product of one slice per core, chosen by the digits of i in the mixed radix `p`
//! (TT-Rec, section 3; `r_0 = r_d = 1`).

pub(crate) use crate::limits::{
    MAX_BOOK_LEN, MAX_CORES, MAX_EMBEDDING_DIM, MAX_NUM_BOOKS, MAX_NUM_EMBEDDINGS, MAX_RANK,
    MAX_ROW_FACTOR,
};
use crate::{codes::codes, isa::PREFERS_SMALL_CODE};
use core::fmt;

/// Which core the least significant digit of a row's index, or of a column's, belongs to.
/// The discriminants are the codes of `docs/format.md`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum DigitOrder {
    /// Core 0 takes the most significant digit (FBTT, EL-Rec, tensorly-torch, t3nsor).
    #[default]
    MostSignificantFirst = 0,
    /// Core 0 takes the least significant digit (Hetu).
    LeastSignificantFirst = 1,
}

codes!(DigitOrder:
    MostSignificantFirst "most_significant_first",
    LeastSignificantFirst "least_significant_first");

impl DigitOrder {
    /// The order with cores in reverse.
    #[must_use]
    pub fn reversed(self) -> Self {
        match self {
            Self::MostSignificantFirst => Self::LeastSignificantFirst,
            Self::LeastSignificantFirst => Self::MostSignificantFirst,
        }
    }
}

/// The checked shape of a tensor-train table: rows, row factors `p`, column factors `q`, ranks, and
/// the order of the digits of rows and of columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TtShape {
    num_embeddings: u64,
    num_cores: usize,
    row_factors: [u32; MAX_CORES],
    column_factors: [u32; MAX_CORES],
    /// All d + 1 ranks; the first and the last are 1.
    ranks: [u32; MAX_CORES + 1],
    digit_order: DigitOrder,
    column_order: DigitOrder,
    /// Computed once, because every lookup needs them.
    prefix_len: usize,
    partial_len: usize,
}

impl TtShape {
    /// A table of `num_embeddings` rows and `prod(column_factors)` columns in `d =
    /// row_factors.len()` cores.
    ///
    /// `ranks` are the d - 1 inner ones. Rows from `num_embeddings` to `prod(row_factors)` are
    /// padding that is never read. Digits are most significant first, of rows as of columns;
    /// see [`with_digit_order`](Self::with_digit_order) and [`reversed`](Self::reversed).
    ///
    /// ```
    /// let shape = ttrec::TtShape::new(11_000_000, &[200, 220, 250], &[4, 4, 4], &[32, 32])?;
    /// assert_eq!(shape.embedding_dim(), 64);
    /// assert!(shape.digits(54_999).eq([0, 219, 249]));
    /// # Ok::<(), ttrec::ShapeError>(())
    /// ```
    ///
    /// # Errors
    /// [`ShapeError`] when lengths disagree, a factor is zero or above its limit, the row factors
    /// hold fewer than `num_embeddings` rows, or a size does not fit the address space.
    pub fn new(
        num_embeddings: u64,
        row_factors: &[u32],
        column_factors: &[u32],
        ranks: &[u32],
    ) -> Result<Self, ShapeError> {
        let d = row_factors.len();
        if column_factors.len() != d || ranks.len().checked_add(1) != Some(d) {
            return Err(ShapeError::Lengths {
                row_factors: d,
                column_factors: column_factors.len(),
                ranks: ranks.len(),
            });
        }
        if !(2..=MAX_CORES).contains(&d) {
            return Err(ShapeError::CoreCount { found: d });
        }
        check_num_embeddings(num_embeddings)?;
        check_factors("row factor", row_factors, MAX_ROW_FACTOR)?;
        check_factors("column factor", column_factors, MAX_EMBEDDING_DIM)?;
        check_factors("rank", ranks, MAX_RANK)?;

        let rows = saturating_product(row_factors);
        if rows < num_embeddings || rows > 1 << 48 {
            return Err(ShapeError::RowFactors { product: rows, num_embeddings });
        }
        check_embedding_dim(saturating_product(column_factors))?;

        let mut shape = Self {
            num_embeddings,
            num_cores: d,
            row_factors: [1; MAX_CORES],
            column_factors: [1; MAX_CORES],
            ranks: [1; MAX_CORES + 1],
            digit_order: DigitOrder::MostSignificantFirst,
            column_order: DigitOrder::MostSignificantFirst,
            prefix_len: 0,
            partial_len: 0,
        };
        for (to, from) in shape.row_factors.iter_mut().zip(row_factors) {
            *to = *from;
        }
        for (to, from) in shape.column_factors.iter_mut().zip(column_factors) {
            *to = *from;
        }
        for (to, from) in shape.ranks.iter_mut().skip(1).zip(ranks) {
            *to = *from;
        }
        shape.checked_sizes().ok_or(ShapeError::TooLarge)?;
        Ok(shape.with_partials())
    }

    fn with_partials(self) -> Self {
        let mut shape = Self { prefix_len: 0, partial_len: 0, ..self };
        let mut columns = 1;
        for k in 1..shape.num_cores {
            columns *= shape.column_factor(k - 1);
            shape.prefix_len = columns * shape.rank(k);
            shape.partial_len = shape.partial_len.max(shape.prefix_len);
        }
        shape
    }

    /// Whether a row takes at most `most` multiply-adds, in products that all have a multiple of
    /// four columns.
    pub(crate) fn has_small_rows(&self, most: usize) -> bool {
        let (mut m, mut multiply_adds) = (1usize, 0usize);
        for k in 1..self.num_cores {
            m = m.saturating_mul(self.column_factor(k - 1));
            let n = self.column_factor(k).saturating_mul(self.rank(k + 1));
            if !n.is_multiple_of(4) {
                return false;
            }
            multiply_adds =
                multiply_adds.saturating_add(m.saturating_mul(self.rank(k)).saturating_mul(n));
        }
        multiply_adds <= most
    }

    /// The same shape with another order of the digits of rows.
    #[must_use]
    pub fn with_digit_order(self, digit_order: DigitOrder) -> Self {
        Self { digit_order, ..self }
    }

    /// The same shape with another order of the digits of columns.
    #[must_use]
    pub fn with_column_order(self, column_order: DigitOrder) -> Self {
        Self { column_order, ..self }
    }

    /// The same table with its cores in reverse, each slice `r_k x q_k x r_{k+1}` then transposed
    /// to `r_{k+1} x q_k x r_k`: multiplying these from the left is multiplying the originals
    /// from the right.
    ///
    /// ```
    /// # use ttrec::TtShape;
    /// let wide_first = TtShape::new(1_000_000, &[100, 100, 100], &[8, 4, 2], &[16, 32])?;
    /// let reversed = wide_first.reversed()?;
    /// assert_eq!(reversed.column_factors(), [2, 4, 8]);
    /// assert_eq!(reversed.inner_ranks(), [32, 16]);
    /// assert_eq!(reversed.flops_left_to_right(), wide_first.flops_right_to_left());
    /// # Ok::<(), ttrec::ShapeError>(())
    /// ```
    ///
    /// # Errors
    /// [`ShapeError::TooLarge`]: the other partial products do not fit the address space.
    pub fn reversed(&self) -> Result<Self, ShapeError> {
        let mut shape = *self;
        shape.row_factors.get_mut(..self.num_cores).unwrap_or_default().reverse();
        shape.column_factors.get_mut(..self.num_cores).unwrap_or_default().reverse();
        shape.ranks.get_mut(..=self.num_cores).unwrap_or_default().reverse();
        shape.digit_order = self.digit_order.reversed();
        shape.column_order = self.column_order.reversed();
        shape.checked_sizes().ok_or(ShapeError::TooLarge)?;
        Ok(shape.with_partials())
    }

    /// Computes every size once with checks, so that the accessors below need none: the bytes of
    /// the cores at four bytes per element, partial products and FLOPs.
    fn checked_sizes(&self) -> Option<()> {
        let limit = isize::MAX as u64 / 8;
        let mut parameters = 0u64;
        for k in 0..self.num_cores {
            let slice = self
                .rank(k)
                .checked_mul(self.column_factor(k))?
                .checked_mul(self.rank(k.checked_add(1)?))?;
            let core =
                u64::from(*self.row_factors.get(k)?).checked_mul(u64::try_from(slice).ok()?)?;
            parameters = parameters.checked_add(core)?;
        }
        let mut columns = 1u64;
        for k in 0..self.num_cores {
            columns = columns.checked_mul(u64::try_from(self.column_factor(k)).ok()?)?;
            let partial = columns.checked_mul(u64::try_from(self.rank(k.checked_add(1)?)).ok()?)?;
            if partial > limit {
                return None;
            }
        }
        (parameters <= limit).then_some(())
    }

    /// Number of rows of the table.
    pub fn num_embeddings(&self) -> u64 {
        self.num_embeddings
    }

    /// Number of columns of the table: the product of the column factors.
    pub fn embedding_dim(&self) -> usize {
        self.column_factors().iter().map(|&q| q as usize).product()
    }

    /// Number of cores, d.
    pub fn num_cores(&self) -> usize {
        self.num_cores
    }

    /// `p`: one factor per core; their product is at least `num_embeddings`.
    pub fn row_factors(&self) -> &[u32] {
        self.row_factors.get(..self.num_cores).unwrap_or_default()
    }

    /// `q`: one factor per core; their product is `embedding_dim`.
    pub fn column_factors(&self) -> &[u32] {
        self.column_factors.get(..self.num_cores).unwrap_or_default()
    }

    /// The d - 1 inner ranks.
    pub fn inner_ranks(&self) -> &[u32] {
        self.ranks.get(1..self.num_cores).unwrap_or_default()
    }

    /// Which core takes the least significant digit of a row.
    pub fn digit_order(&self) -> DigitOrder {
        self.digit_order
    }

    /// Which core the least significant digit of a column belongs to. In the product of the cores
    /// it belongs to the last core. With [`DigitOrder::LeastSignificantFirst`],
    /// [`Table`](crate::Table) reorders the columns of the product.
    pub fn column_order(&self) -> DigitOrder {
        self.column_order
    }

    /// The position of column `column` in the product of the cores: `column` itself, unless the
    /// [column order](Self::column_order) is least significant first.
    pub fn position_of_column(&self, column: usize) -> usize {
        if self.column_order == DigitOrder::MostSignificantFirst {
            return column;
        }
        let mut rest = column;
        self.column_factors().iter().fold(0usize, |position, &q| {
            let (q, digit) = (q as usize, rest % q.max(1) as usize);
            rest /= q.max(1);
            position.wrapping_mul(q).wrapping_add(digit)
        })
    }

    /// Number of partial products that a lookup holds: each step reads one and writes the other,
    /// and with two cores there is only one.
    pub(crate) fn num_partials(&self) -> usize {
        if self.num_cores > 2 { 2 } else { 1 }
    }

    /// `r_k`, for k in `0..=d`; 1 outside.
    pub fn rank(&self, k: usize) -> usize {
        self.ranks.get(k).map_or(1, |&r| r as usize)
    }

    /// `q_k`, for k in `0..d`; 1 outside.
    pub fn column_factor(&self, k: usize) -> usize {
        self.column_factors.get(k).map_or(1, |&q| q as usize)
    }

    /// Number of elements of a slice of core k: `r_k q_k r_{k+1}`.
    pub fn slice_len(&self, k: usize) -> usize {
        self.rank(k) * self.column_factor(k) * self.rank(k + 1)
    }

    /// Number of elements of core k: `p_k r_k q_k r_{k+1}`.
    pub fn core_len(&self, k: usize) -> u64 {
        self.row_factors.get(k).map_or(0, |&p| u64::from(p)) * self.slice_len(k) as u64
    }

    /// Number of elements of all cores.
    pub fn num_parameters(&self) -> u64 {
        (0..self.num_cores).map(|k| self.core_len(k)).sum()
    }

    /// The digits of `row` in mixed radix p, one per core.
    ///
    /// `i_k = floor(row / prod_{m>k} p_m) mod p_k`, or `m<k` for
    /// [`DigitOrder::LeastSignificantFirst`].
    pub fn digits(&self, row: u64) -> impl Iterator<Item = u32> + use<> {
        self.padded_digits(row).into_iter().take(self.num_cores)
    }

    /// [`digits`](Self::digits) as an array, whose entries past d are 0.
    pub(crate) fn padded_digits(&self, row: u64) -> [u32; MAX_CORES] {
        let mut digits = [0; MAX_CORES];
        self.write_digits(row, &mut digits);
        digits
    }

    /// Writes the [`digits`](Self::digits), and leaves the entries past d unchanged.
    #[inline(always)]
    pub(crate) fn write_digits(&self, row: u64, digits: &mut [u32; MAX_CORES]) {
        let pairs = digits.iter_mut().zip(&self.row_factors).take(self.num_cores);
        match self.digit_order {
            DigitOrder::MostSignificantFirst => split_digits(row, pairs.rev()),
            DigitOrder::LeastSignificantFirst => split_digits(row, pairs),
        }
    }

    /// Number of prefixes: `p_0 .. p_{d-2}`.
    pub fn num_prefixes(&self) -> u64 {
        let inner = self.row_factors.iter().take(self.num_cores.saturating_sub(1));
        inner.map(|&p| u64::from(p)).product()
    }

    /// The number of a row's prefix, its digits without the one for the last core: below
    /// [`num_prefixes`](Self::num_prefixes). Rows with the same prefix differ in the last product
    /// only.
    ///
    /// `floor(row / p_{d-1})`, or `row mod (p_0 .. p_{d-2})` for
    /// [`DigitOrder::LeastSignificantFirst`].
    pub fn prefix(&self, row: u64) -> u64 {
        match self.digit_order {
            // Neither divisor is ever 0; `max` spares the division its check.
            DigitOrder::MostSignificantFirst => row / self.last_row_factor().max(1),
            DigitOrder::LeastSignificantFirst => row % self.num_prefixes().max(1),
        }
    }

    /// The digits of a prefix, as [`padded_digits`](Self::padded_digits), the last one 0.
    pub(crate) fn prefix_digits(&self, prefix: u64) -> [u32; MAX_CORES] {
        match self.digit_order {
            DigitOrder::MostSignificantFirst => {
                self.padded_digits(prefix.saturating_mul(self.last_row_factor()))
            }
            DigitOrder::LeastSignificantFirst => self.padded_digits(prefix),
        }
    }

    fn last_row_factor(&self) -> u64 {
        self.row_factors().last().map_or(1, |&p| p.into())
    }

    /// Number of elements of a prefix's product, `q_0 .. q_{d-2} x r_{d-1}`: the left operand of
    /// the last step.
    pub fn prefix_len(&self) -> usize {
        self.prefix_len
    }

    /// Multiply-adds, counted as two, of one row multiplied out from core 0: `sum_k 2
    /// (q_0..q_{k-1}) r_k q_k r_{k+1}`. For d = 3, `2 q_0 q_1 r_2 (r_1 + q_2)`. Saturates.
    pub fn flops_left_to_right(&self) -> u64 {
        self.flops(0..self.num_cores)
    }

    /// As [`flops_left_to_right`](Self::flops_left_to_right), from the last core: `sum_k 2 r_k q_k
    /// r_{k+1} (q_{k+1}..q_{d-1})`. For d = 3, `2 q_1 q_2 r_1 (r_2 + q_0)`. Saturates.
    pub fn flops_right_to_left(&self) -> u64 {
        self.flops((0..self.num_cores).rev())
    }

    fn flops(&self, cores: impl Iterator<Item = usize>) -> u64 {
        let (mut columns, mut flops) = (1u64, 0u64);
        for (step, k) in cores.enumerate() {
            if step > 0 {
                let step_flops = columns.saturating_mul(2).saturating_mul(self.slice_len(k) as u64);
                flops = flops.saturating_add(step_flops);
            }
            columns = columns.saturating_mul(self.column_factor(k) as u64);
        }
        flops
    }

    /// Number of elements of the largest partial product `X_k` (`q_0..q_{k-1} x r_k`, k < d), which
    /// a lookup holds between two steps.
    pub fn partial_len(&self) -> usize {
        self.partial_len
    }
}

/// Refuses row counts that no table has.
pub(crate) fn check_num_embeddings(found: u64) -> Result<(), ShapeError> {
    if (1..=MAX_NUM_EMBEDDINGS).contains(&found) {
        Ok(())
    } else {
        Err(ShapeError::NumEmbeddings { found })
    }
}

/// Refuses column counts that no table has.
pub(crate) fn check_embedding_dim(found: u64) -> Result<(), ShapeError> {
    if (1..=MAX_EMBEDDING_DIM).contains(&found) {
        Ok(())
    } else {
        Err(ShapeError::EmbeddingDim { found })
    }
}

/// Refuses factors that are 0 or above `limit`.
pub(crate) fn check_factors(
    what: &'static str,
    factors: &[u32],
    limit: u64,
) -> Result<(), ShapeError> {
    match factors.iter().position(|&f| f == 0 || u64::from(f) > limit) {
        Some(position) => {
            let found = factors.get(position).map_or(0, |&f| u64::from(f));
            Err(ShapeError::Factor { what, position, found, limit })
        }
        None => Ok(()),
    }
}

fn saturating_product(factors: &[u32]) -> u64 {
    factors.iter().fold(1, |product: u64, &f| product.saturating_mul(u64::from(f)))
}

#[inline(always)]
fn split_digits<'s>(row: u64, pairs: impl Iterator<Item = (&'s mut u32, &'s u32)>) {
    // Nearly all row numbers fit 32 bits, and dividing 32 bits takes less time.
    if !PREFERS_SMALL_CODE && let Ok(mut rest) = u32::try_from(row) {
        for (digit, &p) in pairs {
            *digit = rest % p.max(1);
            rest /= p.max(1);
        }
        return;
    }
    let mut rest = row;
    for (digit, &p) in pairs {
        // A factor is never 0; `max` spares the division its check.
        let p = u64::from(p.max(1));
        *digit = (rest % p) as u32;
        rest /= p;
    }
}

/// Why a [`TtShape`] was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ShapeError {
    /// The number of cores is outside `2..=`[`MAX_CORES`].
    CoreCount {
        /// Cores asked for.
        found: usize,
    },
    /// `row_factors`, `column_factors` and inner `ranks` do not describe the same number of cores.
    Lengths {
        /// Number of row factors (d).
        row_factors: usize,
        /// Number of column factors, which must be d.
        column_factors: usize,
        /// Number of inner ranks, which must be d - 1.
        ranks: usize,
    },
    /// A factor or rank is zero or above its limit.
    Factor {
        /// `"row factor"`, `"column factor"` or `"rank"`.
        what: &'static str,
        /// Position in its list.
        position: usize,
        /// The value given.
        found: u64,
        /// The largest value allowed; the smallest is 1.
        limit: u64,
    },
    /// `num_embeddings` is zero or above [`MAX_NUM_EMBEDDINGS`].
    NumEmbeddings {
        /// Rows asked for.
        found: u64,
    },
    /// The product of the row factors is smaller than `num_embeddings`, or above 2^48.
    RowFactors {
        /// Product of the row factors, saturated.
        product: u64,
        /// Rows that it must hold.
        num_embeddings: u64,
    },
    /// `embedding_dim` (the product of the column factors) is zero or above
    /// [`MAX_EMBEDDING_DIM`].
    EmbeddingDim {
        /// Columns asked for, saturated.
        found: u64,
    },
    /// The two parts of a quotient-remainder table do not make rows of `embedding_dim` columns for
    /// all of its rows.
    QuotientRemainder {
        /// Quotient and remainder rows: `ceil(num_rows / remainder rows)` of the former, 1 to 2^31
        /// - 1 of each.
        rows: [u32; 2],
        /// Their columns: `embedding_dim` both, or in sum if they are put end to end.
        columns: [usize; 2],
    },
    /// The books of a codebook table do not make rows of its columns.
    Codebook {
        /// Books: 1 to [`MAX_NUM_BOOKS`]; if entries are put end to end, a divisor of the columns.
        num_books: usize,
        /// Entries of a book: 1 to [`MAX_BOOK_LEN`].
        book_len: usize,
        /// Columns before the projection; without one, `embedding_dim`.
        inner_dim: usize,
    },
    /// The table, one slice or the lookup's scratch would not fit this machine's address space.
    TooLarge,
}

impl fmt::Display for ShapeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::CoreCount { found } => {
                write!(f, "{found} cores: a tensor train has 2 to {MAX_CORES}")
            }
            Self::Lengths { row_factors, column_factors, ranks } => write!(
                f,
                "{row_factors} row factors, {column_factors} column factors and {ranks} inner \
                 ranks: d cores need d, d and d - 1"
            ),
            Self::Factor { what, position, found, limit } => {
                write!(f, "{what} {position} is {found}: expected 1 to {limit}")
            }
            Self::NumEmbeddings { found } => {
                write!(f, "num_embeddings is {found}: expected 1 to {MAX_NUM_EMBEDDINGS}")
            }
            Self::RowFactors { product, num_embeddings } => write!(
                f,
                "the row factors multiply to {product}: expected at least num_embeddings = \
                 {num_embeddings} and at most 2^48"
            ),
            Self::EmbeddingDim { found } => {
                write!(f, "embedding_dim is {found}: expected 1 to {MAX_EMBEDDING_DIM}")
            }
            Self::QuotientRemainder { rows: [quotients, remainders], columns: [first, second] } => {
                write!(
                    f,
                    "{quotients} x {first} quotient and {remainders} x {second} remainder rows do \
                     not combine to rows of embedding_dim columns, one for each of num_rows"
                )
            }
            Self::Codebook { num_books, book_len, inner_dim } => {
                write!(
                    f,
                    "{num_books} books of {book_len} entries do not make rows of {inner_dim} \
                     columns: expected at most {MAX_NUM_BOOKS} books of at most {MAX_BOOK_LEN} \
                     entries, books that divide the columns if entries are put end to end, and \
                     embedding_dim columns without a projection"
                )
            }
            Self::TooLarge => write!(f, "the table does not fit this machine's address space"),
        }
    }
}

impl core::error::Error for ShapeError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fbtt_benchmark_shape_has_the_published_figures() {
        let shape = TtShape::new(11_000_000, &[200, 220, 250], &[4, 4, 4], &[32, 32]).unwrap();
        assert_eq!(shape.num_parameters(), 200 * 128 + 220 * 4096 + 250 * 128);
        assert_eq!(shape.flops_left_to_right(), 2 * 16 * 32 * (32 + 4));
        assert_eq!(shape.flops_right_to_left(), 2 * 16 * 32 * (32 + 4));
        assert_eq!(shape.partial_len(), 16 * 32);
        assert_eq!((shape.num_prefixes(), shape.prefix_len()), (44_000, 16 * 32));
        let wide_last = TtShape::new(11_000_000, &[200, 220, 250], &[2, 2, 16], &[32, 32]).unwrap();
        assert_eq!(wide_last.flops_left_to_right(), 2 * 4 * 32 * (32 + 16));
        assert_eq!(wide_last.flops_right_to_left(), 2 * 32 * 32 * (32 + 2));
    }

    #[test]
    fn digits_recompose_the_row_in_both_orders() {
        let shape =
            TtShape::new(7 * 5 * 3 * 2 - 1, &[7, 5, 3, 2], &[1, 2, 1, 3], &[1, 5, 2]).unwrap();
        let reversed = shape.with_digit_order(DigitOrder::LeastSignificantFirst);
        for row in 0..shape.num_embeddings() {
            let (most, least) = (shape.padded_digits(row), reversed.padded_digits(row));
            let recompose = |order: [usize; 4], digits: [u32; MAX_CORES]| {
                order.iter().fold(0, |row, &k| {
                    row * u64::from(shape.row_factors()[k]) + u64::from(digits[k])
                })
            };
            assert_eq!(recompose([0, 1, 2, 3], most), row);
            assert_eq!(recompose([3, 2, 1, 0], least), row);
            assert!(most.iter().zip(shape.row_factors()).all(|(d, p)| d < p));
            for (shape, digits) in [(shape, most), (reversed, least)] {
                let prefix = shape.prefix(row);
                assert!(prefix < shape.num_prefixes());
                assert_eq!(shape.prefix_digits(prefix)[..3], digits[..3]);
                assert_eq!(shape.prefix_digits(prefix)[3], 0);
            }
        }
    }

    #[test]
    fn reversed_twice_is_the_same_shape_and_its_columns_are_where_its_cores_put_them() {
        let shape = TtShape::new(7 * 5 * 3 - 1, &[7, 5, 3], &[2, 1, 5], &[4, 3]).unwrap();
        let reversed = shape.reversed().unwrap();
        assert_eq!(
            (reversed.row_factors(), reversed.column_factors()),
            (&[3, 5, 7][..], &[5, 1, 2][..])
        );
        assert_eq!(
            (reversed.inner_ranks(), reversed.partial_len(), reversed.prefix_len()),
            (&[3, 4][..], 20, 20)
        );
        assert_eq!(reversed.num_parameters(), shape.num_parameters());
        assert_eq!(reversed.flops_left_to_right(), shape.flops_right_to_left());
        for row in 0..shape.num_embeddings() {
            let mut digits = shape.padded_digits(row);
            digits[..3].reverse();
            assert_eq!(reversed.padded_digits(row), digits);
        }
        // Column 5 a + c has the digits (a, 0, c); its cores in reverse put it at (c, 0, a) of 5 x
        // 1 x 2.
        for (a, c) in (0..2).flat_map(|a| (0..5).map(move |c| (a, c))) {
            assert_eq!(shape.position_of_column(5 * a + c), 5 * a + c);
            assert_eq!(reversed.position_of_column(5 * a + c), 2 * c + a);
        }
        assert_eq!(reversed.reversed().unwrap(), shape);
    }

    #[test]
    fn the_largest_table_is_accepted_and_its_last_row_has_digits() {
        let shape =
            TtShape::new(1 << 40, &[1 << 14, 1 << 13, 1 << 13], &[1, 1, 1], &[1, 1]).unwrap();
        assert_eq!(
            shape.padded_digits((1 << 40) - 1)[..3],
            [(1 << 14) - 1, (1 << 13) - 1, (1 << 13) - 1]
        );
    }

    #[test]
    fn every_refusal_has_its_own_error() {
        let shape = |n, p: &[u32], q: &[u32], r: &[u32]| TtShape::new(n, p, q, r).unwrap_err();
        assert_eq!(shape(4, &[4], &[4], &[]), ShapeError::CoreCount { found: 1 });
        assert_eq!(shape(4, &[2; 7], &[1; 7], &[1; 6]), ShapeError::CoreCount { found: 7 });
        assert_eq!(
            shape(4, &[], &[], &[]),
            ShapeError::Lengths { row_factors: 0, column_factors: 0, ranks: 0 }
        );
        assert_eq!(
            shape(4, &[2, 2], &[2], &[1]),
            ShapeError::Lengths { row_factors: 2, column_factors: 1, ranks: 1 }
        );
        assert_eq!(
            shape(4, &[2, 2], &[2, 2], &[1, 1]),
            ShapeError::Lengths { row_factors: 2, column_factors: 2, ranks: 2 }
        );
        assert_eq!(shape(0, &[2, 2], &[2, 2], &[1]), ShapeError::NumEmbeddings { found: 0 });
        assert_eq!(
            shape(u64::MAX, &[2, 2], &[2, 2], &[1]),
            ShapeError::NumEmbeddings { found: u64::MAX }
        );
        assert_eq!(
            shape(5, &[2, 2], &[2, 2], &[1]),
            ShapeError::RowFactors { product: 4, num_embeddings: 5 }
        );
        let huge = MAX_ROW_FACTOR as u32;
        assert!(matches!(
            shape(5, &[huge; 6], &[1; 6], &[1; 5]),
            ShapeError::RowFactors { product: u64::MAX, .. }
        ));
        for (p, q, r, what) in [
            ([0, 2], [2, 2], [1], "row factor"),
            ([2, 2], [2, 0], [1], "column factor"),
            ([2, 2], [2, 2], [0], "rank"),
            ([2, 2], [2, 2], [65_537], "rank"),
            ([2, 2], [65_537, 1], [1], "column factor"),
            ([u32::MAX, 2], [1, 1], [1], "row factor"),
        ] {
            assert!(
                matches!(shape(4, &p, &q, &r), ShapeError::Factor { what: w, .. } if w == what),
                "{what}"
            );
        }
        assert_eq!(
            shape(4, &[2, 2], &[1024, 1024], &[1]),
            ShapeError::EmbeddingDim { found: 1 << 20 }
        );
        // 2^31 slices of 2^16 x 2^16 x 2^16 elements: every factor is legal, the whole is not.
        let too_large =
            TtShape::new(4, &[1 << 16, 1 << 30, 2], &[1, 1 << 16, 1], &[1 << 16, 1 << 16]);
        assert_eq!(too_large, Err(ShapeError::TooLarge));
    }
}
