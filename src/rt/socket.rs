//! Listening sockets: bound with an error that names the address, shared between workers.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};

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

/// Takes no further connections; those that are being made are finished. To be called some time before the socket is closed,
/// since closing it resets what it has accepted for us and what is being made: who comes from here on finds a closed port once
/// it is, as it should be. Without effect where the system has no such filter.
///
/// # Errors
/// The system does not take the filter.
pub fn turn_away(listener: &impl AsFd) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        // Instructions of the classic packet filter, over the TCP header: load the flags, look for SYN, drop or keep.
        const LOAD_BYTE: u16 = 0x30;
        const JUMP_IF_SET: u16 = 0x45;
        const RETURN: u16 = 0x06;
        const FLAGS_AT: u32 = 13;
        const SYN: u32 = 0x02;
        let step = socket2::SockFilter::new;
        socket2::SockRef::from(listener).attach_filter(&[
            step(LOAD_BYTE, 0, 0, FLAGS_AT),
            step(JUMP_IF_SET, 0, 1, SYN),
            step(RETURN, 0, 0, 0),
            step(RETURN, 0, 0, u32::MAX),
        ])?;
    }
    #[cfg(not(target_os = "linux"))]
    let _ = listener;
    Ok(())
}

/// Bytes that were sent on a connection that we made, and that the other end's system has not acknowledged. An acknowledgement
/// may come some time after a byte was read, but the other end's own end acknowledges all that had come before it. Still known
/// when the connection is gone. `None` where the system does not tell.
pub fn unacknowledged(socket: &impl AsFd) -> Option<u64> {
    // Where the counters stand in Linux' `tcp_info`, which only ever grows at its end.
    const ACKNOWLEDGED: usize = 120;
    const SENT: usize = 200;
    const SENT_AGAIN: usize = 208;
    let mut info = [0_u8; 216];
    let mut length = libc::socklen_t::try_from(info.len()).ok()?;
    #[expect(unsafe_code, reason = "no safe wrapper reads these counters")]
    // SAFETY: the descriptor is open as long as `socket` is borrowed, and the kernel writes `length` bytes at most.
    let outcome = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    // An older kernel knows fewer.
    if outcome != 0 || (length as usize) < info.len() {
        return None;
    }
    let number = |at: usize| Some(u64::from_ne_bytes(info.get(at..at + 8)?.try_into().ok()?));
    // The handshake's own number was acknowledged, too.
    let acknowledged = number(ACKNOWLEDGED)?.checked_sub(1)?;
    number(SENT)?.checked_sub(number(SENT_AGAIN)?)?.checked_sub(acknowledged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn who_comes_late_is_turned_away_and_who_came_before_is_not_lost() {
        use std::io::{Read, Write};
        use std::net::TcpStream;
        let [listener] = &*listen("127.0.0.1:0".parse().unwrap(), 1).unwrap() else { panic!() };
        let address = listener.local_addr().unwrap();
        let mut early = TcpStream::connect(address).unwrap();
        turn_away(listener).unwrap();
        early.write_all(b"x").unwrap();
        let late = TcpStream::connect_timeout(&address, std::time::Duration::from_millis(50));
        assert_eq!(late.unwrap_err().kind(), io::ErrorKind::TimedOut);
        let (mut accepted, _) = listener.accept().unwrap();
        accepted.set_nonblocking(false).unwrap();
        let mut read = [0];
        accepted.read_exact(&mut read).unwrap();
    }

    #[test]
    fn what_a_peer_that_had_closed_before_never_got_is_known_behind_the_reset() {
        use std::io::{Read, Write};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        client.write_all(b"first").unwrap();
        let mut read = [0; 5];
        peer.read_exact(&mut read).unwrap();
        peer.write_all(b"ok").unwrap();
        client.read_exact(&mut read[..2]).unwrap();
        assert_eq!(unacknowledged(&client), Some(0));
        drop(peer);
        client.write_all(b"second, in vain").unwrap();
        // The peer's end, or the reset that answered.
        assert!(!matches!(client.read(&mut read), Ok(1..)));
        assert_eq!(unacknowledged(&client), Some(15));
    }

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
