//! `Conversation`: HTTP/1.1 as a client, over any stream, for what a process asks of others beside traffic.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::Tasks;

/// The longest head of an answer, in bytes.
const MAX_HEAD: usize = 64 * 1024;

/// A connection on which one request follows the other. It ends with this value.
pub struct Conversation {
    sender: SendRequest<Full<Bytes>>,
    _driver: Tasks,
}

/// Why a body was not read to its end.
#[derive(Debug, thiserror::Error)]
pub enum Unread {
    /// It is longer than the caller takes.
    #[error("the answer is longer than {max} bytes")]
    TooLong {
        /// What the caller takes, in bytes.
        max: usize,
    },
    /// It broke off.
    #[error("the answer broke off")]
    Broken(#[source] hyper::Error),
}

impl Conversation {
    /// Begins one over a stream that is connected, and secured where it has to be.
    ///
    /// # Errors
    /// The stream is closed already.
    pub async fn over<S>(stream: S) -> Result<Self, hyper::Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) =
            http1::Builder::new().max_buf_size(MAX_HEAD).handshake(TokioIo::new(stream)).await?;
        let mut driver = Tasks::new();
        driver.add(async move {
            let _ = connection.await;
        });
        Ok(Self { sender, _driver: driver })
    }

    /// Sends a request and waits for the head of its answer. The caller limits the time; whoever gives up waiting drops the
    /// conversation.
    ///
    /// # Errors
    /// The other side closed, or speaks no HTTP/1.1.
    pub async fn ask(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, hyper::Error> {
        self.sender.ready().await?;
        self.sender.send_request(request).await
    }

    /// Has the other side closed?
    pub fn is_over(&self) -> bool {
        self.sender.is_closed()
    }
}

/// Reads a body of at most `max` bytes.
///
/// # Errors
/// It is longer, or broke off.
pub async fn whole(body: Incoming, max: usize) -> Result<Bytes, Unread> {
    match Limited::new(body, max).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Unread::TooLong { max }),
        Err(error) => Err(match error.downcast::<hyper::Error>() {
            Ok(source) => Unread::Broken(*source),
            Err(_) => Unread::TooLong { max },
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn one_request_follows_the_other_and_a_long_answer_is_not_taken() {
        let (near, mut far) = tokio::io::duplex(4096);
        let server = crate::rt::spawn(async move {
            let mut seen = Vec::new();
            for _ in 0..2 {
                while !seen.ends_with(b"\r\n\r\n") {
                    seen.push(far.read_u8().await.unwrap());
                }
                seen.clear();
                far.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").await.unwrap();
            }
        });
        let mut conversation = Conversation::over(near).await.unwrap();
        let request = || Request::get("/").header("host", "a").body(Full::default()).unwrap();
        let answer = conversation.ask(request()).await.unwrap();
        assert_eq!(whole(answer.into_body(), 5).await.unwrap(), "hello");
        let answer = conversation.ask(request()).await.unwrap();
        let refused = whole(answer.into_body(), 4).await.unwrap_err().to_string();
        assert_eq!(refused, "the answer is longer than 4 bytes");
        server.await.unwrap();
    }
}
