//! What a process is asked by signals.

use std::io;
use std::time::Duration;

use rustix::process::Signal as Number;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// SIGTERM or SIGINT, and which: to end.
    End(Number),
    /// SIGHUP: to read the settings again.
    Reload,
    /// SIGUSR2: to be replaced by a new process.
    Upgrade,
}

/// The signals of this process, from when this was made on.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    user: Signal,
    /// A limit of the size of files is an error of the write, and not the end of the process.
    _too_large: Signal,
    ended: Option<Instant>,
}

/// A terminal, a service manager and a process that passes signals on may each send the same one: that is one request.
const AT_ONCE: Duration = Duration::from_millis(400);

impl Signals {
    /// Listens from now on; the system's own answer to these signals, which is to end the process, is off.
    ///
    /// # Errors
    /// The system refuses.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            user: signal(SignalKind::user_defined2())?,
            _too_large: signal(SignalKind::from_raw(Number::XFSZ.as_raw()))?,
            ended: None,
        })
    }

    /// Waits for the next request. To be dropped at will.
    pub async fn next(&mut self) -> Asked {
        loop {
            let asked = tokio::select! {
                _ = self.terminate.recv() => Asked::End(Number::TERM),
                _ = self.interrupt.recv() => Asked::End(Number::INT),
                _ = self.hang_up.recv() => Asked::Reload,
                _ = self.user.recv() => Asked::Upgrade,
            };
            match asked {
                Asked::End(_) if self.is_same() => {}
                asked => return asked,
            }
        }
    }

    /// Waits until the process is asked to end; whatever else it is asked waits for [`Signals::next`].
    pub async fn end(&mut self) -> Number {
        loop {
            let number = tokio::select! {
                _ = self.terminate.recv() => Number::TERM,
                _ = self.interrupt.recv() => Number::INT,
            };
            if !self.is_same() {
                return number;
            }
        }
    }

    /// Is this request to end the one that we have heard already?
    fn is_same(&mut self) -> bool {
        let now = Instant::now();
        let is_same = self.ended.is_some_and(|before| now - before < AT_ONCE);
        if !is_same {
            self.ended = Some(now);
        }
        is_same
    }
}
