//! How the rows of a bag are combined.

/// How the rows of a bag become one. An empty bag is zeros.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Pooling {
    /// The sum of the rows, each times its weight if there are `per_sample_weights`.
    #[default]
    Sum,
    /// The sum divided by the number of rows.
    Mean,
    /// The maximum of each column.
    Max,
}
