//! A server of HTTP/2 and whatever a client may send: it neither panics nor keeps streams that are over.
//!
//! The first byte says in how large pieces the rest arrives; the preface and empty SETTINGS go before it.
#![no_main]

use std::task::{Context, Poll, Waker};

use libfuzzer_sys::fuzz_target;
use tokio::io::AsyncWrite;
use wardgate::rt::http2::{Connection, Settings};

const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

fuzz_target!(|input: &[u8]| {
    let Some((size, bytes)) = input.split_first() else { return };
    let settings = Settings {
        stream_window: 70_000,
        connection_window: 100_000,
        streams: 10,
        list_size: 8192,
        send_buffer: 32_768,
        extended_connect: true,
    };
    let mut context = Context::from_waker(Waker::noop());
    let (mut here, mut there) = tokio::io::duplex(1024 * 1024);
    let mut server = Connection::server(settings);
    let mut streams = Vec::new();
    let pieces = bytes.chunks(usize::from(*size) + 1);
    for piece in std::iter::once(HELLO).chain(pieces) {
        let Poll::Ready(Ok(_)) = std::pin::Pin::new(&mut here).poll_write(&mut context, piece) else { break };
        loop {
            match server.poll(&mut there, &mut context) {
                Poll::Ready(Some(Ok(mut incoming))) => {
                    let _ = incoming.stream.send_head(false, &mut |block| block.field(b":status", b"200"));
                    let _ = incoming.stream.poll_send(&mut context, b"answer");
                    streams.push(incoming);
                    if streams.len() > 20 {
                        streams.remove(0);
                    }
                }
                Poll::Ready(None | Some(Err(_))) => return,
                Poll::Pending => break,
            }
        }
        for incoming in &mut streams {
            let _ = incoming.stream.poll_data(&mut context).map_ok(drop);
        }
    }
    drop(streams);
    let _ = server.poll(&mut there, &mut context);
    assert!(!server.has_streams());
});
