//! Version 1: one line of text.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Ends, Header, Malformed};

pub(super) const SIGNATURE: &[u8] = b"PROXY ";
/// Bytes of the longest line, its end included, as the protocol's text counts them.
const MAX_LINE: usize = 107;

pub(super) fn read(bytes: &[u8]) -> Result<Option<(Header, usize)>, Malformed> {
    let within = &bytes[..bytes.len().min(MAX_LINE)];
    let Some(end) = memchr::memchr(b'\n', within) else {
        let text = within.strip_suffix(b"\r").unwrap_or(within);
        check_text(text)?;
        return match within.len() == MAX_LINE {
            true => Err(Malformed("the PROXY line is longer than 107 bytes")),
            false => Ok(None),
        };
    };
    let line =
        within[..end].strip_suffix(b"\r").ok_or(Malformed("a bare LF ends the PROXY line"))?;
    check_text(line)?;
    let rest = line.strip_prefix(SIGNATURE).unwrap_or_default();
    // What stands behind UNKNOWN is to be passed over.
    if rest == b"UNKNOWN" || rest.starts_with(b"UNKNOWN ") {
        return Ok(Some((Header::Own, end + 1)));
    }
    let text = std::str::from_utf8(rest).map_err(|_| NOT_TEXT)?;
    let ends =
        addresses(text).ok_or(Malformed("the PROXY line names no two addresses and ports"))?;
    Ok(Some((Header::For(ends), end + 1)))
}

const NOT_TEXT: Malformed = Malformed("the PROXY line is no line of printable ASCII");

fn check_text(text: &[u8]) -> Result<(), Malformed> {
    match text.iter().all(|b| (0x20..0x7f).contains(b)) {
        true => Ok(()),
        false => Err(NOT_TEXT),
    }
}

/// `TCP4 source destination port port`, with one blank between them and nothing else.
fn addresses(text: &str) -> Option<Ends> {
    let mut words = text.split(' ');
    let mut next = || words.next();
    let family = next()?;
    let ip = |word: &str| -> Option<IpAddr> {
        match family {
            "TCP4" => word.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
            "TCP6" => word.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
            _ => None,
        }
    };
    let (from, to) = (ip(next()?)?, ip(next()?)?);
    let (from_port, to_port) = (port(next()?)?, port(next()?)?);
    let ends = Ends {
        source: SocketAddr::new(from, from_port),
        destination: SocketAddr::new(to, to_port),
    };
    words.next().is_none().then_some(ends)
}

/// Decimal digits without zeroes in front.
fn port(word: &str) -> Option<u16> {
    let is_plain =
        word.bytes().all(|b| b.is_ascii_digit()) && (word == "0" || !word.starts_with('0'));
    word.parse().ok().filter(|_| is_plain)
}

pub(super) fn write(ends: Option<Ends>) -> Vec<u8> {
    let Some(ends) = ends else { return b"PROXY UNKNOWN\r\n".to_vec() };
    let (source, destination) = ends.in_one_family();
    let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
    let (from, to) = (source.ip(), destination.ip());
    format!("PROXY {family} {from} {to} {} {}\r\n", source.port(), destination.port()).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_the_protocol_allows_are_read() {
        for (line, source) in [
            ("TCP4 255.255.255.255 255.255.255.255 65535 65535", Some("255.255.255.255:65535")),
            ("TCP6 ::ffff:1.2.3.4 ::1 1 2", Some("[::ffff:1.2.3.4]:1")),
            (
                "TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535",
                Some("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535"),
            ),
            ("UNKNOWN", None),
            ("UNKNOWN ffff::1 what ever 1", None),
        ] {
            let bytes = format!("PROXY {line}\r\n");
            let (header, length) = read(bytes.as_bytes()).unwrap().unwrap();
            assert_eq!(length, bytes.len());
            let found = match header {
                Header::For(ends) => Some(ends.source),
                Header::Own => None,
            };
            assert_eq!(found, source.map(|text| text.parse().unwrap()), "{line}");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for line in [
            "",
            "TCP4",
            "TCP4 1.2.3.4 5.6.7.8 1",
            "TCP4 1.2.3.4 5.6.7.8 1 2 3",
            "TCP4 1.2.3.4 5.6.7.8 1 2 ",
            "TCP4  1.2.3.4 5.6.7.8 1 2",
            "TCP4 1.2.3.4\t5.6.7.8 1 2",
            "TCP4 01.2.3.4 5.6.7.8 1 2",
            "TCP4 1.2.3 5.6.7.8 1 2",
            "TCP4 ::1 ::1 1 2",
            "TCP6 1.2.3.4 5.6.7.8 1 2",
            "TCP6 [::1] [::1] 1 2",
            "TCP6 fe80::1%eth0 ::1 1 2",
            "TCP4 1.2.3.4 5.6.7.8 65536 2",
            "TCP4 1.2.3.4 5.6.7.8 01 2",
            "TCP4 1.2.3.4 5.6.7.8 +1 2",
            "TCP4 1.2.3.4 5.6.7.8 -1 2",
            "TCP4 1.2.3.4 5.6.7.8 1 ",
            "tcp4 1.2.3.4 5.6.7.8 1 2",
            "UDP4 1.2.3.4 5.6.7.8 1 2",
            "UNKNOWNS",
            "UNKNOWN \0",
            "TCP4 1.2.3.4 5.6.7.8 1 2\r",
            "TCP4 host 5.6.7.8 1 2",
        ] {
            let bytes = format!("PROXY {line}\r\n");
            assert!(read(bytes.as_bytes()).is_err(), "{line:?}");
        }
        assert!(read(b"PROXY UNKNOWN\n").is_err(), "a bare LF");
        let fits = format!("PROXY UNKNOWN {}\r\n", "x".repeat(MAX_LINE - 16));
        assert_eq!(fits.len(), MAX_LINE);
        assert!(read(fits.as_bytes()).is_ok_and(|read| read.is_some()));
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(MAX_LINE - 15));
        assert!(read(long.as_bytes()).is_err());
        assert!(read(&[b'x'; 0]).is_ok_and(|read| read.is_none()));
    }
}
