//! What a header says, in either version.

use std::net::{IpAddr, SocketAddr};

use super::{v1, v2};

/// Bytes that a header may have at most. Version 2 could have 64 KiB of extensions; who introduces a connection needs a few
/// dozen bytes, with a client certificate among them some kilobytes.
pub const MAX_HEADER: usize = 4096;

/// Both ends of the connection that a header speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ends {
    /// Who connected.
    pub source: SocketAddr,
    /// To what.
    pub destination: SocketAddr,
}

impl Ends {
    /// Both ends in one family, since a header has room for one: IPv4 in IPv6 clothes becomes IPv4 where both ends are it, and
    /// IPv4 is clothed where the other end is IPv6.
    pub(super) fn in_one_family(self) -> (SocketAddr, SocketAddr) {
        let plain = |end: SocketAddr| SocketAddr::new(end.ip().to_canonical(), end.port());
        let clothed = |end: SocketAddr| match end.ip() {
            IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), end.port()),
            IpAddr::V6(_) => end,
        };
        let (source, destination) = (plain(self.source), plain(self.destination));
        match source.is_ipv4() == destination.is_ipv4() {
            true => (source, destination),
            false => (clothed(source), clothed(destination)),
        }
    }
}

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// Nothing about anybody else: the sender's own connection (LOCAL), or one of no address that we know (UNKNOWN, UNSPEC, a
    /// Unix socket). The socket's own ends count.
    Own,
    /// For whom the connection is.
    For(Ends),
}

/// Which version is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// Why a header is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

/// What a connection's first bytes may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// A header's, well-formed or not.
    Header,
    /// Something else's.
    Other,
    /// More bytes will tell.
    Open,
}

/// What `bytes` may be the beginning of.
/// ```
/// # use wardgate::rt::proxy_protocol::{Beginning, beginning};
/// assert_eq!(beginning(b"PROXY TCP4"), Beginning::Header);
/// assert_eq!(beginning(b"PRI * HTTP/2.0"), Beginning::Other);
/// assert_eq!(beginning(b"PR"), Beginning::Open);
/// ```
pub fn beginning(bytes: &[u8]) -> Beginning {
    let signatures: [&[u8]; 2] = [v1::SIGNATURE, v2::SIGNATURE];
    if signatures.iter().any(|signature| bytes.starts_with(signature)) {
        Beginning::Header
    } else if signatures.iter().any(|signature| signature.starts_with(bytes)) {
        Beginning::Open
    } else {
        Beginning::Other
    }
}

/// Reads a header at the start of `bytes`: what it says, and how many bytes it took; `None` when it is not complete yet.
///
/// # Errors
/// It is none, or breaks a rule or a bound: nothing that follows can be trusted.
pub fn read(bytes: &[u8]) -> Result<Option<(Header, usize)>, Malformed> {
    match beginning(bytes) {
        Beginning::Open => Ok(None),
        Beginning::Other => Err(Malformed("the connection does not begin with a PROXY header")),
        Beginning::Header if bytes.starts_with(v1::SIGNATURE) => v1::read(bytes),
        Beginning::Header => v2::read(bytes),
    }
}

/// The header that introduces a connection; without `ends` one that says that it is the sender's own.
pub fn write(version: Version, ends: Option<Ends>) -> Vec<u8> {
    match version {
        Version::V1 => v1::write(ends),
        Version::V2 => v2::write(ends),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ends(source: &str, destination: &str) -> Ends {
        Ends { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    const BOTH: [Version; 2] = [Version::V1, Version::V2];

    #[test]
    fn what_is_written_is_read_and_no_part_of_it_is() {
        for (said, read_as) in [
            (Some(("192.0.2.1:1", "198.51.100.2:443")), Some(("192.0.2.1:1", "198.51.100.2:443"))),
            (Some(("[2001:db8::1]:0", "[::1]:65535")), Some(("[2001:db8::1]:0", "[::1]:65535"))),
            (Some(("[::ffff:1.2.3.4]:5", "6.7.8.9:10")), Some(("1.2.3.4:5", "6.7.8.9:10"))),
            (
                Some(("1.2.3.4:5", "[2001:db8::9]:10")),
                Some(("[::ffff:1.2.3.4]:5", "[2001:db8::9]:10")),
            ),
            (None, None),
        ] {
            let said = said.map(|(source, destination)| ends(source, destination));
            let expected = read_as.map_or(Header::Own, |(source, destination)| {
                Header::For(ends(source, destination))
            });
            for version in BOTH {
                let mut bytes = write(version, said);
                let length = bytes.len();
                for cut in 0..length {
                    assert_eq!(read(&bytes[..cut]), Ok(None), "{version:?} {cut}");
                }
                bytes.extend_from_slice(b"GET / HTTP/1.1\r\n");
                assert_eq!(read(&bytes), Ok(Some((expected, length))), "{version:?}");
            }
        }
    }

    #[test]
    fn one_version_is_not_the_beginning_of_the_other() {
        let one = write(Version::V1, None);
        let two = write(Version::V2, None);
        // The second header is what the protocol behind gets to read, and refuses.
        let (_, length) = read(&[one.clone(), two.clone()].concat()).unwrap().unwrap();
        assert_eq!(length, one.len());
        for mixed in [[&two[..12], &one[..]].concat(), [&one[..6], &two[..]].concat()] {
            assert!(!matches!(read(&mixed), Ok(Some(_))), "{mixed:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// No bytes make it panic, what is taken lies within its bounds, and the verdict does not change with what follows.
        #[test]
        fn no_bytes_are_read_in_two_ways(
            tail in proptest::collection::vec(any::<u8>(), 0..200),
            start in 0_usize..4,
            more in proptest::collection::vec(any::<u8>(), 0..20),
        ) {
            let start: &[u8] = [b"".as_slice(), v1::SIGNATURE, v2::SIGNATURE, b"PROXY TCP4 1.1.1.1 "][start];
            let bytes = [start, &tail].concat();
            let verdict = read(&bytes);
            let longer = read(&[bytes.clone(), more].concat());
            match verdict {
                Ok(Some((_, length))) => {
                    prop_assert!(length <= bytes.len() && length <= MAX_HEADER);
                    prop_assert_eq!(longer, verdict);
                    for cut in 0..length {
                        prop_assert_eq!(read(&bytes[..cut]), Ok(None));
                    }
                }
                Err(_) => prop_assert!(longer.is_err()),
                Ok(None) => prop_assert!(bytes.len() < MAX_HEADER),
            }
        }

        /// A header in which a bit was turned is refused, incomplete, or says something that a header may say.
        #[test]
        fn a_turned_bit_does_no_harm(
            source in any::<[u8; 16]>(), port in any::<u16>(), at in 0_usize..52, bit in 0_u8..8,
        ) {
            let said = Ends {
                source: SocketAddr::new(source.into(), port),
                destination: "[2001:db8::2]:443".parse().unwrap(),
            };
            let mut bytes = write(Version::V2, Some(said));
            bytes[at] ^= 1 << bit;
            bytes.extend_from_slice(&[0; 64]);
            if let Ok(Some((_, length))) = read(&bytes) {
                prop_assert!(length <= MAX_HEADER);
            }
        }
    }
}
