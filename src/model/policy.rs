//! Who may do what to whom (`identity_policies`).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Id, Labels};

/// What a matching rule means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PolicyAction {
    /// A match permits, unless a deny rule matches as well.
    Allow,
    /// A match refuses.
    Deny,
}

/// Whether a policy, or one rule of it, decides or is only watched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// It decides.
    #[default]
    Enforce,
    /// It decides nothing; what it would have decided is in the decision log.
    Observe,
    /// It decides for so many in a hundred connections, 1 to 99, and is watched for the others: `{"canary": 10}`.
    Canary(#[schemars(range(min = 1, max = 99))] u8),
}

/// Which workloads and routes a policy is about. Given parts must all hold; an empty selector selects everything.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicySelector {
    /// SPIFFE ID patterns of the workloads that enforce it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub workloads: Vec<String>,
    /// Labels that the matched route must bear.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Ids of the routes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Id>,
}

/// A named value (a claim, a header, a query parameter) and what is asked of it. Given parts must all hold; one is given.
///
/// A value is a text: exact, `prefix*`, `*suffix`, or `*` for any that is not empty. Where there is no value, `values` and
/// `not_values` do not hold to allow, and hold to deny; with `present: true` a deny rule is about those only that have one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ValueMatch {
    /// Its name. Of a claim: the name of a member, or a JSON pointer (RFC 6901) when it starts with a slash.
    #[schemars(length(min = 1, max = 256))]
    pub name: String,
    /// To allow, each value that is there must be one of these; to deny, one suffices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
    /// To allow, no value that is there may be one of these; to deny, one that is none of them suffices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_values: Vec<String>,
    /// Whether it must be there at all (`true`), or must not (`false`; without `values` and `not_values`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub present: Option<bool>,
}

/// Who calls. Given parts must all hold; within a list one entry suffices.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct From {
    /// SPIFFE ID patterns: `spiffe://td/a/*` has any one segment in the star's place, a last `**` any rest. A name in braces
    /// (`spiffe://td/ns/{tenant}/sa/*`) captures its segment: it must equal what bears the same name in `to`. A rule with
    /// several entries is as several rules with one each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub principals: Vec<String>,
    /// SPIFFE ID patterns that must not match, without names in braces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_principals: Vec<String>,
    /// Trust domains, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trust_domains: Vec<String>,
    /// Trust domains that must not be the caller's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_trust_domains: Vec<String>,
    /// Kubernetes namespaces, of IDs `spiffe://td/ns/<namespace>/sa/<service account>`: a name, `prefix*`, `*suffix` or `*`.
    /// They mean the workload's own trust domain, or those of `trust_domains` where these are given; a caller of another one
    /// is in no namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
    /// Kubernetes namespaces that must not be the caller's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_namespaces: Vec<String>,
    /// Kubernetes service accounts, `namespace/name`, without stars; of the same trust domains as `namespaces`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub service_accounts: Vec<String>,
    /// Kubernetes service accounts that must not be the caller's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_service_accounts: Vec<String>,
    /// Networks or addresses of the connection's other end. IPv4 addresses mapped into IPv6 are IPv4 addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ip_blocks: Vec<String>,
    /// Networks that must not hold the connection's other end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_ip_blocks: Vec<String>,
    /// Networks or addresses of the caller that a trusted sender named; the connection's other end where none did.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remote_ip_blocks: Vec<String>,
    /// Networks that must not hold the caller that a trusted sender named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_remote_ip_blocks: Vec<String>,
    /// Claims of the token that an auth plugin of the route has verified. All entries must hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub claims: Vec<ValueMatch>,
}

/// What is called. Given parts must all hold; within a list one entry suffices.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct To {
    /// Hosts: exact, `*.suffix`, or `{name}.suffix` for one label that must be the same text as in `from.principals` and in the
    /// paths. Of a TLS connection that is passed through: the server name that its client asks for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// Hosts that must not match.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_hosts: Vec<String>,
    /// Ports of the listener.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(range(min = 1, max = 65535)))]
    pub ports: Vec<u16>,
    /// Ports that must not match.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(range(min = 1, max = 65535)))]
    pub not_ports: Vec<u16>,
    /// Methods, as written in the request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// Methods that must not match.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_methods: Vec<String>,
    /// Path templates: `/invoices/{id}` has any one segment in the braces' place, a last `/**` any rest. A name in braces that
    /// stands in `from.principals` or in `hosts` as well must be the same text there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
    /// Path templates that must not match; a name in braces as in `paths`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_paths: Vec<String>,
    /// Paths and gRPC methods of this rule are compared without case, for programs that take `/Admin` for `/admin`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ignore_case: bool,
    /// gRPC methods: `package.Service/Method` or `package.Service/*`. A call is a POST with content type `application/grpc…`; to
    /// deny, the path suffices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grpc: Vec<String>,
    /// gRPC methods that must not match.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_grpc: Vec<String>,
    /// The rule means requests that switch their connection to one of these protocols, and no others: `websocket`, `connect` (a
    /// tunnel), another protocol's name as in the field Upgrade, or `*`. An allow rule without them admits no such request; a
    /// deny rule without them refuses it as any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub upgrades: Vec<String>,
}

/// A span of time. Given parts must all hold; at least one beside `zone` is given.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TimeWindow {
    /// Days of the week: `mon`, `tue`, `wed`, `thu`, `fri`, `sat`, `sun`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub days: Vec<String>,
    /// From this time of day on, `HH:MM`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Before this time of day, `HH:MM` or `24:00`; earlier than `from`: of the day after the one in `days`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// Whose days and times these are: `UTC` (default), an offset as `+02:00`, or a name as `Europe/Berlin`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// From this moment on, RFC 3339, whole seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<String>,
    /// Before this moment, RFC 3339, whole seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<String>,
}

/// Under which circumstances. Given parts must all hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct When {
    /// Header fields of the request, all their values. All entries must hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<ValueMatch>,
    /// Parameters of the query, all their values, decoded. All entries must hold. A query that is not properly encoded, or has
    /// a raw semicolon, never allows and always refuses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub query: Vec<ValueMatch>,
    /// Spans of time; being in one of them suffices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub times: Vec<TimeWindow>,
    /// Spans of time in none of which it may be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_times: Vec<TimeWindow>,
    /// A condition in CEL (Common Expression Language) that must be true; evaluated last, and limited in cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub cel: Option<String>,
}

/// One rule: who, what, and when. A part that is left out holds for everything.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyRule {
    /// A name for people and for the decision log; the rule's number otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub name: Option<String>,
    /// Whether this rule decides; as the policy where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Who calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<From>,
    /// What is called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<To>,
    /// Under which circumstances.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<When>,
}

/// By whom a policy was signed, and with which others (`wardgate policy sign`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicySignature {
    /// The number of the signed set; higher than that of any set before it.
    pub number: u64,
    /// The ids of the policies of the set that are about the same workloads, this one among them.
    pub beside: Vec<Id>,
    /// The key: the first 16 digits of the SHA-256 of its SubjectPublicKeyInfo.
    #[schemars(length(min = 16, max = 16))]
    pub key: String,
    /// The signature, base64.
    #[schemars(length(min = 1, max = 256))]
    pub value: String,
}

/// A policy: whom it is about, what a match means, and its rules.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IdentityPolicy {
    /// Its id; the key in the store is the truth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Id>,
    /// A name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub name: Option<String>,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub desc: Option<String>,
    /// Free-form labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Whom the policy is about.
    #[serde(default)]
    pub selector: PolicySelector,
    /// What a match means.
    pub action: PolicyAction,
    /// Whether it decides.
    #[serde(default)]
    pub mode: Mode,
    /// The rules; one match suffices.
    #[schemars(length(min = 1))]
    pub rules: Vec<PolicyRule>,
    /// Its author's signature, for data planes that ask for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<PolicySignature>,
    /// Written by the server, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub create_time: Option<i64>,
    /// Written by the server, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update_time: Option<i64>,
}

impl IdentityPolicy {
    /// A policy without name and times, in force for everybody.
    pub fn of(action: PolicyAction, rules: Vec<PolicyRule>) -> Self {
        Self {
            id: None,
            name: None,
            desc: None,
            labels: Labels::new(),
            selector: PolicySelector::default(),
            action,
            mode: Mode::Enforce,
            rules,
            signature: None,
            create_time: None,
            update_time: None,
        }
    }
}
