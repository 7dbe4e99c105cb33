//! Prints rows, bags and scores from a blob in flash, as the bits of each f32, one per line. On the
//! board it also prints the time and memory that a score takes.

#![cfg_attr(target_os = "none", no_std, no_main)]

mod lookups;
mod scores;

/// The blob has its own region of the flash: see `memory.x`.
#[cfg_attr(target_os = "none", unsafe(link_section = ".model"))]
static MODEL: Model<[u8; include_bytes!("../model.ttr").len()]> =
    Model(*include_bytes!("../model.ttr"));

/// Bytes with the alignment of a blob.
#[repr(C, align(64))]
struct Model<B>(B);

/// The blob, a row, a bag or a sample was refused. The reasons are left out, because their messages
/// would be most of the firmware.
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
