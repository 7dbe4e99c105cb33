//! The outcome of a command that completed.

/// The exit code of a command that completed.
pub(crate) enum Outcome {
    /// Exit code 0.
    Done,
    /// Exit code 1: the comparison found a difference.
    Differs,
}
