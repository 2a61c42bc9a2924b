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

/// Everything that we read on one connection, request after request; the last is no whole one, or ends the connection.
fn our_requests(mut bytes: &[u8]) -> (Vec<Message>, Last) {
    let mut whole = Vec::new();
    loop {
        let mut head = Head::default();
        let facts = match read_request(bytes, 0, &mut head) {
            Err(_) => return (whole, Last::Refused),
            Ok(None) => return (whole, Last::Incomplete),
            Ok(Some(facts)) => facts,
        };
        let rest = &bytes[facts.length..];
        let (body, length) = match body_and_length(facts.framing, rest) {
            Err(_) => return (whole, Last::Refused),
            Ok(None) => return (whole, Last::Incomplete),
            Ok(Some(read)) => read,
        };
        let line = format!("{} {}", head.method(), head.target());
        whole.push(Message { line, fields: fields(&head), body });
        if !facts.keep_alive {
            return (whole, Last::Closed);
        }
        bytes = &rest[length..];
    }
}

/// Why nothing more is read.
#[derive(Debug, PartialEq, Eq)]
enum Last {
    Incomplete,
    Refused,
    Closed,
}

/// A request's body, and the bytes that it takes on the wire.
fn body_and_length(framing: Framing, rest: &[u8]) -> Result<Option<(Vec<u8>, usize)>, String> {
    let length = match framing {
        Framing::Chunked => {
            let (mut chunks, mut at) = (Chunks::default(), 0);
            loop {
                match chunks.step(&rest[at..]).map_err(|error| error.to_string())? {
                    Step::Skip(count) => at += count,
                    Step::Data(count) => {
                        chunks.took(count);
                        at += count;
                    }
                    Step::More => return Ok(None),
                    Step::End(count) => break at + count,
                }
            }
        }
        _ => body(framing, rest, false)?.map_or(0, |body| body.len()),
    };
    Ok(body(framing, rest, false)?.map(|body| (body, length)))
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
    let (seen, served) = hyper_server(bytes, false).await;
    seen.into_iter().next().unwrap_or(match served {
        Ok(()) => Reading::Incomplete,
        Err(error) => Reading::Refused(error.to_string()),
    })
}

/// Everything that hyper reads on one connection, and how the connection ended.
async fn hyper_server(bytes: &[u8], keep_alive: bool) -> (Vec<Reading>, hyper::Result<()>) {
    let (client, server) = tokio::io::duplex(1 << 20);
    let seen: Arc<Mutex<Vec<Reading>>> = Arc::default();
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
            sink.lock().expect("nobody panics").push(reading);
            Ok::<_, std::convert::Infallible>(http::Response::new(Full::new(Bytes::new())))
        }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    let serve = builder
        .keep_alive(keep_alive)
        .half_close(true)
        .serve_connection(TokioIo::new(server), service);
    let (mut reader, mut writer) = tokio::io::split(client);
    let send = async {
        let _ = writer.write_all(bytes).await;
        let _ = writer.shutdown().await;
        let mut sink = Vec::new();
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut reader, &mut sink).await;
    };
    let (served, ()) = tokio::join!(serve, send);
    (std::mem::take(&mut *seen.lock().expect("nobody panics")), served)
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

/// Panics when a connection's bytes are other requests to us than to hyper: what one sees as a body, the other must not see as
/// a request (smuggling).
pub(crate) async fn compare_connection(bytes: &[u8]) {
    let (ours, last) = our_requests(bytes);
    let (theirs, _) = hyper_server(bytes, true).await;
    let theirs: Vec<&Message> = theirs.iter().map_while(Reading::whole).collect();
    let shown = String::from_utf8_lossy(bytes);
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(&ours, theirs, "{shown:?}");
    }
    // See `compare_request`: hyper's Uri is the one thing that is stricter.
    let odd = |message: &Message| {
        message.line.bytes().any(|b| b"\"<>\\^`{|}".contains(&b)) || message.line.len() > 8000
    };
    if let Some(more) = ours.get(theirs.len()) {
        assert!(odd(more), "we read one more request than hyper: {more:?} of {shown:?}");
    }
    if last == Last::Incomplete && !ours.iter().any(odd) {
        assert!(theirs.len() <= ours.len(), "hyper reads one more request than we: {shown:?}");
    }
}

impl Reading {
    fn whole(&self) -> Option<&Message> {
        match self {
            Self::Whole(message) => Some(message),
            _ => None,
        }
    }
}

/// Panics when a head or a chunked body means something else as it comes in pieces of `size` bytes than all at once.
pub(crate) fn compare_pieces(bytes: &[u8], size: usize) {
    let ends = (1..bytes.len()).step_by(size.max(1)).chain([bytes.len()]);
    let shown = String::from_utf8_lossy(bytes);
    let mut whole = Head::default();
    let at_once = read_request(bytes, 0, &mut whole);
    let mut scanned = 0;
    for end in ends.clone() {
        let mut head = Head::default();
        match read_request(&bytes[..end], scanned, &mut head) {
            Ok(None) => {
                scanned = end;
                assert!(end < bytes.len() || at_once == Ok(None), "we wait for more of {shown:?}");
            }
            Ok(Some(facts)) => {
                assert_eq!(at_once, Ok(Some(facts)), "{shown:?}");
                assert_eq!((head.method(), head.target()), (whole.method(), whole.target()));
                assert_eq!(fields(&head), fields(&whole), "{shown:?}");
                break;
            }
            Err(why) => {
                assert!(at_once.is_err(), "in pieces {why}: {shown:?}");
                break;
            }
        }
    }
    let at_once = body_and_length(Framing::Chunked, bytes);
    let (mut chunks, mut at, mut data) = (Chunks::default(), 0, Vec::new());
    for end in ends {
        let in_pieces = loop {
            match chunks.step(&bytes[at..end]) {
                Ok(Step::Skip(count)) => at += count,
                Ok(Step::Data(count)) => {
                    data.extend_from_slice(&bytes[at..at + count]);
                    chunks.took(count);
                    at += count;
                }
                Ok(Step::More) => break Ok(None),
                Ok(Step::End(count)) => break Ok(Some((std::mem::take(&mut data), at + count))),
                Err(why) => break Err(why.to_string()),
            }
        };
        match in_pieces {
            Ok(None) => assert!(end < bytes.len() || at_once == Ok(None), "we wait: {shown:?}"),
            Ok(read) => return assert_eq!(at_once, Ok(read), "{shown:?}"),
            Err(why) => return assert!(at_once.is_err(), "in pieces {why}: {shown:?}"),
        }
    }
}
