//! Progress of long work.

/// Receives the progress of long work, one step at a time.
///
/// The default methods do nothing, and `()` implements none.
pub trait Progress: Sync {
    /// A step of `len` units begins. `what`, such as `item: rows`, contains names from files.
    fn begin(&self, what: &str, len: u64) {
        let _ = (what, len);
    }

    /// `units` more are finished. Called from several threads.
    fn advance(&self, units: u64) {
        let _ = units;
    }

    /// The current step has ended, complete or not.
    fn finish(&self) {}

    /// A line of text about a result, in which names from files are escaped.
    fn note(&self, text: &str) {
        let _ = text;
    }
}

impl Progress for () {}

/// A step of work, finished when dropped.
pub(crate) struct Step<'p>(&'p dyn Progress);

impl<'p> Step<'p> {
    pub(crate) fn new(progress: &'p dyn Progress, what: &str, len: u64) -> Self {
        progress.begin(what, len);
        Self(progress)
    }

    pub(crate) fn add(&self, units: u64) {
        self.0.advance(units);
    }
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        self.0.finish();
    }
}
