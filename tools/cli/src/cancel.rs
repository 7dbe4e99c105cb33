//! Ctrl-C and termination: removes unfinished outputs and ends the process.
//!
//! A separate thread waits for the signal, so that the process ends at once during a long
//! computation, a sync or a page fault, and no other code polls for it.

/// Starts to wait for SIGINT and SIGTERM.
///
/// The first signal removes the unfinished outputs and exits with 128 + the signal's number. A
/// second signal exits immediately, in case the first exit hangs on a disk.
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
        // In this order, so that the first signal does not find its own flag set.
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

/// Does nothing: other systems end the process by default, and may leave an unfinished file.
#[cfg(not(unix))]
pub(crate) fn watch() -> std::io::Result<()> {
    Ok(())
}

#[cfg(unix)]
fn end(code: i32) -> ! {
    use std::io::{IsTerminal, Write};
    // Held until the exit, so that no other thread renames an output now.
    let outputs = crate::output::abandon();
    let mut stderr = std::io::stderr().lock();
    // On a line below the progress bar and the terminal's ^C.
    let break_line = if stderr.is_terminal() { "\n" } else { "" };
    let paths: String = outputs
        .places()
        .map(|place| format!("; {} was not modified", place.display()))
        .collect();
    let _ = writeln!(stderr, "{break_line}ttrec: interrupted{paths}");
    std::process::exit(code)
}
