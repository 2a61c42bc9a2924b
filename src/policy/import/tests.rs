//! What is brought in decides as it did where it comes from; what does not is in the report.

use std::path::PathBuf;

use super::{Difference, Import, ImportOptions, Weight, import_istio, import_linkerd};
use crate::identity::SpiffeId;
use crate::model::Strictness;
use crate::policy::action::{Action, Content, Fields, Token};
use crate::policy::{Declared, Policy};

fn options() -> ImportOptions {
    let mut options = ImportOptions::new("shop.example".parse().unwrap(), "istio-system");
    for text in [
        "app=billing=spiffe://shop.example/ns/shop/sa/billing",
        "shop/app=db=spiffe://shop.example/ns/shop/sa/db",
        "app=legacy=spiffe://shop.example/ns/shop/sa/legacy",
        "port=http=8080",
    ] {
        options.map(text).unwrap();
    }
    options
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/policy_import")
}

fn read(name: &str) -> Vec<(String, String)> {
    vec![(name.to_owned(), std::fs::read_to_string(folder().join(name)).unwrap())]
}

/// `WARDGATE_REGENERATE=1` writes what is expected anew.
fn is_as_noted(name: &str, text: &str) {
    let file = folder().join(name);
    if std::env::var_os("WARDGATE_REGENERATE").is_some() {
        std::fs::write(&file, text).unwrap();
    }
    let noted = std::fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(text, noted, "{name} is not as noted; WARDGATE_REGENERATE=1 notes it anew");
}

fn istio(text: &str) -> Import {
    import_istio(&[("a.yaml".into(), text.into())], &options())
        .unwrap_or_else(|flaws| panic!("{flaws:?}\n{text}"))
}

/// A policy of namespace shop with this spec.
fn spec(spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {spec}\n"
    )
}

#[test]
fn istio_s_objects_become_policies_and_a_report() {
    let import = import_istio(&read("istio.yaml"), &options()).unwrap();
    is_as_noted("istio.expected.yaml", &import.yaml());
    is_as_noted("istio.report.md", &import.markdown());
    let mut declared = Declared::default();
    assert_eq!(declared.add("istio.expected.yaml", &import.yaml()), []);
    assert_eq!(declared.policies.len(), import.policies.len());
}

#[test]
fn linkerd_s_objects_become_policies_and_a_report() {
    let import = import_linkerd(&read("linkerd.yaml"), &options()).unwrap();
    is_as_noted("linkerd.expected.yaml", &import.yaml());
    is_as_noted("linkerd.report.md", &import.markdown());
    let mut declared = Declared::default();
    assert_eq!(declared.add("linkerd.expected.yaml", &import.yaml()), []);
    assert_eq!(declared.modes.len(), import.modes.len());
}

/// One request, in the words of a table.
#[derive(Clone, Copy)]
struct Ask<'a> {
    who: &'a str,
    method: &'a str,
    path: &'a str,
    headers: &'a [(&'a str, &'a str)],
    claims: Option<&'a str>,
    port: u16,
    source: &'a str,
}

const ASK: Ask<'_> = Ask {
    who: "ns/shop/sa/web",
    method: "GET",
    path: "/",
    headers: &[],
    claims: None,
    port: 8080,
    source: "10.1.1.1",
};

struct Headers<'a>(&'a [(&'a str, &'a str)]);

impl Fields for Headers<'_> {
    fn each(&self, name: &str, see: &mut dyn FnMut(&[u8])) {
        let named = self.0.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        named.for_each(|(_, value)| see(value.as_bytes()));
    }
}

/// Asks a workload that has the imported policies.
fn allows(import: &Import, to: &str, ask: Ask<'_>) -> bool {
    let id = |path: &str| -> SpiffeId { format!("spiffe://shop.example/{path}").parse().unwrap() };
    let policies =
        import.policies.iter().map(|(_, policy)| (policy.id.as_ref().unwrap(), 0, policy));
    let (policy, rejected) = Policy::compile(policies, &id(to));
    assert!(rejected.is_empty(), "{rejected:?}");
    let caller = match ask.who {
        "" => None,
        who if who.starts_with("spiffe://") => Some(who.parse().unwrap()),
        who => Some(id(who)),
    };
    let (headers, claims) =
        (Headers(ask.headers), ask.claims.map(|text| serde_json::from_str(text).unwrap()));
    let mut action = Action::http(ask.port, ask.method, "billing.shop:8080", ask.path);
    action.source = Some(ask.source.parse().unwrap());
    let Content::Request(request) = &mut action.content else { unreachable!() };
    request.fields = &headers;
    request.token = claims.as_ref().map_or(Token::Absent, Token::Verified);
    policy.decide(&policy.standing_of(caller.as_ref()), &action).is_allowed()
}

#[test]
fn istio_s_policies_decide_as_istio_says() {
    let import = import_istio(&read("istio.yaml"), &options()).unwrap();
    let billing = "ns/shop/sa/billing";
    let staff = Some(r#"{"iss": "i", "sub": "s", "groups": ["dev", "staff"]}"#);
    let (acme, beta): (&[_], &[_]) = (&[("x-tenant", "acme")], &[("x-tenant", "beta-1")]);
    for (expected, why, ask) in [
        (true, "a listed principal", Ask { path: "/invoices/7", ..ASK }),
        (true, "the path itself", Ask { path: "/invoices", ..ASK }),
        (
            true,
            "a prefix of principals",
            Ask { who: "ns/ops/sa/anyone", path: "/invoices/7", ..ASK },
        ),
        (true, "a namespace", Ask { who: "ns/reports/sa/x", path: "/invoices/7", ..ASK }),
        (false, "another one", Ask { who: "ns/shop/sa/other", path: "/invoices/7", ..ASK }),
        (false, "another method", Ask { method: "DELETE", path: "/invoices/7", ..ASK }),
        (false, "no pair of both operations", Ask { method: "POST", path: "/invoices/7", ..ASK }),
        (true, "a template", Ask { method: "POST", path: "/tenants/acme/invoices", ..ASK }),
        (
            false,
            "a template is one segment",
            Ask { method: "POST", path: "/tenants/a/b/invoices", ..ASK },
        ),
        (true, "a rule without from", Ask { who: "ns/far/sa/away", path: "/healthz", ..ASK }),
        (true, "a suffix", Ask { who: "ns/any/sa/batch", path: "/x", port: 9000, ..ASK }),
        (false, "not that port", Ask { who: "ns/any/sa/batch", path: "/x", ..ASK }),
        (
            true,
            "one claim of a list, header and address",
            Ask { path: "/staff/x", claims: staff, headers: acme, ..ASK },
        ),
        (
            true,
            "a prefix of paths and headers",
            Ask { path: "/staffroom", claims: staff, headers: beta, ..ASK },
        ),
        (
            false,
            "another claim",
            Ask { path: "/staff", claims: Some(r#"{"groups": ["dev"]}"#), headers: acme, ..ASK },
        ),
        (
            true,
            "a claim that is no list",
            Ask { path: "/staff", claims: Some(r#"{"groups": "admin"}"#), headers: acme, ..ASK },
        ),
        (false, "no token", Ask { path: "/staff", headers: acme, ..ASK }),
        (false, "no header", Ask { path: "/staff", claims: staff, ..ASK }),
        (
            false,
            "an excluded network",
            Ask { path: "/staff", claims: staff, headers: acme, source: "10.9.1.1", ..ASK },
        ),
        (false, "DENY wins", Ask { method: "TRACE", path: "/healthz", ..ASK }),
        (false, "a denied namespace", Ask { who: "ns/evil/sa/x", path: "/healthz", ..ASK }),
        (
            false,
            "a denied namespace of another domain",
            Ask { who: "spiffe://else/ns/evil/sa/x", path: "/healthz", ..ASK },
        ),
        (false, "what a provider had to allow", Ask { path: "/custom", ..ASK }),
    ] {
        assert_eq!(allows(&import, billing, ask), expected, "{why}: {} {}", ask.method, ask.path);
    }
    // `spec: {}` allows nothing anywhere else.
    assert!(!allows(&import, "ns/shop/sa/other", Ask { path: "/healthz", ..ASK }));
}

#[test]
fn an_allow_rule_never_admits_more_than_istio() {
    // A prefix with a slash at its end does not mean the folder itself.
    let import = istio(&spec("{rules: [{to: [{operation: {paths: ['/a/*']}}]}]}"));
    for (path, expected) in [("/a/", true), ("/a/b", true), ("/a", false), ("/ab", false)] {
        assert_eq!(allows(&import, "ns/shop/sa/x", Ask { path, ..ASK }), expected, "{path}");
    }
    let import =
        istio(&spec("{rules: [{to: [{operation: {paths: ['/t/{*}/f/{**}', '*.html', '/b*']}}]}]}"));
    for (path, expected) in [
        ("/t/1/f/x/y", true),
        ("/t/1/f", false),
        ("/t/1/2/f/x", false),
        ("/x/y.html", true),
        ("/x/y.htm", false),
        ("/bcd/e", true),
        ("/c", false),
    ] {
        assert_eq!(allows(&import, "ns/shop/sa/x", Ask { path, ..ASK }), expected, "{path}");
    }
}

#[test]
fn a_deny_rule_never_refuses_less_than_istio() {
    let open = "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: open, namespace: shop}\nspec: {rules: [{}]}\n";
    let import = istio(
        &(spec(
            "{action: DENY, rules: [{to: [{operation: {paths: ['/a/*'], notMethods: [GET]}}]}]}",
        ) + open),
    );
    for (method, path, expected) in [
        ("GET", "/a/b", true),
        ("PUT", "/a/b", false),
        ("PUT", "/x//../a/b", false),
        ("PUT", "/b", true),
    ] {
        let ask = Ask { method, path, ..ASK };
        assert_eq!(allows(&import, "ns/shop/sa/x", ask), expected, "{method} {path}");
    }
    let import = istio(
        &(spec("{action: DENY, rules: [{when: [{key: 'request.headers[x-a]', values: [bad]}]}]}")
            + open),
    );
    for (headers, expected) in [
        (&[][..], true),
        (&[("x-a", "good")][..], true),
        (&[("x-a", "bad")][..], false),
        (&[("x-a", "good"), ("x-a", "bad")][..], false),
    ] {
        assert_eq!(
            allows(&import, "ns/shop/sa/x", Ask { headers, ..ASK }),
            expected,
            "{headers:?}"
        );
    }
    let import = istio(
        &(spec("{action: DENY, rules: [{from: [{source: {notRequestPrincipals: ['*']}}]}]}")
            + open),
    );
    assert!(!allows(&import, "ns/shop/sa/x", ASK));
    let token = Some(r#"{"iss": "i", "sub": "s"}"#);
    assert!(allows(&import, "ns/shop/sa/x", Ask { claims: token, ..ASK }));
}

#[test]
fn what_cannot_be_said_is_left_out_in_the_safe_direction() {
    let import = istio(&spec("{rules: [{when: [{key: destination.ip, values: [10.0.0.1]}]}]}"));
    assert!(import.policies.is_empty());
    let import = istio(&spec(
        "{action: DENY, rules: [{when: [{key: destination.ip, values: [10.0.0.1]}]}]}",
    ));
    assert_eq!(import.policies[0].1.rules.len(), 1);
    assert!(import.policies[0].1.rules[0].when.is_none());
    let unknown = "{selector: {matchLabels: {app: nobody-knows}}, action: DENY, rules: [{}]}";
    let import = istio(&spec(unknown));
    let selector = &import.policies[0].1.selector;
    assert_eq!(selector.workloads, ["spiffe://shop.example/ns/shop/sa/*"]);
    assert!(istio(&spec(&unknown.replace("DENY", "ALLOW"))).policies.is_empty());
}

#[test]
fn strictness_of_identity() {
    let peer = |name: &str, namespace: &str, spec: &str| {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
        )
    };
    // Strict is what holds anyway.
    let strict = peer("m", "istio-system", "{mtls: {mode: STRICT}}");
    assert!(istio(&strict).modes.is_empty());
    // Permissive below strict holds, because strict was not written down.
    let import = istio(&(strict + &peer("n", "shop", "{mtls: {mode: PERMISSIVE}}")));
    assert_eq!(import.modes[0].1.workloads, ["spiffe://shop.example/ns/shop/sa/*"]);
    assert_eq!(import.modes[0].1.mode, Strictness::Permissive);
    assert!(import.differences.is_empty(), "{:?}", import.differences);
    // Strict below permissive is written down; permissive below that is told of.
    let import = istio(
        &(peer("m", "istio-system", "{mtls: {mode: PERMISSIVE}}")
            + &peer("n", "shop", "{mtls: {mode: STRICT}}")
            + &peer(
                "w",
                "shop",
                "{selector: {matchLabels: {app: legacy}}, mtls: {mode: PERMISSIVE}}",
            )),
    );
    let modes: Vec<_> = import.modes.iter().map(|(_, mode)| mode.mode).collect();
    assert_eq!(modes, [Strictness::Permissive, Strictness::Strict, Strictness::Permissive]);
    assert_eq!(import.differences.len(), 1);
    assert_eq!(import.differences[0].weight, Weight::Stricter);
    // Ports, and what is inherited.
    let import = istio(&peer(
        "n",
        "shop",
        "{portLevelMtls: {8080: {mode: PERMISSIVE}, 9090: {mode: DISABLE}}}",
    ));
    let mode = &import.modes[0].1;
    assert_eq!(mode.mode, Strictness::Strict);
    assert_eq!(mode.ports.iter().collect::<Vec<_>>(), [(&8080, &Strictness::Permissive)]);
}

#[test]
fn linkerd_s_policies_decide_as_linkerd_says() {
    let import = import_linkerd(&read("linkerd.yaml"), &options()).unwrap();
    let (billing, db) = ("ns/shop/sa/billing", "ns/shop/sa/db");
    let acme: &[_] = &[("x-tenant", "acme")];
    for (expected, to, why, ask) in [
        (true, billing, "a route's prefix", Ask { path: "/invoices/7", ..ASK }),
        (true, billing, "the prefix itself", Ask { path: "/invoices", ..ASK }),
        (false, billing, "another method", Ask { method: "PUT", path: "/invoices/7", ..ASK }),
        (false, billing, "another path", Ask { path: "/invoicesx", ..ASK }),
        (
            true,
            billing,
            "a namespace of identities",
            Ask { who: "ns/ops/sa/x", path: "/ping", ..ASK },
        ),
        (
            true,
            billing,
            "an account by reference",
            Ask { who: "ns/shop/sa/batch", path: "/ping", ..ASK },
        ),
        (
            true,
            billing,
            "a pattern and a header",
            Ask { path: "/v2/invoices", headers: acme, ..ASK },
        ),
        (false, billing, "not without the header", Ask { path: "/v2/invoices", ..ASK }),
        (false, billing, "another port", Ask { path: "/ping", port: 9999, ..ASK }),
        (
            true,
            billing,
            "the namespace's Servers",
            Ask { who: "ns/monitoring/sa/prometheus", path: "/any", ..ASK },
        ),
        (
            true,
            billing,
            "a ServerAuthorization",
            Ask { who: "ns/shop/sa/legacy", path: "/any", ..ASK },
        ),
        (true, db, "access policy", Ask { who: "ns/far/sa/away", port: 5432, ..ASK }),
        (
            true,
            db,
            "a network, without identity",
            Ask { who: "", port: 5432, source: "192.0.2.7", ..ASK },
        ),
        (
            true,
            db,
            "a network with exceptions",
            Ask { who: "", port: 5432, source: "10.1.2.3", ..ASK },
        ),
        (false, db, "an exception", Ask { who: "", port: 5432, source: "10.9.2.3", ..ASK }),
        (
            false,
            "ns/shop/sa/lost",
            "a Server that is not known",
            Ask { who: "ns/monitoring/sa/prometheus", port: 80, ..ASK },
        ),
    ] {
        assert_eq!(allows(&import, to, ask), expected, "{why}: {} {}", ask.method, ask.path);
    }
    let plain: Vec<_> =
        import.modes.iter().map(|(_, mode)| (&mode.workloads, &mode.ports)).collect();
    assert_eq!(plain.len(), 1);
    assert_eq!(plain[0].0, &["spiffe://shop.example/ns/shop/sa/db"]);
    assert_eq!(plain[0].1.get(&5432), Some(&Strictness::Permissive));
    let of = |object: &str| {
        import.differences.iter().filter(|one| one.object == object).collect::<Vec<&Difference>>()
    };
    for object in
        ["Server shop/lost", "MeshTLSAuthentication shop/web", "AuthorizationPolicy shop/nowhere"]
    {
        assert!(of(object).iter().any(|one| one.weight == Weight::Stricter), "{object}");
    }
}

#[test]
fn fields_that_nobody_knows_are_refused() {
    let flaws =
        import_istio(&[("a.yaml".into(), spec("{rules: [{form: []}]}"))], &options()).unwrap_err();
    let said = flaws[0].to_string();
    assert!(
        said.starts_with("a.yaml:4: AuthorizationPolicy shop/p: rules[0]: unknown field `form`"),
        "{said}"
    );
    let flaws = import_istio(&[("a.yaml".into(), "kind: x".into())], &options()).unwrap_err();
    assert!(flaws[0].to_string().contains("expected a Kubernetes object"));
}

#[test]
fn maps_are_read() {
    for (text, expected) in
        [("app", "expected LABEL=VALUE"), ("app=a=b", "\"b\""), ("port=http=0", "is no port")]
    {
        let error = options().map(text).unwrap_err();
        assert!(error.contains(expected), "{text}: {error}");
    }
    assert!(options().map("app.kubernetes.io/name=a=spiffe://td/a").is_ok());
}
