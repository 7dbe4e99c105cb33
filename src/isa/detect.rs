//! Which tiers this CPU can run: CPUID and XCR0 by hand, so that it works without `std`.

/// What CPUID and XCR0 report.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
struct Facts {
    leaf1_ecx: u32,
    leaf7_ebx: u32,
    /// 0 where the system does not use XSAVE.
    xcr0: u64,
}

/// Whether CPU and operating system both support `feature`.
#[cfg(target_arch = "x86_64")]
pub(super) fn has(feature: &str) -> bool {
    let leaf1_ecx = cpuid(1).ecx;
    let leaf7_ebx = if cpuid(0).eax >= 7 { cpuid(7).ebx } else { 0 };
    let osxsave = leaf1_ecx >> 27 & 1 == 1;
    supports(feature, Facts { leaf1_ecx, leaf7_ebx, xcr0: if osxsave { saved_state() } else { 0 } })
}

/// Sub-leaf 0 of a leaf of CPUID.
#[cfg(target_arch = "x86_64")]
#[allow(unused_unsafe, reason = "CPUID became safe to call after Rust 1.89")]
fn cpuid(leaf: u32) -> core::arch::x86_64::CpuidResult {
    // SAFETY: every x86-64 CPU has CPUID.
    unsafe { core::arch::x86_64::__cpuid_count(leaf, 0) }
}

/// Whether such a CPU and system support `feature`.
#[cfg(target_arch = "x86_64")]
fn supports(feature: &str, Facts { leaf1_ecx, leaf7_ebx, xcr0 }: Facts) -> bool {
    // The bits of CPUID: Intel SDM volume 2, CPUID. The system must also save the registers in a
    // context switch. XCR0 has a bit for each kind that it saves (volume 1, 13.1): 1 XMM (SSE), 2
    // the upper halves of YMM (AVX), 5 the mask registers, 6 the upper halves of ZMM0 to ZMM15, 7
    // ZMM16 to ZMM31.
    const AVX: u64 = 1 << 1 | 1 << 2;
    const AVX_512: u64 = AVX | 1 << 5 | 1 << 6 | 1 << 7;
    let (word, bit, states) = match feature {
        "fma" => (leaf1_ecx, 12, AVX),
        "f16c" => (leaf1_ecx, 29, AVX),
        "avx2" => (leaf7_ebx, 5, AVX),
        "avx512f" => (leaf7_ebx, 16, AVX_512),
        "avx512vl" => (leaf7_ebx, 31, AVX_512),
        _ => return false,
    };
    word >> bit & 1 == 1 && xcr0 & states == states
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

/// Whether the CPU supports `feature`. The only feature that a tier names is `neon`, which is part
/// of the baseline.
#[cfg(target_arch = "aarch64")]
pub(super) fn has(feature: &str) -> bool {
    // Except on targets without floating-point registers.
    feature == "neon" && cfg!(target_feature = "neon")
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::{Facts, supports};

    #[test]
    fn a_feature_needs_its_bit_and_all_of_its_registers_saved() {
        let all = Facts { leaf1_ecx: u32::MAX, leaf7_ebx: u32::MAX, xcr0: 0xE6 };
        for (feature, leaf1, leaf7, states) in [
            ("fma", 1 << 12, 0, 0b110),
            ("f16c", 1 << 29, 0, 0b110),
            ("avx2", 0, 1 << 5, 0b110),
            ("avx512f", 0, 1 << 16, 0xE6),
            ("avx512vl", 0, 1 << 31, 0xE6),
        ] {
            assert!(supports(feature, all), "{feature}");
            assert!(
                supports(feature, Facts { leaf1_ecx: leaf1, leaf7_ebx: leaf7, xcr0: states }),
                "{feature}"
            );
            let (leaf1_ecx, leaf7_ebx) = (!leaf1, !leaf7);
            assert!(
                !supports(feature, Facts { leaf1_ecx, leaf7_ebx, xcr0: u64::MAX }),
                "{feature} without its bit"
            );
            for state in (0..8).map(|bit| 1 << bit).filter(|state| states & state != 0) {
                assert!(
                    !supports(feature, Facts { xcr0: !state, ..all }),
                    "{feature} without state {state:#x}"
                );
            }
            assert!(!supports(feature, Facts { xcr0: 0, ..all }), "{feature} without XSAVE");
        }
        assert!(!supports("no such feature", all));
    }

    #[test]
    fn detection_by_hand_agrees_with_the_standard_library() {
        extern crate std;
        macro_rules! agrees {
            ($($feature:tt)+) => { $(
                let expected = std::is_x86_feature_detected!($feature);
                assert_eq!(super::has($feature), expected, $feature);
            )+ };
        }
        agrees!("fma" "f16c" "avx2" "avx512f" "avx512vl");
    }
}
