//! hyper as the reference for our HTTP/1.1 codec: the same bytes must mean the same, or we refuse them.
//!
//! We may be stricter than hyper, never more lenient, and never of another opinion.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use wardgate::pipeline::Head;
use wardgate::proxy::http::h1::{Chunks, Framing, Step, read_request, read_response};

/// A message as somebody understood it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) line: String,
    pub(crate) fields: Vec<(String, Vec<u8>)>,
    pub(crate) body: Vec<u8>,
}

/// What became of some bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    Whole(Message),
    Incomplete,
    Refused(String),
}

fn fields(head: &Head) -> Vec<(String, Vec<u8>)> {
    let mut fields: Vec<_> =
        head.fields().map(|f| (f.name.to_ascii_lowercase(), f.value.to_vec())).collect();
    fields.sort_by(|a, b| a.0.cmp(&b.0));
    fields
}

fn body(framing: Framing, rest: &[u8], ended: bool) -> Result<Option<Vec<u8>>, String> {
    match framing {
        Framing::None => Ok(Some(Vec::new())),
        Framing::Length(length) => {
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            Ok(rest.get(..length).map(<[u8]>::to_vec))
        }
        Framing::UntilClose => Ok(ended.then(|| rest.to_vec())),
        Framing::Chunked => {
            let (mut chunks, mut at, mut data) = (Chunks::default(), 0, Vec::new());
            loop {
                match chunks.step(&rest[at..]).map_err(|error| error.to_string())? {
                    Step::Skip(count) => at += count,
                    Step::Data(count) => {
                        data.extend_from_slice(&rest[at..at + count]);
                        chunks.took(count);
                        at += count;
                    }
                    Step::More => return Ok(None),
                    Step::End(_) => return Ok(Some(data)),
                }
            }
        }
    }
}

/// Our reading of a request.
pub(crate) fn our_request(bytes: &[u8]) -> Reading {
    let mut head = Head::default();
    match read_request(bytes, 0, &mut head) {
        Err(refused) => Reading::Refused(refused.to_string()),
        Ok(None) => Reading::Incomplete,
        Ok(Some(facts)) => match body(facts.framing, &bytes[facts.length..], true) {
            Err(refused) => Reading::Refused(refused),
            Ok(None) => Reading::Incomplete,
            Ok(Some(body)) => Reading::Whole(Message {
                line: format!("{} {}", head.method(), head.target()),
                fields: fields(&head),
                body,
            }),
        },
    }
}

/// Our reading of a response to `method`.
pub(crate) fn our_response(method: &str, bytes: &[u8]) -> Reading {
    let mut head = Head::default();
    match read_response(bytes, 0, method, &mut head) {
        Err(refused) => Reading::Refused(refused.to_string()),
        Ok(None) => Reading::Incomplete,
        Ok(Some(facts)) => match body(facts.framing, &bytes[facts.length..], true) {
            Err(refused) => Reading::Refused(refused),
            Ok(None) => Reading::Incomplete,
            Ok(Some(body)) => Reading::Whole(Message {
                line: head.status().to_string(),
                fields: fields(&head),
                body,
            }),
        },
    }
}

fn hyper_fields(map: &http::HeaderMap, without_host: bool) -> Vec<(String, Vec<u8>)> {
    let mut fields: Vec<_> = map
        .iter()
        .filter(|(name, _)| !without_host || *name != http::header::HOST)
        .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
        .collect();
    fields.sort_by(|a, b| a.0.cmp(&b.0));
    fields
}

/// hyper's reading of a request.
pub(crate) async fn hyper_request(bytes: &[u8]) -> Reading {
    let (client, server) = tokio::io::duplex(1 << 20);
    let seen: Arc<Mutex<Option<Reading>>> = Arc::default();
    let sink = seen.clone();
    let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let sink = sink.clone();
        async move {
            let (parts, body) = request.into_parts();
            let reading = match body.collect().await {
                Err(error) => Reading::Refused(error.to_string()),
                Ok(body) => Reading::Whole(Message {
                    line: format!(
                        "{} {}",
                        parts.method,
                        parts.uri.path_and_query().map_or("", |target| target.as_str())
                    ),
                    fields: hyper_fields(&parts.headers, true),
                    body: body.to_bytes().to_vec(),
                }),
            };
            sink.lock().expect("nobody panics").get_or_insert(reading);
            Ok::<_, std::convert::Infallible>(http::Response::new(Full::new(Bytes::new())))
        }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    let serve =
        builder.keep_alive(false).half_close(true).serve_connection(TokioIo::new(server), service);
    let (mut reader, mut writer) = tokio::io::split(client);
    let send = async {
        let _ = writer.write_all(bytes).await;
        let _ = writer.shutdown().await;
        let mut sink = Vec::new();
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut reader, &mut sink).await;
    };
    let (served, ()) = tokio::join!(serve, send);
    let seen = seen.lock().expect("nobody panics").take();
    seen.unwrap_or_else(|| match served {
        Ok(()) => Reading::Incomplete,
        Err(error) => Reading::Refused(error.to_string()),
    })
}

/// hyper's reading of a response to `method`.
pub(crate) async fn hyper_response(method: &str, bytes: &[u8]) -> Reading {
    let (client, server) = tokio::io::duplex(1 << 20);
    let Ok((mut sender, connection)) =
        hyper::client::conn::http1::handshake::<_, Full<Bytes>>(TokioIo::new(client)).await
    else {
        return Reading::Incomplete;
    };
    let (mut reader, mut writer) = tokio::io::split(server);
    let answer = async {
        // The whole request must be there before the answer, or hyper takes it for unsolicited.
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut piece = [0; 1024];
            match tokio::io::AsyncReadExt::read(&mut reader, &mut piece).await {
                Ok(count) if count > 0 => request.extend_from_slice(&piece[..count]),
                _ => break,
            }
        }
        let _ = writer.write_all(bytes).await;
        let _ = writer.shutdown().await;
    };
    let ask = async {
        let request = http::Request::builder()
            .method(method)
            .uri("/")
            .header("host", "a")
            .body(Full::new(Bytes::new()))
            .expect("a plain request");
        let response = match sender.send_request(request).await {
            Ok(response) => response,
            Err(error) => return Reading::Refused(error.to_string()),
        };
        let (parts, body) = response.into_parts();
        match body.collect().await {
            Err(error) => Reading::Refused(error.to_string()),
            Ok(body) => Reading::Whole(Message {
                line: parts.status.as_u16().to_string(),
                fields: hyper_fields(&parts.headers, false),
                body: body.to_bytes().to_vec(),
            }),
        }
    };
    let (_, (), reading) = tokio::join!(connection, answer, ask);
    reading
}

/// Panics when our reading of a request is more lenient than hyper's, or another one.
pub(crate) async fn compare_request(bytes: &[u8]) {
    let ours = our_request(bytes);
    if matches!(ours, Reading::Refused(_)) {
        return;
    }
    let theirs = hyper_request(bytes).await;
    match (&ours, &theirs) {
        (Reading::Whole(ours), Reading::Whole(theirs)) => {
            assert_eq!(ours, theirs, "{:?}", String::from_utf8_lossy(bytes));
        }
        // The http crate's Uri refuses some printable bytes (`<`, `\` and the like) that servers in the field take.
        (Reading::Whole(ours), Reading::Refused(why)) => assert!(
            ours.line.bytes().any(|b| b"\"<>\\^`{|}".contains(&b)) || ours.line.len() > 8000,
            "we take what hyper refuses ({why}): {:?}",
            String::from_utf8_lossy(bytes)
        ),
        (Reading::Incomplete, Reading::Whole(_)) => {
            panic!("we wait for more, hyper does not: {:?}", String::from_utf8_lossy(bytes));
        }
        _ => {}
    }
}

/// The same for a response.
pub(crate) async fn compare_response(method: &str, bytes: &[u8]) {
    let ours = our_response(method, bytes);
    // Interim responses are followed by others, which hyper waits for.
    let is_interim = matches!(&ours, Reading::Whole(message) if message.line.starts_with('1'));
    if is_interim || matches!(ours, Reading::Refused(_)) {
        return;
    }
    let theirs = hyper_response(method, bytes).await;
    match (&ours, &theirs) {
        (Reading::Whole(ours), Reading::Whole(theirs)) => {
            assert_eq!(ours, theirs, "{:?}", String::from_utf8_lossy(bytes));
        }
        (Reading::Incomplete, Reading::Whole(_)) => {
            panic!("we wait for more, hyper does not: {:?}", String::from_utf8_lossy(bytes));
        }
        (Reading::Whole(_), Reading::Refused(why)) => {
            panic!("we take what hyper refuses ({why}): {:?}", String::from_utf8_lossy(bytes));
        }
        _ => {}
    }
}
