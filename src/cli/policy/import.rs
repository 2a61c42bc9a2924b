//! `wardgate policy import`: policies of other meshes, as ours, with a report of each difference in meaning.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};

use super::files::read_texts;
use crate::cli::identity::trust_domain;
use crate::identity::TrustDomain;
use crate::policy::{Import, ImportOptions, Weight, import_istio, import_linkerd};

#[derive(Args, Debug)]
pub(super) struct ImportArgs {
    #[command(subcommand)]
    from: ImportFrom,
}

#[derive(Debug, Subcommand)]
enum ImportFrom {
    /// AuthorizationPolicy, PeerAuthentication and RequestAuthentication of Istio
    #[command(after_help = "\
Example:
  kubectl get authorizationpolicies,peerauthentications,requestauthentications -A -o yaml |
    wardgate policy import istio -f - --trust-domain cluster.local --map app=billing=spiffe://cluster.local/ns/shop/sa/billing

Exit codes: 0 done, 1 a mistake, or with --strict: something means another thing than before.")]
    Istio(SourceArgs),
    /// Server, HTTPRoute, AuthorizationPolicy, MeshTLSAuthentication, NetworkAuthentication and ServerAuthorization of Linkerd
    #[command(after_help = "\
Example:
  kubectl get servers,httproutes,authorizationpolicies,meshtlsauthentications,networkauthentications -A -o yaml |
    wardgate policy import linkerd -f - --trust-domain cluster.local --map app=billing=spiffe://cluster.local/ns/shop/sa/billing

Exit codes: 0 done, 1 a mistake, or with --strict: something means another thing than before.")]
    Linkerd(SourceArgs),
}

#[derive(Args, Debug)]
struct SourceArgs {
    /// Kubernetes objects: files, or folders of *.yaml, *.yml and *.json; - is the standard input.
    #[arg(short, long = "file", value_name = "PATH", required = true)]
    file: Vec<PathBuf>,
    /// The mesh's trust domain.
    #[arg(long, value_name = "NAME", default_value = "cluster.local", value_parser = trust_domain)]
    trust_domain: TrustDomain,
    /// Istio's root namespace: what stands there holds for the whole mesh.
    #[arg(long, value_name = "NAMESPACE", default_value = "istio-system")]
    root_namespace: String,
    /// Which workloads bear a label: label=value=SPIFFE ID or pattern, as app=billing=spiffe://td/ns/shop/sa/billing. A label in
    /// one namespace only: namespace/label=value=ID.
    #[arg(long = "map", value_name = "LABEL=VALUE=ID")]
    map: Vec<String>,
    /// Where the policies are written; the standard output otherwise.
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Where the report is written: Markdown, or JSON when the name ends with .json. Otherwise a table goes to the standard error.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Fail when anything means another thing than before.
    #[arg(long)]
    strict: bool,
}

/// Runs `wardgate policy import`.
pub(super) fn run(args: &ImportArgs, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let (ImportFrom::Istio(source) | ImportFrom::Linkerd(source)) = &args.from;
    let (from, args) = (&args.from, source);
    let mut options = ImportOptions::new(args.trust_domain.clone(), args.root_namespace.clone());
    for text in &args.map {
        options.map(text).map_err(|sentence| anyhow::anyhow!("--map {text}: {sentence}"))?;
    }
    let texts = read_texts(&args.file)?;
    let texts: Vec<_> = texts.into_iter().map(|source| (source.name, source.text)).collect();
    let read = match from {
        ImportFrom::Istio(_) => import_istio(&texts, &options),
        ImportFrom::Linkerd(_) => import_linkerd(&texts, &options),
    };
    let import: Import = match read {
        Ok(import) => import,
        Err(flaws) => {
            let lines: Vec<String> = flaws.iter().map(|flaw| format!("\n  {flaw}")).collect();
            bail!("objects with mistakes:{}", lines.concat());
        }
    };
    let yaml = import.yaml();
    match &args.out {
        Some(file) => write(file, &yaml)?,
        None => out.write_all(yaml.as_bytes())?,
    }
    match &args.report {
        Some(file) if file.extension().is_some_and(|extension| extension == "json") => {
            write(file, &serde_json::to_string_pretty(&import.differences)?)?;
        }
        Some(file) => write(file, &import.markdown())?,
        None => std::io::stderr().write_all(import.table().as_bytes())?,
    }
    let changed = import.differences.iter().any(|difference| difference.weight != Weight::Note);
    Ok(if args.strict && changed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}
