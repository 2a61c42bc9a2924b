//! `wardgate identity init`.

use std::io::Write;
use std::process::ExitCode;

use super::authority::Place;
use super::text::fingerprint;
use crate::identity::TrustDomain;
use crate::roles::Authority;
use crate::rt::Clock;

pub(super) fn init(
    place: &Place,
    domain: TrustDomain,
    clock: &Clock,
    out: &mut impl Write,
) -> anyhow::Result<ExitCode> {
    let custody = place.custody()?;
    let guarded = match custody.is_encrypting() {
        true => "encrypted",
        false => "mode 0600",
    };
    let authority = Authority::create_with(domain, &place.dir, custody, clock.clone())?;
    let bundle = authority.bundle();
    let dir = place.name();
    writeln!(out, "Authority of trust domain {}", authority.domain())?;
    writeln!(out, "  {dir}/bundle.pem        its roots: give them to whoever verifies")?;
    writeln!(out, "  {dir}/root.pem          the root (10 years)")?;
    writeln!(out, "  {dir}/root-key.pem      its private key ({guarded}): keep it secret")?;
    writeln!(
        out,
        "  {dir}/intermediate.pem  signs the identities (90 days); its key beside it ({guarded})"
    )?;
    writeln!(out, "  {dir}/crl.pem           the revocation lists of both")?;
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
