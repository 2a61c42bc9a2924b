//! Lets in the gRPC clients that put a socket's path where HTTP/2 wants a host's name.
//!
//! Over a Unix socket there is no host. gRPC's C core (Python, C++, Ruby), Java and Swift send the path as `:authority`, as it is
//! or percent-encoded; `h2` takes neither for an authority and resets the stream. Nobody reads the name here, so each `/` and `%`
//! in it becomes a `-` on the way in: the same length, so that both ends of HPACK's tables still agree (RFC 7541).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// RFC 9113, section 3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Length, type, flags, stream.
const FRAME_HEAD: usize = 9;
/// The longest frame that we let clients send; the protocol's default.
const MAX_FRAME: usize = 16 * 1024;
const HEADERS: u8 = 1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// `:authority` in HPACK's static table, and how it is spelled with Huffman's code.
const AUTHORITY_INDEX: usize = 1;
const AUTHORITY: &[u8] = b":authority";
const AUTHORITY_CODED: &[u8] = &[0xb8, 0x3b, 0x53, 0x39, 0xec, 0x32, 0x7d, 0x7f];

/// A server's end of a Unix socket that carries HTTP/2.
#[derive(Debug)]
pub(super) struct SocketAuthority<S> {
    stream: S,
    /// Read from the stream and not looked at: less than one frame of headers.
    raw: BytesMut,
    /// Looked at, and not given on yet.
    ready: BytesMut,
    /// What follows and is nobody's business: bytes of frames that are not headers.
    pass: Pass,
}

#[derive(Clone, Copy, Debug)]
enum Pass {
    /// The connection's first bytes are to come.
    Preface,
    /// So many bytes.
    Bytes(usize),
    /// All of them: this is not HTTP/2.
    Everything,
}

impl<S> SocketAuthority<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, raw: BytesMut::new(), ready: BytesMut::new(), pass: Pass::Preface }
    }

    /// Gives on what of `raw` can be given on.
    fn advance(&mut self) {
        loop {
            let count = match self.pass {
                Pass::Everything => self.raw.len(),
                Pass::Bytes(0) => match self.frame() {
                    Some(count) => count,
                    None => return,
                },
                Pass::Bytes(left) => {
                    let count = left.min(self.raw.len());
                    self.pass = Pass::Bytes(left - count);
                    count
                }
                Pass::Preface => {
                    let count = PREFACE.len().min(self.raw.len());
                    if self.raw[..count] != PREFACE[..count] {
                        self.pass = Pass::Everything;
                        continue;
                    }
                    if count < PREFACE.len() {
                        return;
                    }
                    self.pass = Pass::Bytes(0);
                    count
                }
            };
            if count == 0 {
                return;
            }
            self.ready.unsplit(self.raw.split_to(count));
        }
    }

    /// How many bytes of the frame that begins now can be given on; `None` when there are too few to tell.
    fn frame(&mut self) -> Option<usize> {
        let head = self.raw.first_chunk::<FRAME_HEAD>()?;
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let (kind, flags) = (head[3], head[4]);
        let whole = FRAME_HEAD + length;
        // Headers that go on in a second frame are longer than any client's here; `h2` judges them as they are.
        if kind != HEADERS || flags & END_HEADERS == 0 || length > MAX_FRAME {
            let count = whole.min(self.raw.len());
            self.pass = Pass::Bytes(whole - count);
            return Some(count);
        }
        let frame = self.raw.get_mut(..whole)?;
        if let Some(block) = header_block(&mut frame[FRAME_HEAD..], flags) {
            mend(block);
        }
        Some(whole)
    }
}

/// The part of a HEADERS frame that HPACK wrote.
fn header_block(payload: &mut [u8], flags: u8) -> Option<&mut [u8]> {
    let padding = if flags & PADDED == 0 { None } else { Some(usize::from(*payload.first()?)) };
    let begin = usize::from(padding.is_some()) + if flags & PRIORITY == 0 { 0 } else { 5 };
    let end = payload.len().checked_sub(padding.unwrap_or(0))?;
    payload.get_mut(begin..end)
}

/// Mends the authority where the block spells it out. A block that is not HPACK is left to `h2`.
fn mend(block: &mut [u8]) -> Option<()> {
    let mut at = 0;
    while at < block.len() {
        let first = block[at];
        let name_bits = match first {
            0x80.. => {
                integer(block, &mut at, 7)?;
                continue;
            }
            0x40.. => 6,
            0x20.. => {
                integer(block, &mut at, 5)?;
                continue;
            }
            _ => 4,
        };
        let index = integer(block, &mut at, name_bits)?;
        let is_authority = if index == 0 {
            let (name, coded) = string(block, &mut at)?;
            *name == *if coded { AUTHORITY_CODED } else { AUTHORITY }
        } else {
            index == AUTHORITY_INDEX
        };
        let (value, coded) = string(block, &mut at)?;
        if is_authority && coded {
            mend_coded(value);
        } else if is_authority {
            let slashes = value.iter_mut().filter(|byte| matches!(byte, b'/' | b'%'));
            slashes.for_each(|byte| *byte = b'-');
        }
    }
    Some(())
}

/// RFC 7541, section 5.1.
fn integer(block: &[u8], at: &mut usize, bits: u32) -> Option<usize> {
    let limit = (1 << bits) - 1;
    let mut value = usize::from(*block.get(*at)?) & limit;
    *at += 1;
    if value < limit {
        return Some(value);
    }
    // Nothing in one frame is longer than three further bytes can say.
    for shift in [0, 7, 14] {
        let byte = *block.get(*at)?;
        *at += 1;
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// RFC 7541, section 5.2: the bytes, and whether they are in Huffman's code.
fn string<'b>(block: &'b mut [u8], at: &mut usize) -> Option<(&'b mut [u8], bool)> {
    let coded = *block.get(*at)? & 0x80 != 0;
    let length = integer(block, at, 7)?;
    let begin = *at;
    *at = begin.checked_add(length)?;
    Some((block.get_mut(begin..*at)?, coded))
}

/// The same in Huffman's code, where `%`, `-` and `/` have six bits each (RFC 7541, appendix B). Its codes stand in order, the
/// shorter ones first, so that a code's length follows from its value; these are the lengths of all that can be printed.
fn mend_coded(value: &mut [u8]) {
    const LENGTHS: [(usize, u16); 10] = [
        (5, 0x0a),
        (6, 0x2e),
        (7, 0x7c),
        (8, 0xfe),
        (10, 0x3fd),
        (11, 0x7fd),
        (12, 0xffc),
        (13, 0x1ffe),
        (14, 0x3ffe),
        (15, 0x7fff),
    ];
    const PERCENT: u16 = 0x15;
    const DASH: u16 = 0x16;
    const SLASH: u16 = 0x18;
    let bits = value.len() * 8;
    let mut at = 0;
    loop {
        let symbol = LENGTHS.iter().find_map(|&(length, end)| {
            let code = (at + length <= bits).then(|| read_bits(value, at, length))?;
            (code < end).then_some((length, code))
        });
        let Some((length, code)) = symbol else { return };
        if length == 6 && matches!(code, PERCENT | SLASH) {
            write_bits(value, at, length, DASH);
        }
        at += length;
    }
}

fn read_bits(bytes: &[u8], at: usize, length: usize) -> u16 {
    (at..at + length)
        .fold(0, |code, bit| code << 1 | u16::from(bytes[bit / 8] >> (7 - bit % 8) & 1))
}

fn write_bits(bytes: &mut [u8], at: usize, length: usize, code: u16) {
    for (place, bit) in (at..at + length).enumerate() {
        let mask = 0x80 >> (bit % 8);
        if code >> (length - 1 - place) & 1 == 1 {
            bytes[bit / 8] |= mask;
        } else {
            bytes[bit / 8] &= !mask;
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for SocketAuthority<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.ready.is_empty() {
            let mut bytes = [0; 4096];
            let mut read = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut this.stream).poll_read(context, &mut read))?;
            if read.filled().is_empty() {
                // The end comes amid a frame: what there is of it goes on as it is.
                this.ready.unsplit(this.raw.split());
                break;
            }
            this.raw.extend_from_slice(read.filled());
            this.advance();
        }
        let count = this.ready.len().min(into.remaining());
        into.put_slice(&this.ready[..count]);
        this.ready.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for SocketAuthority<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncReadExt;

    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        frame.extend(payload);
        frame
    }

    /// What comes out when `sent` comes in, so many bytes at a time.
    async fn through(sent: &[u8], at_a_time: usize) -> Vec<u8> {
        let mut stream = SocketAuthority::new(Slowly(sent, at_a_time));
        let mut out = Vec::new();
        stream.read_to_end(&mut out).await.unwrap();
        out
    }

    /// Gives its bytes a few at a time.
    struct Slowly<'b>(&'b [u8], usize);

    impl AsyncRead for Slowly<'_> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            into: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let count = self.1.min(self.0.len()).min(into.remaining());
            into.put_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Poll::Ready(Ok(()))
        }
    }

    /// A block with this authority between other headers, in each of the ways in which it can be spelled.
    fn blocks(plain: &[u8], coded: &[u8]) -> Vec<Vec<u8>> {
        let string =
            |flag: u8, bytes: &[u8]| [&[flag | u8::try_from(bytes.len()).unwrap()], bytes].concat();
        let names = [
            vec![0x41],
            vec![0x01],
            vec![0x11],
            [&[0x40][..], &string(0, AUTHORITY)].concat(),
            [&[0x00][..], &string(0x80, AUTHORITY_CODED)].concat(),
        ];
        let values = [string(0, plain), string(0x80, coded)];
        let mut blocks = Vec::new();
        for name in &names {
            for value in &values {
                // A table size, :method POST, :scheme http, a path of its own with slashes, the authority, another header.
                let before = [&[0x3f, 0xe1, 0x1f, 0x83, 0x86, 0x44][..], &string(0, b"/a/%b")];
                let after = [&[0x40][..], &string(0, b"x"), &string(0, b"/%")];
                blocks
                    .push([before.concat(), name.clone(), value.clone(), after.concat()].concat());
            }
        }
        blocks
    }

    fn hex(text: &str) -> Vec<u8> {
        hex::decode(text).unwrap()
    }

    #[tokio::test]
    async fn a_path_becomes_a_name_of_the_same_length_however_it_is_spelled() {
        for (path, coded, name, coded_name) in [
            (
                "/run/My agent.sock",
                "62cb6a6347a507316a4ae8393aff",
                "-run-My agent.sock",
                "5acb6a5b47a507316a4ae8393aff",
            ),
            (
                "%2Frun%2Fa.sock",
                "54586cb6a545846ba0e4eb",
                "-2Frun-2Fa.sock",
                "58586cb6a585846ba0e4eb",
            ),
            (
                "/run/my_agent~x/a.sock",
                "62cb6a629f510e62d49ffef9606ba0e4eb",
                "-run-my_agent~x-a.sock",
                "5acb6a5a9f510e62d49ffef9586ba0e4eb",
            ),
            (
                "www.example.com",
                "f1e3c2e5f23a6ba0ab90f4ff",
                "www.example.com",
                "f1e3c2e5f23a6ba0ab90f4ff",
            ),
        ] {
            let came = blocks(path.as_bytes(), &hex(coded));
            let goes = blocks(name.as_bytes(), &hex(coded_name));
            for (came, goes) in came.iter().zip(&goes) {
                let padded = |block: &[u8]| [&[2, 0, 0, 0, 0, 7][..], block, b"/%"].concat();
                let all = |block: &[u8]| {
                    [
                        PREFACE.to_vec(),
                        frame(4, 0, b"/%/%/%"),
                        frame(HEADERS, END_HEADERS, block),
                        frame(0, 1, b"/run/%"),
                        frame(HEADERS, END_HEADERS | PADDED | PRIORITY, &padded(block)),
                    ]
                    .concat()
                };
                for at_a_time in [1, 7, 30, 4096] {
                    assert_eq!(through(&all(came), at_a_time).await, all(goes), "{path}");
                }
            }
        }
    }

    #[tokio::test]
    async fn what_is_not_http2_passes_as_it_is() {
        let request = b"GET /run/% HTTP/1.1\r\n\r\n\x00\x00\x03\x01\x04\x00\x00\x00\x01\x41\x01/";
        for at_a_time in [1, 1000] {
            assert_eq!(through(request, at_a_time).await, request);
            assert_eq!(through(&PREFACE[..10], at_a_time).await, &PREFACE[..10]);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_upset_it_or_get_lost(bytes in proptest::collection::vec(any::<u8>(), 0..400), at_a_time in 1_usize..50) {
            let all = [PREFACE, &bytes].concat();
            let block = frame(HEADERS, END_HEADERS | bytes.first().copied().unwrap_or(0), &bytes);
            let framed = [PREFACE, &block].concat();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            prop_assert_eq!(runtime.block_on(through(&all, at_a_time)).len(), all.len());
            prop_assert_eq!(runtime.block_on(through(&framed, at_a_time)).len(), framed.len());
        }
    }
}
