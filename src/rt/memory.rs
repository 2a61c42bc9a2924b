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

/// Gives back the pages of programs and libraries that are in memory as their files have them: what only a start needs goes, what is
/// called comes back from the system's cache of the files, 64 KiB at a time. Most of a quiet sidecar's memory is such pages. The
/// number of bytes that were looked at; `None` where the system does not tell which they are, or keeps them.
#[cfg(target_os = "linux")]
pub fn give_back_code() -> Option<usize> {
    let maps = std::fs::read_to_string("/proc/self/smaps").ok()?;
    let mut given_back = 0;
    for (start, end) in untouched(&maps) {
        #[expect(unsafe_code, reason = "no safe wrapper gives pages back")]
        // SAFETY: the range is one mapping of a file that nobody can write to and none of whose pages was ever changed, so that
        // each page that goes is read from the file again as it is when it is touched next.
        let outcome = unsafe {
            let at = std::ptr::with_exposed_provenance_mut(start);
            rustix::mm::madvise(at, end - start, rustix::mm::Advice::LinuxDontNeed)
        };
        outcome.ok()?;
        given_back += end - start;
    }
    (given_back > 0).then_some(given_back)
}

/// Elsewhere the system is left to itself.
#[cfg(not(target_os = "linux"))]
pub fn give_back_code() -> Option<usize> {
    None
}

/// The mappings of `/proc/PID/smaps` that are of a file, cannot be written to, and have no page that is not the file's. One that the
/// linker wrote to before it was closed has such pages.
#[cfg(target_os = "linux")]
fn untouched(maps: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut candidate = None;
    for line in maps.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(first), Some(second)) = (words.next(), words.next()) else { continue };
        if first == "Anonymous:" {
            found.extend(candidate.take().filter(|_| second == "0"));
        } else if !first.ends_with(':') {
            let is_file = words.nth(3).is_some_and(|file| file.starts_with('/'));
            let number = |text| usize::from_str_radix(text, 16).ok();
            let range = first.split_once('-').and_then(|(start, end)| {
                Some((number(start)?, number(end)?)).filter(|(start, end)| start < end)
            });
            candidate = range.filter(|_| is_file && matches!(second, "r-xp" | "r--p"));
        }
    }
    found
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_as_its_file_has_it_is_given_back() {
        let mapping = |range: &str, rights: &str, file: &str, anonymous: u32| {
            format!(
                "{range} {rights} 00659000 fe:00 1573 {file}\nSize: 4 kB\nAnonymous: {anonymous} kB\nVmFlags: rd\n"
            )
        };
        let maps = [
            mapping("1000-2000", "r--p", "/usr/bin/wardgate", 0),
            mapping("2000-5000", "r-xp", "/usr/bin/wardgate", 0),
            mapping("5000-6000", "r--p", "/usr/bin/wardgate", 4),
            mapping("6000-7000", "rw-p", "/usr/bin/wardgate", 0),
            mapping("7000-8000", "r--s", "/usr/share/shared", 0),
            mapping("8000-9000", "r-xp", "", 0),
            mapping("9000-a000", "r-xp", "[vdso]", 0),
            mapping("b000-c000", "rwxp", "/usr/bin/wardgate", 0),
            mapping("c000-d000", "r-xp", "/lib/libc.so.6", 0),
        ];
        assert_eq!(
            untouched(&maps.concat()),
            [(0x1000, 0x2000), (0x2000, 0x5000), (0xc000, 0xd000)]
        );
    }

    #[test]
    fn what_was_given_back_still_runs() {
        for _ in 0..3 {
            assert!(give_back_code().is_some_and(|bytes| bytes > 0));
            assert_eq!(format!("{:?}", [1, 2]), "[1, 2]");
        }
    }
}
