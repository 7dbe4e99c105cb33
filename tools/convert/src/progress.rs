//! Progress of long work.

use std::cell::Cell;

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

/// A share of a step: it adds so many units, however it is divided. The rest is added at its end.
pub(crate) struct Share<'s> {
    step: &'s Step<'s>,
    units: u64,
    added: Cell<u64>,
}

impl<'s> Share<'s> {
    pub(crate) fn new(step: &'s Step<'s>, units: u64) -> Self {
        Self { step, units, added: Cell::new(0) }
    }

    /// `done` of `all` parts are finished.
    pub(crate) fn reach(&self, done: usize, all: usize) {
        let added = self.units * (done as u64).min(all as u64) / (all as u64).max(1);
        self.step.add(added - self.added.replace(added).min(added));
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.reach(1, 1);
    }
}
