//! Progress bars on a terminal, and notes on standard output.

use crate::output;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    io::{IsTerminal, stderr},
    sync::{Mutex, OnceLock, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// Counts steps. If stderr is a terminal, shows a bar once the command has worked for a second.
pub(crate) struct Bar {
    bar: ProgressBar,
    /// Shows the bar even if the first step takes long.
    shower: Option<JoinHandle<()>>,
}

impl Bar {
    /// `total` steps of `what`, such as "item: rows"; 0 if their number is not known.
    pub(crate) fn new(what: &str, total: u64) -> Self {
        static STARTED: OnceLock<Instant> = OnceLock::new();
        let due = *STARTED.get_or_init(Instant::now) + Duration::from_secs(1);
        let template = match total {
            0 => "{msg}: {human_pos} ({elapsed})",
            _ => "{msg} {wide_bar} {human_pos}/{human_len} ({eta} left)",
        };
        let style = ProgressStyle::with_template(template).expect("a fixed template");
        // Escaped, so that names cannot inject terminal control sequences.
        let bar = ProgressBar::hidden().with_message(what.escape_debug().to_string());
        bar.set_length(total);
        let shown = bar.clone().with_style(style);
        let show = move || {
            while let Some(wait) = due.checked_duration_since(Instant::now()) {
                if shown.is_finished() {
                    return;
                }
                thread::park_timeout(wait);
            }
            if !shown.is_finished() {
                shown.set_draw_target(ProgressDrawTarget::stderr());
                shown.enable_steady_tick(Duration::from_millis(200));
            }
        };
        // Without a thread there is no bar, and all else is the same.
        let shower = stderr().is_terminal().then(|| thread::Builder::new().spawn(show).ok());
        Self { bar, shower: shower.flatten() }
    }

    /// Shows nothing: for a part of some work that another bar is about.
    pub(crate) fn hidden() -> Self {
        Self { bar: ProgressBar::hidden(), shower: None }
    }

    /// Adds `steps` finished steps.
    pub(crate) fn add(&self, steps: u64) {
        self.bar.inc(steps);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        // Finished first, for the thread to see.
        self.bar.finish_and_clear();
        if let Some(shower) = self.shower.take() {
            shower.thread().unpark();
            let _ = shower.join();
            self.bar.finish_and_clear();
        }
    }
}

/// Shows the progress and the notes of `ttrec-convert`. Of steps within steps, it shows the
/// outermost.
#[derive(Default)]
pub(crate) struct Terminal(Mutex<Steps>);

#[derive(Default)]
struct Steps {
    depth: u32,
    bar: Option<Bar>,
}

impl Terminal {
    fn with<T>(&self, run: impl FnOnce(&mut Steps) -> T) -> T {
        run(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ttrec_convert::Progress for Terminal {
    fn begin(&self, what: &str, len: u64) {
        self.with(|steps| {
            if steps.depth == 0 {
                steps.bar = Some(Bar::new(what, len));
            }
            steps.depth += 1;
        });
    }

    fn advance(&self, units: u64) {
        self.with(|steps| {
            if let (1, Some(bar)) = (steps.depth, &steps.bar) {
                bar.add(units);
            }
        });
    }

    fn finish(&self) {
        self.with(|steps| {
            steps.depth = steps.depth.saturating_sub(1);
            if steps.depth == 0 {
                steps.bar = None;
            }
        });
    }

    fn note(&self, text: &str) {
        // If standard output fails, the command's last line fails too, and reports it.
        let _ = output::print(|out| writeln!(out, "{text}"));
    }
}
