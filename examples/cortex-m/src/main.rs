//! Rows and bags from a blob in flash, printed as the bits of each f32, one to a line.

#![cfg_attr(target_os = "none", no_std, no_main)]

mod lookups;

static MODEL: &ttrec::AlignedBytes = ttrec::include_blob!("../model.ttr");

#[cfg(target_os = "none")]
mod board {
    use core::fmt::Write;
    use cortex_m_rt::entry;
    use cortex_m_semihosting::{
        debug::{EXIT_FAILURE, EXIT_SUCCESS, exit},
        hio,
    };

    #[entry]
    fn main() -> ! {
        let status = match hio::hstdout() {
            Ok(mut out) => {
                let mut shown = Ok(());
                let done = super::lookups::run(super::MODEL, |x| {
                    shown = shown.and_then(|()| writeln!(out, "{:08x}", x.to_bits()));
                });
                if done.is_ok() && shown.is_ok() { EXIT_SUCCESS } else { EXIT_FAILURE }
            }
            Err(()) => EXIT_FAILURE,
        };
        loop {
            exit(status);
        }
    }

    /// Says nothing, to save flash; the emulator's exit status tells.
    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo) -> ! {
        loop {
            exit(EXIT_FAILURE);
        }
    }
}

#[cfg(not(target_os = "none"))]
fn main() {
    lookups::run(MODEL, |x| println!("{:08x}", x.to_bits())).expect("the blob that the firmware takes");
}
