//! Both ends against each other, and a server against frames that no client should send.

#![expect(clippy::cast_possible_truncation, reason = "short texts")]

use std::future::poll_fn;
use std::task::Poll;

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::frame::{self, FrameHead};
use super::*;

fn settings() -> Settings {
    Settings {
        stream_window: 70_000,
        connection_window: 100_000,
        streams: 10,
        list_size: 8192,
        send_buffer: 32_768,
        extended_connect: true,
    }
}

fn get(block: &mut Block<'_>) {
    block.field(b":method", b"GET");
    block.field(b":scheme", b"http");
    block.field(b":authority", b"a");
    block.field(b":path", b"/");
}

/// Reads a body to its end.
async fn pull(stream: &mut Stream) -> Result<Vec<u8>, Error> {
    let mut whole = Vec::new();
    loop {
        let count = poll_fn(|context| {
            Poll::Ready(match std::task::ready!(stream.poll_data(context))? {
                Arrived::Data(data) => {
                    whole.extend_from_slice(data);
                    Ok::<usize, Error>(data.len())
                }
                Arrived::End => Ok(0),
            })
        });
        match count.await? {
            0 => return Ok(whole),
            count => stream.consume(count),
        }
    }
}

async fn push(stream: &mut Stream, mut data: &[u8]) -> Result<(), Error> {
    while !data.is_empty() {
        let count = poll_fn(|context| stream.poll_send(context, data)).await?;
        data = &data[count..];
    }
    stream.finish()
}

async fn head(stream: &mut Stream) -> Result<Fields, Error> {
    poll_fn(|context| stream.poll_head(context)).await
}

/// A server that answers each request with its body, and with trailers where it came with some.
async fn echo(mut io: DuplexStream, settings: Settings) {
    let mut connection = Connection::server(settings);
    let mut tasks = Vec::new();
    while let Some(Ok(Incoming { mut stream, fields, .. })) =
        poll_fn(|context| connection.poll(&mut io, context)).await
    {
        tasks.push(crate::rt::spawn(async move {
            let path = fields.get(b":path").unwrap_or_default().to_vec();
            stream.send_head(false, &mut |block| {
                block.field(b":status", b"200");
                block.field(b"x-path", &path);
            })?;
            loop {
                let piece = poll_fn(|context| {
                    Poll::Ready(match std::task::ready!(stream.poll_data(context))? {
                        Arrived::Data(data) => Ok::<_, Error>(Some(data.to_vec())),
                        Arrived::End => Ok(None),
                    })
                });
                let Some(piece) = piece.await? else { break };
                let mut left = &piece[..];
                while !left.is_empty() {
                    let count = poll_fn(|context| stream.poll_send(context, left)).await?;
                    stream.consume(count);
                    left = &left[count..];
                }
            }
            match stream.trailers() {
                None => stream.finish(),
                Some(trailers) => stream.send_head(true, &mut |block| {
                    trailers.iter().for_each(|(name, value)| block.field(name, value));
                }),
            }
        }));
    }
}

/// A client of such a server.
fn client() -> Opener {
    let (here, there) = duplex(4096);
    crate::rt::spawn(echo(there, settings()));
    let (opener, mut connection) = Connection::client(settings());
    let mut io = here;
    crate::rt::spawn(async move {
        poll_fn(|context| connection.poll(&mut io, context).map(drop)).await;
    });
    opener
}

#[tokio::test]
async fn bodies_and_trailers_go_both_ways_at_the_pace_of_the_windows() {
    let client = client();
    client.settled().await.unwrap();
    assert!(client.offers_extended_connect());
    assert_eq!(client.most_streams(), 10);
    let body: Vec<u8> = (0..1_000_000_u32).map(|number| number as u8).collect();
    let mut tasks = Vec::new();
    for _ in 0..8 {
        let (client, body) = (client.clone(), body.clone());
        tasks.push(crate::rt::spawn(async move {
            let mut stream = client.open(false, false, &mut get).unwrap();
            // One task for both ways, as an exchange has it.
            let mut left = &body[..];
            let mut back = Vec::new();
            let mut sent = false;
            let echoed = poll_fn(|context| {
                while !left.is_empty() {
                    match stream.poll_send(context, left) {
                        Poll::Ready(count) => left = &left[count.unwrap()..],
                        Poll::Pending => break,
                    }
                }
                if left.is_empty() && !sent {
                    sent = true;
                    stream.send_head(true, &mut |block| block.field(b"x-sum", b"7")).unwrap();
                }
                while let Poll::Ready(arrived) = stream.poll_data(context) {
                    let count = match arrived {
                        Ok(Arrived::Data(data)) => {
                            back.extend_from_slice(data);
                            data.len()
                        }
                        Ok(Arrived::End) => return Poll::Ready(Ok(())),
                        Err(error) => return Poll::Ready(Err(error)),
                    };
                    stream.consume(count);
                }
                Poll::Pending
            });
            echoed.await.unwrap();
            assert!(back == body);
            let trailers = stream.trailers().unwrap();
            assert_eq!(trailers.get(b"x-sum"), Some(&b"7"[..]));
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn a_large_head_goes_in_several_frames() {
    let client = client();
    let path = format!("/{}", "p".repeat(7000));
    for _ in 0..3 {
        let mut stream = client
            .open(false, true, &mut |block| {
                block.field(b":method", b"GET");
                block.field(b":path", path.as_bytes());
                block.field(b"X-Upper\n", b"is left out");
            })
            .unwrap();
        let fields = head(&mut stream).await.unwrap();
        assert_eq!(fields.get(b"x-path"), Some(path.as_bytes()));
        assert_eq!(pull(&mut stream).await.unwrap(), b"");
    }
    // More than the peer takes is answered with 431.
    let mut stream = client
        .open(false, true, &mut |block| {
            get(block);
            (0..5).for_each(|_| block.field(b"x-a", &[b'a'; 4000]));
        })
        .unwrap();
    let fields = head(&mut stream).await.unwrap();
    assert_eq!(fields.get(b":status"), Some(&b"431"[..]));
    assert_eq!(pull(&mut client.open(false, true, &mut get).unwrap()).await.unwrap(), b"");
}

#[tokio::test]
async fn a_goodbye_lets_streams_finish_and_refuses_new_ones() {
    let (mut here, mut there) = duplex(64 * 1024);
    let (opener, mut client) = Connection::client(settings());
    let mut server = Connection::server(settings());
    let mut stream = opener.open(false, false, &mut get).unwrap();
    let both = |client: &mut Connection,
                server: &mut Connection,
                here: &mut DuplexStream,
                there: &mut DuplexStream,
                context: &mut std::task::Context<'_>| {
        let mut found = None;
        for _ in 0..10 {
            let _ = client.poll(here, context);
            if let Poll::Ready(Some(Ok(incoming))) = server.poll(there, context) {
                found = Some(incoming);
            }
        }
        found
    };
    let mut incoming = poll_fn(|context| {
        Poll::Ready(both(&mut client, &mut server, &mut here, &mut there, context))
    })
    .await
    .expect("a request");
    server.leave();
    let nothing = poll_fn(|context| {
        Poll::Ready(both(&mut client, &mut server, &mut here, &mut there, context))
    });
    assert!(nothing.await.is_none());
    assert!(opener.is_closed());
    assert!(matches!(opener.open(false, true, &mut get), Err(Error::Refused)));
    push(&mut stream, b"ping").await.unwrap();
    incoming.stream.send_head(false, &mut |block| block.field(b":status", b"200")).unwrap();
    push(&mut incoming.stream, b"pong").await.unwrap();
    poll_fn(|context| Poll::Ready(both(&mut client, &mut server, &mut here, &mut there, context)))
        .await;
    assert_eq!(pull(&mut incoming.stream).await.unwrap(), b"ping");
    assert_eq!(pull(&mut stream).await.unwrap(), b"pong");
    drop(incoming);
    let ended = poll_fn(|context| Poll::Ready(server.poll(&mut there, context))).await;
    assert!(matches!(ended, Poll::Ready(None)), "all streams are over");
}

#[tokio::test]
async fn the_last_frame_of_a_body_says_that_it_is_the_last() {
    let mut raw = Raw::new(settings());
    raw.send(&[raw.request(1, true)].concat()).await;
    let mut stream = raw.next().await.expect("a request").stream;
    stream.send_head(false, &mut |block| block.field(b":status", b"200")).unwrap();
    push(&mut stream, b"whole").await.unwrap();
    drop(stream);
    let frames = raw.frames().await;
    let data: Vec<_> = frames.iter().filter(|(head, _)| head.kind == frame::DATA).collect();
    assert_eq!(data.len(), 1);
    assert_eq!((data[0].0.flags, &data[0].1[..]), (frame::END_STREAM, &b"whole"[..]));
    assert!(!frames.iter().any(|(head, _)| head.kind == frame::RST_STREAM));
}

/// A server, and whoever writes frames to it.
struct Raw {
    server: Connection,
    here: DuplexStream,
    there: DuplexStream,
}

/// A literal field.
fn literal(name: &str, value: &str) -> Vec<u8> {
    [&[0, name.len() as u8], name.as_bytes(), &[value.len() as u8], value.as_bytes()].concat()
}

fn frame_of(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    frame::write(&mut out, kind, flags, stream, payload);
    out
}

impl Raw {
    fn new(settings: Settings) -> Self {
        let (here, there) = duplex(1024 * 1024);
        Self { server: Connection::server(settings), here, there }
    }

    fn hello() -> Vec<u8> {
        [frame::PREFACE.to_vec(), frame_of(frame::SETTINGS, 0, 0, &[])].concat()
    }

    fn block() -> Vec<u8> {
        // GET http / with an authority.
        [&[0x82, 0x86, 0x84][..], &literal(":authority", "a")].concat()
    }

    fn request(&self, stream: u32, is_end: bool) -> Vec<u8> {
        let mut bytes = if stream == 1 { Self::hello() } else { Vec::new() };
        let end = if is_end { frame::END_STREAM } else { 0 };
        bytes.extend(frame_of(frame::HEADERS, frame::END_HEADERS | end, stream, &Self::block()));
        bytes
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.here.write_all(bytes).await.unwrap();
    }

    /// What the server has now: a request, if there is one.
    async fn next(&mut self) -> Option<Incoming> {
        let polled = poll_fn(|context| Poll::Ready(self.server.poll(&mut self.there, context)));
        match polled.await {
            Poll::Ready(Some(Ok(incoming))) => Some(incoming),
            _ => None,
        }
    }

    /// All frames that the server has written.
    async fn frames(&mut self) -> Vec<(FrameHead, Vec<u8>)> {
        while let Some(incoming) = self.next().await {
            // Kept, so that its stream is not reset.
            std::mem::forget(incoming);
        }
        let mut bytes = vec![0; 1024 * 1024];
        let count = tokio::select! {
            biased;
            count = self.here.read(&mut bytes) => count.unwrap_or(0),
            () = std::future::ready(()) => 0,
        };
        let mut rest = &bytes[..count];
        let mut found = Vec::new();
        while let Some(head) = FrameHead::read(rest) {
            found.push((head, rest[frame::HEAD..frame::HEAD + head.length].to_vec()));
            rest = &rest[frame::HEAD + head.length..];
        }
        found
    }
}

/// What the server does about frames.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Fine,
    Reset(Reason),
    Goodbye(Reason),
}

async fn verdict(bytes: &[u8]) -> Verdict {
    let mut raw = Raw::new(settings());
    raw.send(bytes).await;
    let mut verdict = Verdict::Fine;
    for (head, payload) in raw.frames().await {
        match head.kind {
            frame::GOAWAY => return Verdict::Goodbye(Reason(frame::number(&payload[4..]))),
            frame::RST_STREAM => verdict = Verdict::Reset(Reason(frame::number(&payload))),
            _ => {}
        }
    }
    verdict
}

#[tokio::test]
async fn each_frame_that_breaks_a_rule_is_met_as_rfc_9113_says() {
    use Verdict::{Fine, Goodbye, Reset};
    let f = frame_of;
    let open = |is_end: bool| Raw::new(settings()).request(1, is_end);
    let after = |is_end: bool, more: Vec<u8>| [open(is_end), more].concat();
    let hello = |more: Vec<u8>| [Raw::hello(), more].concat();
    let setting = |name: u16, value: u32| {
        let payload = [&name.to_be_bytes()[..], &value.to_be_bytes()].concat();
        hello(f(frame::SETTINGS, 0, 0, &payload))
    };
    let (end, whole) = (frame::END_STREAM, frame::END_HEADERS);
    let head = |stream: u32, block: &[u8]| f(frame::HEADERS, whole | end, stream, block);
    let odd = [Raw::block(), literal("X-a", "1")].concat();
    let mut many = open(false);
    (1..12).for_each(|at| many.extend(f(frame::HEADERS, whole, at * 2 + 1, &Raw::block())));
    let mut flood = Raw::hello();
    (0..2000).for_each(|_| flood.extend(f(frame::PING, 0, 0, &[0; 8])));
    let mut endless = hello(f(frame::HEADERS, 0, 1, &Raw::block()));
    (0..100).for_each(|_| endless.extend(f(frame::CONTINUATION, 0, 1, &[])));
    let window = |stream: u32, by: u32| f(frame::WINDOW_UPDATE, 0, stream, &by.to_be_bytes());
    let large = f(frame::DATA, 0, 1, &[0; 16_384]);
    let rows: Vec<(&str, Vec<u8>, Verdict)> = vec![
        (
            "3.4 another preface",
            b"GET / HTTP/1.1\r\nHost: abcdef\r\n\r\n".to_vec(),
            Goodbye(Reason::PROTOCOL_ERROR),
        ),
        (
            "3.4 no SETTINGS first",
            [frame::PREFACE, &f(frame::PING, 0, 0, &[0; 8])].concat(),
            Goodbye(Reason::PROTOCOL_ERROR),
        ),
        ("4.1 an unknown kind", hello(f(0x16, 0xff, 1, b"?")), Fine),
        (
            "4.2 a frame too long",
            after(false, f(frame::DATA, 0, 1, &[0; 16_385])),
            Goodbye(Reason::FRAME_SIZE_ERROR),
        ),
        ("4.3 no HPACK", hello(head(1, &[0x80])), Goodbye(Reason::COMPRESSION_ERROR)),
        (
            "4.3 a block broken off",
            hello([f(frame::HEADERS, 0, 1, &Raw::block()), f(frame::PING, 0, 0, &[0; 8])].concat()),
            Goodbye(Reason::PROTOCOL_ERROR),
        ),
        (
            "5.1 data of a stream that was not begun",
            hello(f(frame::DATA, 0, 1, b"x")),
            Goodbye(Reason::PROTOCOL_ERROR),
        ),
        (
            "5.1 a reset of such",
            hello(f(frame::RST_STREAM, 0, 1, &[0; 4])),
            Goodbye(Reason::PROTOCOL_ERROR),
        ),
        ("5.1 a window of such", hello(window(1, 1)), Goodbye(Reason::PROTOCOL_ERROR)),
        (
            "5.1 a continuation of such",
            hello(f(frame::CONTINUATION, whole, 1, &Raw::block())),
            Goodbye(Reason::PROTOCOL_ERROR),
        ),
        (
            "5.1 data behind the end",
            after(true, f(frame::DATA, 0, 1, b"x")),
            Reset(Reason::STREAM_CLOSED),
        ),
        (
            "5.1 fields behind the end",
            after(true, head(1, &Raw::block())),
            Reset(Reason::STREAM_CLOSED),
        ),
        (
            "5.1 data behind a reset",
            after(
                false,
                [f(frame::RST_STREAM, 0, 1, &[0; 4]), f(frame::DATA, 0, 1, b"x")].concat(),
            ),
            Reset(Reason::STREAM_CLOSED),
        ),
        (
            "5.1 fields behind a reset",
            after(false, [f(frame::RST_STREAM, 0, 1, &[0; 4]), head(1, &Raw::block())].concat()),
            Goodbye(Reason::STREAM_CLOSED),
        ),
        (
            "5.1 a window behind a reset",
            after(false, [f(frame::RST_STREAM, 0, 1, &[0; 4]), window(1, 1)].concat()),
            Fine,
        ),
        ("5.1.1 an even stream", hello(head(2, &Raw::block())), Goodbye(Reason::PROTOCOL_ERROR)),
        (
            "5.1.1 a lower stream",
            [Raw::hello(), head(5, &Raw::block()), head(3, &Raw::block())].concat(),
            Goodbye(Reason::STREAM_CLOSED),
        ),
        ("5.1.2 too many streams", many, Reset(Reason::REFUSED_STREAM)),
        (
            "5.2 more than the stream's window",
            after(
                false,
                [large.clone(), large.clone(), large.clone(), large.clone(), large.clone()]
                    .concat(),
            ),
            Reset(Reason::FLOW_CONTROL_ERROR),
        ),
        (
            "5.3 a stream that depends on itself",
            hello(f(
                frame::HEADERS,
                whole | end | frame::WITH_PRIORITY,
                1,
                &[&[0, 0, 0, 1, 0][..], &Raw::block()].concat(),
            )),
            Reset(Reason::PROTOCOL_ERROR),
        ),
        (
            "5.3 a PRIORITY that does",
            hello(f(frame::PRIORITY, 0, 1, &[0, 0, 0, 1, 0])),
            Reset(Reason::PROTOCOL_ERROR),
        ),
        (
            "6.1 data of no stream",
            hello(f(frame::DATA, 0, 0, b"x")),
            Goodbye(Reason::PROTOCOL_ERROR),
        ),
        (
            "6.1 more padding than payload",
            after(false, f(frame::DATA, frame::PADDED, 1, &[9, 1])),
            Goodbye(Reason::PROTOCOL_ERROR),
        ),
        ("6.1 padding", after(false, f(frame::DATA, frame::PADDED, 1, &[2, 1, 0, 0])), Fine),
        ("6.2 fields of no stream", hello(head(0, &Raw::block())), Goodbye(Reason::PROTOCOL_ERROR)),
        (
            "6.2 more padding than fields",
            hello(f(frame::HEADERS, whole | frame::PADDED, 1, &[200, 0x82])),
            Goodbye(Reason::PROTOCOL_ERROR),
        ),
        (
            "6.3 a priority of another length",
            after(false, f(frame::PRIORITY, 0, 1, &[0; 4])),
            Reset(Reason::FRAME_SIZE_ERROR),
        ),
        (
            "6.3 a priority of no stream",
            hello(f(frame::PRIORITY, 0, 0, &[0; 5])),
            Goodbye(Reason::PROTOCOL_ERROR),
        ),
        (
            "6.4 a reset of another length",
            after(false, f(frame::RST_STREAM, 0, 1, &[0; 3])),
            Goodbye(Reason::FRAME_SIZE_ERROR),
        ),
        (
            "6.4 a reset of no stream",
            hello(f(frame::RST_STREAM, 0, 0, &[0; 4])),
            Goodbye(Reason::PROTOCOL_ERROR),
        ),
        (
            "6.5 an answer with settings",
            hello(f(frame::SETTINGS, frame::ACK, 0, &[0; 6])),
            Goodbye(Reason::FRAME_SIZE_ERROR),
        ),
        (
            "6.5 settings of a stream",
            hello(f(frame::SETTINGS, 0, 1, &[])),
            Goodbye(Reason::PROTOCOL_ERROR),
        ),
        (
            "6.5 settings of another length",
            hello(f(frame::SETTINGS, 0, 0, &[0; 5])),
            Goodbye(Reason::FRAME_SIZE_ERROR),
        ),
        (
            "6.5.2 a push that is neither",
            setting(frame::SET_PUSH, 2),
            Goodbye(Reason::PROTOCOL_ERROR),
        ),
        (
            "6.5.2 a window too large",
            setting(frame::SET_WINDOW, 0x8000_0000),
            Goodbye(Reason::FLOW_CONTROL_ERROR),
        ),
        (
            "6.5.2 a frame too small",
            setting(frame::SET_FRAME, 16_383),
            Goodbye(Reason::PROTOCOL_ERROR),
        ),
        (
            "6.5.2 a frame too large",
            setting(frame::SET_FRAME, 16_777_216),
            Goodbye(Reason::PROTOCOL_ERROR),
        ),
        ("6.5.2 an unknown setting", setting(0xff, 1), Fine),
        (
            "6.6 a push",
            hello(f(frame::PUSH_PROMISE, whole, 1, &[0, 0, 0, 2])),
            Goodbye(Reason::PROTOCOL_ERROR),
        ),
        (
            "6.7 a ping of a stream",
            hello(f(frame::PING, 0, 1, &[0; 8])),
            Goodbye(Reason::PROTOCOL_ERROR),
        ),
        (
            "6.7 a ping of another length",
            hello(f(frame::PING, 0, 0, &[0; 6])),
            Goodbye(Reason::FRAME_SIZE_ERROR),
        ),
        (
            "6.8 a goodbye of a stream",
            hello(f(frame::GOAWAY, 0, 1, &[0; 8])),
            Goodbye(Reason::PROTOCOL_ERROR),
        ),
        ("6.9 a window of nothing", hello(window(0, 0)), Goodbye(Reason::PROTOCOL_ERROR)),
        (
            "6.9 a stream's window of nothing",
            after(false, window(1, 0)),
            Reset(Reason::PROTOCOL_ERROR),
        ),
        (
            "6.9 a window of another length",
            hello(f(frame::WINDOW_UPDATE, 0, 0, &[0; 3])),
            Goodbye(Reason::FRAME_SIZE_ERROR),
        ),
        (
            "6.9.1 a window beyond all",
            hello(window(0, 0x7fff_ffff)),
            Goodbye(Reason::FLOW_CONTROL_ERROR),
        ),
        (
            "6.9.1 a stream's window beyond all",
            after(false, window(1, 0x7fff_ffff)),
            Reset(Reason::FLOW_CONTROL_ERROR),
        ),
        (
            "6.10 a continuation of another stream",
            hello(
                [f(frame::HEADERS, 0, 1, &Raw::block()), f(frame::CONTINUATION, whole, 3, &[])]
                    .concat(),
            ),
            Goodbye(Reason::PROTOCOL_ERROR),
        ),
        (
            "8.1 trailers without the end",
            after(false, f(frame::HEADERS, whole, 1, &literal("x-a", "1"))),
            Reset(Reason::PROTOCOL_ERROR),
        ),
        (
            "8.1 a pseudo-header in trailers",
            after(false, head(1, &literal(":path", "/"))),
            Reset(Reason::PROTOCOL_ERROR),
        ),
        ("8.2 a name in upper case", hello(head(1, &odd)), Reset(Reason::PROTOCOL_ERROR)),
        (
            "8.3 a late pseudo-header",
            hello(head(1, &[literal("x-a", "1"), Raw::block()].concat())),
            Reset(Reason::PROTOCOL_ERROR),
        ),
        (
            "8.1.1 a length of nothing",
            hello(head(1, &[Raw::block(), literal("content-length", "1")].concat())),
            Reset(Reason::PROTOCOL_ERROR),
        ),
        (
            "8.1.1 two lengths",
            hello(head(
                1,
                &[Raw::block(), literal("content-length", "0"), literal("content-length", "0")]
                    .concat(),
            )),
            Reset(Reason::PROTOCOL_ERROR),
        ),
        ("10.5 a flood of pings", flood, Goodbye(Reason::ENHANCE_YOUR_CALM)),
        ("10.5 a block without end", endless, Goodbye(Reason::ENHANCE_YOUR_CALM)),
        ("a request", open(true), Fine),
    ];
    for (what, bytes, expected) in rows {
        assert_eq!(verdict(&bytes).await, expected, "{what}");
    }
}

#[tokio::test]
async fn a_peer_that_reads_nothing_is_not_listened_to_without_end() {
    let (here, mut there) = duplex(1024);
    let mut server = Connection::server(settings());
    let (_kept, mut writer) = tokio::io::split(here);
    let flooding = async {
        writer.write_all(&Raw::hello()).await?;
        loop {
            // Frames that are answered, and useful ones between them.
            writer.write_all(&frame_of(frame::PING, 0, 0, &[0; 8])).await?;
            writer.write_all(&frame_of(frame::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])).await?;
        }
        #[expect(unreachable_code, reason = "it says what the errors are")]
        Ok::<(), std::io::Error>(())
    };
    let mut flooding = std::pin::pin!(flooding);
    poll_fn(|context| {
        for _ in 0..10_000 {
            if flooding.as_mut().poll(context).is_ready()
                || server.poll(&mut there, context).is_ready()
            {
                break;
            }
        }
        Poll::Ready(())
    })
    .await;
    assert!(server.waiting() <= 2 * settings().send_buffer + 64 * 1024, "{}", server.waiting());
}

#[tokio::test]
async fn streams_that_were_given_up_count_until_their_exchange_is_over() {
    let mut raw = Raw::new(settings());
    raw.send(&Raw::hello()).await;
    for at in 0..200 {
        let head = frame_of(
            frame::HEADERS,
            frame::END_HEADERS | frame::END_STREAM,
            at * 2 + 1,
            &Raw::block(),
        );
        raw.send(&head).await;
        raw.send(&frame_of(frame::RST_STREAM, 0, at * 2 + 1, &8_u32.to_be_bytes())).await;
    }
    let mut under_way = Vec::new();
    while let Some(incoming) = raw.next().await {
        under_way.push(incoming);
    }
    assert_eq!(under_way.len(), settings().streams as usize + 32);
    under_way.clear();
    assert!(raw.next().await.is_some(), "the next ones have their turn");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_frames_do_harm(
        frames in proptest::collection::vec((0..11_u8, any::<u8>(), 0..8_u32, proptest::collection::vec(any::<u8>(), 0..64)), 0..60),
        lawful in proptest::collection::vec(any::<bool>(), 60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut raw = Raw::new(settings());
            raw.send(&Raw::hello()).await;
            for ((kind, flags, stream, payload), lawful) in frames.into_iter().zip(lawful) {
                let payload = if kind == frame::HEADERS && lawful { Raw::block() } else { payload };
                raw.send(&frame_of(kind, flags, stream, &payload)).await;
            }
            let mut streams = Vec::new();
            while let Some(mut incoming) = raw.next().await {
                let _ = incoming.stream.send_head(false, &mut |block| block.field(b":status", b"200"));
                streams.push(incoming);
            }
            drop(streams);
            let _ = raw.next().await;
            raw.server.check();
        });
    }
}
