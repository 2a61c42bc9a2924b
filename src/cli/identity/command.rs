//! The verbs of `wardgate identity`, their words, and which file does which.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::authority::Place;
use super::revoke::RevokeArgs;
use super::rotate_root::RotateRoot;
use super::{bundle, federate, init, inspect, issue, join, revoke, rotate_root, upstream, whois};
use crate::identity::{SpiffeId, TrustDomain};
use crate::rt::Clock;

/// Make an authority, issue identities from it, look into certificates
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wardgate identity init --trust-domain shop.example
  wardgate identity issue --id spiffe://shop.example/web --out web/
  wardgate identity inspect web/svid.pem
  wardgate identity whois spiffe://shop.example/web
  wardgate identity rotate-root status")]
pub(in crate::cli) struct IdentityArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a trust domain's authority: a root and an intermediate, kept in a directory
    Init {
        #[command(flatten)]
        place: Place,
        /// The trust domain that the authority speaks for
        #[arg(long, value_name = "NAME", default_value = "example.org", value_parser = trust_domain)]
        trust_domain: TrustDomain,
        /// Make no root: write a request for an intermediate, to be signed by a root that is kept elsewhere
        #[arg(long)]
        upstream: bool,
    },
    /// Ask the upstream authority for an intermediate: writes a certificate request (PKCS#10)
    Request {
        #[command(flatten)]
        place: Place,
        /// The trust domain, for a directory that holds no authority yet
        #[arg(long, value_name = "NAME", value_parser = trust_domain)]
        trust_domain: Option<TrustDomain>,
    },
    /// Take in the intermediate that the upstream authority signed
    Adopt {
        #[command(flatten)]
        place: Place,
        /// The signed certificate, with what is between it and the root (PEM)
        chain: PathBuf,
        /// The upstream's root (PEM)
        #[arg(long, value_name = "FILE")]
        root: PathBuf,
    },
    /// Issue an identity as files: svid.pem, key.pem (mode 0600) and bundle.pem
    Issue {
        #[command(flatten)]
        place: Place,
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
    /// Replace the root without a break: prepare, activate, retire
    #[command(subcommand)]
    RotateRoot(RotateRoot),
    /// Refuse a certificate, a key or a SPIFFE ID at once, in the whole mesh; with --dir: put it on an authority's revocation lists
    Revoke(RevokeArgs),
    /// Tell who was given a certificate, when, on what evidence, and whether it still holds
    Whois {
        /// A serial number (hexadecimal), a SPIFFE ID, or a PEM file with the certificate
        #[arg(value_name = "SERIAL|SPIFFE-ID|FILE")]
        asked: String,
        /// Where the authority is kept
        #[arg(long, value_name = "DIR", default_value = "certs")]
        dir: PathBuf,
    },
    Join(Box<join::JoinArgs>),
    Renew(join::RenewArgs),
    /// Show what the certificates or revocation lists of a PEM file say, and whether their bundle vouches for them
    Inspect {
        /// A PEM file with certificates (an SVID, an authority, a bundle) or revocation lists
        file: PathBuf,
        /// Verify the first certificate, or each list, with these roots (PEM or a SPIFFE bundle document)
        #[arg(long, value_name = "FILE")]
        bundle: Option<PathBuf>,
    },
    /// Show, export or declare trust bundles
    Bundle {
        #[command(subcommand)]
        verb: bundle::BundleVerb,
    },
    /// Trust other trust domains whose bundles are fetched
    Federate {
        #[command(subcommand)]
        verb: federate::FederateVerb,
    },
}

pub(in crate::cli) fn trust_domain(text: &str) -> Result<TrustDomain, String> {
    text.parse().map_err(|error| format!("{error}"))
}

pub(super) fn spiffe_id(text: &str) -> Result<SpiffeId, String> {
    text.parse().map_err(|error| format!("{error}"))
}

/// Does what the arguments say and prints the outcome.
///
/// # Errors
/// A file cannot be read or written, an authority exists already, or one is damaged. A certificate that does not hold is no
/// error: it is shown, and the exit code is 1.
pub(in crate::cli) fn run(args: IdentityArgs) -> anyhow::Result<ExitCode> {
    execute(args.verb, &Clock::system(), &mut io::stdout().lock())
}

fn execute(verb: Verb, clock: &Clock, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::Init { place, trust_domain, upstream: true } => {
            upstream::request(&place, Some(&trust_domain), out)
        }
        Verb::Init { place, trust_domain, upstream: false } => {
            init::init(&place, trust_domain, clock, out)
        }
        Verb::Request { place, trust_domain } => {
            upstream::request(&place, trust_domain.as_ref(), out)
        }
        Verb::Adopt { place, chain, root } => upstream::adopt(&place, &chain, &root, clock, out),
        Verb::Issue { place, id, out: to, ttl, dns_names } => {
            issue::issue(&place, &id, &to, Duration::from_secs(ttl), &dns_names, clock, out)
        }
        Verb::RotateRoot(step) => rotate_root::rotate_root(&step, clock, out),
        Verb::Revoke(args) => revoke::revoke(&args, clock, out),
        Verb::Whois { asked, dir } => whois::whois(&dir, &asked, clock, out),
        Verb::Join(args) => join::join(&args, clock, out),
        Verb::Renew(args) => join::renew(&args, clock, out),
        Verb::Inspect { file, bundle } => inspect::inspect(&file, bundle.as_deref(), clock, out),
        Verb::Bundle { verb } => bundle::bundle(&verb, clock, out),
        Verb::Federate { verb } => federate::federate(&verb, out),
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

        let lists = folder.path().join("crl.pem").display().to_string();
        let signer = folder.path().join("bundle.pem").display().to_string();
        let (_, printed) = wardgate(&["inspect", &lists]).unwrap();
        assert_eq!(printed.matches("revocation list").count(), 2, "{printed}");
        let (code, printed) = wardgate(&["inspect", &lists, "--bundle", &signer]).unwrap();
        assert_eq!(code, ExitCode::FAILURE, "the intermediate's list is not the root's");
        assert!(printed.contains("good") && printed.contains("by none of"), "{printed}");
    }
}
