//! Version 2: binary, with extensions (TLVs).

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Ends, Header, MAX_HEADER, Malformed};

pub(super) const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family, length.
const FIXED: usize = 16;
const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;

/// Extensions whose content we hold to its rule; others have a length and nothing more.
const CRC32C: u8 = 0x03;
const UNIQUE_ID: u8 = 0x05;
const SSL: u8 = 0x20;
/// Bytes of an SSL extension before those that it carries.
const SSL_FIXED: usize = 5;
const MAX_UNIQUE_ID: usize = 128;

pub(super) fn read(bytes: &[u8]) -> Result<Option<(Header, usize)>, Malformed> {
    let Some(fixed) = bytes.get(..FIXED) else {
        // As early as it can be told: what follows may never come.
        return check_command(bytes.get(12).copied()).map(|()| None);
    };
    check_command(Some(fixed[12]))?;
    let total = FIXED + usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if total > MAX_HEADER {
        return Err(Malformed("the PROXY header is longer than 4096 bytes"));
    }
    let Some(whole) = bytes.get(..total) else { return Ok(None) };
    let block = &whole[FIXED..];
    if fixed[12] == LOCAL {
        // The family and what follows is to be passed over.
        return Ok(Some((Header::Own, total)));
    }
    let (header, used) = match fixed[13] {
        // UNSPEC: no address, whatever there is instead.
        0x00 => return Ok(Some((Header::Own, total))),
        0x11 => {
            let ([from, to], ports) = (split::<4, 2>(block)?, block.get(8..12));
            let (from, to) = (Ipv4Addr::from(from), Ipv4Addr::from(to));
            (Header::For(ends(from.into(), to.into(), ports)?), 12)
        }
        0x21 => {
            let ([from, to], ports) = (split::<16, 2>(block)?, block.get(32..36));
            let (from, to) = (Ipv6Addr::from(from), Ipv6Addr::from(to));
            (Header::For(ends(from.into(), to.into(), ports)?), 36)
        }
        // A Unix socket: two paths of 108 bytes, which say nothing here.
        0x31 if block.len() >= 216 => (Header::Own, 216),
        0x31 => return Err(SHORT),
        _ => return Err(Malformed("the PROXY header is of no family that comes over TCP")),
    };
    extensions(&block[used..], whole)?;
    Ok(Some((header, total)))
}

const SHORT: Malformed = Malformed("the PROXY header is too short for its addresses");

fn check_command(byte: Option<u8>) -> Result<(), Malformed> {
    match byte {
        None | Some(LOCAL | PROXY) => Ok(()),
        Some(byte) if byte >> 4 != 2 => Err(Malformed("the PROXY header is of an unknown version")),
        Some(_) => Err(Malformed("the PROXY header has an unknown command")),
    }
}

fn split<const LENGTH: usize, const COUNT: usize>(
    block: &[u8],
) -> Result<[[u8; LENGTH]; COUNT], Malformed> {
    let mut parts = [[0; LENGTH]; COUNT];
    for (at, part) in parts.iter_mut().enumerate() {
        part.copy_from_slice(block.get(at * LENGTH..(at + 1) * LENGTH).ok_or(SHORT)?);
    }
    Ok(parts)
}

fn ends(
    from: std::net::IpAddr,
    to: std::net::IpAddr,
    ports: Option<&[u8]>,
) -> Result<Ends, Malformed> {
    let Some(&[a, b, c, d]) = ports else { return Err(SHORT) };
    let source = SocketAddr::new(from, u16::from_be_bytes([a, b]));
    Ok(Ends { source, destination: SocketAddr::new(to, u16::from_be_bytes([c, d])) })
}

/// Type, length, value: they fill what is left exactly. `header` is all of it, for its checksum.
fn extensions(block: &[u8], header: &[u8]) -> Result<(), Malformed> {
    let mut is_checked = false;
    for extension in Extensions(block) {
        let (kind, value) = extension?;
        match kind {
            CRC32C if is_checked => return Err(Malformed("the PROXY header has two checksums")),
            CRC32C => {
                is_checked = true;
                check_sum(header, value)?;
            }
            UNIQUE_ID if value.len() > MAX_UNIQUE_ID => {
                return Err(Malformed("the PROXY header's unique id is longer than 128 bytes"));
            }
            SSL => {
                let carried = value.get(SSL_FIXED..).ok_or(OVERRUN)?;
                Extensions(carried).try_for_each(|extension| extension.map(|_| ()))?;
            }
            _ => {}
        }
    }
    Ok(())
}

const OVERRUN: Malformed = Malformed("an extension of the PROXY header overruns its room");

struct Extensions<'a>(&'a [u8]);

impl<'a> Iterator for Extensions<'a> {
    type Item = Result<(u8, &'a [u8]), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let (kind, length) = match self.0 {
            [] => return None,
            [kind, high, low, ..] => (*kind, usize::from(u16::from_be_bytes([*high, *low]))),
            _ => {
                self.0 = &[];
                return Some(Err(OVERRUN));
            }
        };
        let Some(value) = self.0.get(3..3 + length) else {
            self.0 = &[];
            return Some(Err(OVERRUN));
        };
        self.0 = &self.0[3 + length..];
        Some(Ok((kind, value)))
    }
}

/// The checksum counts its own four bytes as zeroes. `said` is a part of `header`.
fn check_sum(header: &[u8], said: &[u8]) -> Result<(), Malformed> {
    const WRONG: Malformed = Malformed("the PROXY header's checksum is wrong");
    let Ok(expected) = <[u8; 4]>::try_from(said) else { return Err(WRONG) };
    let at = (said.as_ptr() as usize).wrapping_sub(header.as_ptr() as usize);
    let zeroed = header
        .iter()
        .enumerate()
        .map(|(place, byte)| if (at..at + 4).contains(&place) { 0 } else { *byte });
    match crc32c(zeroed) == u32::from_be_bytes(expected) {
        true => Ok(()),
        false => Err(WRONG),
    }
}

/// CRC-32C (Castagnoli, RFC 3720 appendix B.4): once a connection, and over some dozen bytes.
fn crc32c(bytes: impl Iterator<Item = u8>) -> u32 {
    let step = |sum: u32| if sum & 1 == 1 { sum >> 1 ^ 0x82f6_3b78 } else { sum >> 1 };
    !bytes.fold(u32::MAX, |sum, byte| (0..8).fold(sum ^ u32::from(byte), |sum, _| step(sum)))
}

pub(super) fn write(ends: Option<Ends>) -> Vec<u8> {
    let mut out = SIGNATURE.to_vec();
    let Some(ends) = ends else {
        out.extend_from_slice(&[LOCAL, 0, 0, 0]);
        return out;
    };
    match ends.in_one_family() {
        (SocketAddr::V4(from), SocketAddr::V4(to)) => {
            out.extend_from_slice(&[PROXY, 0x11, 0, 12]);
            out.extend_from_slice(&from.ip().octets());
            out.extend_from_slice(&to.ip().octets());
        }
        (from, to) => {
            let octets = |end: SocketAddr| match end.ip() {
                std::net::IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                std::net::IpAddr::V6(ip) => ip.octets(),
            };
            out.extend_from_slice(&[PROXY, 0x21, 0, 36]);
            out.extend_from_slice(&octets(from));
            out.extend_from_slice(&octets(to));
        }
    }
    out.extend_from_slice(&ends.source.port().to_be_bytes());
    out.extend_from_slice(&ends.destination.port().to_be_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let length = u16::try_from(block.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[command, family], &length, block].concat()
    }

    const V4: [u8; 12] = [192, 0, 2, 7, 198, 51, 100, 1, 0x9c, 0x40, 1, 0xbb];

    fn with_extensions(extensions: &[u8]) -> Vec<u8> {
        header(PROXY, 0x11, &[&V4, extensions].concat())
    }

    #[test]
    fn what_the_protocol_allows_is_read() {
        let expected = Header::For(Ends {
            source: "192.0.2.7:40000".parse().unwrap(),
            destination: "198.51.100.1:443".parse().unwrap(),
        });
        let ssl = [0x20, 0, 14, 1, 0, 0, 0, 0, 0x21, 0, 6, b'T', b'L', b'S', b'1', b'.', b'3'];
        for (bytes, read_as) in [
            (with_extensions(b""), expected),
            (with_extensions(&[0x04, 0, 2, 0, 0, 0xea, 0, 0]), expected),
            (with_extensions(&[0x02, 0, 4, b'h', b'o', b's', b't']), expected),
            (with_extensions(&ssl), expected),
            (header(LOCAL, 0x00, b""), Header::Own),
            (header(LOCAL, 0x11, &V4), Header::Own),
            (header(LOCAL, 0xff, &[9; 40]), Header::Own),
            (header(PROXY, 0x00, &[1, 2, 3]), Header::Own),
            (header(PROXY, 0x31, &[b'/'; 216]), Header::Own),
            (header(PROXY, 0x31, &[&[b'/'; 216][..], &[1, 0, 0]].concat()), Header::Own),
        ] {
            assert_eq!(read(&bytes), Ok(Some((read_as, bytes.len()))), "{bytes:?}");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for (what, bytes) in [
            ("version 1 in binary", header(0x11, 0x11, &V4)),
            ("version 3", header(0x31, 0x11, &V4)),
            ("an unknown command", header(0x22, 0x11, &V4)),
            ("UDP over IPv4", header(PROXY, 0x12, &V4)),
            ("IPv4 of no transport", header(PROXY, 0x10, &V4)),
            ("a datagram Unix socket", header(PROXY, 0x32, &[0; 216])),
            ("an unknown family", header(PROXY, 0x41, &[0; 216])),
            ("too short for IPv4", header(PROXY, 0x11, &V4[..11])),
            ("too short for IPv6", header(PROXY, 0x21, &[0; 35])),
            ("too short for a Unix socket", header(PROXY, 0x31, &[0; 215])),
            ("half an extension", with_extensions(&[4])),
            ("half an extension's length", with_extensions(&[4, 0])),
            ("an extension that overruns", with_extensions(&[4, 0, 2, 0])),
            ("an extension of 64 KiB", with_extensions(&[4, 0xff, 0xff, 0])),
            ("a byte behind the extensions", with_extensions(&[4, 0, 1, 0, 7])),
            ("a short checksum", with_extensions(&[3, 0, 3, 0, 0, 0])),
            ("a wrong checksum", with_extensions(&[3, 0, 4, 1, 2, 3, 4])),
            ("an SSL extension without its start", with_extensions(&[0x20, 0, 4, 0, 0, 0, 0])),
            (
                "an SSL extension that overruns",
                with_extensions(&[0x20, 0, 8, 0, 0, 0, 0, 0, 0x21, 0, 1]),
            ),
            ("a long unique id", with_extensions(&[&[5, 0, 129][..], &[7; 129]].concat())),
            ("5000 bytes", header(PROXY, 0x11, &[0; 5000])),
        ] {
            assert!(read(&bytes).is_err(), "{what}");
        }
        let mut huge = SIGNATURE.to_vec();
        huge.extend_from_slice(&[LOCAL, 0, 0xff, 0xff]);
        assert!(read(&huge).is_err(), "known at once, not after 64 KiB");
        assert!(read(&[SIGNATURE, &[0x99]].concat()).is_err(), "known at its 13th byte");
    }

    #[test]
    fn a_checksum_that_is_there_must_be_right() {
        assert_eq!(crc32c(b"123456789".iter().copied()), 0xe306_9283);
        let mut bytes = with_extensions(&[3, 0, 4, 0, 0, 0, 0, 4, 0, 0]);
        let sum = crc32c(bytes.iter().copied()).to_be_bytes();
        bytes[31..35].copy_from_slice(&sum);
        assert!(read(&bytes).is_ok_and(|read| read.is_some()));
        bytes[20] ^= 1;
        assert!(read(&bytes).is_err());
        let twice = [3, 0, 4, sum[0], sum[1], sum[2], sum[3]].repeat(2);
        assert!(read(&with_extensions(&twice)).is_err());
    }
}
