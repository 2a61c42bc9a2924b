//! The listening sockets of a process: bound, or taken over from systemd or from the process before.
//!
//! A socket that several processes share keeps its queue when one of them leaves, so whoever takes it over loses no
//! connection. [`Sockets`] keeps a handle of each open socket, to hand it on, until [`Sockets::release`].

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::net::{AddressFamily, sockopt};
use tokio::sync::watch;

use super::socket::{self, Error};

/// A listening socket that was handed to this process.
#[derive(Debug)]
pub struct Given {
    /// What it is for: `inbound`, `http`, `admin` and so on.
    pub name: String,
    /// What the process before was asked to listen on: taken where the same is asked for again. `None` from systemd, where
    /// the name alone counts.
    pub asked: Option<String>,
    /// The socket.
    pub socket: OwnedFd,
}

/// The listening sockets of a process. Clones share them.
///
/// ```
/// # use wardgate::rt::Sockets;
/// let sockets = Sockets::new();
/// let bound = sockets.tcp("admin", "127.0.0.1:0".parse().unwrap(), 1).unwrap();
/// let given = sockets.hand_over().unwrap();
/// assert_eq!((given.len(), &*given[0].name), (1, "admin"));
/// let heir = Sockets::given(given);
/// let same = heir.tcp("admin", "127.0.0.1:0".parse().unwrap(), 1).unwrap();
/// assert_eq!(bound[0][0].local_addr().unwrap(), same[0][0].local_addr().unwrap());
/// ```
#[derive(Clone, Debug)]
pub struct Sockets {
    inner: Arc<Mutex<Inner>>,
    opened: Arc<watch::Sender<bool>>,
    /// Another process has them as well, and goes on with them.
    lives_on: Arc<watch::Sender<bool>>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Not asked for yet.
    given: Vec<Given>,
    /// A handle of each socket that is open.
    open: Vec<Given>,
}

impl Default for Sockets {
    fn default() -> Self {
        Self::new()
    }
}

impl Sockets {
    /// None was handed to us: all are bound.
    pub fn new() -> Self {
        Self::given(Vec::new())
    }

    /// These were handed to us.
    pub fn given(given: Vec<Given>) -> Self {
        let inner = Inner { given, open: Vec::new() };
        Self {
            inner: Arc::new(Mutex::new(inner)),
            opened: Arc::new(watch::Sender::new(true)),
            lives_on: Arc::new(watch::Sender::new(false)),
        }
    }

    /// Nobody accepts before [`Sockets::open`]: the process before still does.
    #[must_use]
    pub fn shut(self) -> Self {
        self.opened.send_replace(false);
        self
    }

    /// From now on connections are accepted.
    pub fn open(&self) {
        self.opened.send_replace(true);
    }

    /// Are connections accepted?
    pub fn is_open(&self) -> bool {
        *self.opened.borrow()
    }

    /// Another process goes on with them: whoever stops accepting leaves what waits in the queues to it.
    pub fn live_on(&self) {
        self.lives_on.send_replace(true);
    }

    /// Does another process go on with them?
    pub fn do_live_on(&self) -> bool {
        *self.lives_on.borrow()
    }

    /// Waits until another process goes on with them; then this one accepts nothing any more.
    pub fn left(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut lives_on = self.lives_on.subscribe();
        async move {
            if lives_on.wait_for(|lives_on| *lives_on).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until connections are to be accepted.
    pub fn opened(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut opened = self.opened.subscribe();
        async move {
            // An error means that the process is ending; nobody needs to accept then.
            if opened.wait_for(|opened| *opened).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// The sockets of a listener for so many workers, at least one each: those that were handed to us, or bound ones as
    /// [`socket::listen`] makes them.
    ///
    /// All that were handed over are used, since each has a queue of its own; when there are fewer than workers, these share
    /// them.
    ///
    /// # Errors
    /// The address is taken or cannot be bound.
    pub fn tcp(
        &self,
        name: &str,
        address: SocketAddr,
        workers: usize,
    ) -> Result<Vec<Vec<TcpListener>>, Error> {
        let failed = |source| Error::Bind { address, source };
        let workers = workers.max(1);
        let asked = address.to_string();
        let mut found: Vec<TcpListener> = self
            .take(name, &asked, |family| family != AddressFamily::UNIX)
            .into_iter()
            .map(TcpListener::from)
            .collect();
        if found.is_empty() {
            found = socket::listen(address, workers)?;
        }
        for socket in &found {
            socket.set_nonblocking(true).map_err(failed)?;
            self.remember(name, &asked, socket).map_err(failed)?;
        }
        let distinct = found.len();
        for at in distinct..workers {
            found.push(found[at % distinct].try_clone().map_err(failed)?);
        }
        let mut of_workers: Vec<Vec<TcpListener>> = (0..workers).map(|_| Vec::new()).collect();
        for (at, socket) in found.into_iter().enumerate() {
            of_workers[at % workers].push(socket);
        }
        Ok(of_workers)
    }

    /// The one socket of a listener that has no workers.
    ///
    /// # Errors
    /// As [`Sockets::tcp`]; of several sockets that were handed over the first is used.
    pub fn one(&self, name: &str, address: SocketAddr) -> Result<TcpListener, Error> {
        let mut sockets = self.tcp(name, address, 1)?.remove(0);
        Ok(sockets.swap_remove(0))
    }

    /// The Unix socket at `path`: handed to us, or made by `bind`.
    ///
    /// # Errors
    /// Whatever `bind` says, or the system refuses the socket.
    pub fn unix<E>(
        &self,
        name: &'static str,
        path: &Path,
        bind: impl FnOnce(&Path) -> Result<UnixListener, E>,
        failed: impl Fn(io::Error) -> E,
    ) -> Result<UnixListener, E> {
        let asked = path.to_string_lossy();
        let given = self.take(name, &asked, |family| family == AddressFamily::UNIX).pop();
        let socket = match given {
            Some(socket) => UnixListener::from(socket),
            None => bind(path)?,
        };
        socket.set_nonblocking(true).map_err(&failed)?;
        self.remember(name, &asked, &socket).map_err(&failed)?;
        Ok(socket)
    }

    /// A handle of every open socket, for a process that takes over.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn hand_over(&self) -> io::Result<Vec<Given>> {
        let inner = self.inner.lock();
        let copy = |open: &Given| {
            let (name, asked) = (open.name.clone(), open.asked.clone());
            Ok(Given { name, asked, socket: open.socket.try_clone()? })
        };
        inner.open.iter().map(copy).collect()
    }

    /// Lets go of the handles, and of what was handed over and nobody asked for: a socket is now closed when its listener is.
    /// The names of those that nobody asked for.
    pub fn release(&self) -> Vec<String> {
        self.inner.lock().open.clear();
        self.forget_unused()
    }

    /// Closes what was handed over and nobody asked for; their names.
    pub fn forget_unused(&self) -> Vec<String> {
        self.inner.lock().given.drain(..).map(|given| given.name).collect()
    }

    fn take(&self, name: &str, asked: &str, fits: impl Fn(AddressFamily) -> bool) -> Vec<OwnedFd> {
        let mut inner = self.inner.lock();
        let (mine, others) = std::mem::take(&mut inner.given).into_iter().partition(|given| {
            let same = given.asked.as_ref().is_none_or(|before| before == asked);
            let family = sockopt::socket_domain(&given.socket);
            given.name == name && same && family.is_ok_and(&fits)
        });
        inner.given = others;
        let mine: Vec<Given> = mine;
        mine.into_iter().map(|given| given.socket).collect()
    }

    /// One handle for each socket, also when it is opened again within this process.
    fn remember(&self, name: &str, asked: &str, socket: &impl AsFd) -> io::Result<()> {
        let socket = socket.as_fd().try_clone_to_owned()?;
        let (name, asked) = (name.to_owned(), Some(asked.to_owned()));
        self.inner.lock().open.push(Given { name, asked, socket });
        Ok(())
    }

    /// Gives the sockets of `name` back, to be asked for again: a part of the process starts anew.
    pub fn ask_again(&self, name: &str) {
        let mut inner = self.inner.lock();
        let open = std::mem::take(&mut inner.open);
        let (again, others) = open.into_iter().partition(|open| open.name == name);
        inner.open = others;
        let mut again: Vec<Given> = again;
        inner.given.append(&mut again);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;

    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn every_queue_that_was_handed_over_is_served_whatever_the_number_of_workers() {
        let before = Sockets::new();
        let any = address("127.0.0.1:0");
        let bound = before.tcp("inbound", any, 3).unwrap();
        let port = bound[0][0].local_addr().unwrap();
        // So many that each of the three queues has some.
        let mut clients: Vec<TcpStream> =
            (0..60).map(|_| TcpStream::connect(port).unwrap()).collect();
        for workers in [1, 2, 5] {
            let heir = Sockets::given(before.hand_over().unwrap());
            let sockets = heir.tcp("inbound", any, workers).unwrap();
            assert_eq!(sockets.len(), workers);
            assert!(sockets.iter().all(|mine| !mine.is_empty()));
        }
        let heir = Sockets::given(before.hand_over().unwrap());
        drop(bound);
        before.release();
        let mut served = 0;
        for socket in heir.tcp("inbound", any, 2).unwrap().into_iter().flatten() {
            while let Ok((mut tcp, _)) = socket.accept() {
                tcp.write_all(b"x").unwrap();
                served += 1;
            }
        }
        assert_eq!(served, 60);
        for client in &mut clients {
            client.read_exact(&mut [0]).unwrap();
        }
    }

    #[test]
    fn a_socket_is_taken_for_its_name_and_the_address_that_was_asked_for() {
        let before = Sockets::new();
        let bound = before.one("admin", address("127.0.0.1:0")).unwrap().local_addr().unwrap();
        let heir = Sockets::given(before.hand_over().unwrap());
        let other_name = heir.one("feed", address("127.0.0.1:0")).unwrap();
        assert_ne!(other_name.local_addr().unwrap(), bound);
        let other_address = heir.one("admin", address("127.0.0.2:0")).unwrap();
        assert_ne!(other_address.local_addr().unwrap(), bound);
        assert_eq!(heir.release(), ["admin"]);

        // systemd's have names only.
        let mut given = before.hand_over().unwrap();
        given[0].asked = None;
        let heir = Sockets::given(given);
        assert_eq!(heir.one("admin", address("127.0.0.1:9")).unwrap().local_addr().unwrap(), bound);
        // A part that starts again has the same socket again.
        heir.ask_again("admin");
        let again = heir.one("admin", address("127.0.0.1:9")).unwrap();
        assert_eq!(again.local_addr().unwrap(), bound);
        assert_eq!(heir.hand_over().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn nobody_accepts_before_the_process_before_has_left() {
        let sockets = Sockets::new().shut();
        let mut opened = std::pin::pin!(sockets.opened());
        assert!(futures_util::poll!(&mut opened).is_pending());
        sockets.open();
        opened.await;
    }
}
