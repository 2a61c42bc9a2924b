//! `wardgate identity`: make an authority, issue identities from it, look into certificates.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::identity::{
    Presented, Purpose, SpiffeId, Trust, TrustBundle, TrustBundles, TrustDomain,
};
use crate::roles::Authority;
use crate::rt::Clock;
use crate::rt::crypto::digest::{SHA256, digest};

/// Make an authority, issue identities from it, look into certificates
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wardgate identity init --trust-domain shop.example
  wardgate identity issue --id spiffe://shop.example/web --out web/
  wardgate identity inspect web/svid.pem")]
pub(super) struct IdentityArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a trust domain's authority: a root and an intermediate, kept in a directory
    Init {
        /// Where the authority is kept; made when missing, never overwritten
        #[arg(long, value_name = "DIR", default_value = "certs")]
        dir: PathBuf,
        /// The trust domain that the authority speaks for
        #[arg(long, value_name = "NAME", default_value = "example.org", value_parser = trust_domain)]
        trust_domain: TrustDomain,
    },
    /// Issue an identity as files: svid.pem, key.pem (mode 0600) and bundle.pem
    Issue {
        /// Where the authority is kept
        #[arg(long, value_name = "DIR", default_value = "certs")]
        dir: PathBuf,
        /// Whom the certificate names
        #[arg(long, value_name = "SPIFFE-ID", value_parser = spiffe_id)]
        id: SpiffeId,
        /// Where the files go; made when missing, an identity in it is replaced
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// How long it lives, in seconds, at most a day
        #[arg(long, value_name = "SECONDS", default_value_t = 3600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
        ttl: u64,
        /// A DNS name that the certificate also bears; may be given several times
        #[arg(long = "dns", value_name = "NAME")]
        dns_names: Vec<String>,
    },
    /// Show what the certificates of a PEM file say, and whether their bundle vouches for them
    Inspect {
        /// A PEM file with certificates: an SVID, an authority, a bundle
        file: PathBuf,
        /// Verify the first certificate with these roots (PEM or a SPIFFE bundle document)
        #[arg(long, value_name = "FILE")]
        bundle: Option<PathBuf>,
    },
}

fn trust_domain(text: &str) -> Result<TrustDomain, String> {
    text.parse().map_err(|error| format!("{error}"))
}

fn spiffe_id(text: &str) -> Result<SpiffeId, String> {
    text.parse().map_err(|error| format!("{error}"))
}

/// Does what the arguments say and prints the outcome.
///
/// # Errors
/// A file cannot be read or written, an authority exists already, or one is damaged. A certificate that does not hold is no
/// error: it is shown, and the exit code is 1.
pub(super) fn run(args: IdentityArgs) -> anyhow::Result<ExitCode> {
    execute(args.verb, &Clock::system(), &mut io::stdout().lock())
}

fn execute(verb: Verb, clock: &Clock, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::Init { dir, trust_domain } => init(&dir, trust_domain, clock, out),
        Verb::Issue { dir, id, out: to, ttl, dns_names } => {
            issue(&dir, &id, &to, Duration::from_secs(ttl), &dns_names, clock, out)
        }
        Verb::Inspect { file, bundle } => inspect(&file, bundle.as_deref(), clock, out),
    }
}

fn init(
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

fn issue(
    dir: &Path,
    id: &SpiffeId,
    to: &Path,
    ttl: Duration,
    dns_names: &[String],
    clock: &Clock,
    out: &mut impl Write,
) -> anyhow::Result<ExitCode> {
    let authority = Authority::open(dir, clock.clone()).with_context(|| {
        format!("no usable authority in {}; `wardgate identity init` makes one", dir.display())
    })?;
    let svid = authority.issue(id, ttl, dns_names)?;
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(to)
        .with_context(|| format!("cannot make {}", to.display()))?;
    // The key first: a reader that sees the new certificate finds its key.
    replace(&to.join("key.pem"), svid.key_pem().as_bytes(), 0o600)?;
    replace(&to.join("svid.pem"), svid.chain_pem().as_bytes(), 0o644)?;
    replace(&to.join("bundle.pem"), authority.bundle().to_pem().as_bytes(), 0o644)?;
    writeln!(out, "Issued {}", svid.id)?;
    writeln!(out, "  serial     {}", svid.serial)?;
    writeln!(out, "  valid      until {}", date(svid.not_after))?;
    let to = to.display();
    writeln!(out, "  files      {to}/svid.pem  {to}/key.pem (mode 0600)  {to}/bundle.pem")?;
    Ok(ExitCode::SUCCESS)
}

/// Puts a file in its place at once, so that nobody reads half of it.
fn replace(path: &Path, content: &[u8], mode: u32) -> anyhow::Result<()> {
    let fresh = path.with_extension("pem.new");
    let write = || -> io::Result<()> {
        match std::fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&fresh)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

fn inspect(
    file: &Path,
    bundle: Option<&Path>,
    clock: &Clock,
    out: &mut impl Write,
) -> anyhow::Result<ExitCode> {
    let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .with_context(|| format!("{} is not PEM", file.display()))?;
    let Some((leaf, rest)) = chain.split_first() else {
        bail!("{} holds no certificate: expected PEM with CERTIFICATE sections", file.display());
    };
    for (at, certificate) in chain.iter().enumerate() {
        if at > 0 {
            writeln!(out)?;
        }
        show(certificate, clock.now(), out)
            .with_context(|| format!("certificate {} of {}", at + 1, file.display()))?;
    }
    let Some(path) = bundle else { return Ok(ExitCode::SUCCESS) };

    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut presented = Presented::default();
    let domain = first_id(leaf).map(|id| id.trust_domain());
    let domain = domain.context("the first certificate names no trust domain")?;
    let bundle = TrustBundle::from_text(domain, &text)
        .with_context(|| format!("{} cannot be used", path.display()))?;
    let bundles: TrustBundles = [bundle].into_iter().collect();
    let verifier = Trust::from(bundles).verifier().clone();
    let seconds = u64::try_from(clock.now()).unwrap_or(0);
    let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    writeln!(out)?;
    let mut holds = true;
    for (purpose, name) in [(Purpose::Server, "as server"), (Purpose::Client, "as client")] {
        match verifier.verify(leaf, rest, purpose, now, &mut presented) {
            Ok(peer) => writeln!(out, "{name}   accepted as {}", peer.id)?,
            Err(flaw) => {
                holds = false;
                writeln!(out, "{name}   refused ({}): {flaw}", flaw.code())?;
            }
        }
    }
    Ok(if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One certificate as a table.
fn show(der: &[u8], now: i64, out: &mut impl Write) -> anyhow::Result<()> {
    let (_, parsed) = X509Certificate::from_der(der).context("not an X.509 certificate")?;
    let id = first_id(der);
    let kind = match (&id, parsed.is_ca()) {
        (_, true) if parsed.subject() == parsed.issuer() => "root authority",
        (_, true) => "intermediate authority",
        (Some(_), false) => "X.509-SVID",
        (None, false) => "certificate without a SPIFFE ID",
    };
    let mut row = |name: &str, value: &str| writeln!(out, "{name:<12}{value}");
    row("kind", kind)?;
    row("SPIFFE ID", id.as_ref().map_or("none", SpiffeId::as_str))?;
    let mut others = Vec::new();
    if let Ok(Some(names)) = parsed.subject_alternative_name() {
        for name in &names.value.general_names {
            match name {
                GeneralName::DNSName(name) => others.push((*name).to_owned()),
                GeneralName::URI(uri) if uri.parse::<SpiffeId>().ok() != id => {
                    others.push((*uri).to_owned());
                }
                GeneralName::URI(_) => {}
                other => others.push(other.to_string()),
            }
        }
    }
    if !others.is_empty() {
        // Names may be anything; a terminal must not obey them.
        row("other names", &others.join(", ").escape_debug().to_string())?;
    }
    let (from, until) =
        (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
    let state = match () {
        () if now < from => "not yet valid".to_owned(),
        () if now > until => "EXPIRED".to_owned(),
        () => format!("{} left", length(until - now)),
    };
    row("valid", &format!("{} to {} ({state})", date(from), date(until)))?;
    row("serial", &hex::encode(parsed.serial.to_bytes_be()))?;
    row("issuer", &parsed.issuer().to_string().escape_debug().to_string())?;
    if let Ok(Some(usage)) = parsed.key_usage() {
        row("key usage", &usage.value.to_string())?;
    }
    if let Ok(Some(usage)) = parsed.extended_key_usage() {
        let mut purposes = Vec::new();
        if usage.value.server_auth {
            purposes.push("server");
        }
        if usage.value.client_auth {
            purposes.push("client");
        }
        row("purposes", &purposes.join(", "))?;
    }
    row("SHA-256", &fingerprint(der))?;
    Ok(())
}

fn first_id(der: &[u8]) -> Option<SpiffeId> {
    let (_, parsed) = X509Certificate::from_der(der).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => uri.parse().ok(),
        _ => None,
    })
}

fn fingerprint(der: &[u8]) -> String {
    hex::encode(digest(&SHA256, der))
}

fn date(seconds: i64) -> String {
    let moment = OffsetDateTime::from_unix_timestamp(seconds).ok();
    moment.and_then(|moment| moment.format(&Rfc3339).ok()).unwrap_or_else(|| seconds.to_string())
}

/// A length of time in its two largest units.
fn length(seconds: i64) -> String {
    match seconds {
        172_800.. => format!("{} days", seconds / 86_400),
        3600.. => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        60.. => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{seconds} s"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use clap::Parser;

    use super::*;
    use crate::identity::Svid;
    use crate::identity::forge::Folder;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        identity: IdentityArgs,
    }

    /// Runs a command line and returns its exit code and what it printed.
    fn wardgate(words: &[&str]) -> anyhow::Result<(ExitCode, String)> {
        let words = std::iter::once("identity").chain(words.iter().copied());
        let line = Line::try_parse_from(words)?;
        let mut printed = Vec::new();
        let code = execute(line.identity.verb, &Clock::system(), &mut printed)?;
        Ok((code, String::from_utf8(printed)?))
    }

    #[test]
    fn an_authority_an_identity_and_a_look_at_it() {
        let folder = Folder::new();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let (certs, web) = (path("certs"), path("web"));
        let (_, printed) =
            wardgate(&["init", "--dir", &certs, "--trust-domain", "a.test"]).unwrap();
        assert!(printed.contains("Authority of trust domain a.test"), "{printed}");
        assert!(printed.contains("fingerprint"), "{printed}");

        let again = wardgate(&["init", "--dir", &certs]).unwrap_err().to_string();
        assert!(again.contains("never overwritten"), "{again}");

        let id = "spiffe://a.test/web";
        let issue = ["issue", "--dir", &certs, "--id", id, "--out", &web, "--dns", "web.local"];
        let (_, printed) = wardgate(&issue).unwrap();
        assert!(printed.contains(id), "{printed}");
        let read = |name: &str| std::fs::read(folder.path().join("web").join(name)).unwrap();
        let svid = Svid::from_pem(&read("svid.pem"), &read("key.pem")).unwrap();
        assert_eq!(svid.id.as_str(), id);
        let key = std::fs::metadata(folder.path().join("web/key.pem")).unwrap();
        assert_eq!(key.permissions().mode() & 0o777, 0o600);
        wardgate(&issue).unwrap();
        assert_ne!(read("svid.pem"), svid.chain_pem().as_bytes(), "an identity is replaced");

        let (svid, bundle) = (path("web/svid.pem"), path("web/bundle.pem"));
        let (code, printed) = wardgate(&["inspect", &svid, "--bundle", &bundle]).unwrap();
        assert_eq!(code, ExitCode::SUCCESS);
        for part in ["X.509-SVID", id, "web.local", "intermediate authority", "accepted as"] {
            assert!(printed.contains(part), "{part} is missing in {printed}");
        }

        let other = path("other");
        wardgate(&["init", "--dir", &other, "--trust-domain", "a.test"]).unwrap();
        let roots = path("other/root.pem");
        let (code, printed) = wardgate(&["inspect", &svid, "--bundle", &roots]).unwrap();
        assert_eq!(code, ExitCode::FAILURE);
        assert!(printed.contains("refused (unknown_authority)"), "{printed}");
    }

    #[test]
    fn what_is_wrong_is_said_with_what_to_do() {
        let folder = Folder::new();
        let dir = folder.path().display().to_string();
        let out = folder.path().join("out").display().to_string();
        let issue = |id: &str| {
            let refused = wardgate(&["issue", "--dir", &dir, "--id", id, "--out", &out]);
            format!("{:#}", refused.unwrap_err())
        };
        assert!(issue("spiffe://a.test/web").contains("`wardgate identity init` makes one"));
        assert!(issue("web").contains("does not start with spiffe://"));
        wardgate(&["init", "--dir", &dir, "--trust-domain", "a.test"]).unwrap();
        assert!(issue("spiffe://b.test/web").contains("not in trust domain a.test"));
        let bad = wardgate(&["init", "--dir", &dir, "--trust-domain", "A.test"]).unwrap_err();
        assert!(bad.to_string().contains("a-z, 0-9"), "{bad}");
        std::fs::write(folder.path().join("note.pem"), "hello").unwrap();
        let note = folder.path().join("note.pem").display().to_string();
        let error = wardgate(&["inspect", &note]).unwrap_err().to_string();
        assert!(error.contains("holds no certificate"), "{error}");
    }
}
