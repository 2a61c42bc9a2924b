//! Answers of the protocol RESP2.

use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _};

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Nothing,
    Text(String),
    Number(i64),
    Refusal(String),
    List(Vec<Self>),
}

/// Bytes of one text; our questions have short answers.
const MAX_TEXT: u64 = 1 << 20;
/// Parts of one list: a cluster has 16384 slots at most.
const MAX_PARTS: i64 = 1 << 16;
/// Lists within lists.
const MAX_DEPTH: usize = 8;
/// Bytes of a line that says what comes.
const MAX_LINE: u64 = 64 * 1024;

/// Why an answer cannot be read.
pub(super) enum Unread {
    Io(std::io::Error),
    NoProtocol,
}

impl From<std::io::Error> for Unread {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

/// Reads one answer.
pub(super) async fn read<R: AsyncBufRead + Unpin + Send>(from: &mut R) -> Result<Answer, Unread> {
    read_at(from, 0).await
}

async fn read_at<R: AsyncBufRead + Unpin + Send>(
    from: &mut R,
    depth: usize,
) -> Result<Answer, Unread> {
    let line = line(from).await?;
    let (kind, rest) = line.split_at_checked(1).ok_or(Unread::NoProtocol)?;
    let number = || rest.parse::<i64>().map_err(|_| Unread::NoProtocol);
    Ok(match kind {
        "+" => Answer::Text(rest.to_owned()),
        "-" => Answer::Refusal(rest.to_owned()),
        ":" => Answer::Number(number()?),
        "$" => match u64::try_from(number()?) {
            Err(_) => Answer::Nothing,
            Ok(length) if length > MAX_TEXT => return Err(Unread::NoProtocol),
            Ok(length) => {
                let mut bytes = Vec::new();
                from.take(length + 2).read_to_end(&mut bytes).await?;
                if bytes.len() as u64 != length + 2 || !bytes.ends_with(b"\r\n") {
                    return Err(Unread::NoProtocol);
                }
                bytes.truncate(bytes.len() - 2);
                Answer::Text(String::from_utf8_lossy(&bytes).into_owned())
            }
        },
        "*" => match number()? {
            ..0 => Answer::Nothing,
            count if count > MAX_PARTS || depth >= MAX_DEPTH => return Err(Unread::NoProtocol),
            count => {
                let mut parts = Vec::new();
                for _ in 0..count {
                    parts.push(Box::pin(read_at(from, depth + 1)).await?);
                }
                Answer::List(parts)
            }
        },
        _ => return Err(Unread::NoProtocol),
    })
}

async fn line<R: AsyncBufRead + Unpin>(from: &mut R) -> Result<String, Unread> {
    let mut bytes = Vec::new();
    from.take(MAX_LINE).read_until(b'\n', &mut bytes).await?;
    if bytes.is_empty() {
        return Err(Unread::Io(std::io::ErrorKind::UnexpectedEof.into()));
    }
    let text = bytes.strip_suffix(b"\r\n").ok_or(Unread::NoProtocol)?;
    String::from_utf8(text.to_vec()).map_err(|_| Unread::NoProtocol)
}

/// A question, as Redis reads it.
pub(super) fn question(parts: &[&[u8]]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", parts.len()).into_bytes();
    for part in parts {
        out.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
        out.extend_from_slice(part);
        out.extend_from_slice(b"\r\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answer(bytes: &[u8]) -> Option<Answer> {
        let mut bytes = bytes;
        read(&mut bytes).await.ok()
    }

    #[tokio::test]
    async fn answers_are_read_and_nonsense_is_refused() {
        let text = |text: &str| Answer::Text(text.to_owned());
        for (bytes, expected) in [
            (&b"+OK\r\n"[..], Some(text("OK"))),
            (b":-7\r\n", Some(Answer::Number(-7))),
            (b"-ERR no\r\n", Some(Answer::Refusal("ERR no".into()))),
            (b"$5\r\nhe\r\no\r\n", Some(text("he\r\no"))),
            (b"$-1\r\n", Some(Answer::Nothing)),
            (b"*-1\r\n", Some(Answer::Nothing)),
            (
                b"*2\r\n:1\r\n*1\r\n$1\r\na\r\n",
                Some(Answer::List(vec![Answer::Number(1), Answer::List(vec![text("a")])])),
            ),
            (b"", None),
            (b"+OK", None),
            (b"+OK\n", None),
            (b"HTTP/1.1 400 Bad Request\r\n", None),
            (b"$5\r\nabc\r\n", None),
            (b"$99999999999\r\n", None),
            (b"*99999999999\r\n", None),
            (b":x\r\n", None),
            ("*1\r\n".repeat(100).as_bytes(), None),
        ] {
            assert_eq!(answer(bytes).await, expected, "{}", String::from_utf8_lossy(bytes));
        }
        assert_eq!(question(&[b"GET", b"a\r\nb"]), b"*2\r\n$3\r\nGET\r\n$4\r\na\r\nb\r\n");
    }
}
