use super::*;

#[test]
fn durations_are_read_as_go_reads_them() {
    // The cases of Go's own time_test.go that say something of their own.
    let cases: &[(&str, Option<i64>)] = &[
        ("0", Some(0)),
        ("+0", Some(0)),
        ("5s", Some(5_000_000_000)),
        ("-5s", Some(-5_000_000_000)),
        ("1.5h", Some(5_400_000_000_000)),
        (".5s", Some(500_000_000)),
        ("1.s", Some(1_000_000_000)),
        ("10ns", Some(10)),
        ("11us", Some(11_000)),
        ("12\u{b5}s", Some(12_000)),
        ("12\u{3bc}s", Some(12_000)),
        ("13ms", Some(13_000_000)),
        ("3h30m", Some(12_600_000_000_000)),
        ("10.5s4m", Some(250_500_000_000)),
        ("1h2m3s4ms5us6ns", Some(3_723_004_005_006)),
        ("52763797000ns", Some(52_763_797_000)),
        ("0.3333333333333333333h", Some(1_200_000_000_000)),
        ("9223372036854775807ns", Some(i64::MAX)),
        ("-9223372036854775808ns", Some(i64::MIN)),
        ("9223372036854775808ns", None),
        ("9223372036854775.808us", None),
        ("3000000h", None),
        ("-3000000h", None),
        ("", None),
        ("3", None),
        ("-", None),
        ("s", None),
        (".", None),
        (".s", None),
        ("+.s", None),
        ("1d", None),
        ("5 s", None),
        ("\u{85}\u{85}", None),
    ];
    for (text, expected) in cases {
        assert_eq!(parse_duration(text), *expected, "{text:?}");
    }
}

#[test]
fn durations_are_printed_as_go_prints_them() {
    for (nanoseconds, text) in [
        (0, "0s"),
        (1, "1ns"),
        (1_100, "1.1\u{b5}s"),
        (2_200_000, "2.2ms"),
        (3_300_000_000, "3.3s"),
        (245_000_000_000, "4m5s"),
        (245_001_000_000, "4m5.001s"),
        (18_367_001_000_000, "5h6m7.001s"),
        (480_000_000_001, "8m0.000000001s"),
        (86_400_000_000_000, "24h0m0s"),
        (-1_500_000_000, "-1.5s"),
        (i64::MAX, "2562047h47m16.854775807s"),
        (i64::MIN, "-2562047h47m16.854775808s"),
    ] {
        assert_eq!(format_duration(nanoseconds), text);
        assert_eq!(parse_duration(text), Some(nanoseconds), "{text}");
    }
}

#[test]
fn whole_numbers_are_read_with_go_prefixes() {
    for (text, expected) in [
        ("0", Some(0)),
        ("-999", Some(-999)),
        ("+7", Some(7)),
        ("0x10", Some(16)),
        ("0b101", Some(5)),
        ("0o17", Some(15)),
        ("017", Some(15)),
        ("1_000", Some(1000)),
        ("0x_ff", Some(255)),
        ("08", None),
        ("_1", None),
        ("1__0", None),
        ("1_", None),
        ("", None),
        ("-", None),
        ("--1", None),
        ("1.0", None),
        ("\u{e9}1", None),
        ("9223372036854775808", None),
    ] {
        assert_eq!(parse_int(text), expected, "{text:?}");
    }
}

#[test]
fn quantities_follow_the_api_grammar() {
    for text in [
        "0", "512", "1.5", ".5", "1.", "10Mi", "3k", "1e6", "1E-3", "-1",
    ] {
        assert!(is_quantity(text), "{text}");
    }
    for text in ["", ".", "k", "1K", "1kb", "1e", "1 Mi", "Mi1"] {
        assert!(!is_quantity(text), "{text}");
    }
}

#[test]
fn addresses_may_have_leading_zeros() {
    assert_eq!(parse_ip("010.0.0.001"), parse_ip("10.0.0.1"));
    assert_eq!(parse_ip("::ffff:1.2.3.4"), parse_ip("1.2.3.4"));
    for text in [
        "",
        "1.2.3",
        "1.2.3.4.5",
        "1.2.3.256",
        "1.2.3.x",
        "[::]",
        "fe80::1%eth0",
    ] {
        assert_eq!(parse_ip(text), None, "{text}");
    }
    assert_eq!(
        parse_cidr("10.1.2.3/8").map(|net| net.to_string()),
        Some("10.0.0.0/8".to_owned())
    );
    for text in [
        "10.0.0.0",
        "10.0.0.0/",
        "10.0.0.0/33",
        "10.0.0.0/+8",
        "fd00::/129",
        "/8",
    ] {
        assert_eq!(parse_cidr(text), None, "{text}");
    }
}

#[test]
fn quoted_fields_of_lists_lose_their_quotes() {
    let fields = |text| parse_csv(text).map(|fields| fields.join("|"));
    assert_eq!(fields("").as_deref(), Some(""));
    assert_eq!(fields("a,b,").as_deref(), Some("a|b|"));
    assert_eq!(fields("\"a,b\",\"c\"\"d\"").as_deref(), Some("a,b|c\"d"));
    for text in ["a\"b", "\"a", "\"a\"b"] {
        assert_eq!(fields(text), None, "{text}");
    }
}
