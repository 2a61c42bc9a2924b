//! Taking chunked bodies apart (RFC 9112 section 7.1). No I/O.

/// Bytes that a chunk's size line, extensions included, may have.
const MAX_SIZE_LINE: usize = 4 * 1024;
/// Bytes that the trailer section may have.
const MAX_TRAILERS: usize = 16 * 1024;

/// Where the decoder is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Size,
    Data(u64),
    AfterData,
    Trailers,
    Done,
}

/// What stands next in the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// So many bytes are framing: skip them.
    Skip(usize),
    /// So many bytes are data; tell [`Chunks::took`] how many of them were used.
    Data(usize),
    /// Not enough is there to tell.
    More,
    /// The body is over; so many bytes of framing end it.
    End(usize),
}

/// A chunked body that breaks the rules: its connection is good for nothing more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ChunkError(pub &'static str);

/// Takes a chunked body apart. Extensions are dropped: nothing behind us needs them, and they have carried attacks. The bytes
/// that [`Step::End`] counts are the trailer section and the empty line that ends it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Chunks {
    state: State,
}

impl Chunks {
    /// Is the body over?
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// What stands next in `input`.
    ///
    /// # Errors
    /// The framing breaks a rule or a bound.
    pub fn step(&mut self, input: &[u8]) -> Result<Step, ChunkError> {
        match self.state {
            State::Done => Ok(Step::End(0)),
            State::Data(left) if input.is_empty() => {
                debug_assert!(left > 0);
                Ok(Step::More)
            }
            State::Data(left) => {
                Ok(Step::Data(usize::try_from(left).unwrap_or(usize::MAX).min(input.len())))
            }
            State::AfterData => match input {
                [b'\r', b'\n', ..] => {
                    self.state = State::Size;
                    Ok(Step::Skip(2))
                }
                [] | [b'\r'] => Ok(Step::More),
                _ => Err(ChunkError("a chunk's data does not end with CR LF")),
            },
            State::Size => self.size(input),
            State::Trailers => self.trailers(input),
        }
    }

    fn size(&mut self, input: &[u8]) -> Result<Step, ChunkError> {
        let Some(line) = line(input, MAX_SIZE_LINE, "a chunk's size line is too long")? else {
            return Ok(Step::More);
        };
        let digits = line.iter().position(|b| !b.is_ascii_hexdigit()).unwrap_or(line.len());
        if digits == 0 || digits > 16 {
            return Err(ChunkError("a chunk's size is not 1 to 16 hexadecimal digits"));
        }
        // Behind the digits only an extension may follow; the white space before it is what RFC 9112 tolerates.
        let rest = line[digits..].trim_ascii_start();
        if !rest.is_empty() && rest[0] != b';' {
            return Err(ChunkError(
                "a chunk's size is followed by something else than an extension",
            ));
        }
        if rest.iter().any(|b| *b < 0x20 && *b != b'\t' || *b == 0x7f) {
            return Err(ChunkError("a chunk's extension has a control character"));
        }
        let size = line[..digits].iter().fold(0_u64, |size, digit| {
            size << 4 | u64::from((*digit as char).to_digit(16).unwrap_or(0))
        });
        // Sums of such sizes must not overflow whoever counts them.
        if size > i64::MAX as u64 {
            return Err(ChunkError("a chunk's size is too large"));
        }
        self.state = if size == 0 { State::Trailers } else { State::Data(size) };
        Ok(Step::Skip(line.len() + 2))
    }

    fn trailers(&mut self, input: &[u8]) -> Result<Step, ChunkError> {
        let mut at = 0;
        loop {
            let left = MAX_TRAILERS.saturating_sub(at);
            let Some(line) = line(&input[at..], left, "the trailers are too long")? else {
                return Ok(Step::More);
            };
            at += line.len() + 2;
            if line.is_empty() {
                self.state = State::Done;
                return Ok(Step::End(at));
            }
            if !is_field(line) {
                return Err(ChunkError("a trailer is not a field"));
            }
        }
    }

    /// `count` bytes of data were used.
    pub fn took(&mut self, count: usize) {
        if let State::Data(left) = &mut self.state {
            *left -= count as u64;
            if *left == 0 {
                self.state = State::AfterData;
            }
        }
    }
}

/// A token, a colon, and a value without control characters (RFC 9110 sections 5.1 and 5.5).
fn is_field(line: &[u8]) -> bool {
    let Some(colon) = memchr::memchr(b':', line) else { return false };
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    let token = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
    let lawful = |b: &u8| *b == b'\t' || (*b >= 0x20 && *b != 0x7f);
    !name.is_empty() && name.iter().all(token) && value.iter().all(lawful)
}

/// The line at the start of `input`, without its CR LF; `None` when its end is not there yet.
fn line<'a>(
    input: &'a [u8],
    max: usize,
    too_long: &'static str,
) -> Result<Option<&'a [u8]>, ChunkError> {
    match memchr::memchr(b'\n', input) {
        Some(at) if at + 1 > max => Err(ChunkError(too_long)),
        Some(at) if at > 0 && input[at - 1] == b'\r' => {
            let line = &input[..at - 1];
            if line.contains(&b'\r') {
                Err(ChunkError("a line has a bare CR"))
            } else {
                Ok(Some(line))
            }
        }
        Some(_) => Err(ChunkError("a line ends with a bare LF")),
        None if input.len() >= max => Err(ChunkError(too_long)),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(input: &[u8]) -> Result<(Vec<u8>, usize), ChunkError> {
        let (mut chunks, mut at, mut data) = (Chunks::default(), 0, Vec::new());
        loop {
            match chunks.step(&input[at..])? {
                Step::Skip(count) => at += count,
                Step::Data(count) => {
                    data.extend_from_slice(&input[at..at + count]);
                    at += count;
                    chunks.took(count);
                }
                Step::More => return Err(ChunkError("more")),
                Step::End(count) => return Ok((data, at + count)),
            }
        }
    }

    #[test]
    fn chunks_extensions_and_trailers_are_taken_apart() {
        let input = b"5\r\nhello\r\n6;a=\"b\"\r\n world\r\n0\r\nX-Sum: 1\r\n\r\nnext";
        assert_eq!(decode(input), Ok((b"hello world".to_vec(), input.len() - 4)));
    }

    #[test]
    fn broken_framing_is_refused() {
        for input in [
            "\r\n",
            "g\r\n",
            "-1\r\n",
            "+1\r\n",
            "0x1\r\na\r\n",
            "1\na\r\n",
            "1\r\nab\r\n",
            "1\r\na\n",
            "1 2\r\na\r\n",
            "ffffffffffffffff\r\n",
            "00000000000000001\r\n",
            "0\r\nno field\r\n\r\n",
            "0\r\nA: 1\n\r\n",
            "0\r\nA: \x18\r\n\r\n",
            "0\r\nA b: 1\r\n\r\n",
            "0\r\n: 1\r\n\r\n",
            "1;a\nb\r\nx\r\n",
        ] {
            let result = decode(input.as_bytes());
            assert!(matches!(&result, Err(error) if error.0 != "more"), "{input:?} {result:?}");
        }
        let long = format!("1;{}\r\na\r\n", "e".repeat(MAX_SIZE_LINE));
        assert!(decode(long.as_bytes()).is_err_and(|error| error.0 != "more"));
    }
}
