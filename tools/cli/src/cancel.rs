//! Ctrl-C and termination: what was being written is removed, and the process ends.
//!
//! A thread of its own waits for the signal, so that it is answered at once, whatever the others
//! are at: a long computation, a sync, a page fault. Nothing else needs to ask whether it was
//! interrupted.

/// Starts to wait for SIGINT and SIGTERM.
///
/// The first ends the process in order, with 128 and the signal's number as the exit code; a second
/// one, should that take long (a disk that hangs), ends it where it stands.
#[cfg(unix)]
pub(crate) fn watch() -> std::io::Result<()> {
    use signal_hook::{
        consts::{SIGINT, SIGTERM},
        flag,
        iterator::Signals,
    };
    use std::{
        sync::{Arc, atomic::AtomicBool},
        thread,
    };

    let ending = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // In this order: the signal that sets the flag must not find it set.
        flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&ending))?;
        flag::register(signal, Arc::clone(&ending))?;
    }
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        if let Some(signal) = signals.forever().next() {
            end(128 + signal);
        }
    })?;
    Ok(())
}

/// Elsewhere the system's own way of ending a process stands; an unfinished file may stay behind.
#[cfg(not(unix))]
pub(crate) fn watch() -> std::io::Result<()> {
    Ok(())
}

#[cfg(unix)]
fn end(code: i32) -> ! {
    use std::io::{IsTerminal, Write};
    // Held to the end: nothing may take its place any more.
    let outputs = crate::output::abandon();
    let mut stderr = std::io::stderr().lock();
    // Below the progress bar and the terminal's own ^C. Whoever does not listen any more need not
    // hear it.
    let break_line = if stderr.is_terminal() { "\n" } else { "" };
    let paths: String = outputs
        .places()
        .map(|place| format!("; {} is as it was", place.display()))
        .collect();
    let _ = writeln!(stderr, "{break_line}ttrec: interrupted{paths}");
    std::process::exit(code)
}
