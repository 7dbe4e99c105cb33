//! Sizes on the command line.

use std::str::FromStr;

/// Names of units, and their bytes.
const UNITS: [(&str, f64); 9] = [
    ("", 1.0),
    ("B", 1.0),
    ("KB", 1e3),
    ("MB", 1e6),
    ("GB", 1e9),
    ("KiB", 1024.0),
    ("MiB", 1_048_576.0),
    ("GiB", 1_073_741_824.0),
    ("%", 0.0),
];

/// A size on the command line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// A number of bytes.
    Bytes(u64),
    /// A percentage, possibly above 100, of a total that the caller knows.
    Percent(f64),
}

impl Budget {
    /// The size in bytes, if the total is `dense` bytes.
    pub fn bytes(self, dense: f64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => (dense * percent / 100.0) as u64,
        }
    }
}

impl FromStr for Budget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "expected a size above 0, such as 28MiB, 500KB, 1234 or 1%".to_owned();
        // Sizes have no sign and no exponent.
        let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(unit_at);
        let number: f64 = number.parse().map_err(|_| expected())?;
        let unit = unit.trim_start();
        let (name, factor) = UNITS
            .into_iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(unit))
            .ok_or_else(expected)?;
        match number * factor {
            _ if name == "%" && number > 0.0 && number.is_finite() => Ok(Self::Percent(number)),
            bytes if (1.0..u64::MAX as f64).contains(&bytes) => Ok(Self::Bytes(bytes as u64)),
            _ => Err(expected()),
        }
    }
}

/// Parses a size that is not a percentage, such as `512MiB`.
///
/// # Errors
/// If `text` is not a size; the error says what was expected.
pub fn memory_size(text: &str) -> Result<u64, String> {
    match text.parse()? {
        Budget::Bytes(bytes) => Ok(bytes),
        Budget::Percent(_) => Err("expected a size, such as 512MiB".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::{Budget, Budget::Bytes, Budget::Percent};

    #[test]
    fn sizes_have_units_or_are_shares() {
        for (text, expected) in [
            ("1", Bytes(1)),
            ("1234", Bytes(1234)),
            ("12 B", Bytes(12)),
            ("500KB", Bytes(500_000)),
            ("1.5MB", Bytes(1_500_000)),
            ("2gb", Bytes(2_000_000_000)),
            ("3KiB", Bytes(3072)),
            ("28MiB", Bytes(28 << 20)),
            ("0.5 GiB", Bytes(1 << 29)),
            ("1%", Percent(1.0)),
            ("0.25 %", Percent(0.25)),
            ("200%", Percent(200.0)),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text:?}");
        }
        assert_eq!(Percent(0.5).bytes(1e6), 5000);
        assert_eq!(Percent(1.0).bytes(99.0), 0);
        assert_eq!(Percent(1e300).bytes(f64::MAX), u64::MAX);
        assert_eq!(Bytes(7).bytes(1e6), 7);
    }

    #[test]
    fn nonsense_is_refused() {
        let long = "9".repeat(400);
        for text in [
            "",
            "0",
            "0%",
            "0.0MiB",
            "0.5",
            "-1",
            "+1",
            "1e3",
            "inf",
            "nan",
            "NaN%",
            "MiB",
            "%",
            "1M",
            "1k",
            "1.2.3",
            "1 %%",
            "1%MB",
            ".",
            "99999999999999999999",
            "99999999999GB",
            &long,
            &format!("{long}%"),
            "1 MiB extra",
        ] {
            assert!(text.parse::<Budget>().is_err(), "{text:?}");
        }
    }
}
