//! Istio's AuthorizationPolicy, PeerAuthentication and RequestAuthentication.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::draft::Draft;
use super::istio_modes::{Request, import_modes, import_requests};
use super::istio_rule::{Rule, drafts};
use super::objects::{Object, objects};
use super::options::ImportOptions;
use super::report::{Import, Weight};
use crate::model::{IdentityPolicy, Invalid, Labels, Mode, PolicyAction, PolicySelector};
use crate::policy::check;
use crate::policy::files::Flaw;

/// What differs for every policy of Istio.
const GENERAL: &[&str] = &[
    "Nothing is allowed by default. In Istio a workload that no ALLOW policy selects is open; here it refuses everybody.",
    "What is absent never allows and always refuses: a deny rule that asks for an identity, a claim or something of HTTP also refuses \
     who or what has none.",
    "Paths are judged on all their readings (docs/policy.md): `//admin` or `/%61dmin` does not get around a deny rule on `/admin`, \
     and a final slash does not either.",
    "Hosts are compared without case, port and one final dot.",
    "A field that a request has several times is judged value by value, not as one text with commas: to allow, all of them must fit; \
     to deny, one suffices.",
    "A request that wants to switch its protocol (WebSocket, CONNECT) needs a rule with `to.upgrades`.",
    "`ports` are those of the sidecar's listener. Where one listener takes the traffic of all ports, name the original ones there.",
    "Namespaces and service accounts in allow rules are those of the workload's own trust domain.",
];

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct AuthorizationPolicy {
    #[serde(default)]
    selector: Option<Selector>,
    #[serde(default)]
    target_ref: Option<TargetRef>,
    #[serde(default)]
    target_refs: Vec<TargetRef>,
    #[serde(default)]
    action: Action,
    #[serde(default)]
    provider: Option<Provider>,
    #[serde(default)]
    rules: Vec<Rule>,
}

/// The labels of workloads.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Selector {
    #[serde(default)]
    pub(super) match_labels: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TargetRef {
    #[serde(default)]
    #[expect(dead_code, reason = "the kind alone tells them apart")]
    group: Option<String>,
    kind: String,
    name: String,
    #[serde(default)]
    namespace: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum Action {
    #[default]
    Allow,
    Deny,
    Audit,
    Custom,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Provider {
    #[serde(default)]
    name: String,
}

/// Workloads that an object is about.
pub(super) enum Workloads {
    /// These patterns; none: all of them.
    Known(Vec<String>),
    /// It is not known which of these.
    Among(Vec<String>),
}

/// Reads Istio's objects (file names and texts).
///
/// # Errors
/// Texts that are no objects, fields that are not known, and policies that could not stand; each with its place.
pub fn import_istio(
    texts: &[(String, String)],
    options: &ImportOptions,
) -> Result<Import, Vec<Flaw>> {
    let objects = objects(texts)?;
    let mut import = Import { general: GENERAL, ..Import::default() };
    let (mut flaws, mut peers, mut requests) = (Vec::new(), Vec::new(), Vec::new());
    let mut scopes = Scopes::default();
    for object in &objects {
        let outcome = match (object.group.as_str(), object.kind.as_str()) {
            ("security.istio.io", "AuthorizationPolicy") => {
                import_policy(object, options, &mut import, &mut scopes)
            }
            ("security.istio.io", "PeerAuthentication") => {
                object.spec().map(|spec| peers.push((object, spec)))
            }
            ("security.istio.io", "RequestAuthentication") => {
                object.spec::<Request>().map(|spec| requests.push((object, spec)))
            }
            (group, kind) => {
                let sentence = format!("{kind} of {group} says nothing of policy; left out");
                import.differs(Weight::Note, object, "kind", sentence);
                Ok(())
            }
        };
        flaws.extend(outcome.err());
    }
    scopes.tell(&mut import);
    flaws.extend(import_modes(&peers, options, &mut import).err());
    import_requests(&requests, &mut import);
    if flaws.is_empty() { Ok(import) } else { Err(flaws) }
}

/// The workloads of a selector or of targets.
pub(super) fn workloads(
    object: &Object,
    options: &ImportOptions,
    selector: Option<&Selector>,
    targets: &[&TargetRef],
) -> Workloads {
    let in_root = object.namespace == options.root_namespace;
    let all = match in_root {
        true => Vec::new(),
        false => vec![options.namespace(&object.namespace)],
    };
    if !targets.is_empty() {
        let mut known = Vec::new();
        for target in targets {
            let label = BTreeMap::from([(target.kind.to_lowercase(), target.name.clone())]);
            let namespace = target.namespace.as_deref().unwrap_or(&object.namespace);
            match options.bearers(namespace, &label) {
                Some(ids) => known.extend(ids),
                None => return Workloads::Among(all),
            }
        }
        return Workloads::Known(known);
    }
    match selector.map(|selector| &selector.match_labels).filter(|labels| !labels.is_empty()) {
        None => Workloads::Known(all),
        Some(labels) => match options.bearers(&object.namespace, labels) {
            Some(ids) => Workloads::Known(ids),
            None => Workloads::Among(all),
        },
    }
}

/// Which workloads had an ALLOW policy, and which had policies without one: these were open.
#[derive(Default)]
struct Scopes {
    allowed: Vec<Vec<String>>,
    others: Vec<(String, Vec<String>)>,
}

impl Scopes {
    fn tell(&self, import: &mut Import) {
        for (title, workloads) in &self.others {
            let covered = self.allowed.iter().any(|allowed| {
                allowed.is_empty()
                    || (!workloads.is_empty() && workloads.iter().all(|one| allowed.contains(one)))
            });
            if !covered {
                let whom = if workloads.is_empty() {
                    "all workloads".into()
                } else {
                    workloads.join(", ")
                };
                import.differs_as_a_whole(
                    Weight::Stricter,
                    format!(
                        "{title}: no ALLOW policy here selects {whom}, so Istio allows what is not denied; here nothing is \
                         allowed until a policy says so"
                    ),
                );
            }
        }
    }
}

fn import_policy(
    object: &Object,
    options: &ImportOptions,
    import: &mut Import,
    scopes: &mut Scopes,
) -> Result<(), Flaw> {
    let spec: AuthorizationPolicy = object.spec()?;
    let targets: Vec<&TargetRef> = spec.target_ref.iter().chain(&spec.target_refs).collect();
    let action = match spec.action {
        Action::Allow => PolicyAction::Allow,
        Action::Deny | Action::Custom => PolicyAction::Deny,
        Action::Audit => {
            let sentence =
                "AUDIT decides nothing; every decision is in the decision log (docs/audit.md)";
            import.differs(Weight::Note, object, "spec.action", sentence);
            return Ok(());
        }
    };
    let found = workloads(object, options, spec.selector.as_ref(), &targets);
    let field = if targets.is_empty() { "spec.selector" } else { "spec.targetRefs" };
    let workloads = match (found, action) {
        (Workloads::Known(workloads), _) => workloads,
        (Workloads::Among(_), PolicyAction::Allow) => {
            import.differs(
                Weight::Stricter,
                object,
                field,
                "we select by SPIFFE ID: which workloads these are is not known, so the policy is left out and allows nothing; \
                 say it with --map label=value=ID",
            );
            return Ok(());
        }
        (Workloads::Among(all), PolicyAction::Deny) => {
            import.differs(
                Weight::Stricter,
                object,
                field,
                "we select by SPIFFE ID: which workloads these are is not known, so the policy refuses at all that they may be; \
                 say it with --map label=value=ID",
            );
            all
        }
    };
    match action {
        PolicyAction::Allow => scopes.allowed.push(workloads.clone()),
        PolicyAction::Deny => scopes.others.push((object.title(), workloads.clone())),
    }
    if spec.rules.is_empty() {
        let sentence = match action {
            PolicyAction::Allow => "allows nothing, as is the default here: no policy is needed",
            PolicyAction::Deny => "has no rule and refuses nothing: no policy is needed",
        };
        import.differs(Weight::Note, object, "spec.rules", sentence);
        return Ok(());
    }
    if spec.action == Action::Custom {
        let provider = spec.provider.unwrap_or_default().name;
        import.differs(
            Weight::Stricter,
            object,
            "spec.action",
            format!(
                "CUSTOM asks the provider \"{provider}\", which a policy cannot: what it had to decide is refused. Ask it in the \
                 routes' plugins (opa, forward-auth), then delete this policy"
            ),
        );
    }
    let mut rules = Vec::new();
    for (at, rule) in spec.rules.iter().enumerate() {
        for draft in drafts(at, rule, action, options, object) {
            let name = draft.name.clone();
            report(&draft, &format!("spec.rules[{at}]"), object, import);
            match draft.rule() {
                Some(rule) if rule.when.as_ref().is_some_and(too_long) => {
                    let sentence = format!("{name}: its condition is longer than 2,048 bytes");
                    return Err(object.flaw(sentence));
                }
                Some(rule) => rules.push(rule),
                None => {}
            }
        }
    }
    if rules.is_empty() {
        return Ok(());
    }
    let mut mode = Mode::Enforce;
    if object.annotations.get("istio.io/dry-run").is_some_and(|value| value == "true") {
        mode = Mode::Observe;
        import.differs(Weight::Note, object, "istio.io/dry-run", "becomes mode: observe");
    }
    let policy = IdentityPolicy {
        id: Some(object.id("istio")?),
        name: None,
        desc: None,
        labels: Labels::default(),
        selector: PolicySelector { workloads, ..PolicySelector::default() },
        action,
        mode,
        rules,
        signature: None,
        create_time: None,
        update_time: None,
    };
    check(&policy)
        .map_err(|Invalid(sentence)| object.flaw(format!("as our policy: {sentence}")))?;
    import.policies.push((format!("{}, {}", object.title(), object.place), policy));
    Ok(())
}

fn too_long(when: &crate::model::When) -> bool {
    when.cel.as_ref().is_some_and(|cel| cel.len() > 2048)
}

fn report(draft: &Draft, rule: &str, object: &Object, import: &mut Import) {
    for (field, why) in &draft.unsaid {
        let field = format!("{rule}.{field}");
        let sentence = match draft.allows() {
            true => format!("{why}: the rule is left out, and what it allowed is refused"),
            false => format!(
                "{why}: this part is left out, and the rule refuses whatever its other parts mean"
            ),
        };
        import.differs(Weight::Stricter, object, field, sentence);
    }
    for (field, sentence) in &draft.stricter {
        import.differs(Weight::Stricter, object, format!("{rule}.{field}"), sentence.clone());
    }
    for (field, sentence) in &draft.notes {
        import.differs(Weight::Note, object, format!("{rule}.{field}"), sentence.clone());
    }
}
