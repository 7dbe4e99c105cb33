//! Prints rows, bags and scores from a blob in flash, as the bits of each f32, one per line. On the
//! board it also prints the time and memory that a score takes.

#![cfg_attr(target_os = "none", no_std, no_main)]
#![cfg_attr(
    feature = "codebooks",
    allow(dead_code, reason = "the cost of scoring is not measured without a model")
)]

mod lookups;
#[cfg(not(feature = "codebooks"))]
mod scores;

/// A model, or with the feature `codebooks` a table of codes.
#[cfg(not(feature = "codebooks"))]
macro_rules! blob {
    () => {
        include_bytes!("../model.ttr")
    };
}
#[cfg(feature = "codebooks")]
macro_rules! blob {
    () => {
        include_bytes!("../../../tests/golden/codes.ttr")
    };
}

/// The blob has its own region of the flash: see `memory.x`.
#[cfg_attr(target_os = "none", unsafe(link_section = ".model"))]
static MODEL: Model<[u8; blob!().len()]> = Model(*blob!());

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
    lookups::run(&MODEL.0, show).expect("a blob that the firmware takes");
    #[cfg(not(feature = "codebooks"))]
    scores::run(&MODEL.0, || 0, show).expect("a model that the firmware takes");
}
