//! Attestors: what the kernel says about a caller becomes selectors, which registration entries ask for.

use std::collections::BTreeSet;
use std::fmt;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::Error;

/// One attested fact about a caller, as entries write it: `unix:uid:1000`, `unix:gid:1000`, `unix:path:/usr/bin/app`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Selector {
    /// The caller's user.
    UnixUid(u32),
    /// The caller's group.
    UnixGid(u32),
    /// The program that the caller runs. It is the path that the caller sees: whoever may make containers can give any
    /// program any path, so that this narrows a `unix:uid` and does not replace it.
    UnixPath(PathBuf),
}

impl FromStr for Selector {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || Error::Entry {
            field: "selectors",
            detail: format!(
                "{text:?} is not known: expected unix:uid:NUMBER, unix:gid:NUMBER or unix:path:/ABSOLUTE/PATH"
            ),
        };
        let (kind, value) =
            text.strip_prefix("unix:").and_then(|rest| rest.split_once(':')).ok_or_else(wrong)?;
        // `parse` would also take a plus sign.
        let number = || match value.bytes().all(|b| b.is_ascii_digit()) {
            true => value.parse().map_err(|_| wrong()),
            false => Err(wrong()),
        };
        match kind {
            "uid" => Ok(Self::UnixUid(number()?)),
            "gid" => Ok(Self::UnixGid(number()?)),
            "path" if Path::new(value).is_absolute() => Ok(Self::UnixPath(value.into())),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnixUid(uid) => write!(f, "unix:uid:{uid}"),
            Self::UnixGid(gid) => write!(f, "unix:gid:{gid}"),
            Self::UnixPath(path) => write!(f, "unix:path:{}", path.display()),
        }
    }
}

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

/// A process and when it started: the two name one process for ever, the number alone may be given to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Process {
    pid: u32,
    started: u64,
}

impl Caller {
    /// Asks the kernel who connected. To be called right after accepting.
    ///
    /// # Errors
    /// The kernel does not say, or the process is already gone or has changed its user: another may have its number.
    pub fn of(socket: impl AsFd) -> Result<Self, Error> {
        let attest = |detail| Error::Attest { detail };
        let credentials = rustix::net::sockopt::socket_peercred(socket)
            .map_err(|_| attest("the kernel gives no credentials"))?;
        let (uid, gid) = (credentials.uid.as_raw(), credentials.gid.as_raw());
        let number = credentials.pid.as_raw_nonzero().get();
        // Zero or negative: a process of another namespace, which has no number here.
        let process = match u32::try_from(number) {
            Ok(pid) => {
                let started = start_of(pid).ok_or(attest("the process is gone"))?;
                if effective_uid(pid) != Some(uid) {
                    return Err(attest("the process is gone or changed its user"));
                }
                Some(Process { pid, started })
            }
            Err(_) => None,
        };
        Ok(Self { uid, gid, process })
    }

    /// The process number, for the log.
    pub fn pid(&self) -> Option<u32> {
        self.process.map(|process| process.pid)
    }

    /// Is it the same process still?
    pub fn is_alive(&self) -> bool {
        self.process.is_none_or(|process| start_of(process.pid) == Some(process.started))
    }
}

/// Turns what is known of a caller into selectors.
pub trait Attestor: Send + Sync {
    /// The caller's selectors now: a process may have changed its program since it connected.
    ///
    /// # Errors
    /// The caller is gone.
    fn attest(&self, caller: &Caller) -> Result<BTreeSet<Selector>, Error>;
}

/// Attests by user, group and program of a local process.
#[derive(Clone, Copy, Debug, Default)]
pub struct UnixAttestor;

impl Attestor for UnixAttestor {
    fn attest(&self, caller: &Caller) -> Result<BTreeSet<Selector>, Error> {
        let mut shown: BTreeSet<_> =
            [Selector::UnixUid(caller.uid), Selector::UnixGid(caller.gid)].into();
        if let Some(process) = caller.process {
            // Not readable without the right to trace it: then entries that ask for a path do not match.
            if let Ok(program) = std::fs::read_link(format!("/proc/{}/exe", process.pid)) {
                shown.insert(Selector::UnixPath(program));
            }
            // After reading: if it is the same process now, it was the same while we read.
            if !caller.is_alive() {
                return Err(Error::Attest { detail: "the process is gone" });
            }
        }
        Ok(shown)
    }
}

/// When a process started, in clock ticks since boot: field 22 of its `stat`, counted behind the name in parentheses.
fn start_of(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(19)?.parse().ok()
}

fn effective_uid(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_kernel_tells_user_group_and_program() {
        let (near, _far) = UnixStream::pair().unwrap();
        let caller = Caller::of(&near).unwrap();
        assert_eq!(caller.pid(), Some(std::process::id()));
        let shown = UnixAttestor.attest(&caller).unwrap();
        assert!(shown.contains(&Selector::UnixUid(rustix::process::geteuid().as_raw())));
        assert!(shown.contains(&Selector::UnixGid(rustix::process::getegid().as_raw())));
        assert!(shown.contains(&Selector::UnixPath(std::env::current_exe().unwrap())));
    }

    #[test]
    fn a_number_that_another_process_got_attests_nobody() {
        let (near, _far) = UnixStream::pair().unwrap();
        let mut caller = Caller::of(&near).unwrap();
        caller.process.as_mut().unwrap().started += 1;
        assert!(!caller.is_alive());
        assert!(UnixAttestor.attest(&caller).is_err());
    }

    #[test]
    fn selectors_print_as_they_are_written() {
        for text in ["unix:uid:0", "unix:gid:4294967295", "unix:path:/usr/bin/a:b"] {
            assert_eq!(text.parse::<Selector>().unwrap().to_string(), text);
        }
        for bad in ["", "unix:", "unix:uid:+1", "unix:uid:4294967296", "unix:path:", "unix:x:1"] {
            assert!(bad.parse::<Selector>().is_err(), "{bad}");
        }
    }
}
