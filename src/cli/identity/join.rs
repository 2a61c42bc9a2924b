//! `wardgate identity join` and `renew`: join tokens on the issuer's side, enrolment into files on the other.

use std::fs::DirBuilder;
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use super::command::spiffe_id;
use super::inspect::first_id;
use super::text::{date, replace};
use crate::identity::{SpiffeId, Svid, Trust, TrustBundle, TrustBundles, TrustDomain};
use crate::model::Redacted;
use crate::mtls::Anchor;
use crate::roles::{
    Enrolled, IssuerClient, JoinTokens, Proof, TokenId, TokenOrder, issuer_id, new_key,
};
use crate::rt::Clock;

/// Enrol with an issuer, or make the tokens that others enrol with
///
/// On the issuer's machine: --new-token, --list, --revoke. On any other: --issuer.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wardgate identity join --new-token --id spiffe://shop.example/web
  wardgate identity join --issuer issuer:9186 --token-file web.token --bundle root.pem --out web/")]
pub(super) struct JoinArgs {
    /// Make a one-time token; it is printed once, and only its hash is kept
    #[arg(long, group = "verb")]
    new_token: bool,
    /// Show the tokens, without their secrets
    #[arg(long, group = "verb")]
    list: bool,
    /// Take a token away: whoever enrolled with it is not renewed any more
    #[arg(long, group = "verb", value_name = "TOKEN-ID")]
    revoke: Option<String>,
    /// Enrol with the issuer at this address
    #[arg(long, group = "verb", value_name = "HOST:PORT")]
    issuer: Option<String>,

    /// Where the authority is kept
    #[arg(long, value_name = "DIR", default_value = "certs")]
    dir: PathBuf,
    /// The identity that a new token gives; without it, entries with the selector join_token:TOKEN-ID say. When enrolling:
    /// which of several identities is wanted
    #[arg(long, value_name = "SPIFFE-ID", value_parser = spiffe_id)]
    id: Option<SpiffeId>,
    /// How long a new token can be used for the first time, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=31_536_000))]
    ttl: u64,
    /// How long the SVIDs of a new token live, in seconds, at most a day
    #[arg(long, value_name = "SECONDS", default_value_t = 3600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    svid_ttl: u64,
    /// A DNS name that the SVIDs of a new token also bear; may be given several times
    #[arg(long = "dns", value_name = "NAME")]
    dns_names: Vec<String>,

    #[command(flatten)]
    proof: ProofArgs,
    /// How the issuer is known: the trust domain's bundle (PEM or a SPIFFE bundle document)
    #[arg(long, value_name = "FILE", conflicts_with = "bundle_sha256")]
    bundle: Option<PathBuf>,
    /// How the issuer is known: SHA-256 of the root certificate, as `wardgate identity init` prints it; needs --id
    #[arg(long, value_name = "HEX", requires = "id")]
    bundle_sha256: Option<String>,
    /// Where the files go: svid.pem, key.pem (mode 0600), bundle.pem and the ticket for the renewal
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// What proves who we are.
#[derive(Debug, Args)]
pub(super) struct ProofArgs {
    /// A file with a join token
    #[arg(long, value_name = "FILE", conflicts_with = "kubernetes_token_file")]
    token_file: Option<PathBuf>,
    /// A file with a projected service-account token for the issuer's audience
    #[arg(long, value_name = "FILE")]
    kubernetes_token_file: Option<PathBuf>,
    /// Which of the issuer's clusters vouches for the service-account token
    #[arg(long, value_name = "NAME", default_value = "default")]
    cluster: String,
}

/// Renew an identity that `wardgate identity join` put into files
#[derive(Debug, Args)]
pub(super) struct RenewArgs {
    /// Where the files are
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// The issuer's address
    #[arg(long, value_name = "HOST:PORT")]
    issuer: String,
    #[command(flatten)]
    proof: ProofArgs,
}

pub(super) fn join(
    args: &JoinArgs,
    clock: &Clock,
    out: &mut impl Write,
) -> anyhow::Result<ExitCode> {
    if args.new_token {
        return new_token(args, clock, out);
    }
    let tokens = JoinTokens::of(&args.dir);
    if args.list {
        return list(&tokens, clock, out);
    }
    if let Some(id) = &args.revoke {
        let id: TokenId =
            id.parse().map_err(|_| anyhow::anyhow!("{id:?} is no token's ID: see --list"))?;
        if !tokens.revoke(&id)? {
            bail!("there is no token {id} in {}", args.dir.display());
        }
        writeln!(out, "Token {id} is revoked: whoever enrolled with it is not renewed any more")?;
        return Ok(ExitCode::SUCCESS);
    }
    match &args.issuer {
        Some(issuer) => enrol(issuer, args, clock, out),
        None => {
            bail!("expected one of --new-token, --list, --revoke TOKEN-ID and --issuer HOST:PORT")
        }
    }
}

fn new_token(args: &JoinArgs, clock: &Clock, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let dir = args.dir.display();
    let root = std::fs::read(args.dir.join("root.pem"))
        .with_context(|| format!("no authority in {dir}; `wardgate identity init` makes one"))?;
    let domain = domain_of(&root).with_context(|| format!("{dir}/root.pem cannot be used"))?;
    if let Some(id) = &args.id {
        if id.trust_domain() != domain {
            bail!(
                "{id} is not in trust domain {domain}, the only one that this authority speaks for"
            );
        }
        if id.path().is_empty() {
            bail!("{id} has no path: it names a trust domain, not a workload");
        }
    }
    let order = TokenOrder {
        spiffe_id: args.id.clone(),
        lifetime: Duration::from_secs(args.ttl),
        svid_ttl: Some(Duration::from_secs(args.svid_ttl)),
        dns_names: args.dns_names.clone(),
    };
    let (id, text) = JoinTokens::of(&args.dir).mint(&order, clock.now())?;
    // The token alone on the first line, for `> FILE` and `$(..)`; people read the rest on the terminal.
    writeln!(out, "{}", *text)?;
    let lifetime = i64::try_from(args.ttl)?;
    match &args.id {
        Some(spiffe_id) => eprint_line(&format!("Token {id} gives {spiffe_id}, once"))?,
        None => eprint_line(&format!(
            "Token {id} gives what a registration entry with the selector join_token:{id} says, once"
        ))?,
    }
    eprint_line(&format!("  until {}", date(clock.now() + lifetime)))?;
    Ok(ExitCode::SUCCESS)
}

fn eprint_line(text: &str) -> io::Result<()> {
    writeln!(io::stderr(), "{text}")
}

fn list(tokens: &JoinTokens, clock: &Clock, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    for token in tokens.list()? {
        let state = match token.used {
            Some(at) => format!("used {}", date(at)),
            None if token.expires <= clock.now() => format!("expired {}", date(token.expires)),
            None => format!("unused until {}", date(token.expires)),
        };
        let gives = token
            .spiffe_id
            .map_or_else(|| format!("entries with join_token:{}", token.id), |id| id.to_string());
        writeln!(out, "{}  {gives}  {state}", token.id)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn enrol(
    issuer: &str,
    args: &JoinArgs,
    clock: &Clock,
    out: &mut impl Write,
) -> anyhow::Result<ExitCode> {
    let Some(to) = &args.out else { bail!("--out DIR is missing: where do the files go?") };
    let proof = args.proof.read()?.context("expected --token-file or --kubernetes-token-file")?;
    let (domain, anchor) = anchor(args)?;
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(to)
        .with_context(|| format!("cannot make {}", to.display()))?;
    let key = asked_key(to)?;
    let client = IssuerClient::new(issuer, &issuer_id(&domain));
    let enrolled = wait(client.enrol(&anchor, &proof, &key, args.id.as_ref()))?;
    write(to, &domain, &enrolled)?;
    let pending = to.join(PENDING);
    std::fs::remove_file(&pending)
        .with_context(|| format!("cannot remove {}", pending.display()))?;
    show("Enrolled as", to, &enrolled, clock, out)
}

/// The key that is being asked for. It is on disk before the issuer sees it: an answer may get lost, and a join token is good
/// for one key.
const PENDING: &str = "pending-key.der";

fn asked_key(to: &Path) -> anyhow::Result<Zeroizing<PrivateKeyDer<'static>>> {
    let path = to.join(PENDING);
    match std::fs::read(&path) {
        Ok(key) => Ok(Zeroizing::new(PrivatePkcs8KeyDer::from(key).into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = new_key()?;
            replace(&path, key.secret_der(), 0o600)?;
            Ok(key)
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

pub(super) fn renew(
    args: &RenewArgs,
    clock: &Clock,
    out: &mut impl Write,
) -> anyhow::Result<ExitCode> {
    let read = |name: &str| {
        let path = args.dir.join(name);
        std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let ticket = read("ticket")
        .context("only what `wardgate identity join --issuer` put into files can be renewed")?;
    let key = Zeroizing::new(read("key.pem")?);
    let svid = Svid::from_pem(&read("svid.pem")?, &key)
        .with_context(|| format!("the identity in {} cannot be used", args.dir.display()))?;
    if svid.seconds_left(clock.now()) <= 0 {
        bail!("the identity expired {}: enrol again", date(svid.not_after));
    }
    let domain = svid.id.trust_domain();
    let bundle = TrustBundle::from_text(domain.clone(), &read("bundle.pem")?)?;
    let anchor = trusting(bundle);
    let client = IssuerClient::new(&args.issuer, &issuer_id(&domain));
    let proof = args.proof.read()?;
    let key = new_key()?;
    let enrolled = wait(client.renew(&anchor, &svid, &ticket, proof.as_ref(), &key))?;
    write(&args.dir, &domain, &enrolled)?;
    show("Renewed", &args.dir, &enrolled, clock, out)
}

impl ProofArgs {
    fn read(&self) -> anyhow::Result<Option<Proof>> {
        let text = |path: &Path| {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            match text.trim() {
                "" => bail!("{} holds no token", path.display()),
                token => Ok(Redacted::new(token.to_owned())),
            }
        };
        Ok(match (&self.token_file, &self.kubernetes_token_file) {
            (Some(path), _) => Some(Proof::JoinToken(text(path)?)),
            (None, Some(path)) => {
                Some(Proof::Kubernetes { cluster: self.cluster.clone(), token: text(path)? })
            }
            (None, None) => None,
        })
    }
}

fn anchor(args: &JoinArgs) -> anyhow::Result<(TrustDomain, Anchor)> {
    if let Some(text) = &args.bundle_sha256 {
        let id = args.id.as_ref().context("--bundle-sha256 needs --id")?;
        let mut sha256 = [0; 32];
        hex::decode_to_slice(text.replace(':', ""), &mut sha256)
            .with_context(|| format!("{text:?}: expected 64 hexadecimal digits"))?;
        let domain = id.trust_domain();
        return Ok((domain.clone(), Anchor::Root { domain, sha256 }));
    }
    let Some(path) = &args.bundle else { bail!("expected --bundle FILE or --bundle-sha256 HEX") };
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let domain = match &args.id {
        Some(id) => id.trust_domain(),
        None => domain_of(&text).with_context(|| {
            format!("{} does not say its trust domain: give --id", path.display())
        })?,
    };
    let bundle = TrustBundle::from_text(domain.clone(), &text)
        .with_context(|| format!("{} cannot be used", path.display()))?;
    Ok((domain, trusting(bundle)))
}

fn trusting(bundle: TrustBundle) -> Anchor {
    let bundles: TrustBundles = [bundle].into_iter().collect();
    Anchor::Trust(Trust::from(bundles).into())
}

/// The trust domain that a root certificate names.
fn domain_of(pem: &[u8]) -> anyhow::Result<TrustDomain> {
    let root = CertificateDer::from_pem_slice(pem).context("expected a certificate as PEM")?;
    let id = first_id(&root).context("the certificate names no trust domain")?;
    Ok(id.trust_domain())
}

fn wait<T>(
    call: impl Future<Output = Result<T, crate::roles::AuthorityError>>,
) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    Ok(runtime.block_on(call)?)
}

fn write(to: &Path, domain: &TrustDomain, enrolled: &Enrolled) -> anyhow::Result<()> {
    let trust = enrolled.trust.trust(domain)?;
    let bundle = trust.bundles.find(domain).context("the issuer sent no bundle")?;
    let svid = &enrolled.svid;
    // The key first: a reader that sees the new certificate finds its key.
    replace(&to.join("key.pem"), svid.key_pem().as_bytes(), 0o600)?;
    replace(&to.join("svid.pem"), svid.chain_pem().as_bytes(), 0o644)?;
    replace(&to.join("bundle.pem"), bundle.to_pem().as_bytes(), 0o644)?;
    replace(&to.join("ticket"), &enrolled.ticket, 0o600)
}

fn show(
    what: &str,
    to: &Path,
    enrolled: &Enrolled,
    clock: &Clock,
    out: &mut impl Write,
) -> anyhow::Result<ExitCode> {
    let (svid, dir) = (&enrolled.svid, to.display());
    writeln!(out, "{what} {}", svid.id)?;
    writeln!(out, "  serial     {}", svid.serial)?;
    writeln!(
        out,
        "  valid      until {} ({} s left)",
        date(svid.not_after),
        svid.seconds_left(clock.now())
    )?;
    writeln!(out, "  files      {dir}/svid.pem  {dir}/key.pem (mode 0600)  {dir}/bundle.pem")?;
    Ok(ExitCode::SUCCESS)
}
