//! Random policies and actions, of small alphabets so that they meet.

use std::net::IpAddr;

use proptest::option::weighted;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::{Value, json};

use crate::identity::SpiffeId;
use crate::model::{
    From, Id, IdentityPolicy, Labels, Mode, PolicyAction, PolicyRule, PolicySelector, TimeWindow,
    To, ValueMatch, When,
};
use crate::policy::{Action, Content, Fields, Request, RouteFacts, Token};

/// Who asks for what.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) caller: Option<SpiffeId>,
    pub(super) port: u16,
    pub(super) source: Option<IpAddr>,
    pub(super) remote: Option<IpAddr>,
    pub(super) unix_seconds: i64,
    pub(super) lot: u8,
    /// A request, or a connection with the server name that its client asks for.
    pub(super) http: Result<Http, Option<String>>,
}

#[derive(Clone, Debug)]
pub(super) struct Http {
    pub(super) method: String,
    pub(super) host: String,
    pub(super) path: String,
    pub(super) query: Option<String>,
    /// With names in lower case.
    pub(super) fields: Vec<(String, String)>,
    pub(super) upgrade: Option<String>,
    pub(super) token: Known,
    pub(super) route: Option<(Id, Labels)>,
}

/// What is known of a token.
#[derive(Clone, Debug)]
pub(super) enum Known {
    Awaited,
    Absent,
    Verified(Value),
}

impl Fields for Http {
    fn each(&self, name: &str, see: &mut dyn FnMut(&[u8])) {
        let lines = self.fields.iter().filter(|(found, _)| found.eq_ignore_ascii_case(name));
        lines.for_each(|(_, line)| see(line.as_bytes()));
    }
}

impl Asked {
    pub(super) fn action(&self) -> Action<'_> {
        let content = match &self.http {
            Err(server_name) => Content::Connection { server_name: server_name.as_deref() },
            Ok(http) => Content::Request(Request {
                method: &http.method,
                host: &http.host,
                path: &http.path,
                query: http.query.as_deref(),
                fields: http,
                upgrade: http.upgrade.as_deref(),
                token: match &http.token {
                    Known::Awaited => Token::Awaited,
                    Known::Absent => Token::Absent,
                    Known::Verified(claims) => Token::Verified(claims.as_object().unwrap()),
                },
                route: http.route.as_ref().map(|(id, labels)| RouteFacts { id, labels }),
            }),
        };
        let Self { port, source, remote, unix_seconds, lot, .. } = *self;
        Action { port, source, remote, unix_seconds, lot, content }
    }
}

/// Mostly nothing, else one or two of these.
fn some_of(texts: &'static [&'static str]) -> impl Strategy<Value = Vec<String>> {
    let chosen = subsequence(texts, 1..=texts.len().min(2))
        .prop_map(|list| list.into_iter().map(String::from).collect());
    prop_oneof![4 => Just(Vec::new()), 1 => chosen]
}

/// The same, oftener.
fn often_of(texts: &'static [&'static str]) -> impl Strategy<Value = Vec<String>> {
    let chosen = subsequence(texts, 1..=texts.len().min(3))
        .prop_map(|list| list.into_iter().map(String::from).collect());
    prop_oneof![1 => Just(Vec::new()), 1 => chosen]
}

const PRINCIPALS: &[&str] = &[
    "spiffe://a/web",
    "spiffe://a/*",
    "spiffe://a/**",
    "spiffe://b/web",
    "spiffe://a/ns/*/web",
    "spiffe://b/**",
    "spiffe://a/ns/{t}/sa/*",
    "spiffe://a/ns/{t}/sa/{u}",
    "spiffe://a/{t}",
    "spiffe://a/ns/{t}/**",
];
const NOT_PRINCIPALS: &[&str] = &["spiffe://a/web", "spiffe://b/**", "spiffe://a/ns/*/sa/x"];
const DOMAINS: &[&str] = &["a", "b", "c"];
const NAMESPACES: &[&str] = &["a", "b", "a*", "*b", "*", "Acme"];
const ACCOUNTS: &[&str] = &["a/x", "b/x", "a/y"];
const BLOCKS: &[&str] =
    &["10.0.0.0/8", "10.1.0.0/16", "192.0.2.7", "::/0", "::ffff:192.0.2.0/120", "fd00::/8"];
const HOSTS: &[&str] = &["a.x", "*.x", "b.a.x", "{t}.x", "{u}.a.x", "{v}.x"];
const PATHS: &[&str] = &[
    "/",
    "/**",
    "/a",
    "/a/",
    "/a/**",
    "/a/b",
    "/a/{x}",
    "/{x}",
    "/*/b",
    "/a/*/c",
    "/b/**",
    "/a b",
    "/{x}/",
    "/{t}",
    "/{t}/**",
    "/{u}/{t}",
    "/a/{v}",
    "/Acme/**",
    "/a/b/c/7/b/**",
    "/s/\u{212a}",
];
const GRPC: &[&str] = &["p.S/M", "p.S/*", "a/b"];
const UPGRADES: &[&str] = &["websocket", "connect", "*", "H2C"];
const TEXTS: &[&str] = &["u", "v", "u*", "*v", "*", "u,v", "", "1", "true"];

pub(super) const CONDITIONS: &[&str] =
    &["request.method == 'GET'", "has(token.claims.role)", "port == 80 || has(token.claims.n)"];

fn ports() -> impl Strategy<Value = Vec<u16>> {
    select(vec![vec![], vec![], vec![], vec![], vec![80], vec![80, 443]])
}

fn value(names: &'static [&'static str]) -> impl Strategy<Value = ValueMatch> {
    let parts = (some_of(TEXTS), some_of(TEXTS), select(vec![None, None, Some(true), Some(false)]));
    (select(names), often_of(TEXTS), parts).prop_map(
        |(name, values, (more, not_values, present))| {
            let name = name.to_string();
            let is_empty = values.is_empty() && not_values.is_empty();
            match present {
                Some(false) => ValueMatch { name, present, ..ValueMatch::default() },
                None if is_empty => {
                    ValueMatch { name, values: vec!["u".into()], not_values: more, present }
                }
                _ => ValueMatch { name, values, not_values, present },
            }
        },
    )
}

fn values(names: &'static [&'static str]) -> impl Strategy<Value = Vec<ValueMatch>> {
    prop_oneof![
        6 => Just(Vec::new()),
        2 => value(names).prop_map(|entry| vec![entry]),
        1 => proptest::collection::vec(value(names), 2),
    ]
}

fn window() -> impl Strategy<Value = TimeWindow> {
    let texts = |list: &'static [&'static str]| {
        weighted(0.6, select(list)).prop_map(|text| text.map(String::from))
    };
    let moment = |list: &'static [&'static str]| {
        weighted(0.2, select(list)).prop_map(|text| text.map(String::from))
    };
    (
        often_of(&["mon", "tue", "wed", "thu", "fri", "sat", "sun"]),
        texts(&["00:00", "08:00", "22:30"]),
        texts(&["06:15", "17:00", "24:00"]),
        texts(&["UTC", "+05:30", "-03:00", "Europe/Berlin"]),
        moment(&["2026-03-01T00:00:00Z", "2026-06-01T02:00:00+02:00"]),
        moment(&["2026-10-25T01:00:00Z", "2026-11-11T11:11:11-01:00"]),
    )
        .prop_map(|(days, from, until, zone, not_before, not_after)| {
            let asks_day = !days.is_empty() || from.is_some() || until.is_some();
            let window = TimeWindow { days, from, until, zone, not_before, not_after };
            match asks_day {
                true => window,
                false => TimeWindow { days: vec!["mon".into()], ..window },
            }
        })
}

fn windows() -> impl Strategy<Value = Vec<TimeWindow>> {
    prop_oneof![7 => Just(Vec::new()), 1 => proptest::collection::vec(window(), 1..3)]
}

fn mode() -> impl Strategy<Value = Mode> {
    prop_oneof![
        4 => Just(Mode::Enforce),
        1 => Just(Mode::Observe),
        1 => select(vec![1, 30, 50, 99]).prop_map(Mode::Canary),
    ]
}

fn rule() -> impl Strategy<Value = PolicyRule> {
    let who = (
        often_of(PRINCIPALS),
        some_of(NOT_PRINCIPALS),
        some_of(DOMAINS),
        some_of(&["b"]),
        some_of(NAMESPACES),
        some_of(NAMESPACES),
        some_of(ACCOUNTS),
        some_of(ACCOUNTS),
    );
    let wherefrom = (some_of(BLOCKS), some_of(BLOCKS), some_of(BLOCKS), some_of(BLOCKS));
    let claims = values(&["role", "scope", "/o/n", "/l/0", "n"]);
    let from = (who, wherefrom, claims).prop_map(|(who, blocks, claims)| From {
        principals: who.0,
        not_principals: who.1,
        trust_domains: who.2,
        not_trust_domains: who.3,
        namespaces: who.4,
        not_namespaces: who.5,
        service_accounts: who.6,
        not_service_accounts: who.7,
        ip_blocks: blocks.0,
        not_ip_blocks: blocks.1,
        remote_ip_blocks: blocks.2,
        not_remote_ip_blocks: blocks.3,
        claims,
    });
    let head = (
        often_of(HOSTS),
        some_of(HOSTS),
        ports(),
        ports(),
        some_of(&["GET", "POST", "lock"]),
        some_of(&["GET", "POST"]),
        some_of(UPGRADES),
    );
    let path =
        (often_of(PATHS), some_of(PATHS), some_of(GRPC), some_of(GRPC), weighted(0.2, Just(())));
    let to = (head, path).prop_map(|(head, path)| To {
        hosts: head.0,
        not_hosts: head.1,
        ports: head.2,
        not_ports: head.3,
        methods: head.4,
        not_methods: head.5,
        upgrades: head.6,
        paths: path.0,
        not_paths: path.1,
        grpc: path.2,
        not_grpc: path.3,
        ignore_case: path.4.is_some(),
    });
    let cel = weighted(if cfg!(feature = "cel") { 0.1 } else { 0.0 }, select(CONDITIONS));
    let when = (values(&["x-role", "x-b"]), values(&["a", "b c"]), windows(), windows(), cel)
        .prop_map(|(headers, query, times, not_times, cel)| {
            let cel = cel.map(String::from);
            When { headers, query, times, not_times, cel }
        });
    (weighted(0.7, from), weighted(0.7, to), weighted(0.4, when), weighted(0.2, mode()))
        .prop_map(|(from, to, when, mode)| PolicyRule { name: None, mode, from, to, when })
}

fn labels() -> impl Strategy<Value = Labels> {
    select(vec![vec![], vec![], vec![("t", "1")], vec![("t", "2")], vec![("t", "1"), ("u", "1")]])
        .prop_map(|pairs| pairs.into_iter().map(|(k, v)| (k.to_string(), v.to_string())).collect())
}

fn policy() -> impl Strategy<Value = IdentityPolicy> {
    let routes = select(vec![vec![], vec![], vec!["r1"], vec!["r1", "r2"]]);
    let workloads = some_of(&["spiffe://a/me", "spiffe://a/other"]);
    let selector =
        (workloads, labels(), routes).prop_map(|(workloads, labels, routes)| PolicySelector {
            workloads,
            labels,
            routes: routes.into_iter().map(|id| Id::parse(id).unwrap()).collect(),
        });
    let action = prop_oneof![3 => Just(PolicyAction::Allow), 1 => Just(PolicyAction::Deny)];
    // Now and then enough rules for the index.
    let rules = prop_oneof![
        19 => proptest::collection::vec(rule(), 1..4),
        1 => proptest::collection::vec(rule(), 17..24)
    ];
    (selector, action, mode(), rules).prop_map(|(selector, action, mode, rules)| IdentityPolicy {
        id: None,
        name: None,
        desc: None,
        labels: Labels::new(),
        selector,
        action,
        mode,
        rules,
        signature: None,
        create_time: None,
        update_time: None,
    })
}

pub(super) fn policies() -> impl Strategy<Value = Vec<(Id, IdentityPolicy)>> {
    proptest::collection::vec(policy(), 0..5).prop_map(|texts| {
        let named = texts.into_iter().enumerate();
        named.map(|(at, policy)| (Id::parse(&format!("p{at}")).unwrap(), policy)).collect()
    })
}

fn path() -> impl Strategy<Value = String> {
    let part = select(vec![
        "a", "a", "a", "b", "b", "c", "7", "", ".", "..", "%61", "%2e", "%2e%2e", "%252e", "a;x",
        "%2f", "a%2fb", "%5c", "..\\", "%3b", "a%20b", "%zz", "%c0%af", "%3f", "%25", "..;y",
        "Acme", "acme", "A",
    ]);
    let plain = select(vec![
        "/",
        "/a",
        "/a/",
        "/a/b",
        "/a/b/c",
        "/b",
        "*",
        "",
        "/p.S/M",
        "/p.S/N",
        "/p.S/M/",
        "/P.S/m",
        "/Acme/a",
        "/acme",
        "/a/b/c/7/b/a",
        "/s/k",
        "/s/K",
        "/s/\u{212a}",
    ]);
    prop_oneof![
        2 => plain.prop_map(String::from),
        2 => proptest::collection::vec(part, 1..4).prop_map(|parts| format!("/{}", parts.join("/"))),
    ]
}

pub(super) fn token() -> impl Strategy<Value = Known> {
    let claims = select(vec![
        json!({}),
        json!({"role": "u"}),
        json!({"role": ["u", "v"], "n": 1}),
        json!({"role": [], "scope": "u v"}),
        json!({"role": null, "scope": ["u"], "o": {"n": "v"}}),
        json!({"role": {"a": 1}, "n": true, "l": ["u", 1]}),
        json!({"role": ["u", {}], "scope": "", "o": {"n": ["1", true]}}),
    ]);
    prop_oneof![1 => Just(Known::Absent), 3 => claims.prop_map(Known::Verified)]
}

fn http() -> impl Strategy<Value = Http> {
    let line = select(vec!["u", "v", "uu", "u,v", "u, u", "uv , v", "", "1", ","]);
    let line = line.prop_map(String::from);
    let field = prop_oneof![
        4 => (select(vec!["x-role", "x-b"]).prop_map(String::from), line),
        1 => select(vec!["application/grpc", "Application/GRPC+proto", "application/grpcx", "text/plain"])
            .prop_map(|text| ("content-type".to_string(), text.to_string())),
    ];
    let query = select(vec![
        None,
        None,
        Some(""),
        Some("a=u"),
        Some("a=u&a=v"),
        Some("a"),
        Some("b+c=v&%61=uu"),
        Some("a=%zz"),
        Some("a=u;a=v"),
        Some("x=%ff"),
        Some("b%20c=u,v&a=%75"),
    ]);
    let upgrade = prop_oneof![
        4 => Just(None),
        1 => select(vec!["websocket", "connect", "h2c", "websocket, x", "h2c,connect"]).prop_map(Some),
    ];
    let known = prop_oneof![1 => Just(Known::Awaited), 2 => token()];
    let route = (select(vec!["r1", "r2", "r3"]), labels())
        .prop_map(|(id, labels)| (Id::parse(id).unwrap(), labels));
    (
        select(vec!["GET", "GET", "POST", "POST", "get", "LOCK", "lock"]),
        select(vec![
            "a.x", "A.x:80", "b.a.x.", "x", ".x", "c..x", "a.x:y", "", "acme.x", "b.x", "Acme.a.x",
        ]),
        path(),
        query,
        proptest::collection::vec(field, 0..4),
        upgrade,
        known,
        weighted(0.8, route),
    )
        .prop_map(|(method, host, path, query, fields, upgrade, token, route)| Http {
            method: method.to_string(),
            host: host.to_string(),
            path,
            query: query.map(String::from),
            fields,
            upgrade: upgrade.map(String::from),
            token,
            route,
        })
}

pub(super) fn asked() -> impl Strategy<Value = Asked> {
    let address = || {
        let texts =
            ["10.0.0.1", "10.1.2.3", "::ffff:10.1.2.3", "192.0.2.7", "192.0.2.8", "fd00::1", "::1"];
        select(texts.map(|text| text.parse::<IpAddr>().unwrap()).to_vec())
    };
    let caller = select(vec![
        Some("spiffe://a/web"),
        Some("spiffe://a/web"),
        Some("spiffe://b/web"),
        Some("spiffe://a/ns/x/web"),
        Some("spiffe://a/ns/a/sa/x"),
        Some("spiffe://a/ns/b/sa/a"),
        Some("spiffe://a/ns/Acme/sa/x"),
        Some("spiffe://b/ns/a/sa/x"),
        Some("spiffe://a/ns/a/sa/x/y"),
        Some("spiffe://a"),
        Some("spiffe://c/web"),
        None,
    ]);
    let server_name = select(vec![None, Some("a.x"), Some("b.a.x"), Some("a..x")])
        .prop_map(|name| Err(name.map(String::from)));
    // 2026.
    let moment = 1_767_225_600_i64..1_798_761_600;
    (
        caller,
        select(vec![80, 443, 8080]),
        weighted(0.9, address()),
        weighted(0.3, address()),
        moment,
        0..100_u8,
        prop_oneof![9 => http().prop_map(Ok), 1 => server_name],
    )
        .prop_map(|(caller, port, source, remote, unix_seconds, lot, http)| Asked {
            caller: caller.map(|id| id.parse().unwrap()),
            port,
            source,
            remote,
            unix_seconds,
            lot,
            http,
        })
}
