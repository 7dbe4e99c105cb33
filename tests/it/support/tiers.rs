//! The tiers to test: all that this CPU can run, compared with those that the caller expects.

use std::fmt::Debug;
use ttrec::Tier;

/// The tiers that this CPU can run, best first. If `EXPECT_ISA` is set, they must be exactly those
/// it names.
pub(crate) fn available() -> Vec<Tier> {
    let tiers: Vec<Tier> = Tier::available().collect();
    if let Ok(expected) = std::env::var("EXPECT_ISA") {
        let names: Vec<&str> = tiers.iter().map(|tier| tier.name()).collect();
        expect(&names, &expected).unwrap();
    }
    tiers
}

/// Whether `TTREC_KERNEL_CASES` asks for a part of the cases, for emulators and valgrind.
pub(crate) fn few_cases() -> bool {
    match std::env::var("TTREC_KERNEL_CASES").as_deref() {
        Ok("small") => true,
        Ok(other) => panic!("TTREC_KERNEL_CASES is {other:?}: only `small` has a meaning"),
        Err(_) => false,
    }
}

/// Whether `found` is the set that `expected` names, separated by commas, in any order.
pub(crate) fn expect(found: &[&str], expected: &str) -> Result<(), String> {
    let mut wanted: Vec<&str> = expected.split(',').map(str::trim).collect();
    let mut names = found.to_vec();
    wanted.sort_unstable();
    names.sort_unstable();
    if wanted == names {
        Ok(())
    } else {
        Err(format!("EXPECT_ISA is {expected:?}, but the tiers are {found:?}"))
    }
}

/// Whether the tier rounds `a * b + c` once.
pub(crate) fn fuses(tier: Tier) -> bool {
    tier.name() != "scalar"
}

/// All tiers that fuse must have found the same.
pub(crate) fn assert_fused_agree<T: PartialEq + Debug>(found: &[(Tier, T)]) {
    let mut fused = found.iter().filter(|(tier, _)| fuses(*tier));
    if let Some((first, expected)) = fused.next() {
        for (tier, other) in fused {
            assert_eq!(other, expected, "{} and {}", tier.name(), first.name());
        }
    }
}
