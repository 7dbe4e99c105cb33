//! Numbers with three significant digits and a unit after a no-break space.

/// `1.2 MB`, in powers of 1000.
pub(super) fn bytes(bytes: u64) -> String {
    let units = ["B", "KB", "MB", "GB", "TB", "PB", "EB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    // 999.5 would round to 1000: use the next unit.
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{bytes}\u{a0}B")
    } else {
        format!("{}\u{a0}{}", three_digits(value), units[unit])
    }
}

/// `11.4 %`; a small number is never printed as zero.
pub(super) fn percent(share: f64) -> String {
    let value = share * 100.0;
    match value {
        _ if value.is_nan() => "not a number".to_owned(),
        _ if value.is_infinite() => "infinite".to_owned(),
        0.0 => "0\u{a0}%".to_owned(),
        _ if value < 1e-4 => {
            let exponent = value.log10().floor() as i32;
            format!("{:.0}e{exponent}\u{a0}%", (value / 10_f64.powi(exponent)).floor())
        }
        _ if value < 1.0 => {
            let digits = (1.0 - value.log10()).ceil() as usize;
            format!("{value:.digits$}\u{a0}%")
        }
        _ => format!("{}\u{a0}%", three_digits(value)),
    }
}

/// `7.8x`.
pub(super) fn times(ratio: f64) -> String {
    if ratio < 10.0 {
        format!("{ratio:.1}x")
    } else {
        format!("{}x", three_digits(ratio))
    }
}

/// `30,522`.
pub(super) fn count(count: u64) -> String {
    let digits = count.to_string();
    let groups: Vec<&str> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .filter_map(|group| std::str::from_utf8(group).ok())
        .collect();
    groups.join(",")
}

/// Removes trailing zeros, for the ticks of a plot: `20 MB` for `20.0 MB`.
pub(super) fn tick(text: &str) -> String {
    let (number, unit) = text.split_once('\u{a0}').unwrap_or((text, ""));
    let number = if number.contains('.') {
        number.trim_end_matches('0').trim_end_matches('.')
    } else {
        number
    };
    if unit.is_empty() {
        number.to_owned()
    } else {
        format!("{number}\u{a0}{unit}")
    }
}

/// Three significant digits of a number of at least 1, and all digits before the point.
pub(super) fn three_digits(value: f64) -> String {
    let decimals = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_never_round_to_nothing() {
        let expected = [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.00 KB"),
            (46_881_792, "46.9 MB"),
            (999_600, "1.00 MB"),
        ];
        for (number, text) in expected {
            assert_eq!(bytes(number).replace('\u{a0}', " "), text);
        }
        assert_eq!(bytes(u64::MAX), "18.4\u{a0}EB");
        let expected = [
            (0.0, "0 %"),
            (1.0, "100 %"),
            (0.114, "11.4 %"),
            (0.0614, "6.14 %"),
            (0.006_123, "0.61 %"),
            (0.000_21, "0.021 %"),
            (3.2e-8, "3e-6 %"),
            (12.34, "1234 %"),
            (f64::NAN, "not a number"),
        ];
        for (number, text) in expected {
            assert_eq!(percent(number).replace('\u{a0}', " "), text, "{number}");
        }
        for (text, expected) in [
            ("20.0\u{a0}MB", "20\u{a0}MB"),
            ("100\u{a0}%", "100\u{a0}%"),
            ("0.010\u{a0}%", "0.01\u{a0}%"),
        ] {
            assert_eq!(tick(text), expected);
        }
        for (number, text) in
            [(0.98, "1.0x"), (7.82, "7.8x"), (12.34, "12.3x"), (123.4, "123x"), (12345.6, "12346x")]
        {
            assert_eq!(times(number), text);
        }
        for (number, text) in
            [(0, "0"), (999, "999"), (30_522, "30,522"), (11_000_000, "11,000,000")]
        {
            assert_eq!(count(number), text);
        }
    }
}
