//! Progress of long work, handed to whoever called.

/// Receives the progress of long work. One step of work is at hand at a time.
///
/// Every method does nothing unless it is implemented; `()` implements none.
pub trait Progress: Sync {
    /// `len` units of `what`, such as `item: rows`, begin. `what` contains names from files.
    fn begin(&self, what: &str, len: u64) {
        let _ = (what, len);
    }

    /// `units` more are done. Called from several threads.
    fn advance(&self, units: u64) {
        let _ = units;
    }

    /// What began last has ended, complete or not.
    fn finish(&self) {}

    /// One line of text about a result. Names from files are escaped in it.
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
