//! Why something cannot be observed.

use std::io;
use std::path::PathBuf;

/// Why a log cannot be opened or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be opened, made or renamed.
    #[error("cannot open the log {path}", path = path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file cannot be read.
    #[error("cannot read the log {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Two writers would break the chain.
    #[error("the audit log {path} belongs to another running process", path = path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The writing thread cannot start.
    #[error("cannot start the thread that writes the log")]
    Thread {
        /// What the system said.
        source: io::Error,
    },
    /// A setting of the decision log cannot be.
    #[error("setting {field}: {problem}")]
    Setting {
        /// Its name.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A key of the decision log's HMACs is none.
    #[error("{path} holds no key: expected at least 64 hexadecimal digits, as `openssl rand -hex 32` makes them", path = path.display())]
    Key {
        /// The file.
        path: PathBuf,
    },
    /// The log filter cannot be read.
    #[error(
        "{variable} is no log filter; expected something like \"info\" or \"warn,wardgate=debug\": {reason}"
    )]
    Filter {
        /// The environment variable.
        variable: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// Logging was started before.
    #[error("logging was started before")]
    Started,
}
