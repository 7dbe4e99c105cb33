//! The board: its output and its timer.

use crate::{MODEL, Refused, digits::hex, lookups};
use cortex_m::peripheral::{Peripherals, SYST, syst::SystClkSource};
use cortex_m_rt::entry;
use cortex_m_semihosting::{
    debug::{EXIT_FAILURE, EXIT_SUCCESS, exit},
    hio,
};

#[entry]
fn main() -> ! {
    let status = if print().is_ok() { EXIT_SUCCESS } else { EXIT_FAILURE };
    loop {
        exit(status);
    }
}

fn print() -> Result<(), Refused> {
    let mut syst = Peripherals::take().ok_or(Refused)?.SYST;
    syst.set_clock_source(SystClkSource::Core);
    syst.set_reload(TIMER_MAX);
    syst.clear_current();
    syst.enable_counter();

    let mut out = hio::hstdout().map_err(|()| Refused)?;
    let mut written = Ok(());
    let mut show = |x: f32| written = written.and_then(|()| out.write_all(&hex(x.to_bits())));
    lookups::run(&MODEL.0, &mut show)?;
    #[cfg(not(feature = "codebooks"))]
    let used = crate::scores::run(&MODEL.0, now, &mut show)?;
    written.map_err(|()| Refused)?;
    #[cfg(not(feature = "codebooks"))]
    print_cost(&used)?;
    Ok(())
}

/// Prints what scoring took.
#[cfg(not(feature = "codebooks"))]
fn print_cost(used: &crate::scores::Used) -> Result<(), Refused> {
    let mut err = hio::hstderr().map_err(|()| Refused)?;
    let mut say = |number: u32, what: &str| {
        let (digits, start) = crate::digits::decimal(number);
        err.write_all(digits.get(start..).unwrap_or_default())
            .and_then(|()| err.write_all(what.as_bytes()))
    };
    let start = now();
    cortex_m::asm::delay(LOOPS);
    let of_loops = now().wrapping_sub(start);
    let [sample, candidates] = used.time.map(|time| instructions(time, of_loops));
    let [least, given] = used.workspace.map(|bytes| bytes as u32);
    say(least, " bytes of workspace needed\n")
        .and_then(|()| say(given, " bytes of workspace given\n"))
        .and_then(|()| say(sample, " instructions to score one sample\n"))
        .and_then(|()| say(candidates, " instructions to rank 8 candidates\n"))
        .map_err(|()| Refused)
}

const TIMER_MAX: u32 = 0xff_ffff;
/// Instructions per unit of the timer, measured with a loop of two instructions. (It is a constant
/// under QEMU's `-icount`, where each instruction takes the same time. A real board has a cycle
/// counter.)
const LOOPS: u32 = 1_000_000;

/// The timer counts down.
fn now() -> u32 {
    TIMER_MAX - SYST::get_current()
}

fn instructions(time: u32, of_loops: u32) -> u32 {
    let all = u64::from(time) * 2 * u64::from(LOOPS);
    all.checked_div(u64::from(of_loops)).unwrap_or(0) as u32
}

/// Prints nothing, to save flash: the exit status of the emulator shows the panic.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {
        exit(EXIT_FAILURE);
    }
}
