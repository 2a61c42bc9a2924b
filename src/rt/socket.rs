//! Listening sockets: bound with an error that names the address, shared between workers.

use std::io;
use std::net::SocketAddr;

use socket2::{Domain, Protocol, SockFilter, SockRef, Socket, Type};

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The port belongs to somebody else.
    #[error("cannot listen on {address}: the port is taken by another process")]
    Taken {
        /// The address that was asked for.
        address: SocketAddr,
    },
    /// Everything else the system says.
    #[error("cannot listen on {address}")]
    Bind {
        /// The address that was asked for.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

/// Binds `address` for `workers` accept loops: one socket each, balanced by the kernel.
///
/// Port 0 takes a free port; all sockets of the result share it. Another process that listens on the port is an error
/// even if it would share it: traffic must not go to two gateways by chance.
///
/// # Errors
/// The address is taken or cannot be bound.
pub fn listen(address: SocketAddr, workers: usize) -> Result<Vec<std::net::TcpListener>, Error> {
    let bind = |source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => Error::Taken { address },
        _ => Error::Bind { address, source },
    };
    // The probe has no SO_REUSEPORT, so it fails when anybody else listens; its port is then shared by our own sockets.
    if address.port() != 0 {
        one(address, false).map_err(bind)?;
    }
    let first = one(address, workers > 1).map_err(bind)?;
    let bound = first.local_addr().map_err(bind)?;
    let mut sockets = vec![first];
    for _ in 1..workers {
        sockets.push(one(bound, true).map_err(bind)?);
    }
    Ok(sockets)
}

fn one(address: SocketAddr, shared: bool) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}

/// Lets a listening socket answer no further attempt to connect, while those that have begun come to their end: before it is
/// closed, so that what is in its queue can be taken out to the last one. Closing it while connections complete would reset
/// them. Nothing happens where the system has no such filter.
///
/// Only for a socket that no other process serves as well.
pub fn refuse_new(socket: &impl std::os::fd::AsFd) {
    // Of a TCP header's flags, SYN without ACK: a packet that wants to begin a connection.
    const FLAGS_AT: u32 = 13;
    const SYN_AND_ACK: u32 = 0x12;
    const SYN: u32 = 0x02;
    let (load, and, equal, give) = (0x30, 0x54, 0x15, 0x06);
    let filter = [
        SockFilter::new(load, 0, 0, FLAGS_AT),
        SockFilter::new(and, 0, 0, SYN_AND_ACK),
        SockFilter::new(equal, 0, 1, SYN),
        SockFilter::new(give, 0, 0, 0),
        SockFilter::new(give, 0, 0, u32::MAX),
    ];
    if let Err(error) = SockRef::from(socket).attach_filter(&filter) {
        tracing::debug!(%error, "new connections are refused only when the socket is closed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_named_and_a_free_one_is_shared_by_our_workers_only() {
        let loopback: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let sockets = listen(loopback, 2).unwrap();
        let bound = sockets[0].local_addr().unwrap();
        assert_eq!(bound, sockets[1].local_addr().unwrap());
        let error = listen(bound, 2).unwrap_err().to_string();
        assert_eq!(
            error,
            format!("cannot listen on {bound}: the port is taken by another process")
        );
    }

    #[test]
    fn a_socket_that_refuses_new_connections_still_has_those_that_were_made() {
        let loopback: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let socket = listen(loopback, 1).unwrap().remove(0);
        let bound = socket.local_addr().unwrap();
        let _made = std::net::TcpStream::connect(bound).unwrap();
        refuse_new(&socket);
        let soon = std::time::Duration::from_millis(200);
        let late = std::net::TcpStream::connect_timeout(&bound, soon);
        assert_eq!(late.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(socket.accept().is_ok());
        assert!(socket.accept().is_err(), "and nobody else");
    }
}
