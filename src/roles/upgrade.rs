//! A process is replaced by a new one without losing a connection: the new one takes the listening sockets over.
//!
//! The old process starts the program that lies in its place, with one end of a [`Channel`] as standard input, and tells it
//! over that which sockets there are. Then:
//!
//! 1. The new process reads its settings, gets its identity and its configuration. It accepts nothing, and writes neither the
//!    decision log nor last good copies: all that is still the old one's, which serves as if nothing were.
//! 2. When it is ready it says `prepared`. The old process lets go of what can have one owner alone: the decision log, the pen
//!    of the last good copies, and the control plane with its store. It says `released`.
//! 3. The new process takes these, says `taken`, and accepts. The old one drains; what it still decides it sends to the new
//!    one, which has the log.
//!
//! Until `taken`, whatever goes wrong ends the new process, and the old one goes on with what it had.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::error::Error;
use super::outputs::OUTPUTS_WITHIN;
use super::process::Running;
use super::settings::{Role, Settings};
use crate::rt::{Channel, Given, MOST_DESCRIPTORS, Sockets, causes};

/// Set for a process whose standard input is the other end of the channel.
const VARIABLE: &str = "WARDGATE_HANDOVER";
/// What is said over the channel has this form.
const PROTOCOL: u32 = 1;

/// What the two processes say to each other.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
enum Step {
    /// Old to new, first.
    Hello {
        protocol: u32,
        /// Sockets in this and the following `sockets` messages.
        sockets: usize,
        /// The last descriptor of the last message ends when the process that our supervisor watches ends.
        has_lifeline: bool,
    },
    /// Old to new: what the descriptors of this message are.
    Sockets { given: Vec<Name> },
    /// New to old: ready, but for what has one owner.
    Prepared,
    /// Old to new: take it.
    Released,
    /// New to old: taken. The descriptor is where the old process' decisions go.
    Taken,
    /// New to old: it does not work.
    Failed { why: String },
}

#[derive(Debug, Serialize, Deserialize)]
struct Name {
    name: String,
    asked: Option<String>,
}

/// Why no new process took over. The old one goes on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpgradeError {
    /// The program is not there, or cannot be executed.
    #[error("cannot start {program}")]
    Start {
        /// Which program.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The new process says why.
    #[error("the new process cannot take over: {why}")]
    Failed {
        /// In its words.
        why: String,
    },
    /// It ended without a word.
    #[error("the new process ended before it could take over ({status}); its log says why")]
    Ended {
        /// How.
        status: ExitStatus,
    },
    /// It was not ready in time.
    #[error("the new process was not ready within {within:?} (setting upgrade_seconds)")]
    Late {
        /// The time that it had.
        within: Duration,
    },
    /// The channel between the two.
    #[error("the new process cannot be talked to")]
    Channel(#[source] io::Error),
    /// The decision log could not be given up.
    #[error("the decision log cannot be handed over")]
    Audit(#[source] crate::observe::Error),
}

/// What a new process is started as.
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
}

impl Program {
    /// This very program with its arguments, by the path that it was called with: whatever lies there later is what an upgrade
    /// starts. To be called at the start, before the current directory could change.
    pub fn of_this_process() -> Self {
        let mut arguments = std::env::args_os();
        let called = arguments.next().map(PathBuf::from).unwrap_or_default();
        let found = if called.components().count() > 1 {
            std::path::absolute(&called).ok()
        } else {
            let paths = std::env::var_os("PATH").unwrap_or_default();
            std::env::split_paths(&paths).map(|folder| folder.join(&called)).find(|p| p.is_file())
        };
        let path = found.or_else(|| std::env::current_exe().ok()).unwrap_or(called);
        Self { path, arguments: arguments.collect() }
    }
}

/// A process that has taken over.
#[derive(Debug)]
pub struct Successor {
    child: Child,
    lifeline: Option<UnixStream>,
    is_announced: bool,
}

impl Successor {
    /// Its number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Do we stay, so that whoever watches our number still watches the service?
    pub fn leaves_us(&self) -> bool {
        self.lifeline.is_some()
    }

    /// Is the service manager to be told of the new number?
    pub fn is_announced(&self) -> bool {
        self.is_announced
    }

    /// What the new process notices our end by.
    pub fn lifeline(self) -> Option<UnixStream> {
        self.lifeline
    }
}

impl Running {
    /// Starts a new process and waits until it is ready to take over. `lifeline` is that of this process, if it has one. To be
    /// dropped at will: then the new process ends.
    ///
    /// # Errors
    /// The new process does not come up; this one goes on as before.
    pub async fn raise(
        &self,
        program: &Program,
        lifeline: Option<&UnixStream>,
    ) -> Result<Heir, UpgradeError> {
        let within = Duration::from_secs(self.settings.upgrade_seconds.max(1));
        let mut heir = Heir::start(program, within)?;
        if let Err(error) = heir.greet(&self.shared.sockets, lifeline) {
            let is_gone = error.kind() == io::ErrorKind::BrokenPipe;
            return Err(if is_gone { heir.ended().await } else { UpgradeError::Channel(error) });
        }
        heir.hears(Step::is_prepared).await?;
        Ok(heir)
    }

    /// Hands everything over. When that worked, this process accepts nothing any more, and is to be drained at once.
    ///
    /// # Errors
    /// The new process fails even now; it is ended, and this one goes on as before.
    pub async fn hand_over(&mut self, mut heir: Heir) -> Result<Successor, UpgradeError> {
        match self.give_up(&mut heir).await {
            Ok(()) => {
                self.shared.sockets.live_on();
                self.shared.sockets.release();
                heir.succeed()
            }
            Err(error) => {
                // It must be gone before its predecessor takes up again what it may have taken.
                heir.end();
                self.resume().await;
                Err(error)
            }
        }
    }

    /// Gives up what has one owner alone, and sends the decisions to come to the new process.
    async fn give_up(&mut self, heir: &mut Heir) -> Result<(), UpgradeError> {
        let (pen, audit) = (self.shared.pen.clone(), self.shared.audit.clone());
        // Who follows the log ends before the log is another process'; what it has not handed over the new one's follower does.
        let collected = self.stop_collecting().await;
        if let Some(control) = self.control.take() {
            self.shared.sockets.ask_again("admin");
            self.shared.sockets.ask_again("feed");
            control.drain(Duration::from_secs(5)).await;
        }
        let kept = std::mem::take(&mut self.outputs).finish(OUTPUTS_WITHIN).await;
        let let_go = move || {
            pen.lay_down();
            audit.let_go()
        };
        let gone = blocking(let_go).await;
        kept.release();
        collected.release();
        gone?.map_err(UpgradeError::Audit)?;
        heir.channel.say(&Step::Released, &[]).map_err(UpgradeError::Channel)?;
        let mut descriptors = heir.hears(Step::is_taken).await?;
        let Some(stream) = descriptors.pop() else {
            return Err(UpgradeError::Channel(io::ErrorKind::InvalidData.into()));
        };
        let audit = self.shared.audit.clone();
        let sent = blocking(move || audit.bequeath(UnixStream::from(stream))).await?;
        if let Err(error) = sent {
            tracing::error!("decisions of the drain are not recorded: {}", causes(&error));
        }
        Ok(())
    }

    /// Takes up again what was given up for a new process that failed.
    async fn resume(&mut self) {
        // First: they keep files from being retired.
        if let Err(error) = self.start_outputs() {
            let error = causes(&error);
            tracing::error!("the outputs of the decision log cannot be resumed: {error}");
        }
        let audit = self.shared.audit.clone();
        let taken = blocking(move || audit.take("resumed")).await;
        let problem = match &taken {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(causes(error)),
            Err(error) => Some(causes(error)),
        };
        if let Some(problem) = problem {
            tracing::error!("the decision log cannot be resumed: {problem}");
        }
        self.shared.pen.take_up();
        if self.roles.contains(&Role::Control)
            && self.control.is_none()
            && let Err(error) = self.open_control().await
        {
            tracing::error!("the control plane cannot be resumed: {}", causes(&error));
        }
        self.start_collecting();
    }
}

/// A new process on its way. Dropping it ends it.
#[derive(Debug)]
pub struct Heir {
    child: Option<Child>,
    channel: Arc<Channel>,
    within: Duration,
    lifeline: Option<UnixStream>,
    is_announced: bool,
}

impl Heir {
    fn start(program: &Program, within: Duration) -> Result<Self, UpgradeError> {
        let (channel, theirs) = Channel::pair().map_err(UpgradeError::Channel)?;
        channel.patient_for(within).map_err(UpgradeError::Channel)?;
        let child = Command::new(&program.path)
            .args(&program.arguments)
            .env(VARIABLE, "1")
            .env_remove("LISTEN_PID")
            .env_remove("LISTEN_FDS")
            .env_remove("LISTEN_FDNAMES")
            .stdin(Stdio::from(theirs.into_socket()))
            // A terminal's Ctrl-C reaches us alone, and is passed on once.
            .process_group(0)
            .spawn()
            .map_err(|source| UpgradeError::Start { program: program.path.clone(), source })?;
        let (child, channel) = (Some(child), Arc::new(channel));
        let heir = Self { child, channel, within, lifeline: None, is_announced: false };
        Ok(heir)
    }

    fn greet(&mut self, sockets: &Sockets, lifeline: Option<&UnixStream>) -> io::Result<()> {
        let given = sockets.hand_over()?;
        // Who was started by a process that stays lives as long as that one does; a first upgrade makes it stay itself.
        let lifeline = match lifeline {
            Some(own) => Some(own.try_clone()?),
            None if stays() => {
                let (ours, theirs) = UnixStream::pair()?;
                self.lifeline = Some(ours);
                Some(theirs)
            }
            None => {
                self.is_announced = true;
                None
            }
        };
        let has_lifeline = lifeline.is_some();
        let hello = Step::Hello { protocol: PROTOCOL, sockets: given.len(), has_lifeline };
        let with: Vec<_> = lifeline.iter().map(AsFd::as_fd).collect();
        self.channel.say(&hello, &with)?;
        for part in given.chunks(MOST_DESCRIPTORS) {
            let name =
                |given: &Given| Name { name: given.name.clone(), asked: given.asked.clone() };
            let names = part.iter().map(name).collect();
            let descriptors: Vec<_> = part.iter().map(|given| given.socket.as_fd()).collect();
            self.channel.say(&Step::Sockets { given: names }, &descriptors)?;
        }
        Ok(())
    }

    /// Waits for a step; its descriptors.
    async fn hears(&mut self, expected: fn(&Step) -> bool) -> Result<Vec<OwnedFd>, UpgradeError> {
        let channel = self.channel.clone();
        match blocking(move || channel.hear()).await? {
            Ok(Some((step, descriptors))) if expected(&step) => Ok(descriptors),
            Ok(Some((Step::Failed { why }, _))) => Err(UpgradeError::Failed { why }),
            Ok(Some(_)) => Err(UpgradeError::Channel(io::ErrorKind::InvalidData.into())),
            Ok(None) => Err(self.ended().await),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(UpgradeError::Late { within: self.within })
            }
            Err(error) => Err(UpgradeError::Channel(error)),
        }
    }

    /// How it ended: it has closed its end of the channel.
    async fn ended(&mut self) -> UpgradeError {
        for _ in 0..200 {
            match self.child.as_mut().map(Child::try_wait) {
                Some(Ok(Some(status))) => return UpgradeError::Ended { status },
                Some(Ok(None)) => tokio::time::sleep(Duration::from_millis(10)).await,
                Some(Err(error)) => return UpgradeError::Channel(error),
                None => break,
            }
        }
        UpgradeError::Channel(io::ErrorKind::BrokenPipe.into())
    }

    fn end(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn succeed(mut self) -> Result<Successor, UpgradeError> {
        let gone = || UpgradeError::Channel(io::ErrorKind::BrokenPipe.into());
        let child = self.child.take().ok_or_else(gone)?;
        Ok(Successor { child, lifeline: self.lifeline.take(), is_announced: self.is_announced })
    }
}

impl Drop for Heir {
    fn drop(&mut self) {
        self.end();
    }
}

/// The process that this one takes over from.
#[derive(Debug)]
pub struct Predecessor {
    channel: Arc<Channel>,
    lifeline: Option<UnixStream>,
}

impl Predecessor {
    /// The process that started this one to take over from it, and its listening sockets; none at any other start. To be called
    /// once: it takes standard input.
    ///
    /// # Errors
    /// The environment says that there is one, but standard input is no channel, or speaks otherwise.
    pub fn find() -> Result<Option<(Self, Sockets)>, Error> {
        if std::env::var_os(VARIABLE).is_none() {
            return Ok(None);
        }
        let (predecessor, given) = Self::greeted().map_err(Error::Predecessor)?;
        Ok(Some((predecessor, Sockets::given(given).shut())))
    }

    fn greeted() -> io::Result<(Self, Vec<Given>)> {
        let wrong = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why);
        let channel = Channel::of(io::stdin().as_fd().try_clone_to_owned()?)?;
        // It speaks at once; what comes later has no bound of ours.
        channel.patient_for(Duration::from_secs(10))?;
        let Some((Step::Hello { protocol, sockets, has_lifeline }, mut lifeline)) =
            channel.hear()?
        else {
            return Err(wrong("no greeting"));
        };
        if protocol != PROTOCOL {
            return Err(wrong(
                "the process before hands over in another way than this version knows",
            ));
        }
        let mut given = Vec::new();
        while given.len() < sockets {
            let Some((Step::Sockets { given: names }, descriptors)) = channel.hear()? else {
                return Err(wrong("sockets are missing"));
            };
            if names.is_empty() || names.len() != descriptors.len() {
                return Err(wrong("sockets without names"));
            }
            let named = names.into_iter().zip(descriptors);
            given.extend(named.map(|(Name { name, asked }, socket)| Given { name, asked, socket }));
        }
        channel.patient_for(Duration::from_secs(3600))?;
        let lifeline = lifeline.pop().filter(|_| has_lifeline).map(UnixStream::from);
        Ok((Self { channel: Arc::new(channel), lifeline }, given))
    }

    /// What ends when the process that our supervisor watches ends.
    pub fn lifeline(&mut self) -> Option<UnixStream> {
        self.lifeline.take()
    }

    /// Tells why this process does not take over.
    pub fn failed(&self, error: &(dyn std::error::Error + 'static)) {
        // It may be gone itself.
        let _ = self.channel.say(&Step::Failed { why: causes(error) }, &[]);
    }
}

/// How long the decision log may still be held by a process that is just ending.
const LOG_WITHIN: u32 = 100;

impl Running {
    /// Starts the roles of the settings in the place of another process, and returns when they have taken over.
    ///
    /// # Errors
    /// As [`Running::start`]. The other process is to be told, and goes on.
    pub async fn take_over(
        settings: &Settings,
        asked: Option<Role>,
        predecessor: &Predecessor,
        sockets: Sockets,
    ) -> Result<Self, Error> {
        let mut running = Self::prepared(settings, asked, sockets)?;
        let authority = running.start_issuer().await?;
        if running.roles.contains(&Role::Control) {
            running.prepare_control(authority.as_ref()).await?;
        }
        running.start_data_planes(authority.as_ref()).await?;
        running.readiness().ready().await;

        let channel = predecessor.channel.clone();
        let released = blocking(move || {
            channel.say(&Step::Prepared, &[])?;
            channel.hear()
        });
        match released.await {
            Ok(Ok(Some((Step::Released, _)))) => {}
            // It ended meanwhile: all the more reason to go on.
            _ => tracing::warn!("the process before is gone; going on in its place"),
        }
        running.take_log().await?;
        running.start_outputs()?;
        running.open_control().await?;
        let (ours, theirs) = UnixStream::pair().map_err(Error::Predecessor)?;
        running.shared.audit.inherit(ours)?;
        // Who is gone has nothing more to record.
        let _ = predecessor.channel.say(&Step::Taken, &[theirs.as_fd()]);
        drop(theirs);
        running.shared.pen.take_up();
        running.forget_unused_sockets();
        running.shared.sockets.open();
        running.start_collecting();
        running.has_begun();
        Ok(running)
    }

    async fn take_log(&self) -> Result<(), Error> {
        for left in (0..LOG_WITHIN).rev() {
            let audit = self.shared.audit.clone();
            let taken = tokio::task::spawn_blocking(move || audit.take("start")).await;
            match taken.map_err(|error| Error::Predecessor(io::Error::other(error)))? {
                Err(crate::observe::Error::InUse { .. }) if left > 0 => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                taken => return Ok(taken?),
            }
        }
        Ok(())
    }
}

/// What is said over a channel between the two.
trait Say {
    fn say(&self, step: &Step, descriptors: &[std::os::fd::BorrowedFd<'_>]) -> io::Result<()>;
    fn hear(&self) -> io::Result<Option<(Step, Vec<OwnedFd>)>>;
}

impl Say for Channel {
    fn say(&self, step: &Step, descriptors: &[std::os::fd::BorrowedFd<'_>]) -> io::Result<()> {
        self.send(&serde_json::to_vec(step)?, descriptors)
    }

    fn hear(&self) -> io::Result<Option<(Step, Vec<OwnedFd>)>> {
        let Some(parcel) = self.receive()? else { return Ok(None) };
        Ok(Some((serde_json::from_slice(&parcel.message)?, parcel.descriptors)))
    }
}

impl Step {
    fn is_prepared(&self) -> bool {
        matches!(self, Self::Prepared)
    }

    fn is_taken(&self) -> bool {
        matches!(self, Self::Taken)
    }
}

/// Does a process that was replaced stay, since whoever started it watches its number? Where systemd is told of the new number
/// it goes; but the first process of a container takes all others with it.
fn stays() -> bool {
    !crate::rt::systemd::is_heard() || std::process::id() == 1
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, UpgradeError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| UpgradeError::Channel(io::Error::other(error)))
}
