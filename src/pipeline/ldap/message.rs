//! The messages of RFC 4511 that we send and read, in BER.

/// A request, or the part of one that follows the message's number.
pub(super) enum Request<'a> {
    /// An empty name and password bind as nobody.
    Bind {
        name: &'a str,
        password: &'a [u8],
    },
    /// Entries below `base`, at any depth, whose `attribute` equals `value`; no attributes of theirs.
    Search {
        base: &'a str,
        attribute: &'a str,
        value: &'a [u8],
        entries: u32,
        seconds: u32,
    },
    StartTls,
}

/// What came back.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Response {
    /// A bind, a search or StartTLS ended with this result code.
    Ended { of: Ended, code: u32 },
    /// An entry, by its name.
    Entry(String),
    /// Somewhere else there may be more; we do not go there.
    Reference,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Bind,
    Search,
    Extended,
}

const INTEGER: u8 = 0x02;
const TEXT: u8 = 0x04;
const BOOLEAN: u8 = 0x01;
const ENUMERATED: u8 = 0x0a;
const SEQUENCE: u8 = 0x30;
const START_TLS: &[u8] = b"1.3.6.1.4.1.1466.20037";

impl Request<'_> {
    /// The whole message.
    pub(super) fn message(&self, number: u32) -> Vec<u8> {
        let operation = match self {
            Self::Bind { name, password } => part(
                0x60,
                &[&integer(INTEGER, 3), &part(TEXT, &[name.as_bytes()]), &part(0x80, &[password])],
            ),
            Self::Search { base, attribute, value, entries, seconds } => {
                let equals =
                    part(0xa3, &[&part(TEXT, &[attribute.as_bytes()]), &part(TEXT, &[value])]);
                part(
                    0x63,
                    &[
                        &part(TEXT, &[base.as_bytes()]),
                        // The whole subtree; aliases are not followed.
                        &integer(ENUMERATED, 2),
                        &integer(ENUMERATED, 0),
                        &integer(INTEGER, *entries),
                        &integer(INTEGER, *seconds),
                        &part(BOOLEAN, &[&[0]]),
                        &equals,
                        // No attributes (RFC 4511, section 4.5.1.8).
                        &part(SEQUENCE, &[&part(TEXT, &[b"1.1"])]),
                    ],
                )
            }
            Self::StartTls => part(0x77, &[&part(0x80, &[START_TLS])]),
        };
        part(SEQUENCE, &[&integer(INTEGER, number), &operation])
    }
}

/// What a message says behind its tag and length, and its number; `None` when it is none that we know.
pub(super) fn response(mut content: &[u8]) -> Option<(u32, Response)> {
    let number = number(expect(&mut content, INTEGER)?)?;
    let (tag, mut operation) = take(&mut content)?;
    let ended = |of: Ended, mut operation: &[u8]| {
        let code = self::number(expect(&mut operation, ENUMERATED)?)?;
        Some(Response::Ended { of, code })
    };
    let response = match tag {
        0x61 => ended(Ended::Bind, operation)?,
        0x64 => {
            let name = expect(&mut operation, TEXT)?;
            Response::Entry(std::str::from_utf8(name).ok()?.to_owned())
        }
        0x65 => ended(Ended::Search, operation)?,
        0x73 => Response::Reference,
        0x78 => ended(Ended::Extended, operation)?,
        _ => return None,
    };
    Some((number, response))
}

/// The length that a message's second byte and those behind it say; `Err` is how many of these are missing, `None` no length at all.
pub(super) fn length(bytes: &[u8]) -> Option<Result<(usize, usize), usize>> {
    let first = *bytes.first()?;
    match first {
        ..=0x7f => Some(Ok((usize::from(first), 1))),
        // Four bytes say more than a message may have.
        0x81..=0x84 => {
            let count = usize::from(first & 0x7f);
            match bytes.get(1..=count) {
                None => Some(Err(1 + count - bytes.len())),
                Some(bytes) => {
                    let length = bytes.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
                    Some(Ok((length, 1 + count)))
                }
            }
        }
        _ => None,
    }
}

fn part(tag: u8, contents: &[&[u8]]) -> Vec<u8> {
    let length: usize = contents.iter().map(|content| content.len()).sum();
    let mut out = Vec::with_capacity(length + 6);
    out.push(tag);
    match u8::try_from(length) {
        Ok(short @ ..0x80) => out.push(short),
        _ => {
            let bytes = length.to_be_bytes();
            let skipped = bytes.iter().take_while(|byte| **byte == 0).count();
            out.push(0x80 | u8::try_from(bytes.len() - skipped).unwrap_or(8));
            out.extend_from_slice(&bytes[skipped..]);
        }
    }
    contents.iter().for_each(|content| out.extend_from_slice(content));
    out
}

fn integer(tag: u8, value: u32) -> Vec<u8> {
    // A leading zero where the sign's bit would be set.
    let bytes = u64::from(value).to_be_bytes();
    let skipped = (0..7).take_while(|at| bytes[*at] == 0 && bytes[at + 1] < 0x80).count();
    part(tag, &[&bytes[skipped..]])
}

/// The next part: its tag and its content.
fn take<'a>(from: &mut &'a [u8]) -> Option<(u8, &'a [u8])> {
    let (tag, rest) = from.split_first()?;
    let (length, skipped) = length(rest)?.ok()?;
    let (content, rest) = rest.get(skipped..)?.split_at_checked(length)?;
    *from = rest;
    Some((*tag, content))
}

fn expect<'a>(from: &mut &'a [u8], tag: u8) -> Option<&'a [u8]> {
    take(from).and_then(|(found, content)| (found == tag).then_some(content))
}

fn number(content: &[u8]) -> Option<u32> {
    if content.is_empty() || content.len() > 5 || content[0] >= 0x80 {
        return None;
    }
    u32::try_from(content.iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte))).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Option<(u32, Response)> {
        let mut bytes = bytes;
        response(expect(&mut bytes, SEQUENCE)?)
    }

    #[test]
    fn requests_are_the_bytes_that_a_directory_reads() {
        let bind = Request::Bind { name: "cn=a", password: b"p" }.message(1);
        assert_eq!(hex::encode(bind), "3011020101600c0201030404636e3d61800170");
        let none = Request::Bind { name: "", password: b"" }.message(127);
        assert_eq!(hex::encode(none), "300c02017f60070201030400 8000".replace(' ', ""));
        let tls = hex::encode(Request::StartTls.message(128));
        assert!(tls.starts_with("301e02020080 7718 8016".replace(' ', "").as_str()), "{tls}");
        // A value stays a value, whatever it would mean in a filter's text.
        let value = b"*)(uid=*))(|(uid=\0*";
        let search =
            Request::Search { base: "dc=a", attribute: "uid", value, entries: 2, seconds: 5 };
        let bytes = search.message(3);
        let mut part = &bytes[..];
        let mut message = expect(&mut part, SEQUENCE).unwrap();
        take(&mut message).unwrap();
        let mut search = expect(&mut message, 0x63).unwrap();
        for _ in 0..6 {
            take(&mut search).unwrap();
        }
        let mut filter = expect(&mut search, 0xa3).unwrap();
        assert_eq!(expect(&mut filter, TEXT), Some(&b"uid"[..]));
        assert_eq!(expect(&mut filter, TEXT), Some(&value[..]));
        assert!(filter.is_empty());
        // Long ones have long lengths.
        for length in [127, 128, 255, 256, 70_000] {
            let password = vec![b'x'; length];
            let bind = Request::Bind { name: "", password: &password }.message(1);
            let mut rest = &bind[..];
            assert!(expect(&mut rest, SEQUENCE).is_some() && rest.is_empty(), "{length}");
        }
    }

    #[test]
    fn responses_are_read_and_nonsense_is_refused() {
        let of = |of, code| Some((1, Response::Ended { of, code }));
        for (hex, expected) in [
            ("300c02010161070a010004000400", of(Ended::Bind, 0)),
            ("300c02010161070a013104000400", of(Ended::Bind, 49)),
            ("300c02010165070a010404000400", of(Ended::Search, 4)),
            ("300c02010178070a010204000400", of(Ended::Extended, 2)),
            ("300d020101640804 04636e3d61 3000", Some((1, Response::Entry("cn=a".into())))),
            ("3007020101730204 00", Some((1, Response::Reference))),
            ("3081 0c 02010161070a010004000400", of(Ended::Bind, 0)),
            ("", None),
            ("30", None),
            ("3000", None),
            ("3080", None),
            ("30ff", None),
            ("3003020101", None),
            ("30050201016100", None),
            ("300c020101610 70a0100", None),
            ("300c020101 62 070a010004000400", None),
            ("300c0201ff61070a010004000400", None),
            ("300c02010161070a01ff04000400", None),
            ("300902010164040402ff fe", None),
            ("300c02010161850a010004000400", None),
            ("300f0206010000000000 61070a010004", None),
        ] {
            let bytes = hex::decode(hex.replace(' ', "")).unwrap();
            assert_eq!(read(&bytes), expected, "{hex}");
        }
        // Nothing that is cut off anywhere is anything.
        let whole = hex::decode("300c02010161070a010004000400").unwrap();
        for end in 0..whole.len() {
            assert_eq!(read(&whole[..end]), None, "{end}");
        }
        assert_eq!(length(&[0x82, 1]), Some(Err(1)));
        assert_eq!(length(&[0x82, 1, 2]), Some(Ok((258, 3))));
        assert_eq!(length(&[0x85, 0, 0, 0, 0, 1]), None);
    }
}
