//! Sizes and times with units.

use std::time::Duration;

/// Splits `1.5GiB` into number and unit.
fn split(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let number: f64 = text[..end].parse().ok()?;
    Some((number, text[end..].trim()))
}

/// Bytes: `512`, `64KiB`, `1.5GiB`, `10MB` (decimal), `unlimited`.
///
/// # Errors
/// Says what is accepted.
pub fn parse_size(text: &str) -> Result<u64, String> {
    if text == "unlimited" {
        return Ok(u64::MAX);
    }
    let bad = || {
        format!("{text:?} is not a size; write bytes or a number with B, KiB, MiB, GiB, TiB, KB, MB, GB, TB")
    };
    let (number, unit) = split(text).ok_or_else(bad)?;
    let factor: f64 = match unit {
        "" | "B" => 1.0,
        "KiB" | "K" => 1024.0,
        "MiB" | "M" => 1_048_576.0,
        "GiB" | "G" => 1_073_741_824.0,
        "TiB" | "T" => 1_099_511_627_776.0,
        "KB" | "kB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        "TB" => 1e12,
        _ => return Err(bad()),
    };
    let bytes = number * factor;
    if bytes >= 9e18 {
        return Err(format!("{text:?} is too large a size"));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "not negative, below 2^63"
    )]
    Ok(bytes as u64)
}

/// Time: `500ms`, `2s`, `1.5s`, `3m`, `1h`, `100us`.
///
/// # Errors
/// Says what is accepted.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is not a time; write a number with us, ms, s, m or h");
    let (number, unit) = split(text).ok_or_else(bad)?;
    let seconds = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err(bad()),
    };
    let total = number * seconds;
    if total > 1e9 {
        return Err(format!("{text:?} is too long a time"));
    }
    Ok(Duration::from_secs_f64(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_carry_binary_and_decimal_units() {
        assert_eq!(parse_size("512"), Ok(512));
        assert_eq!(parse_size("1.5KiB"), Ok(1536));
        assert_eq!(parse_size("10MB"), Ok(10_000_000));
        assert_eq!(parse_size("unlimited"), Ok(u64::MAX));
        for bad in ["", "KiB", "5 bananas", "-1", "1..2", "99999999TiB"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_need_a_unit() {
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("3m"), Ok(Duration::from_secs(180)));
        for bad in ["5", "", "s", "1d", "-2s"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
