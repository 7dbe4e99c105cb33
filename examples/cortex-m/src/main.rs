//! Rows, bags and scores from a blob in flash, printed as the bits of each f32, one to a line; and
//! on the board what a score takes.

#![cfg_attr(target_os = "none", no_std, no_main)]

mod lookups;
mod scores;

/// In a part of the flash of its own: see `memory.x`.
#[cfg_attr(target_os = "none", unsafe(link_section = ".model"))]
static MODEL: Model<[u8; include_bytes!("../model.ttr").len()]> =
    Model(*include_bytes!("../model.ttr"));

/// Bytes where a blob may start.
#[repr(C, align(64))]
struct Model<B>(B);

/// The blob, a row, a bag or a sample was refused. The reasons are left out: their texts would be
/// most of the firmware.
#[derive(Debug)]
pub struct Refused;

#[cfg(target_os = "none")]
mod board;
#[cfg(target_os = "none")]
mod digits;

#[cfg(not(target_os = "none"))]
fn main() {
    let show = |x: f32| println!("{:08x}", x.to_bits());
    lookups::run(&MODEL.0, show)
        .and_then(|()| scores::run(&MODEL.0, || 0, show))
        .expect("a blob that the firmware takes");
}
