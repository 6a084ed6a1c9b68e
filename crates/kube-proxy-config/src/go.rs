//! Go's grammars, as far as flags and files of Kubernetes and flannel use them.
//!
//! Sources: `strconv.ParseBool`, `strconv.ParseInt` with base 0, `time.ParseDuration` and `Duration.String`,
//! `resource.ParseQuantity` (apimachinery), `ParseIPSloppy` and `ParseCIDRSloppy` (k8s.io/utils/net: leading zeros in
//! IPv4 are allowed), `encoding/csv` as pflag's string slices use it. Everything here is a function of its text.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

const NANOSECOND: u64 = 1;
const MICROSECOND: u64 = 1_000;
const MILLISECOND: u64 = 1_000_000;
pub(crate) const SECOND: u64 = 1_000_000_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;

/// `1 t T TRUE true True` and `0 f F FALSE false False`.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// A whole number: decimal, `0x`, `0o`, `0b`, or octal after a leading zero; single underscores between digits.
pub fn parse_int(text: &str) -> Option<i64> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, text.get(1..)?),
        b'+' => (false, text.get(1..)?),
        _ => (false, text),
    };
    let prefix = digits.get(..2).map(str::to_ascii_lowercase);
    let (base, body) = match prefix.as_deref() {
        Some("0x") => (16, digits.get(2..)?),
        Some("0o") => (8, digits.get(2..)?),
        Some("0b") => (2, digits.get(2..)?),
        Some(_) if digits.starts_with('0') => (8, digits.get(1..)?),
        _ => (10, digits),
    };
    // An underscore may follow the base's prefix, and otherwise only a digit.
    let body = if base == 10 {
        body
    } else {
        body.strip_prefix('_').unwrap_or(body)
    };
    let misplaced = body.starts_with('_') || body.ends_with('_') || body.contains("__");
    let plain: String = body.chars().filter(|c| *c != '_').collect();
    if misplaced || plain.is_empty() || plain.starts_with(['+', '-']) {
        return None;
    }
    let magnitude = i128::from(u64::from_str_radix(&plain, base).ok()?);
    i64::try_from(if negative { -magnitude } else { magnitude }).ok()
}

/// Nanoseconds of a duration: `1.5h`, `100us`, `24h0m0s`, `-3s`, `0`. `None` when it is none, or beyond 292 years.
pub fn parse_duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.as_bytes().first()? {
        b'-' => (true, text.get(1..)?),
        b'+' => (false, text.get(1..)?),
        _ => (false, text),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    const LIMIT: u64 = 1 << 63;
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let (whole, after) = digits(rest);
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => digits(after),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let end = after.find(|c: char| c == '.' || c.is_ascii_digit());
        let (unit, after) = after.split_at(end.unwrap_or(after.len()));
        let unit = unit_of(unit)?;
        let number = match whole {
            "" => 0,
            whole => whole
                .parse::<u64>()
                .ok()
                .filter(|number| *number <= LIMIT)?,
        };
        let mut part = number.checked_mul(unit).filter(|part| *part <= LIMIT)?;
        part = part.checked_add(fraction_of(fraction, unit))?;
        total = total.checked_add(part).filter(|total| *total <= LIMIT)?;
        rest = after;
    }
    match negative {
        true => 0_i64.checked_sub_unsigned(total),
        false => i64::try_from(total).ok(),
    }
}

fn digits(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit());
    text.split_at(end.unwrap_or(text.len()))
}

fn unit_of(name: &str) -> Option<u64> {
    match name {
        "ns" => Some(NANOSECOND),
        // The micro sign and the Greek letter.
        "us" | "\u{b5}s" | "\u{3bc}s" => Some(MICROSECOND),
        "ms" => Some(MILLISECOND),
        "s" => Some(SECOND),
        "m" => Some(MINUTE),
        "h" => Some(HOUR),
        _ => None,
    }
}

/// The digits after the point, of a unit. Go multiplies in floating point; so does this, for the same last digit.
fn fraction_of(digits: &str, unit: u64) -> u64 {
    const LIMIT: u64 = 1 << 63;
    let (mut value, mut scale) = (0_u64, 1.0_f64);
    for digit in digits.bytes() {
        let more = value
            .checked_mul(10)
            .map(|value| value + u64::from(digit - b'0'));
        let Some(more) = more.filter(|more| *more <= LIMIT) else {
            break;
        };
        value = more;
        scale *= 10.0;
    }
    (value as f64 * (unit as f64 / scale)) as u64
}

/// A duration as Go prints it: `24h0m0s`, `1.5s`, `100\u{b5}s`, `0s`.
pub fn format_duration(nanoseconds: i64) -> String {
    let magnitude = nanoseconds.unsigned_abs();
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let decimal = |value: u64, unit: u64| {
        let fraction = value % unit;
        let width = unit.ilog10() as usize;
        let digits = format!("{}.{fraction:0width$}", value / unit);
        let digits = match fraction {
            0 => digits.split('.').next().unwrap_or_default(),
            _ => digits.trim_end_matches('0'),
        };
        digits.to_owned()
    };
    match magnitude {
        0 => "0s".to_owned(),
        n if n < MICROSECOND => format!("{sign}{n}ns"),
        n if n < MILLISECOND => format!("{sign}{}\u{b5}s", decimal(n, MICROSECOND)),
        n if n < SECOND => format!("{sign}{}ms", decimal(n, MILLISECOND)),
        n => {
            let (hours, minutes) = (n / HOUR, n % HOUR / MINUTE);
            let seconds = decimal(n % MINUTE, SECOND);
            match (hours, minutes) {
                (0, 0) => format!("{sign}{seconds}s"),
                (0, _) => format!("{sign}{minutes}m{seconds}s"),
                _ => format!("{sign}{hours}h{minutes}m{seconds}s"),
            }
        }
    }
}

/// Whether it is a quantity of the API: `512`, `1.5`, `10Mi`, `3k`, `1e6`.
pub fn is_quantity(text: &str) -> bool {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (whole, rest) = digits(unsigned);
    let (fraction, suffix) = match rest.strip_prefix('.') {
        Some(rest) => digits(rest),
        None => ("", rest),
    };
    let exponent = |text: &str| {
        let text = text.strip_prefix(['+', '-']).unwrap_or(text);
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
    };
    let known = match suffix {
        "" | "n" | "u" | "m" | "k" | "M" | "G" | "T" | "P" | "E" => true,
        "Ki" | "Mi" | "Gi" | "Ti" | "Pi" | "Ei" => true,
        other => other.strip_prefix(['e', 'E']).is_some_and(exponent),
    };
    known && !(whole.is_empty() && fraction.is_empty())
}

/// An address; IPv4 may have leading zeros, and an IPv4-mapped IPv6 address (`::ffff:1.2.3.4`) is IPv4.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    if text.contains(':') {
        let address: Ipv6Addr = text.parse().ok()?;
        return Some(IpAddr::V6(address).to_canonical());
    }
    let mut octets = [0_u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let significant = part.trim_start_matches('0');
        *octet = match significant {
            "" => 0,
            digits => digits.parse().ok()?,
        };
    }
    match parts.next() {
        None => Some(IpAddr::V4(Ipv4Addr::from(octets))),
        Some(_) => None,
    }
}

/// A range; host bits are dropped.
pub fn parse_cidr(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    if length.is_empty() || !length.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let length: u8 = length.parse().ok()?;
    let address: IpAddr = match address.contains(':') {
        true => IpAddr::V6(address.parse().ok()?),
        false => parse_ip(address)?,
    };
    IpNet::new(address, length).ok().map(|net| net.trunc())
}

/// The fields of one line of comma-separated values, with double quotes around fields that need them; `None` when a
/// quote is out of place. Empty text has no fields.
pub fn parse_csv(text: &str) -> Option<Vec<String>> {
    if text.is_empty() {
        return Some(Vec::new());
    }
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        let (field, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted_field(quoted)?,
            None => {
                let (field, after) = rest.split_at(rest.find(',').unwrap_or(rest.len()));
                if field.contains('"') {
                    return None;
                }
                (field.to_owned(), after)
            }
        };
        fields.push(field);
        match after.strip_prefix(',') {
            Some(next) => rest = next,
            None if after.is_empty() => return Some(fields),
            None => return None,
        }
    }
}

/// The field up to its closing quote, and what follows that.
fn quoted_field(text: &str) -> Option<(String, &str)> {
    let mut field = String::new();
    let mut rest = text;
    loop {
        let (part, after) = rest.split_once('"')?;
        field.push_str(part);
        match after.strip_prefix('"') {
            Some(next) => {
                field.push('"');
                rest = next;
            }
            None => return Some((field, after)),
        }
    }
}

#[cfg(test)]
mod tests;
