//! What systemd and others that speak its protocols give and want to hear: sockets (`LISTEN_FDS`), and how a start, a reload
//! or an end goes (`sd_notify`).

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::sockopt;

use super::sockets::Given;

/// The first descriptor that is handed over (`SD_LISTEN_FDS_START`).
const FIRST: i32 = 3;

/// Takes the listening sockets that systemd opened for this process, by the names of `LISTEN_FDNAMES`. To be called once, at
/// the very start, before anything else opens a descriptor.
///
/// Without `LISTEN_PID` naming this process there are none. What is no listening stream socket is left out, and named in the
/// second list.
pub fn listening_sockets() -> (Vec<Given>, Vec<String>) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<i32>().ok());
    let ours = i32::try_from(std::process::id()).ok();
    let count = match (number("LISTEN_PID"), number("LISTEN_FDS")) {
        (Some(pid), Some(count)) if Some(pid) == ours => count.clamp(0, 1024),
        _ => return (Vec::new(), Vec::new()),
    };
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let (mut given, mut others) = (Vec::new(), Vec::new());
    for number in FIRST..FIRST + count {
        let name = names.next().filter(|name| !name.is_empty()).unwrap_or("unknown").to_owned();
        #[expect(unsafe_code, reason = "descriptors that the service manager opened for us")]
        // SAFETY: LISTEN_PID names this process, so these numbers are descriptors that it was started with; this is called
        // once, before anything else could own one of them.
        let socket = unsafe { OwnedFd::from_raw_fd(number) };
        let is_listening = sockopt::socket_acceptconn(&socket) == Ok(true);
        if is_listening && fcntl_setfd(&socket, FdFlags::CLOEXEC).is_ok() {
            given.push(Given { name, asked: None, socket });
        } else {
            others.push(name);
        }
    }
    (given, others)
}

/// Does somebody want to hear how it goes?
pub fn is_heard() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// Tells whoever started this process how it goes, as `READY=1`: lines of `sd_notify`. Nothing when nobody wants to hear it.
pub fn notify(message: &str) {
    let Some(place) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let told = || -> io::Result<()> {
        let bytes = place.as_bytes();
        let address = match bytes.strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(&place)?,
        };
        UnixDatagram::unbound()?.send_to_addr(message.as_bytes(), &address).map(drop)
    };
    if let Err(error) = told() {
        tracing::warn!(%error, "NOTIFY_SOCKET cannot be told how it goes");
    }
}

/// What to say before a reload: systemd wants to know when it began.
pub fn reloading() -> String {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let micros = now.tv_sec * 1_000_000 + now.tv_nsec / 1000;
    format!("RELOADING=1\nMONOTONIC_USEC={micros}")
}
