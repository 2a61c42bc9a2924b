//! The programs that `tests/spire/build` makes.

use std::io::Write;
use std::path::{Path, PathBuf};

/// Where they are; `None` says to leave the test, and has told the reader so.
///
/// Which it never says when `WARDGATE_SPIRE` asks for these tests: then it fails.
pub fn programs() -> Option<PathBuf> {
    let built = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("spire");
    let folder = std::env::var_os("WARDGATE_SPIRE_DIR").map_or(built, PathBuf::from);
    // Written last, when everything else is there.
    if folder.join("stamp").exists() {
        return Some(folder);
    }
    let wanted = std::env::var("WARDGATE_SPIRE").is_ok_and(|wanted| wanted == "1");
    assert!(!wanted, "no SPIRE in {}: run tests/spire/build", folder.display());
    let here = folder.display();
    skipped(&format!("no SPIRE in {here}; WARDGATE_SPIRE=1 ./test builds it and runs this"));
    None
}

/// Says that the running test is left, past the test harness, which keeps what a passing test prints to itself.
pub fn skipped(reason: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {reason}");
}
