//! What others may see of this process' memory: private keys are in it.

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
