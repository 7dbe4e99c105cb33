//! The outcome of a command that completed.

/// Which exit code it has.
pub(crate) enum Outcome {
    /// 0.
    Done,
    /// 1: what was compared differs.
    Differs,
}
