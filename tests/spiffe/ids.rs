//! Rules 1 to 21: what a SPIFFE ID is.

use wardgate::identity::{SpiffeId, SpiffePattern, TrustDomain};

fn accepted(text: &str) -> bool {
    text.parse::<SpiffeId>().is_ok()
}

#[test]
fn each_rule_about_the_text() {
    let long_domain = "d".repeat(255);
    let longest = format!("spiffe://d/{}", "a".repeat(2048 - "spiffe://d/".len()));
    let rules: &[(&str, &str, bool)] = &[
        ("1 the scheme", "spiffe://d/a", true),
        ("1 the scheme without case", "SpIfFe://d/a", true),
        ("1 another scheme", "https://d/a", false),
        ("1 a longer scheme", "spiffex://d/a", false),
        ("1 no scheme", "//d/a", false),
        ("1 one slash", "spiffe:/d/a", false),
        ("2 an empty trust domain", "spiffe:///a", false),
        ("2 nothing behind the scheme", "spiffe://", false),
        ("3 a query", "spiffe://d/a?x=1", false),
        ("3 an empty query", "spiffe://d/a?", false),
        ("3 a query of the trust domain", "spiffe://d?x", false),
        ("4 a fragment", "spiffe://d/a#x", false),
        ("4 an empty fragment", "spiffe://d/a#", false),
        ("5 a user", "spiffe://u@d/a", false),
        ("5 a user and a password", "spiffe://u:p@d/a", false),
        ("5 an empty user", "spiffe://@d/a", false),
        ("6 a port", "spiffe://d:80/a", false),
        ("6 an empty port", "spiffe://d:/a", false),
        ("7 all that a trust domain may have", "spiffe://a-z.0_9/a", true),
        ("7 upper case", "spiffe://D/a", false),
        ("7 another byte", "spiffe://d!/a", false),
        ("7 a backslash", "spiffe://d\\e/a", false),
        ("8 percent-encoding in the trust domain", "spiffe://d%2e/a", false),
        ("9 an IPv6 literal", "spiffe://[2001:db8::1]/a", false),
        ("9 dotted IPv4", "spiffe://192.0.2.1/a", true),
        ("10 what is no address is a name all the same", "spiffe://999.0.2.1/a", true),
        ("10 what is no DNS name is a name all the same", "spiffe://-a..b_/a", true),
        ("11 all that a path may have", "spiffe://d/AZaz09._-", true),
        ("11 a space", "spiffe://d/a b", false),
        ("11 a tilde", "spiffe://d/~a", false),
        ("11 a colon", "spiffe://d/a:b", false),
        ("11 an at sign", "spiffe://d/a@b", false),
        ("12 percent-encoding in the path", "spiffe://d/%61", false),
        ("12 an encoded slash", "spiffe://d/a%2fb", false),
        ("13 an empty segment", "spiffe://d/a//b", false),
        ("13 an empty first segment", "spiffe://d//a", false),
        ("14 a dot segment", "spiffe://d/./a", false),
        ("14 a double-dot segment", "spiffe://d/a/../b", false),
        ("14 a double-dot segment at the end", "spiffe://d/a/..", false),
        ("14 three dots are a name", "spiffe://d/...", true),
        ("15 a slash at the end", "spiffe://d/a/", false),
        ("15 a slash for a path", "spiffe://d/", false),
        ("17 an ID of 2048 bytes", &longest, true),
        ("18 an ID of 2049 bytes", &format!("{longest}a"), false),
        ("19 a trust domain of 255 bytes", &format!("spiffe://{long_domain}/a"), true),
        ("19 a trust domain of 256 bytes", &format!("spiffe://{long_domain}d/a"), false),
        ("20 NUL", "spiffe://d/a\0", false),
        ("20 NUL in the trust domain", "spiffe://d\0/a", false),
        ("20 a line end", "spiffe://d/a\n", false),
        ("20 DEL", "spiffe://d/a\x7f", false),
        ("20 non-ASCII in the path", "spiffe://d/ä", false),
        ("20 non-ASCII in the trust domain", "spiffe://dé/a", false),
        ("20 leading space", " spiffe://d/a", false),
    ];
    for (rule, text, expected) in rules {
        assert_eq!(accepted(text), *expected, "{rule}: {text:?}");
    }
}

#[test]
fn every_byte_stands_where_the_specification_lets_it() {
    for byte in 0..=0x7f_u8 {
        let char = char::from(byte);
        let in_domain =
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
        // A slash ends the trust domain: what is behind it is a path.
        if char != '/' {
            let id = format!("spiffe://d{char}e/a");
            assert_eq!(accepted(&id), in_domain, "7 {id:?}");
            assert_eq!(format!("d{char}e").parse::<TrustDomain>().is_ok(), in_domain, "7 {id:?}");
        }
        let in_path = byte.is_ascii_alphanumeric() || b".-_/".contains(&byte);
        assert_eq!(accepted(&format!("spiffe://d/x{char}y")), in_path, "11 {char:?}");
    }
}

#[test]
fn ids_are_compared_as_a_whole_and_with_case() {
    let id = |text: &str| text.parse::<SpiffeId>().unwrap();
    assert_ne!(id("spiffe://d/a"), id("spiffe://d/A"), "16 the path has case");
    assert_eq!(id("SPIFFE://d/a"), id("spiffe://d/a"), "1 the scheme has none");
    assert_eq!(id("SPIFFE://d/a").as_str(), "spiffe://d/a", "1 and is written one way");
    assert_ne!(id("spiffe://d/a"), id("spiffe://d/a/b"), "21 no prefix");
    assert_ne!(id("spiffe://d/ab").trust_domain(), id("spiffe://d.e/ab").trust_domain(), "21");
    let pattern = |text: &str| text.parse::<SpiffePattern>().unwrap();
    for (expected, found) in [
        ("spiffe://a.local", "spiffe://a.local.evil/web"),
        ("spiffe://a.local/web", "spiffe://a.local/web2"),
        ("spiffe://a.local/web/*", "spiffe://a.local/website/x"),
        ("spiffe://a.local/web", "spiffe://a.local/web/x"),
    ] {
        assert!(!pattern(expected).matches(&id(found)), "21 {expected} does not mean {found}");
    }
}
