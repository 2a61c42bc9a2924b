//! `wardgate identity init`.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use super::text::fingerprint;
use crate::identity::TrustDomain;
use crate::roles::Authority;
use crate::rt::Clock;

pub(super) fn init(
    dir: &Path,
    domain: TrustDomain,
    clock: &Clock,
    out: &mut impl Write,
) -> anyhow::Result<ExitCode> {
    let authority = Authority::create(domain, dir, clock.clone())?;
    let bundle = authority.bundle();
    let dir = dir.display();
    writeln!(out, "Authority of trust domain {}", authority.domain())?;
    writeln!(out, "  {dir}/root.pem          the root: give it to whoever verifies (10 years)")?;
    writeln!(out, "  {dir}/root-key.pem      its private key (mode 0600): keep it secret")?;
    writeln!(
        out,
        "  {dir}/intermediate.pem  signs the identities, with its key (mode 0600, 90 days)"
    )?;
    for root in &bundle.roots {
        writeln!(out, "Root fingerprint (SHA-256) {}", fingerprint(root))?;
    }
    writeln!(
        out,
        "Next: wardgate identity issue --dir {dir} --id spiffe://{}/web --out web",
        authority.domain()
    )?;
    Ok(ExitCode::SUCCESS)
}
