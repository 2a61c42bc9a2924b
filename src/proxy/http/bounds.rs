//! The answer to a request of HTTP/2 of which something is larger than allowed.

use std::future::poll_fn;
use std::task::ready;

use super::grpc;
use super::h1::Refused;
use crate::rt::http2::{Error, Fields, Stream};

/// Answers so that the caller can read it, a gRPC client too. Who has gone gets no answer.
pub(in crate::proxy) async fn answer(fields: &Fields, refused: Refused, mut stream: Stream) {
    let is_grpc =
        fields.get(b"content-type").is_some_and(|value| value.starts_with(b"application/grpc"));
    let number = |number: u64| itoa::Buffer::new().format(number).to_owned();
    if is_grpc {
        let code = number(grpc::code_of(refused.status).into());
        let _ = stream.send_head(true, &mut |block| {
            block.field(b":status", b"200");
            block.field(b"server", b"Wardgate");
            block.field(b"content-type", b"application/grpc");
            block.field(b"grpc-status", code.as_bytes());
            block.field(b"grpc-message", refused.sentence.as_bytes());
        });
        return;
    }
    let body = format!("{}\n", serde_json::json!({ "error_msg": refused.sentence }));
    let begun = stream.send_head(false, &mut |block| {
        block.field(b":status", number(refused.status.into()).as_bytes());
        block.field(b"server", b"Wardgate");
        block.field(b"content-type", b"application/json");
        block.field(b"content-length", number(body.len() as u64).as_bytes());
    });
    let mut left = body.as_bytes();
    let _ = match begun {
        Err(gone) => Err(gone),
        Ok(()) => {
            poll_fn(|context| {
                while !left.is_empty() {
                    let count = ready!(stream.poll_send(context, left))?;
                    left = &left[count..];
                }
                std::task::Poll::Ready(stream.finish())
            })
            .await as Result<(), Error>
        }
    };
}
