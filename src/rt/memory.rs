//! This process' memory: what others may see of it, since private keys are in it, and what it holds that it needs no more.

use std::io;

use rustix::process::{
    DumpableBehavior, Resource, Rlimit, dumpable_behavior, getrlimit, set_dumpable_behavior,
    setrlimit,
};

/// Keeps other processes of our user out of our memory: no core file, no debugger, no reading of `/proc/PID/mem`, `environ` or
/// `exe` without `CAP_SYS_PTRACE`. It holds until the process executes another program.
///
/// # Errors
/// The system refuses, as a sandbox may.
pub fn close() -> io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Is our memory closed to others of our user, and is no core file written?
pub fn is_closed() -> bool {
    let undumpable = matches!(dumpable_behavior(), Ok(DumpableBehavior::NotDumpable));
    undumpable && getrlimit(Resource::Core).current == Some(0)
}

/// Gives back the pages of our program that are in memory: what only a start needs goes, what is called comes back from the
/// system's cache of the file, 64 KiB at a time. Most of a quiet sidecar's memory is such code. The number of bytes that were looked
/// at; `None` where the system does not tell which they are, or keeps them.
#[cfg(target_os = "linux")]
pub fn give_back_code() -> Option<usize> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let (start, end) =
        maps.lines().find_map(|line| code_with(line, give_back_code as *const () as usize))?;
    #[expect(unsafe_code, reason = "no safe wrapper gives pages back")]
    // SAFETY: the range is one mapping of our program's file that nobody can write to, so that each page that goes is read from
    // the file again as it is when it is touched next.
    let outcome = unsafe {
        let at = std::ptr::with_exposed_provenance_mut(start);
        rustix::mm::madvise(at, end - start, rustix::mm::Advice::LinuxDontNeed)
    };
    outcome.is_ok().then_some(end - start)
}

/// Elsewhere the system is left to itself.
#[cfg(not(target_os = "linux"))]
pub fn give_back_code() -> Option<usize> {
    None
}

/// The range of a line of `/proc/PID/maps`, if it is code of a file, not writable, with this address in it.
#[cfg(target_os = "linux")]
fn code_with(line: &str, address: usize) -> Option<(usize, usize)> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let number = |text| usize::from_str_radix(text, 16).ok();
    let (start, end) = (number(start)?, number(end)?);
    let is_code = words.next()? == "r-xp" && words.nth(3).is_some_and(|file| file.starts_with('/'));
    (is_code && (start..end).contains(&address)).then_some((start, end))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_a_file_is_given_back() {
        let line = |range: &str, rights: &str, file: &str| {
            format!("{range} {rights} 00659000 fe:00 1573 {file}")
        };
        let found = |line: &str| code_with(line, 0x1800);
        assert_eq!(found(&line("1000-2000", "r-xp", "/usr/bin/wardgate")), Some((0x1000, 0x2000)));
        assert_eq!(found(&line("2000-3000", "r-xp", "/usr/bin/wardgate")), None);
        assert_eq!(found(&line("1000-2000", "r--p", "/usr/bin/wardgate")), None);
        assert_eq!(found(&line("1000-2000", "rwxp", "/usr/bin/wardgate")), None);
        assert_eq!(found("1000-2000 r-xp 00000000 00:00 0 [vdso]"), None);
        assert_eq!(found("1000-2000 r-xp 00000000 00:00 0"), None);
    }

    #[test]
    fn what_was_given_back_still_runs() {
        for _ in 0..3 {
            assert!(give_back_code().is_some_and(|bytes| bytes > 0));
            assert_eq!(format!("{:?}", [1, 2]), "[1, 2]");
        }
    }
}
