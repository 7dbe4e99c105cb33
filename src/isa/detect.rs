//! Which tiers this CPU can run: CPUID and XCR0 by hand, so that it works without `std`.

/// CPUID leaf 1 ecx and leaf 7 ebx, for the features that the tiers name.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
enum Register {
    Leaf1Ecx,
    Leaf7Ebx,
}

/// Whether CPU and operating system both support `feature`.
#[cfg(target_arch = "x86_64")]
pub(super) fn has(feature: &str) -> bool {
    use core::arch::x86_64::{__cpuid, __cpuid_count};
    // Intel SDM volume 2, CPUID: where a feature's bit is, and which register states (XCR0) the system must save for it:
    // 0b110 is SSE and AVX, 0b1110_0110 the masks and the wider and further registers of AVX-512 too.
    let (register, bit, xcr0) = match feature {
        "fma" => (Register::Leaf1Ecx, 12, 0b110),
        "f16c" => (Register::Leaf1Ecx, 29, 0b110),
        "avx2" => (Register::Leaf7Ebx, 5, 0b110),
        "avx512f" => (Register::Leaf7Ebx, 16, 0b1110_0110),
        "avx512vl" => (Register::Leaf7Ebx, 31, 0b1110_0110),
        _ => return false,
    };
    let leaf1 = __cpuid(1);
    let word = match register {
        Register::Leaf1Ecx => leaf1.ecx,
        Register::Leaf7Ebx if __cpuid(0).eax >= 7 => __cpuid_count(7, 0).ebx,
        Register::Leaf7Ebx => 0,
    };
    let osxsave = leaf1.ecx >> 27 & 1 == 1;
    word >> bit & 1 == 1 && osxsave && saved_state() & xcr0 == xcr0
}

/// XCR0: the register states that the operating system saves. The CPU must have OSXSAVE.
#[cfg(target_arch = "x86_64")]
fn saved_state() -> u64 {
    #[target_feature(enable = "xsave")]
    fn xcr0() -> u64 {
        // SAFETY: register 0 is XCR0, which exists wherever XGETBV does.
        unsafe { core::arch::x86_64::_xgetbv(0) }
    }
    // SAFETY: the caller has seen OSXSAVE, which implies XSAVE and that XGETBV may be executed.
    unsafe { xcr0() }
}

/// Whether the CPU supports `feature`: of those that the tiers name, `neon` is part of the baseline.
#[cfg(target_arch = "aarch64")]
pub(super) fn has(feature: &str) -> bool {
    // But on targets without floating point registers.
    feature == "neon" && cfg!(target_feature = "neon")
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    #[test]
    fn detection_by_hand_agrees_with_the_standard_library() {
        extern crate std;
        macro_rules! agrees {
            ($($feature:tt)+) => { $( assert_eq!(super::has($feature), std::is_x86_feature_detected!($feature), $feature); )+ };
        }
        agrees!("fma" "f16c" "avx2" "avx512f" "avx512vl");
        assert!(!super::has("no such feature"));
    }
}
