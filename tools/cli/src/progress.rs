//! A progress bar on a terminal, for what takes longer than a second.

use indicatif::{ProgressBar, ProgressStyle};
use std::time::{Duration, Instant};

/// Counts steps; shows a bar after the first second if stderr is a terminal.
pub(crate) struct Progress {
    bar: ProgressBar,
    style: ProgressStyle,
    started: Instant,
    done: u64,
    shown: bool,
}

impl Progress {
    /// `total` steps of `what`, such as "item: rows".
    pub(crate) fn new(what: &str, total: u64) -> Self {
        let template = "{msg} {wide_bar} {human_pos}/{human_len} ({eta} left)";
        let style = ProgressStyle::with_template(template).expect("a fixed template");
        // It names tables, and these must not command the terminal.
        let bar = ProgressBar::hidden().with_message(what.escape_debug().to_string());
        bar.set_length(total);
        Self { bar, style, started: Instant::now(), done: 0, shown: false }
    }

    /// `steps` more are done.
    pub(crate) fn add(&mut self, steps: u64) {
        self.done += steps;
        if !self.shown && self.started.elapsed() > Duration::from_secs(1) {
            self.shown = true;
            self.bar.set_style(self.style.clone());
            self.bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
        }
        if self.shown {
            self.bar.set_position(self.done);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
