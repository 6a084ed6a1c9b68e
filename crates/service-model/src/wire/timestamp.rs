//! RFC 3339 times, as Kubernetes writes them.

/// Seconds since 1970 and nanoseconds of an RFC 3339 time: `2026-02-28T09:30:00Z`, with or without a fraction,
/// with `Z` or an offset. A leap second counts as the second after it. None for anything else.
pub fn parse_timestamp(text: &str) -> Option<(i64, u32)> {
    let (date, time) = text.split_once(['T', 't'])?;
    let mut date = date.split('-');
    let (year, month, day) = (
        digits(date.next()?, 4)?,
        digits(date.next()?, 2)?,
        digits(date.next()?, 2)?,
    );
    if date.next().is_some() || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }

    let zone = time.find(['Z', 'z', '+', '-'])?;
    let (time, zone) = time.split_at_checked(zone)?;
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let mut time = time.split(':');
    let (hour, minute, second) = (
        digits(time.next()?, 2)?,
        digits(time.next()?, 2)?,
        digits(time.next()?, 2)?,
    );
    if time.next().is_some() || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let seconds = days_since_1970(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second;
    Some((seconds - offset(zone)?, nanoseconds(fraction)?))
}

/// Exactly this many digits.
fn digits(text: &str, count: usize) -> Option<i64> {
    let wanted = text.len() == count && text.bytes().all(|b| b.is_ascii_digit());
    wanted.then(|| text.parse().ok()).flatten()
}

/// Seconds east of Greenwich: `Z`, `+02:00`, `-03:30`.
fn offset(zone: &str) -> Option<i64> {
    if matches!(zone, "Z" | "z") {
        return Some(0);
    }
    let sign = if zone.starts_with('-') { -1 } else { 1 };
    let (hours, minutes) = zone.get(1..)?.split_once(':')?;
    let (hours, minutes) = (digits(hours, 2)?, digits(minutes, 2)?);
    (hours < 24 && minutes < 60).then_some(sign * (hours * 3_600 + minutes * 60))
}

/// Digits past the ninth are dropped.
fn nanoseconds(fraction: &str) -> Option<u32> {
    if fraction.is_empty() || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nine = fraction.bytes().chain(std::iter::repeat(b'0')).take(9);
    Some(nine.fold(0, |nanos, digit| nanos * 10 + u32::from(digit - b'0')))
}

/// Days from 1970-01-01 in the Gregorian calendar (Hinnant, "chrono-compatible low-level date algorithms").
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::parse_timestamp;

    #[test]
    fn times_are_seconds_and_nanoseconds_since_1970() {
        // Expectations from `date -u -d ... +%s`.
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", (0, 0)),
            ("1969-12-31T23:59:59Z", (-1, 0)),
            ("2000-02-29T12:00:00Z", (951_825_600, 0)),
            ("2024-02-29T23:59:59Z", (1_709_251_199, 0)),
            ("2025-12-31T23:59:60Z", (1_767_225_600, 0)),
            ("2100-03-01T00:00:00Z", (4_107_542_400, 0)),
            ("2026-07-01T02:30:00+02:00", (1_782_865_800, 0)),
            ("2026-06-30T20:30:00-04:00", (1_782_865_800, 0)),
            ("2026-07-01T00:30:00.25Z", (1_782_865_800, 250_000_000)),
            (
                "2026-07-01T00:30:00.1234567899Z",
                (1_782_865_800, 123_456_789),
            ),
        ] {
            assert_eq!(parse_timestamp(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "T",
            "2026",
            "2026-07-01",
            "2026-07-01 00:30:00Z",
            "2026-07-01T00:30:00",
            "2026-07-01T00:30Z",
            "2026-13-01T00:30:00Z",
            "2026-00-01T00:30:00Z",
            "2026-07-32T00:30:00Z",
            "2026-07-01T24:00:00Z",
            "2026-07-01T00:60:00Z",
            "2026-07-01T00:30:00.Z",
            "2026-07-01T00:30:00.xZ",
            "2026-07-01T00:30:00+2:00",
            "2026-07-01T00:30:00+02",
            "2026-07-01T00:30:00Zulu",
            "+026-07-01T00:30:00Z",
            "2026-07-01T00:30:00+é9:00",
            "2026-07-0١T00:30:00Z",
        ] {
            assert_eq!(parse_timestamp(text), None, "{text}");
        }
    }
}
