//! Local processes: what the kernel says about whoever connected to a Unix socket.
//!
//! A process number names a process only while it lives; then the kernel may give it to another. So the process is pinned by a
//! pidfd, all of `/proc` is read between two looks at it, and what was read counts only if the process lived through both.

use std::collections::{BTreeSet, HashMap};
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::rt::crypto::digest::{Context, SHA256};
use async_trait::async_trait;
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::sync::Semaphore;

use super::Selector;
use crate::issuer::{Entries, Error};
use crate::rt::Live;

/// The process at the other end of a Unix socket, as the kernel knew it when it connected.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Its effective user at the time of connecting.
    pub uid: u32,
    /// Its effective group at the time of connecting.
    pub gid: u32,
    /// The process, where it can be seen from here.
    process: Option<Process>,
}

/// One process for ever: the handle is never given to another, and while it lives neither is the number.
#[derive(Clone, Debug)]
struct Process {
    pid: u32,
    handle: Arc<OwnedFd>,
}

impl Caller {
    /// Asks the kernel who connected. To be called right after accepting.
    ///
    /// # Errors
    /// The kernel does not say, or the process is already gone or has changed its user.
    pub fn of(socket: impl AsFd) -> Result<Self, Error> {
        let socket = socket.as_fd();
        let credentials =
            credentials(socket).map_err(|_| gone("the kernel gives no credentials"))?;
        let handle = match peer_pidfd(socket) {
            // Linux 6.5: the very process that connected, whatever became of its number.
            Ok(handle) => Some(handle),
            Err(error) if is_unsupported(&error) => opened(credentials.pid, socket)?,
            Err(_) => return Err(gone("the process is gone")),
        };
        Self::pinned(&credentials, handle)
    }

    fn pinned(credentials: &libc::ucred, handle: Option<OwnedFd>) -> Result<Self, Error> {
        let (uid, gid) = (credentials.uid, credentials.gid);
        // Zero: a process of another namespace, which has no number here.
        let number = u32::try_from(credentials.pid).ok().filter(|pid| *pid > 0);
        let process = match (number, handle) {
            (Some(pid), Some(handle)) => Some(Process { pid, handle: Arc::new(handle) }),
            _ => None,
        };
        let caller = Self { uid, gid, process };
        if let Some(process) = &caller.process
            && process.status(|status| status.effective_uid)? != Some(uid)
        {
            return Err(gone("the process changed its user"));
        }
        Ok(caller)
    }

    /// The process number, for the log.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(|process| process.pid)
    }

    /// Is it the same process still?
    pub fn is_alive(&self) -> bool {
        self.process.as_ref().is_none_or(Process::is_alive)
    }
}

fn gone(detail: &'static str) -> Error {
    Error::Attest { detail }
}

impl Process {
    /// A pidfd becomes readable when its process ends.
    fn is_alive(&self) -> bool {
        let mut looked = [PollFd::new(&self.handle, PollFlags::IN)];
        let now = rustix::event::Timespec::default();
        matches!(poll(&mut looked, Some(&now)), Ok(0))
    }

    /// What `read` finds in `/proc`, if the process lived through the reading: then the number was its own.
    fn proc<T>(&self, read: impl FnOnce(&str) -> T) -> Result<T, Error> {
        let found = read(&format!("/proc/{}", self.pid));
        if self.is_alive() { Ok(found) } else { Err(gone("the process is gone")) }
    }

    fn status<T>(&self, read: impl FnOnce(Status) -> T) -> Result<T, Error> {
        self.proc(|folder| {
            let text = std::fs::read_to_string(format!("{folder}/status")).unwrap_or_default();
            read(Status::of(&text))
        })
    }

    /// The program: the path that the process sees, and the file itself. `None` without the right to trace the process: then
    /// entries that ask for the program do not match.
    fn program(&self) -> Result<Option<(PathBuf, Option<File>)>, Error> {
        self.proc(|folder| {
            let link = format!("{folder}/exe");
            let path = std::fs::read_link(&link).ok()?;
            // The link leads to the file itself, also where the path means another file here.
            Some((path, File::open(&link).ok()))
        })
    }

    /// Does it run this file still? Between the looks at its path and at its content it may have become another program.
    fn runs(&self, file: &Metadata) -> Result<bool, Error> {
        self.proc(|folder| {
            let now = std::fs::metadata(format!("{folder}/exe"));
            now.is_ok_and(|now| (now.dev(), now.ino()) == (file.dev(), file.ino()))
        })
    }
}

/// The part of `/proc/PID/status` that counts.
struct Status {
    effective_uid: Option<u32>,
    groups: Vec<u32>,
}

impl Status {
    fn of(text: &str) -> Self {
        let field = |name| text.lines().find_map(|line| line.strip_prefix(name));
        let uid = field("Uid:").and_then(|line| line.split_ascii_whitespace().nth(1));
        let groups = field("Groups:").unwrap_or_default().split_ascii_whitespace();
        Self {
            effective_uid: uid.and_then(|uid| uid.parse().ok()),
            groups: groups.filter_map(|gid| gid.parse().ok()).collect(),
        }
    }
}

/// `SO_PEERPIDFD` of Linux 6.5 on all architectures with the common numbers; neither libc nor rustix names it yet.
const SO_PEERPIDFD: libc::c_int = 77;

fn credentials(socket: BorrowedFd<'_>) -> io::Result<libc::ucred> {
    option(socket, libc::SO_PEERCRED, libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX })
}

fn peer_pidfd(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let number = option(socket, SO_PEERPIDFD, -1)?;
    if number < 0 {
        return Err(io::ErrorKind::NotFound.into());
    }
    #[expect(unsafe_code, reason = "a file descriptor that the kernel has just made for us")]
    // SAFETY: SO_PEERPIDFD installs a new descriptor and returns its number; nobody else knows it, so that we own it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// A socket's option of a plain type that is valid for all bits, which holds for the two that are asked for here.
fn option<T: Copy>(socket: BorrowedFd<'_>, name: libc::c_int, mut value: T) -> io::Result<T> {
    let size = libc::socklen_t::try_from(size_of::<T>()).map_err(io::Error::other)?;
    let mut length = size;
    #[expect(
        unsafe_code,
        reason = "rustix has no SO_PEERPIDFD, and reads a pid of 0 into a non-zero type"
    )]
    // SAFETY: `value` is `length` bytes that may be written, both outlive the call, and any bits are a valid `T`.
    let outcome = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            name,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    match outcome {
        0 if length == size => Ok(value),
        0 => Err(io::ErrorKind::InvalidData.into()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOPROTOOPT)
}

/// On kernels before 6.5: a handle by number. Between connecting and this call the process may have ended and its number may
/// be another's. Then its end of the socket is closed, unless a child of it holds that open; and that child runs as whom the
/// credentials name. So a socket that is still open, and a live process of the same user behind the number (which the caller
/// of this checks), leave only another process of that very user, on kernels where nothing better can be had.
fn opened(pid: libc::pid_t, socket: BorrowedFd<'_>) -> Result<Option<OwnedFd>, Error> {
    let Some(pid) = Pid::from_raw(pid) else { return Ok(None) };
    let handle = pidfd_open(pid, PidfdFlags::empty()).map_err(|_| gone("the process is gone"))?;
    let mut looked = [PollFd::new(&socket, PollFlags::RDHUP)];
    let now = rustix::event::Timespec::default();
    let _ = poll(&mut looked, Some(&now));
    if looked[0].revents().intersects(PollFlags::HUP | PollFlags::RDHUP) {
        return Err(gone("the process closed the connection"));
    }
    Ok(Some(handle))
}

/// Turns what is known of a caller into selectors.
#[async_trait]
pub trait Attestor: Send + Sync {
    /// The caller's selectors now: a process may have changed its program since it connected.
    ///
    /// # Errors
    /// The caller is gone.
    async fn attest(&self, caller: &Caller) -> Result<BTreeSet<Selector>, Error>;
}

/// Attests by user, groups and program of a local process.
#[derive(Debug)]
pub struct UnixAttestor {
    entries: Live<Entries>,
    programs: Arc<Programs>,
}

impl UnixAttestor {
    /// Attests for `entries`: programs are hashed only while one of them asks for a hash.
    pub fn new(entries: Live<Entries>) -> Self {
        Self { entries, programs: Arc::default() }
    }
}

#[async_trait]
impl Attestor for UnixAttestor {
    async fn attest(&self, caller: &Caller) -> Result<BTreeSet<Selector>, Error> {
        let mut shown: BTreeSet<_> =
            [Selector::UnixUid(caller.uid), Selector::UnixGid(caller.gid)].into();
        let Some(process) = &caller.process else { return Ok(shown) };
        let groups = process.status(|status| status.groups)?;
        shown.extend(groups.into_iter().map(Selector::UnixSupplementaryGid));
        let Some((path, file)) = process.program()? else { return Ok(shown) };
        shown.insert(Selector::UnixPath(path));
        if let Some(file) = file
            && self.entries.load().ask_for_programs()
        {
            let seen = file.metadata().map_err(|_| gone("the program cannot be seen"))?;
            if let Some(digest) = self.programs.digest(file, &seen).await {
                shown.insert(Selector::UnixSha256(digest));
            }
            if !process.runs(&seen)? {
                return Err(gone("the process became another program meanwhile"));
            }
        }
        Ok(shown)
    }
}

/// Programs larger than this are not hashed: whoever may run programs could keep the issuer busy.
const MAX_PROGRAM_BYTES: u64 = 1 << 30;
/// Programs whose hash is remembered.
const MAX_REMEMBERED: usize = 4096;

/// Hashes of programs, computed once for each state of a file, one at a time.
#[derive(Debug)]
struct Programs {
    known: Mutex<HashMap<Mark, [u8; 32]>>,
    turn: Semaphore,
}

impl Default for Programs {
    fn default() -> Self {
        Self { known: Mutex::default(), turn: Semaphore::new(1) }
    }
}

/// What changes when a file's content does: device, inode, size, and both times. Only root can turn back a change time.
type Mark = (u64, u64, u64, (i64, i64), (i64, i64));

fn mark(seen: &Metadata) -> Mark {
    let (modified, changed) =
        ((seen.mtime(), seen.mtime_nsec()), (seen.ctime(), seen.ctime_nsec()));
    (seen.dev(), seen.ino(), seen.size(), modified, changed)
}

impl Programs {
    /// SHA-256 of a file. `None` when it is none, too large, or was changed while it was read.
    async fn digest(&self, file: File, seen: &Metadata) -> Option<[u8; 32]> {
        let mark = mark(seen);
        let known = || self.known.lock().get(&mark).copied();
        if let Some(digest) = known() {
            return Some(digest);
        }
        if !seen.is_file() || seen.size() > MAX_PROGRAM_BYTES {
            return None;
        }
        let _one_at_a_time = self.turn.acquire().await.ok()?;
        if let Some(digest) = known() {
            return Some(digest);
        }
        let hashing = tokio::task::spawn_blocking(move || hash(&file, mark));
        let digest = hashing.await.ok()?.ok()??;
        let mut known = self.known.lock();
        if known.len() >= MAX_REMEMBERED {
            known.clear();
        }
        known.insert(mark, digest);
        Some(digest)
    }
}

fn hash(file: &File, expected: Mark) -> io::Result<Option<[u8; 32]>> {
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; 256 * 1024];
    let mut reader = file;
    loop {
        match reader.read(&mut buffer)? {
            0 => break,
            read => context.update(&buffer[..read]),
        }
    }
    let digest = context.finish();
    // A file that changes while it is read has a hash that nobody ever had.
    let same = mark(&file.metadata()?) == expected;
    Ok(same.then(|| digest.as_ref().try_into().ok()).flatten())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::identity::forge::Folder;
    use crate::issuer::RegistrationEntry;

    fn attestor(selectors: &[&str]) -> UnixAttestor {
        let declared =
            serde_json::json!({ "spiffe_id": "spiffe://a.test/web", "selectors": selectors });
        let workload = serde_json::from_value(declared).unwrap();
        let entry = RegistrationEntry::new(&workload, &"a.test".parse().unwrap()).unwrap();
        UnixAttestor::new(Live::fixed([entry].into_iter().collect()))
    }

    fn digest_of_this_program() -> String {
        let mut file = File::open(std::env::current_exe().unwrap()).unwrap();
        let mut context = Context::new(&SHA256);
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer).unwrap() {
                0 => return hex::encode(context.finish()),
                read => context.update(&buffer[..read]),
            }
        }
    }

    #[tokio::test]
    async fn the_kernel_tells_user_groups_and_program() {
        let (near, _far) = UnixStream::pair().unwrap();
        let caller = Caller::of(&near).unwrap();
        assert_eq!(caller.pid(), Some(std::process::id()));
        let shown = attestor(&["unix:uid:0"]).attest(&caller).await.unwrap();
        assert!(shown.contains(&Selector::UnixUid(rustix::process::geteuid().as_raw())));
        assert!(shown.contains(&Selector::UnixGid(rustix::process::getegid().as_raw())));
        for group in rustix::process::getgroups().unwrap() {
            assert!(shown.contains(&Selector::UnixSupplementaryGid(group.as_raw())));
        }
        assert!(shown.contains(&Selector::UnixPath(std::env::current_exe().unwrap())));
        let hashes = |shown: &BTreeSet<_>| {
            shown.iter().filter(|one| matches!(one, Selector::UnixSha256(_))).count()
        };
        assert_eq!(hashes(&shown), 0, "nobody asks for it");

        let text = format!("unix:sha256:{}", digest_of_this_program());
        let asking = attestor(&[&text]);
        for _ in 0..2 {
            let shown = asking.attest(&caller).await.unwrap();
            assert!(shown.contains(&text.parse().unwrap()), "{shown:?}");
        }
        assert_eq!(asking.programs.known.lock().len(), 1, "hashed once");
    }

    #[test]
    fn further_groups_are_read_as_the_kernel_lists_them() {
        let status = Status::of("Name:\tUid: 7\nUid:\t1\t2\t3\t4\nGid:\t5\nGroups:\t27 1000 \n");
        assert_eq!((status.effective_uid, status.groups), (Some(2), vec![27, 1000]));
        assert_eq!(Status::of("Groups:\t\n").groups, Vec::<u32>::new());
        assert_eq!(Status::of("").effective_uid, None);
    }

    /// Another process of this test that connects to the socket and lives until it is killed.
    fn connecting(socket: &std::path::Path) -> Child {
        Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "issuer::attest::unix::tests::a_process_that_connects",
                "--nocapture",
            ])
            .env("WARDGATE_TEST_CONNECT", socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Plays the other process when it is started as one.
    #[test]
    fn a_process_that_connects() {
        let Some(socket) = std::env::var_os("WARDGATE_TEST_CONNECT") else { return };
        let _connection = UnixStream::connect(socket).unwrap();
        println!("connected");
        let mut line = String::new();
        io::stdin().read_line(&mut line).unwrap();
    }

    fn wait_until_connected(child: &mut Child) {
        let out = BufReader::new(child.stdout.as_mut().unwrap());
        assert!(out.lines().map_while(Result::ok).any(|line| line.contains("connected")));
    }

    #[tokio::test]
    async fn a_number_that_another_process_got_attests_nobody() {
        let folder = Folder::new();
        let socket = folder.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let mut first = connecting(&socket);
        let (near, _) = listener.accept().unwrap();
        wait_until_connected(&mut first);
        let caller = Caller::of(&near).unwrap();
        assert_eq!(caller.pid(), Some(first.id()));
        let attestor = attestor(&["unix:uid:0"]);
        let shown = attestor.attest(&caller).await.unwrap();
        assert!(shown.contains(&Selector::UnixPath(std::env::current_exe().unwrap())));

        first.kill().unwrap();
        first.wait().unwrap();
        assert!(!caller.is_alive());
        attestor.attest(&caller).await.unwrap_err();

        // What a reused number looks like: a live process has the number that the dead one had.
        let process = caller.process.clone().unwrap();
        let reused = Process { pid: std::process::id(), ..process };
        let reused = Caller { process: Some(reused), ..caller };
        assert!(std::fs::read_link(format!("/proc/{}/exe", std::process::id())).is_ok());
        assert!(!reused.is_alive());
        let error = attestor.attest(&reused).await.unwrap_err();
        assert!(error.to_string().contains("the process is gone"), "{error}");
    }

    #[test]
    fn who_is_gone_before_it_is_accepted_is_sent_away() {
        let folder = Folder::new();
        let socket = folder.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let mut child = connecting(&socket);
        wait_until_connected(&mut child);
        child.stdin.take().unwrap().write_all(b"\n").unwrap();
        child.wait().unwrap();
        let (near, _) = listener.accept().unwrap();
        Caller::of(&near).unwrap_err();
    }

    #[test]
    fn without_help_of_the_kernel_a_process_is_pinned_by_its_number() {
        let folder = Folder::new();
        let socket = folder.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let mut child = connecting(&socket);
        wait_until_connected(&mut child);
        let (near, _) = listener.accept().unwrap();
        let credentials = credentials(near.as_fd()).unwrap();
        let handle = opened(credentials.pid, near.as_fd()).unwrap();
        let caller = Caller::pinned(&credentials, handle).unwrap();
        assert!(caller.is_alive());

        // Its number is another's by now, which is of the same user and alive: its end of the socket is closed all the same.
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!caller.is_alive());
        let living = libc::pid_t::try_from(std::process::id()).unwrap();
        opened(living, near.as_fd()).unwrap_err();
        // Of another user.
        let (pair, _far) = UnixStream::pair().unwrap();
        let handle = opened(living, pair.as_fd()).unwrap();
        let stranger = libc::ucred { pid: living, uid: credentials.uid + 1, gid: 0 };
        Caller::pinned(&stranger, handle).unwrap_err();
    }

    #[test]
    fn a_process_that_has_no_number_here_shows_its_user_only() {
        let nobody = libc::ucred { pid: 0, uid: 7, gid: 8 };
        let caller = Caller::pinned(&nobody, None).unwrap();
        assert_eq!((caller.pid(), caller.uid, caller.is_alive()), (None, 7, true));
    }
}
