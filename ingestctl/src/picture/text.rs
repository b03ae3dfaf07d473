//! Numbers as people read them.

/// `1.9 GiB`.
#[must_use]
pub fn bytes(bytes: f64) -> String {
    scaled(bytes, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB"])
}

/// `98.1 k`.
#[must_use]
pub fn count(count: f64) -> String {
    scaled(count, 1000.0, &["", "k", "M", "G", "T"])
        .trim_end()
        .to_owned()
}

fn scaled(mut value: f64, step: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while value >= step && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    let digits = usize::from(unit > 0 && value < 99.95);
    format!(
        "{value:.digits$} {}",
        units.get(unit).copied().unwrap_or_default()
    )
}

/// `0.4 s`, `12 ms`, `3m 12s`, `2h 5m`, `4d 3h`.
#[must_use]
pub fn duration(seconds: f64) -> String {
    let (minute, hour, day) = (60.0, 3_600.0, 86_400.0);
    let two = |large: f64, unit: &str, small: f64, small_unit: &str| {
        let rest = (seconds % large / small).floor();
        format!("{:.0}{unit} {rest:.0}{small_unit}", (seconds / large).floor())
    };
    if seconds < 0.000_5 {
        "0 ms".into()
    } else if seconds < 0.999_5 {
        format!("{:.0} ms", seconds * 1_000.0)
    } else if seconds < minute {
        format!("{seconds:.1} s")
    } else if seconds < hour {
        two(minute, "m", 1.0, "s")
    } else if seconds < day {
        two(hour, "h", minute, "m")
    } else {
        two(day, "d", hour, "h")
    }
}

/// A duration, or a dash where there was nothing to measure.
#[must_use]
pub fn maybe(seconds: Option<f64>) -> String {
    seconds.map_or_else(|| "-".into(), duration)
}

/// A bar of `width` characters; anything above nothing shows.
#[must_use]
pub fn bar(ratio: f64, width: usize) -> String {
    let ratio = ratio.clamp(0.0, 1.0);
    let full = (ratio * width as f64).round();
    let full = if ratio > 0.0 { full.max(1.0) } else { 0.0 };
    // Between 0 and `width`, which is a screen's.
    let full = (full as usize).min(width);
    "█".repeat(full) + &"░".repeat(width - full)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_people_write_them() {
        assert_eq!(
            [bytes(0.0), bytes(1536.0), bytes(8.0 * 1024.0f64.powi(3))],
            ["0 B", "1.5 KiB", "8.0 GiB"]
        );
        assert_eq!(
            [count(7.0), count(98_123.0), count(123_456.0)],
            ["7", "98.1 k", "123 k"]
        );
        assert_eq!(
            [
                duration(0.0),
                duration(0.012),
                duration(7.25),
                duration(192.0),
                duration(7_500.0),
                duration(90_000.0)
            ],
            ["0 ms", "12 ms", "7.2 s", "3m 12s", "2h 5m", "1d 1h"]
        );
        assert_eq!(
            [bar(0.0, 4), bar(0.001, 4), bar(0.5, 4), bar(7.0, 4)],
            ["░░░░", "█░░░", "██░░", "████"]
        );
    }
}
