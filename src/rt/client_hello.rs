//! The first message of a TLS client, as far as somebody needs it who passes the connection on: which server it asks for.
//!
//! Nothing is judged but the shape (RFC 8446 section 4.1.2, RFC 6066 section 3): versions, suites and extensions that we do not
//! know are between client and server. Where a client hides the server's name (Encrypted Client Hello), the outer name is found.

use std::borrow::Cow;

/// The most bytes that a hello may take, with what its records add.
pub const MAX_HELLO: usize = 64 * 1024;
/// The most bytes of a record's content (RFC 8446 section 5.1).
const MAX_RECORD: usize = 16 * 1024;
/// The longest name that DNS knows, as text.
const MAX_NAME: usize = 253;

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientHello {
    /// The server's name in lower case and without a final dot, where the client names one.
    pub server_name: Option<Box<str>>,
}

/// Why these bytes are no client's first message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{sentence}")]
pub struct Malformed {
    /// A stable code for records.
    pub code: &'static str,
    /// A sentence for people.
    pub sentence: &'static str,
}

const NOT_TLS: Malformed = Malformed { code: "not_tls", sentence: "what arrived is not TLS" };

const fn malformed(sentence: &'static str) -> Malformed {
    Malformed { code: "tls_protocol", sentence }
}

/// Reads a hello from the start of a connection, over however many records it comes; `None` while it is not there wholly.
///
/// ```
/// # use wardgate::rt::client_hello;
/// assert!(client_hello::read(b"GET / HTTP/1.1\r\n").is_err());
/// assert_eq!(client_hello::read(&[22, 3, 1, 0]), Ok(None));
/// ```
///
/// # Errors
/// It is none, or longer than [`MAX_HELLO`].
pub fn read(bytes: &[u8]) -> Result<Option<ClientHello>, Malformed> {
    let Some(message) = message(bytes)? else {
        return match bytes.len() {
            0..MAX_HELLO => Ok(None),
            _ => Err(malformed("the client's first message is too long")),
        };
    };
    hello(&message).map(Some)
}

/// The handshake message, put together from its records; `None` while parts of it are missing.
fn message(bytes: &[u8]) -> Result<Option<Cow<'_, [u8]>>, Malformed> {
    let mut whole: Cow<'_, [u8]> = Cow::Borrowed(&[]);
    let mut rest = bytes;
    loop {
        if rest.first().is_some_and(|kind| *kind != HANDSHAKE)
            || rest.get(1).is_some_and(|major| *major != 3)
        {
            return Err(NOT_TLS);
        }
        let Some((header, content)) = rest.split_at_checked(5) else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if length == 0 || length > MAX_RECORD {
            return Err(malformed("a record of the client's first message has no lawful length"));
        }
        let part = &content[..length.min(content.len())];
        if whole.is_empty() {
            whole = Cow::Borrowed(part);
        } else {
            whole.to_mut().extend_from_slice(part);
        }
        if whole.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return Err(malformed("the first message is not a client's"));
        }
        if let [_, high, middle, low, ..] = *whole {
            let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
            if length > MAX_HELLO {
                return Err(malformed("the client's first message is too long"));
            }
            if whole.len() >= 4 + length {
                // What follows it in the same record belongs to no client that waits for its server.
                return match whole.len() == 4 + length {
                    true => Ok(Some(match whole {
                        Cow::Borrowed(whole) => Cow::Borrowed(&whole[4..]),
                        Cow::Owned(mut whole) => Cow::Owned(whole.split_off(4)),
                    })),
                    false => Err(malformed("bytes follow the client's first message")),
                };
            }
        }
        let Some(next) = content.get(length..) else { return Ok(None) };
        rest = next;
    }
}

/// Takes parts from the front.
struct Reader<'a>(&'a [u8]);

const SHORT: Malformed = malformed("the client's first message ends too early");

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(SHORT)?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<usize, Malformed> {
        Ok(usize::from(self.take(1)?[0]))
    }

    fn short(&mut self) -> Result<u16, Malformed> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// A part that says in two bytes how long it is.
    fn part(&mut self) -> Result<Self, Malformed> {
        let length = usize::from(self.short()?);
        self.take(length).map(Self)
    }
}

fn hello(message: &[u8]) -> Result<ClientHello, Malformed> {
    let mut reader = Reader(message);
    // Version and random.
    reader.take(2 + 32)?;
    let session = reader.byte()?;
    reader.take(session)?;
    let suites = reader.part()?.0.len();
    let compressions = reader.byte()?;
    reader.take(compressions)?;
    if session > 32 || suites < 2 || suites % 2 != 0 || compressions == 0 {
        return Err(malformed("the client's first message breaks the protocol"));
    }
    if reader.0.is_empty() {
        return Ok(ClientHello { server_name: None });
    }
    let mut extensions = reader.part()?;
    if !reader.0.is_empty() {
        return Err(malformed("bytes follow the client's extensions"));
    }
    let mut names = None;
    while !extensions.0.is_empty() {
        let (kind, content) = (extensions.short()?, extensions.part()?);
        // Two of them: who reads the first, and who reads the last?
        if kind == SERVER_NAME && names.replace(content).is_some() {
            return Err(malformed("the client names its server twice"));
        }
    }
    let server_name = names.map(server_name).transpose()?;
    Ok(ClientHello { server_name })
}

fn server_name(mut extension: Reader<'_>) -> Result<Box<str>, Malformed> {
    let mut list = extension.part()?;
    let kind = list.byte()?;
    let name = list.part()?;
    if !list.0.is_empty() || !extension.0.is_empty() || kind != usize::from(HOST_NAME) {
        return Err(malformed("the client names its server in no lawful way"));
    }
    let text = std::str::from_utf8(name.0).unwrap_or_default();
    folded(text).ok_or_else(|| malformed("the server's name is no host name"))
}

/// A host name in lower case, without a final dot; `None` when it is none. An address is no name (RFC 6066 section 3).
pub fn folded(name: &str) -> Option<Box<str>> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let is_label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    let is_name = name.len() <= MAX_NAME && name.split('.').all(is_label);
    let is_address = || {
        let last = name.rsplit('.').next().unwrap_or_default();
        last.bytes().all(|b| b.is_ascii_digit())
    };
    (is_name && !is_address()).then(|| name.to_ascii_lowercase().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &long(content)].concat()
    }

    fn long(content: &[u8]) -> Vec<u8> {
        [&u16::try_from(content.len()).unwrap().to_be_bytes()[..], content].concat()
    }

    fn named(name: &str) -> Vec<u8> {
        extension(0, &long(&[&[0], &long(name.as_bytes())[..]].concat()))
    }

    fn handshake(extensions: &[Vec<u8>]) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([4, 1, 2, 3, 4]);
        body.extend(long(&[0x13, 0x01, 0x13, 0x02]));
        body.extend([1, 0]);
        body.extend(long(&extensions.concat()));
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        [&[1], &length[1..], &body].concat()
    }

    fn records(message: &[u8], size: usize) -> Vec<u8> {
        message.chunks(size).flat_map(|part| [&[22, 3, 1][..], &long(part)].concat()).collect()
    }

    fn name_of(bytes: &[u8]) -> Result<Option<String>, Malformed> {
        read(bytes).map(|hello| hello.unwrap().server_name.map(Into::into))
    }

    #[test]
    fn the_server_is_found_however_the_message_is_cut() {
        let others = [extension(43, &[2, 3, 4]), named("DB.Example.COM."), extension(16, b"abc")];
        let message = handshake(&others);
        for size in [1, 2, 3, 5, 50, 16_384] {
            let bytes = records(&message, size);
            assert_eq!(name_of(&bytes), Ok(Some("db.example.com".into())), "{size}");
            for end in 0..bytes.len() {
                assert_eq!(read(&bytes[..end]), Ok(None), "{size} {end}");
            }
        }
        assert_eq!(name_of(&records(&handshake(&[]), 99)), Ok(None));
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        for extensions in [
            vec![named("a.test"), named("b.test")],
            vec![named("a.test"), extension(5, b""), named("a.test")],
            vec![extension(0, &long(&[&[0], &long(b"a")[..], &[0], &long(b"b")].concat()))],
            vec![extension(0, &[&long(&[&[0], &long(b"a")[..]].concat())[..], b"x"].concat())],
            vec![extension(0, &long(&[&[1], &long(b"a")[..]].concat()))],
            vec![extension(0, b"")],
        ] {
            assert!(read(&records(&handshake(&extensions), 999)).is_err(), "{extensions:?}");
        }
        let mut behind = handshake(&[named("a.test")]);
        behind.push(0);
        assert!(read(&records(&behind, 9999)).is_err());
        for wrong in [
            "GET / HTTP/1.1\r\n",
            "\x16\x02",
            "\x16\x03\x01\0\0",
            "\x16\x03\x01\x7f\x7f",
            "\x15\x03\x01\0\x02\x01\0",
            "\x16\x03\x01\0\x04\x02\0\0\0",
        ] {
            assert!(read(wrong.as_bytes()).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn only_names_of_hosts_are_names() {
        for name in ["", ".", "a..b", "10.0.0.1", "::1", "a b", "ä.test", "a.test..", "a\0b"] {
            assert!(read(&records(&handshake(&[named(name)]), 999)).is_err(), "{name}");
        }
        assert!(folded(&"a".repeat(64)).is_none());
        assert!(folded(&["a"; 128].join(".")).is_none());
        assert_eq!(folded("A_b-1.x").as_deref(), Some("a_b-1.x"));
    }

    #[test]
    fn a_message_without_end_is_not_waited_for() {
        let long = [&[1, 1, 0, 1][..], &[0; 70_000]].concat();
        assert!(read(&records(&long, 16_384)[..40]).is_err());
        // So many records of one byte each that they are too long altogether.
        let slow = records(&[&[1, 0, 255, 255][..], &[0; 60_000]].concat(), 1);
        assert_eq!(read(&slow[..1000]), Ok(None));
        assert!(read(&slow[..MAX_HELLO]).is_err());
    }
}
