//! The Admin API's listener: HTTP/1.1 and HTTP/2 on one socket, drained at the end. Who shakes hands comes in by argument.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tower::Service as _;

use super::ControlPlane;
use crate::identity::SpiffeId;
use crate::rt::{DrainGuard, Tasks};

/// How long a client may take to send a request's head.
const HEAD_WITHIN: Duration = Duration::from_secs(30);
/// How long a client may take for its handshake.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(5);
/// How long requests under way have after the drain was asked for.
const FINISH_WITHIN: Duration = Duration::from_secs(10);
/// Connections at once; further ones wait to be accepted.
const MAX_CONNECTIONS: usize = 1024;

/// A connection that was made so short a time before the end has a request on its way.
const FRESH: Duration = Duration::from_millis(300);

/// Whom the handshake proved to be at the other end.
#[derive(Clone, Debug)]
pub struct Proven(pub SpiffeId);

/// A connection after its handshake.
#[derive(Debug)]
pub struct Greeted<S> {
    /// What is read and written.
    pub stream: S,
    /// Who was proved.
    pub proven: Option<Proven>,
}

impl ControlPlane {
    /// Serves the Admin API until the drain is asked for; then lets requests under way finish.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, mut drain: DrainGuard) {
        serve(listener, self.router(), drain.asked()).await;
    }

    /// The same behind a handshake. A connection without one in time is closed.
    pub async fn serve_greeting<S, F>(
        self: Arc<Self>,
        listener: TcpListener,
        mut drain: DrainGuard,
        greet: impl Fn(TcpStream, SocketAddr) -> F,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        F: Future<Output = Option<Greeted<S>>> + Send + 'static,
    {
        serve_greeting(listener, self.router(), drain.asked(), greet).await;
    }
}

/// Serves a router until the end is asked for; then lets requests under way finish, and those on their way to arrive.
pub async fn serve(listener: TcpListener, router: Router, end: impl Future<Output = ()>) {
    let greet = |stream, _| async move { Some(Greeted { stream, proven: None }) };
    serve_greeting(listener, router, end, greet).await;
}

async fn serve_greeting<S, F>(
    listener: TcpListener,
    router: Router,
    end: impl Future<Output = ()>,
    greet: impl Fn(TcpStream, SocketAddr) -> F,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = Option<Greeted<S>>> + Send + 'static,
{
    let mut server = Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN);
    server.http2().timer(TokioTimer::new()).max_concurrent_streams(64);
    let server = Arc::new(server);
    let graceful = GracefulShutdown::new();
    let mut connections = Tasks::new();
    let mut open = 0;
    let mut newest = None;
    let mut end = std::pin::pin!(end);
    loop {
        let (stream, client) = tokio::select! {
            () = &mut end => break,
            () = connections.any_ended(), if open > 0 => {
                open -= 1;
                continue;
            }
            accepted = listener.accept(), if open < MAX_CONNECTIONS => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Too many open files, most likely: give others the time to close some.
                    tracing::warn!(%error, "a connection cannot be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let _ = stream.set_nodelay(true);
        let (server, watcher, router) = (server.clone(), graceful.watcher(), router.clone());
        let greeting = greet(stream, client);
        open += 1;
        newest = Some(Instant::now());
        connections.add(async move {
            let greeted = tokio::time::timeout(HANDSHAKE_WITHIN, greeting).await;
            let Ok(Some(Greeted { stream, proven })) = greeted else { return };
            let router = match proven {
                Some(proven) => router.layer(Extension(proven)),
                None => router,
            };
            let mut service = router.into_make_service_with_connect_info::<SocketAddr>();
            let Ok(service) = service.call(client).await;
            let connection =
                server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
            if let Err(error) = watcher.watch(connection.into_owned()).await {
                tracing::debug!(%error, "a connection ended early");
            }
        });
    }
    drop(listener);
    if let Some(newest) = newest {
        tokio::time::sleep_until(newest + FRESH).await;
    }
    let _ = tokio::time::timeout(FINISH_WITHIN, graceful.shutdown()).await;
}
