//! Listening sockets: bound with an error that names the address, shared between workers.

use std::io;
use std::net::SocketAddr;

use socket2::{Domain, Protocol, Socket, Type};

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
}
