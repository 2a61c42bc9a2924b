//! A process that was replaced and stays: whoever started it watches its number, and shall see the service end when it ends.
//!
//! It holds nothing any more, passes signals on to the process that took over (and to whichever takes over from that), and ends
//! as the last of them ends. When it is killed itself, the others notice it by their lifeline and end as well.

use std::collections::HashSet;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, set_child_subreaper, wait};
use tokio::sync::oneshot;

use super::upgrade::Successor;
use crate::rt::signals::{Asked, Signals};

/// Stays until `successor` and all that took over after it have ended; the exit code of the last one. With `asked` it is to
/// end already.
pub async fn stay(successor: Successor, signals: &mut Signals, asked: Option<Signal>) -> u8 {
    // Who takes over from the successor becomes our child when that ends.
    if let Err(error) = set_child_subreaper(Some(getpid())) {
        tracing::warn!(%error, "the next upgrade will end this process");
    }
    let _lifeline = successor.lifeline();
    let (done, mut ended) = oneshot::channel();
    let waiting = std::thread::Builder::new().name("children".into()).spawn(move || {
        let _ = done.send(wait_for_all());
    });
    if let Err(error) = waiting {
        tracing::error!(%error, "cannot wait for the process that took over");
        return 1;
    }
    // Whoever was told to end; one that was just taking over becomes our child only later.
    let mut told: HashSet<Pid> = HashSet::new();
    let mut ending = asked;
    loop {
        tokio::select! {
            code = &mut ended => return code.unwrap_or(1),
            asked = signals.next() => match asked {
                Asked::End(signal) => {
                    ending = Some(signal);
                    told = tell(signal, &HashSet::new());
                }
                Asked::Reload => drop(tell(Signal::HUP, &HashSet::new())),
                Asked::Upgrade => drop(tell(Signal::USR2, &HashSet::new())),
            },
            () = tokio::time::sleep(Duration::from_millis(100)), if ending.is_some() => {
                if let Some(signal) = ending {
                    told.extend(tell(signal, &told));
                }
            }
        }
    }
}

/// Waits until no child is left; how the last one ended.
fn wait_for_all() -> u8 {
    let mut code = 0;
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((_, status))) => {
                let status = ExitStatus::from_raw(status.as_raw());
                let number = status.code().or(status.signal().map(|signal| 128 + signal));
                code = number.and_then(|number| u8::try_from(number).ok()).unwrap_or(1);
            }
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return code,
        }
    }
}

/// Passes a signal on to the children that were not told yet; those that were now.
fn tell(signal: Signal, told: &HashSet<Pid>) -> HashSet<Pid> {
    let mut now = HashSet::new();
    for child in children().into_iter().filter(|child| !told.contains(child)) {
        match kill_process(child, signal) {
            Ok(()) => drop(now.insert(child)),
            Err(error) => tracing::warn!(%error, "cannot pass a signal on"),
        }
    }
    now
}

/// The processes whose parent we are.
fn children() -> Vec<Pid> {
    let parent = std::process::id();
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    let child = |entry: std::io::Result<std::fs::DirEntry>| {
        let entry = entry.ok()?;
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        // "number (name) state parent ..", where the name may have anything in it.
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let parent_of: u32 = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
        Pid::from_raw(pid).filter(|_| parent_of == parent)
    };
    processes.filter_map(child).collect()
}
