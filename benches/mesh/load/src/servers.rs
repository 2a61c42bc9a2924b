//! What stands behind and beside the proxies: an application of gRPC, one that takes its time, and a relay of TCP as the floor.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::options::Options;

async fn listening(options: &Options) -> Result<TcpListener, String> {
    let listen = options.listen()?;
    TcpListener::bind(listen).await.map_err(|error| format!("{listen}: {error}"))
}

/// Answers each call with one message of `size` bytes and status 0.
pub async fn grpc(options: &Options) -> Result<String, String> {
    let listener = listening(options).await?;
    let size = u32::try_from(options.size()?).map_err(|error| error.to_string())?;
    let mut message = BytesMut::with_capacity(size as usize + 5);
    message.put_u8(0);
    message.put_u32(size);
    message.put_bytes(b'x', size as usize);
    let message = message.freeze();
    loop {
        let (tcp, _) = listener.accept().await.map_err(|error| error.to_string())?;
        let _ = tcp.set_nodelay(true);
        let message = message.clone();
        tokio::spawn(async move {
            let mut builder = h2::server::Builder::new();
            builder.initial_connection_window_size(1 << 20).max_concurrent_streams(1000);
            let Ok(mut connection) = builder.handshake::<_, Bytes>(tcp).await else { return };
            while let Some(Ok((request, respond))) = connection.accept().await {
                tokio::spawn(answer(request.into_body(), respond, message.clone()));
            }
        });
    }
}

async fn answer(mut body: h2::RecvStream, mut respond: h2::server::SendResponse<Bytes>, message: Bytes) {
    while let Some(Ok(piece)) = body.data().await {
        let _ = body.flow_control().release_capacity(piece.len());
    }
    let mut head = Response::new(());
    head.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    let Ok(mut stream) = respond.send_response(head, false) else { return };
    let _ = stream.send_data(message, false);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let _ = stream.send_trailers(trailers);
}

/// HTTP/1.1 that answers each request after `seconds` with `size` bytes, so that requests are under way together.
pub async fn slow(options: &Options) -> Result<String, String> {
    let listener = listening(options).await?;
    let (size, after) = (options.size()?, options.lasting()?);
    let body = "x".repeat(usize::try_from(size).map_err(|error| error.to_string())?);
    let response: Bytes = format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n{body}").into();
    loop {
        let (tcp, _) = listener.accept().await.map_err(|error| error.to_string())?;
        tokio::spawn(serve_slowly(tcp, response.clone(), after));
    }
}

async fn serve_slowly(mut tcp: TcpStream, response: Bytes, after: Duration) {
    let _ = tcp.set_nodelay(true);
    let mut head = BytesMut::with_capacity(4096);
    while matches!(tcp.read_buf(&mut head).await, Ok(count) if count > 0) {
        if head.ends_with(b"\r\n\r\n") {
            head.clear();
            tokio::time::sleep(after).await;
            if tcp.write_all(&response).await.is_err() {
                return;
            }
        }
    }
}

/// Carries bytes both ways, unread; with `addresses` at so many addresses of loopback, from 127.1.0.1 on, all with one port.
pub async fn relay(options: &Options) -> Result<String, String> {
    let (listen, to) = (options.listen()?, options.to()?);
    let addresses = (0..options.addresses()?).map(|number| {
        let [high, low] = (number / 250 * 256 + number % 250 + 1).to_be_bytes();
        SocketAddr::from(([127, 1, high, low], listen.port()))
    });
    let mut doors = JoinSet::new();
    for address in std::iter::once(listen).chain(addresses) {
        let listener = TcpListener::bind(address).await.map_err(|error| format!("{address}: {error}"))?;
        doors.spawn(async move {
            loop {
                let accepted = listener.accept().await;
                let (near, _) = match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => return Err::<String, _>(error.to_string()),
                };
                tokio::spawn(carry(near, to));
            }
        });
    }
    match doors.join_next().await {
        Some(Ok(Err(error))) => Err(error),
        _ => Err("a door was closed".to_owned()),
    }
}

async fn carry(mut near: TcpStream, to: SocketAddr) {
    let _ = near.set_nodelay(true);
    let Ok(mut far) = TcpStream::connect(to).await else { return };
    let _ = far.set_nodelay(true);
    let _ = tokio::io::copy_bidirectional_with_sizes(&mut near, &mut far, 32 << 10, 32 << 10).await;
}
