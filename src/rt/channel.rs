//! A channel between two processes on one machine that carries messages and file descriptors.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair, sockopt,
};

/// The longest message, in bytes.
const LONGEST: usize = 64 << 10;
/// Descriptors in one message. The kernel takes 253.
pub const MOST_DESCRIPTORS: usize = 64;

/// One end of a channel. Sending and receiving block the thread.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
}

/// A message with what came along.
#[derive(Debug)]
pub struct Parcel {
    /// The message.
    pub message: Vec<u8>,
    /// Its descriptors.
    pub descriptors: Vec<OwnedFd>,
}

impl Channel {
    /// Both ends of a new channel.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, other) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self { socket: one }, Self { socket: other }))
    }

    /// The end that a process was started with.
    ///
    /// # Errors
    /// It is no such socket.
    pub fn of(socket: OwnedFd) -> io::Result<Self> {
        match (sockopt::socket_domain(&socket)?, sockopt::socket_type(&socket)?) {
            (AddressFamily::UNIX, SocketType::SEQPACKET) => Ok(Self { socket }),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// The socket itself, to start a process with.
    pub fn into_socket(self) -> OwnedFd {
        self.socket
    }

    /// Waits at most so long in [`Channel::receive`] and [`Channel::send`].
    ///
    /// # Errors
    /// The system refuses.
    pub fn patient_for(&self, within: Duration) -> io::Result<()> {
        // A timeout of zero would be none.
        let within = Some(within.max(Duration::from_millis(1)));
        sockopt::set_socket_timeout(&self.socket, sockopt::Timeout::Recv, within)?;
        Ok(sockopt::set_socket_timeout(&self.socket, sockopt::Timeout::Send, within)?)
    }

    /// Sends a message with at most [`MOST_DESCRIPTORS`] descriptors.
    ///
    /// # Errors
    /// The other end is gone, or does not take it in time.
    pub fn send(&self, message: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        if message.is_empty() || message.len() > LONGEST || descriptors.len() > MOST_DESCRIPTORS {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors))
        {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        sendmsg(&self.socket, &[IoSlice::new(message)], &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Waits for the next message; `None` when the other end is gone.
    ///
    /// # Errors
    /// None came in time (`WouldBlock`), or it does not fit.
    pub fn receive(&self) -> io::Result<Option<Parcel>> {
        let mut message = vec![0; LONGEST];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let into = &mut [IoSliceMut::new(&mut message)];
            match recvmsg(&self.socket, into, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
                Err(rustix::io::Errno::INTR) => {}
                // Who ends with something unread resets the connection.
                Err(rustix::io::Errno::CONNRESET) => return Ok(None),
                other => break other?,
            }
        };
        let mut descriptors = Vec::new();
        for part in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = part {
                descriptors.extend(received);
            }
        }
        if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if received.bytes == 0 {
            return Ok(None);
        }
        message.truncate(received.bytes);
        Ok(Some(Parcel { message, descriptors }))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn messages_and_descriptors_arrive_whole_and_the_end_is_seen() {
        let (here, there) = Channel::pair().unwrap();
        let (mut kept, sent) = UnixStream::pair().unwrap();
        here.send(b"first", &[sent.as_fd()]).unwrap();
        here.send(b"second", &[]).unwrap();
        drop(sent);
        let mut first = there.receive().unwrap().unwrap();
        assert_eq!((&*first.message, first.descriptors.len()), (&b"first"[..], 1));
        let mut received = UnixStream::from(first.descriptors.remove(0));
        received.write_all(b"x").unwrap();
        kept.read_exact(&mut [0]).unwrap();
        let second = there.receive().unwrap().unwrap();
        assert_eq!((&*second.message, second.descriptors.len()), (&b"second"[..], 0));

        there.patient_for(Duration::from_millis(5)).unwrap();
        assert_eq!(there.receive().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let again = Channel::of(there.into_socket()).unwrap();
        drop(here);
        assert!(again.receive().unwrap().is_none());
        assert!(Channel::of(kept.into()).is_err(), "a stream is none");
    }
}
