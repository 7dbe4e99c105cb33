//! Progress bars on a terminal, and notes on standard output.

use crate::output;
use indicatif::{ProgressBar, ProgressStyle};
use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Counts steps; shows a bar after the first second if stderr is a terminal.
pub(crate) struct Bar {
    bar: ProgressBar,
    style: ProgressStyle,
    started: Instant,
    done: u64,
    shown: bool,
}

impl Bar {
    /// `total` steps of `what`, such as "item: rows"; 0 if their number is not known.
    pub(crate) fn new(what: &str, total: u64) -> Self {
        let template = match total {
            0 => "{msg}: {human_pos} ({elapsed})",
            _ => "{msg} {wide_bar} {human_pos}/{human_len} ({eta} left)",
        };
        let style = ProgressStyle::with_template(template).expect("a fixed template");
        // Escaped, so that names cannot inject terminal control sequences.
        let bar = ProgressBar::hidden().with_message(what.escape_debug().to_string());
        bar.set_length(total);
        Self { bar, style, started: Instant::now(), done: 0, shown: false }
    }

    /// Adds `steps` finished steps.
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

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Shows the progress and the notes of `ttrec-convert`.
#[derive(Default)]
pub(crate) struct Terminal(Mutex<Option<Bar>>);

impl Terminal {
    fn set(&self, bar: Option<Bar>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = bar;
    }
}

impl ttrec_convert::Progress for Terminal {
    fn begin(&self, what: &str, len: u64) {
        self.set(Some(Bar::new(what, len)));
    }

    fn advance(&self, units: u64) {
        if let Some(bar) = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            bar.add(units);
        }
    }

    fn finish(&self) {
        self.set(None);
    }

    fn note(&self, text: &str) {
        // If standard output fails, the command's last line fails too, and reports it.
        let _ = output::print(|out| writeln!(out, "{text}"));
    }
}
