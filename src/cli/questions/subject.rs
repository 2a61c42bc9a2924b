//! What a question is about: policies in files, or those of a running control plane.

use std::path::PathBuf;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use serde_json::Value;

use crate::cli::admin::{AdminArgs, ask};
use crate::cli::policy::{read_texts, sound_policies};
use crate::identity::SpiffeId;
use crate::model::{Body, Id, Kind, Resource};
use crate::policy::questions::{self, Policies, Scene, Supposed, Walked};
use crate::roles::walk;
use crate::rt::Clock;

/// Which policies are asked about.
#[derive(Args, Debug)]
pub(in crate::cli) struct SubjectArgs {
    /// Policies and other resources in files, or in folders of *.yaml, *.yml and *.json, instead of a control plane's
    #[arg(short = 'f', long = "file", value_name = "PATH")]
    files: Vec<PathBuf>,
    /// The policies as they stood at a revision, or a time (RFC 3339); only a control plane remembers
    #[arg(long, value_name = "WHEN", conflicts_with = "files")]
    at: Option<String>,
    #[command(flatten)]
    admin: AdminArgs,
}

impl SubjectArgs {
    pub(in crate::cli) fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Asks; the answer as the Admin API gives it.
    ///
    /// # Errors
    /// A file or the Admin API cannot be read, or the question makes no sense there.
    pub(in crate::cli) async fn ask(&self, question: &str, body: &Value) -> anyhow::Result<Value> {
        if self.files.is_empty() {
            if !self.admin.is_given() {
                bail!(
                    "nothing to ask: name policy files (-f PATH) or a control plane (--admin URL, or WARDGATE_ADMIN)"
                );
            }
            let encode = |text: &String| {
                let set = percent_encoding::NON_ALPHANUMERIC;
                format!("?at={}", percent_encoding::utf8_percent_encode(text, set))
            };
            let at = self.at.as_ref().map(encode).unwrap_or_default();
            let path = format!("/questions/{question}{at}");
            return ask(&self.admin.open()?, "POST", &path, Some(body)).await;
        }
        let (scene, resources) = declared_scene(&self.files)?;
        let routed = |workload: &SpiffeId, supposed: &Supposed| -> Walked {
            walk(&resources, workload, supposed)
        };
        match questions::ask(question, body, &scene, &routed) {
            Some(answer) => answer.map_err(|why| anyhow!(why)),
            None => bail!("there is no question {question}"),
        }
    }
}

/// What files declare: policies, and whatever else is around them.
///
/// # Errors
/// A file cannot be read, or has a mistake.
pub(in crate::cli) fn declared_scene(files: &[PathBuf]) -> anyhow::Result<(Scene, Vec<Resource>)> {
    let declared = sound_policies(files)?;
    let mut resources: Vec<Resource> = Vec::new();
    for source in read_texts(files)? {
        // Files of several documents, or of single policies, declare nothing else.
        let Ok(Value::Object(document)) = serde_saphyr::from_str::<Value>(&source.text) else {
            continue;
        };
        for (name, list) in document {
            let Some(kind) = Kind::named(&name).filter(|kind| *kind != Kind::IdentityPolicies)
            else {
                continue;
            };
            for value in list.as_array().into_iter().flatten() {
                let id = match &value["id"] {
                    Value::String(text) => Id::parse(text).ok(),
                    Value::Number(number) => number.as_u64().map(Id::from),
                    _ => value["spiffe_id"].as_str().map(|_| Id::from(resources.len() as u64)),
                };
                let id =
                    id.with_context(|| format!("{}: {name}: an id is missing", source.name))?;
                let body = Body::parse(kind, value)
                    .map_err(|why| anyhow!("{}: {name}/{id}: {why}", source.name))?;
                resources.push(Resource { kind, id, revision: 0, body });
            }
        }
    }
    for placed in &declared.policies {
        let body = Body::IdentityPolicy(Box::new(placed.body.clone()));
        let id = placed.id.clone();
        resources.push(Resource { kind: Kind::IdentityPolicies, id, revision: 0, body });
    }
    let mut scene = questions::scene(&resources, Clock::system().now());
    if !resources.iter().any(|one| one.kind == Kind::Routes) {
        // Files of policies alone say nothing of routes.
        scene.around.routes = None;
    }
    scene.around.modes =
        declared.modes.into_iter().map(|placed| (placed.id, placed.body)).collect();
    scene.policies = Policies::new(declared.policies.into_iter().map(|one| (one.id, 0, one.body)));
    Ok((scene, resources))
}
