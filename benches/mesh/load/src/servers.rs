//! What stands behind and beside the proxies: an application of gRPC, and a relay of TCP as the floor.

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response};
use tokio::net::{TcpListener, TcpStream};

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

/// Carries bytes both ways, unread.
pub async fn relay(options: &Options) -> Result<String, String> {
    let listener = listening(options).await?;
    let to = options.to()?;
    loop {
        let (mut near, _) = listener.accept().await.map_err(|error| error.to_string())?;
        tokio::spawn(async move {
            let _ = near.set_nodelay(true);
            let Ok(mut far) = TcpStream::connect(to).await else { return };
            let _ = far.set_nodelay(true);
            let _ = tokio::io::copy_bidirectional_with_sizes(&mut near, &mut far, 32 << 10, 32 << 10).await;
        });
    }
}
