//! What conditions mean, what they refuse, and what they cost at worst.

use std::time::{Duration, Instant};

use super::{Asks, Condition};
use crate::identity::SpiffeId;
use crate::policy::action::{Action, Content, Fields, Token};

struct Headers(&'static [(&'static str, &'static [u8])]);

impl Fields for Headers {
    fn each(&self, name: &str, see: &mut dyn FnMut(&[u8])) {
        for (key, value) in self.0 {
            if key.eq_ignore_ascii_case(name) {
                see(value);
            }
        }
    }
}

const HEADERS: Headers = Headers(&[
    ("x-tenant", b"acme"),
    ("x-role", b"reader"),
    ("x-role", b"admin"),
    ("x-raw", b"\xff\xfe"),
    ("x-list", b"reader, admin"),
]);

fn holds(text: &str) -> Option<bool> {
    let condition = Condition::compile(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    let caller: SpiffeId = "spiffe://shop/ns/web/sa/front".parse().unwrap();
    let claims = serde_json::json!({
        "sub": "alice", "level": 3, "share": 0.5, "ok": true, "none": null,
        "groups": ["dev", "ops"], "realm": {"roles": ["a", "b"]}, "many": vec![1; 65], "long": "x".repeat(5000),
    });
    let mut action = Action::http(8443, "GET", "Billing.shop:8443", "/invoices/7");
    let Content::Request(request) = &mut action.content else { unreachable!() };
    request.fields = &HEADERS;
    request.query = Some("page=2&tag=a&tag=b%20c&empty=");
    request.token = Token::Verified(claims.as_object().unwrap());
    action.source = Some("10.1.2.3".parse().unwrap());
    // A Saturday, 21 November 2026, 21:30:15 UTC.
    action.unix_seconds = 1_795_296_615;
    condition.holds(Some(&caller), &action)
}

#[test]
fn facts_of_the_caller_and_the_request() {
    for text in [
        "source.id == 'spiffe://shop/ns/web/sa/front'",
        "source.trust_domain == \"shop\" && source.path == '/ns/web/sa/front'",
        "source.namespace == 'web' && source.service_account == 'front'",
        "source.ip == '10.1.2.3' && remote.ip == source.ip",
        "request.method == 'GET' && request.host == 'billing.shop' && port == 8443",
        "request.path.startsWith('/invoices/') && request.path.endsWith('7') && request.path.contains('voice')",
        "request.path.matches('^/invoices/[0-9]+$')",
        "request.headers['x-tenant'][0] == 'acme' && request.headers['X-Tenant'] == ['acme']",
        "'admin' in request.headers['x-role'] && size(request.headers['x-role']) == 2",
        "request.headers['x-role'].exists(role, role == 'admin')",
        "request.headers['x-role'].all(role, role in ['reader', 'admin'])",
        "request.headers['x-role'].exists_one(role, role.startsWith('a'))",
        "request.headers['x-role'].filter(role, role != 'admin') == ['reader']",
        "request.headers['x-role'].map(role, size(role)) == [6, 5]",
        "'x-tenant' in request.headers && !('x-none' in request.headers)",
        "'x-list' in request.headers && has(request.headers.x) == false && has(request.query.page)",
        "request.query['page'] == ['2'] && request.query.tag == ['a', 'b c'] && request.query.empty == ['']",
        "token.claims.sub == 'alice' && token.claims['level'] >= 3 && token.claims.level < 3.5",
        "'ops' in token.claims.groups && 'b' in token.claims.realm.roles && token.claims.groups[0] == 'dev'",
        "has(token.claims.sub) && !has(token.claims.admin) && !('admin' in token.claims)",
        "token.claims.none == null && token.claims.sub != null && token.claims.ok",
        "token.claims.groups == ['dev', 'ops'] && size(token.claims) == 9",
        "request.time > timestamp('2026-01-01T00:00:00Z') && request.time < timestamp('2027-01-01T00:00:00+01:00')",
        "request.time.getDayOfWeek() == 6 && request.time.getHours() == 21 && request.time.getMinutes() == 30",
        "request.time.getFullYear() == 2026 && request.time.getMonth() == 10 && request.time.getDate() == 21 && request.time.getDayOfMonth() == 20",
        "(port + 1) * 2 - 8 / 4 % 3 == 16886 && -port < 0",
        "'a' + 'b' == 'ab' && 'AbC'.lowerAscii() == 'abc'",
        "port == 1 ? false : true",
    ] {
        assert_eq!(holds(text), Some(true), "{text}");
        assert_eq!(holds(&format!("!({text})")), Some(false), "{text}");
    }
}

#[test]
fn what_is_absent_or_of_another_type_cannot_be_told() {
    for text in [
        "connection.server_name == 'x'",
        "request.headers['x-none'][0] == ''",
        "request.headers['x-tenant'][1] == ''",
        "request.headers['x-raw'][0] == ''",
        "'admin' in request.headers['x-list']",
        "request.query.none == ['']",
        "token.claims.none2 == 'x'",
        "token.claims.sub == 3",
        "token.claims.sub",
        "token.claims.sub.inner == 'x'",
        "token.claims.many.all(x, x == 1)",
        "token.claims.long == 'x'",
        "token.claims.realm == token.claims.realm",
        "9223372036854775807 + port > 0",
        "port / (port - 8443) == 1",
    ] {
        assert_eq!(holds(text), None, "{text}");
        assert_eq!(holds(&format!("!({text})")), None, "{text}");
        // What decides alone decides.
        assert_eq!(holds(&format!("({text}) || true")), Some(true), "{text}");
        assert_eq!(holds(&format!("false && ({text})")), Some(false), "{text}");
        assert_eq!(holds(&format!("({text}) && true")), None, "{text}");
        assert_eq!(holds(&format!("({text}) || false")), None, "{text}");
    }
}

#[test]
fn a_path_with_several_readings_cannot_be_told() {
    let condition = Condition::compile("request.path.startsWith('/invoices')").unwrap();
    for (path, expected) in [
        ("/invoices/7", Some(true)),
        ("/other", Some(false)),
        ("/invoices/../admin", None),
        ("//invoices", None),
        ("/invoices%2f7", None),
        ("/%zz", None),
        ("*", None),
    ] {
        assert_eq!(condition.holds(None, &Action::http(1, "GET", "h", path)), expected, "{path}");
    }
}

#[test]
fn connections_and_nobody_have_little_to_tell() {
    let mut action = Action::connection(5432);
    action.content = Content::Connection { server_name: Some("db.shop") };
    let holds = |text: &str| Condition::compile(text).unwrap().holds(None, &action);
    assert_eq!(holds("connection.server_name == 'db.shop' && port == 5432"), Some(true));
    for text in
        ["source.id == ''", "request.method == 'GET'", "'x' in request.headers", "source.ip == ''"]
    {
        assert_eq!(holds(text), None, "{text}");
    }
    let broad: SpiffeId = "spiffe://shop/web".parse().unwrap();
    let namespace = Condition::compile("source.namespace == 'web'").unwrap();
    assert_eq!(namespace.holds(Some(&broad), &action), None);
}

#[test]
fn a_query_that_cannot_be_read_cannot_be_told() {
    let condition = Condition::compile("'a' in request.query").unwrap();
    let holds = |query| {
        let mut action = Action::http(1, "GET", "h", "/");
        let Content::Request(request) = &mut action.content else { unreachable!() };
        request.query = query;
        condition.holds(None, &action)
    };
    assert_eq!(holds(None), Some(false));
    assert_eq!(holds(Some("%61=1")), Some(true));
    assert_eq!(holds(Some("b=%zz")), None);
    assert_eq!(holds(Some("b=1;a=2")), None);
    assert_eq!(holds(Some("%zz=1")), None);
    assert_eq!(holds(Some("a=%ff")), None);
}

#[test]
fn what_it_looks_at_is_known() {
    let asks = |text| Condition::compile(text).unwrap().asks();
    let nothing = Asks::default();
    let http = Asks { http: true, ..nothing };
    assert_eq!(asks("port == 1"), nothing);
    assert_eq!(asks("source.id != ''"), Asks { identity: true, ..nothing });
    assert_eq!(asks("request.path == '/'"), Asks { path: true, ..http });
    assert_eq!(asks("has(token.claims.a)"), Asks { claims: true, ..http });
    assert_eq!(asks("'a' in request.query"), Asks { query: true, ..http });
    assert_eq!(asks("has(request.query.a)"), Asks { query: true, ..http });
    assert_eq!(asks("request.headers['a'][0] == ''"), Asks { headers: true, ..http });
    assert_eq!(asks("request.time.getHours() < 3"), Asks { time: true, ..nothing });
}

#[test]
fn what_is_no_condition_is_refused_with_a_reason() {
    for (text, expected) in [
        ("", "expected an expression"),
        ("1 +", "is no expression"),
        ("request.method", "gives a text"),
        ("1 + 1", "gives a number"),
        ("request.foo == 'a'", "unknown variable request.foo"),
        ("user == 'a'", "unknown variable user"),
        ("source == 'a'", "unknown variable source"),
        ("request.method.foo == 'a'", "unknown variable request.method.foo"),
        ("port.foo == 1", "port has no members"),
        ("request.headers == []", "is asked by name"),
        ("request.headers.all(k, k == 'a')", "is asked by name"),
        ("size(request.query) == 0", "is asked by name"),
        ("token.claims.all(k, k == 'a')", "goes over lists"),
        ("base64(request.path) == ''", "unknown function base64"),
        ("request.path.foo()", "unknown function foo"),
        ("request.path == 1", "a text cannot be compared with a number"),
        ("port in ['a']", "a number is never in a list"),
        ("!request.path", "a text stands where"),
        ("request.path.matches(request.query.q[0])", "never from the request"),
        ("request.path.matches('(')", "is no pattern"),
        ("request.path.matches('((a{1,200}){1,200}){1,200}')", "is no pattern"),
        ("request.time == timestamp('yesterday')", "is no time"),
        ("{'a': 1}['a'] == 1", "maps, messages"),
        ("b'a' == b'a'", "bytes and unsigned"),
        ("has(port)", "has: expected"),
        ("has(source.namespace)", "has: expected"),
        ("port == 1 /* x", ""),
        ("'a' == 'a", "a text does not end"),
        ("(port == 1", "is not closed"),
        ("port == 1)", "closes what is not open"),
        ("pört == 1", "stands outside a text"),
        ("`a` == 1", "stands outside a text"),
        ("[1].all(x, [1].all(y, token.claims.a.all(z, z.all(w, w == 1))))", "may cost"),
        ("token.claims.a.all(x, token.claims.b.all(y, x == y))", "may cost"),
    ] {
        let error = Condition::compile(text).expect_err(text);
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn hostile_texts_are_refused_quickly() {
    let long = |part: &str| part.repeat(2048 / part.len());
    let nested = |open: &str, close: &str| {
        let levels = 2000 / (open.len() + close.len());
        format!("{}true{}", open.repeat(levels), close.repeat(levels))
    };
    let hostile = [
        "a".repeat(2049),
        nested("(", ")"),
        nested("[", "]"),
        nested("!(", ")"),
        nested("{1:", "}"),
        nested("a?b:", ""),
        nested("a?", ":b"),
        format!("{}true", "!".repeat(2000)),
        format!("{}1 == 1", "-".repeat(2000)),
        format!("{}1 == 1", "- ".repeat(1000)),
        long("a."),
        long("a["),
        long("a("),
        long("true||"),
        long("1+"),
        long("<"),
        long("'"),
        long("'a'"),
        long("\\"),
        long("((((((((((a"),
        long("[].all(x,"),
        "\u{0}".repeat(100),
        "🦀".repeat(500),
    ];
    for text in hostile {
        let begun = Instant::now();
        let outcome = Condition::compile(&text);
        assert!(outcome.is_err(), "{}", &text.chars().take(20).collect::<String>());
        // Far above what it takes; a parser that runs away takes minutes.
        assert!(begun.elapsed() < Duration::from_secs(20), "{}", &text[..20]);
    }
    // Long, and still within bounds.
    let wide: Vec<String> = (0..60).map(|port| format!("port=={port}")).collect();
    assert!(Condition::compile(&wide.join("||")).is_ok());
    let sum = format!("{} == 1", vec!["1"; 120].join("+"));
    assert!(Condition::compile(&sum).is_err());
}
