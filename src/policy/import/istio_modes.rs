//! Istio's PeerAuthentication as identity modes, and what RequestAuthentication asks of plugins.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::istio::{Selector, TargetRef, Workloads, workloads};
use super::objects::Object;
use super::options::ImportOptions;
use super::report::{Import, Weight};
use crate::model::{IdentityMode, Labels, Strictness};
use crate::policy::files::Flaw;

/// PeerAuthentication.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Peer {
    #[serde(default)]
    selector: Option<Selector>,
    #[serde(default)]
    mtls: Option<Mtls>,
    #[serde(default)]
    port_level_mtls: BTreeMap<u16, Mtls>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mtls {
    #[serde(default)]
    mode: PeerMode,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum PeerMode {
    #[default]
    Unset,
    Disable,
    Permissive,
    Strict,
}

/// RequestAuthentication.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Request {
    #[serde(default)]
    #[expect(dead_code, reason = "plugins belong to routes")]
    selector: Option<Selector>,
    #[serde(default)]
    #[expect(dead_code, reason = "plugins belong to routes")]
    target_ref: Option<TargetRef>,
    #[serde(default)]
    #[expect(dead_code, reason = "plugins belong to routes")]
    target_refs: Vec<TargetRef>,
    #[serde(default)]
    jwt_rules: Vec<JwtRule>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct JwtRule {
    issuer: String,
    audiences: Vec<String>,
    #[serde(alias = "jwks_uri")]
    jwks_uri: String,
    jwks: String,
    from_headers: Vec<serde_json::Value>,
    from_params: Vec<String>,
    from_cookies: Vec<String>,
    output_payload_to_header: String,
    output_claim_to_headers: Vec<serde_json::Value>,
    forward_original_token: bool,
    timeout: Option<String>,
    space_delimited_claims: Vec<String>,
}

/// How wide an object reaches: the narrowest decides in Istio.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    Mesh,
    Namespace,
    Workload,
}

/// Narrowest wins in Istio, strictest wins here, and `strict` is what holds without a mode.
pub(super) fn import_modes(
    peers: &[(&Object, Peer)],
    options: &ImportOptions,
    import: &mut Import,
) -> Result<(), Flaw> {
    let reach = |object: &Object, peer: &Peer| {
        if peer.selector.as_ref().is_some_and(|selector| !selector.match_labels.is_empty()) {
            Reach::Workload
        } else if object.namespace == options.root_namespace {
            Reach::Mesh
        } else {
            Reach::Namespace
        }
    };
    let mut sorted: Vec<_> =
        peers.iter().map(|(object, peer)| (reach(object, peer), *object, peer)).collect();
    sorted
        .sort_by_key(|(reach, object, _)| (*reach, object.namespace.clone(), object.name.clone()));
    if !peers.is_empty() && sorted.first().is_none_or(|(reach, ..)| *reach != Reach::Mesh) {
        import.differs_as_a_whole(
            Weight::Stricter,
            "no PeerAuthentication of the whole mesh is among the objects: Istio accepts plain connections where none says \
             otherwise, here identity is asked for (strict)",
        );
    }
    // What holds in a wider reach, and whether we had to write it down.
    let mut mesh = Strictness::Strict;
    let mut namespaces: BTreeMap<&str, Strictness> = BTreeMap::new();
    let mut written: Vec<(Reach, &str)> = Vec::new();
    for (reach, object, peer) in sorted {
        let parent = match reach {
            Reach::Mesh => Strictness::Strict,
            Reach::Namespace => mesh,
            Reach::Workload => namespaces.get(object.namespace.as_str()).copied().unwrap_or(mesh),
        };
        let mut strictness = |field: String, mode: PeerMode, parent: Strictness| match mode {
            PeerMode::Unset => parent,
            PeerMode::Strict => Strictness::Strict,
            PeerMode::Permissive => Strictness::Permissive,
            PeerMode::Disable => {
                import.differs(
                    Weight::Stricter,
                    object,
                    field,
                    "DISABLE (plain connections only) has no counterpart: identity is asked for (strict); `permissive` would take \
                     plain connections as callers without identity",
                );
                Strictness::Strict
            }
        };
        let mode = strictness("spec.mtls.mode".into(), peer.mtls.unwrap_or_default().mode, parent);
        let ports: BTreeMap<u16, Strictness> = peer
            .port_level_mtls
            .iter()
            .map(|(port, mtls)| {
                let field = format!("spec.portLevelMtls.{port}");
                (*port, strictness(field, mtls.mode, mode))
            })
            .filter(|(_, on_port)| *on_port != mode)
            .collect();
        match reach {
            Reach::Mesh => mesh = mode,
            Reach::Namespace => drop(namespaces.insert(&object.namespace, mode)),
            Reach::Workload => {}
        }
        let stricter_above = written.iter().any(|(above, of)| {
            *above < reach && (*above == Reach::Mesh || *of == object.namespace)
        });
        let loosens =
            mode != Strictness::Strict || ports.values().any(|port| *port != Strictness::Strict);
        if loosens && stricter_above {
            import.differs(
                Weight::Stricter,
                object,
                "spec",
                "where several modes are about a workload, the strictest holds here, and the narrowest in Istio: a wider one asks \
                 for identity",
            );
        }
        // `strict` needs no word, unless something wider is written down that is not.
        let wider_is_loose = parent != Strictness::Strict;
        if mode == Strictness::Strict && ports.is_empty() && !wider_is_loose {
            continue;
        }
        let found = workloads(object, options, peer.selector.as_ref(), &[]);
        let workloads = match found {
            Workloads::Known(workloads) => workloads,
            Workloads::Among(all) if !loosens => {
                let sentence = "we select by SPIFFE ID: which workloads these are is not known, so all that they may be are \
                                strict; say it with --map label=value=ID";
                import.differs(Weight::Stricter, object, "spec.selector", sentence);
                all
            }
            Workloads::Among(_) => {
                let sentence = "we select by SPIFFE ID: which workloads these are is not known, so the mode is left out (strict); \
                                say it with --map label=value=ID";
                import.differs(Weight::Stricter, object, "spec.selector", sentence);
                continue;
            }
        };
        if mode == Strictness::Strict {
            written.push((reach, &object.namespace));
        }
        let mode = IdentityMode {
            id: Some(object.id("istio")?),
            name: None,
            desc: None,
            labels: Labels::default(),
            workloads,
            mode,
            ports,
            create_time: None,
            update_time: None,
        };
        import.modes.push((format!("{}, {}", object.title(), object.place), mode));
    }
    Ok(())
}

/// Tokens are verified by plugins of routes: a policy cannot, and only sees what they prove.
pub(super) fn import_requests(requests: &[(&Object, Request)], import: &mut Import) {
    for (object, request) in requests {
        for (at, rule) in request.jwt_rules.iter().enumerate() {
            let keys = match (rule.jwks_uri.as_str(), rule.jwks.as_str()) {
                ("", "") => "the keys that the issuer publishes".to_owned(),
                (uri, "") => format!("the keys at {uri}"),
                _ => "the keys that stand in the object".to_owned(),
            };
            let audiences = match rule.audiences.as_slice() {
                [] => String::new(),
                audiences => format!(", for {}", audiences.join(", ")),
            };
            import.differs(
                Weight::Looser,
                object,
                format!("spec.jwtRules[{at}]"),
                format!(
                    "a request with a token that is not valid is refused by a plugin, not by a policy: give the routes an auth plugin \
                     for issuer {} with {keys}{audiences}. Rules that ask for claims hold only for tokens that it has verified; \
                     to ask for one, add from.claims: [{{name: iss, values: [\"{}\"]}}] to the allow rules",
                    rule.issuer, rule.issuer
                ),
            );
            let more = !rule.from_headers.is_empty()
                || !rule.from_params.is_empty()
                || !rule.from_cookies.is_empty()
                || !rule.output_payload_to_header.is_empty()
                || !rule.output_claim_to_headers.is_empty()
                || rule.forward_original_token
                || rule.timeout.is_some()
                || !rule.space_delimited_claims.is_empty();
            if more {
                let sentence = "where the token comes from, and what is passed on of it, is the plugin's to be told";
                import.differs(Weight::Note, object, format!("spec.jwtRules[{at}]"), sentence);
            }
        }
    }
}
