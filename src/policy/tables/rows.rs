//! The rows of the adversarial checklist for paths, hosts and headers (45 to 55, 58 and 60), at the engine.

use super::*;
use crate::policy::{Content, Fields, Request};

/// Header fields by name.
pub(super) struct Lines<'a>(pub(super) &'a [(&'a str, &'a str)]);

impl Fields for Lines<'_> {
    fn each(&self, name: &str, see: &mut dyn FnMut(&[u8])) {
        let lines = self.0.iter().filter(|(found, _)| found.eq_ignore_ascii_case(name));
        lines.for_each(|(_, line)| see(line.as_bytes()));
    }
}

/// A request with something changed.
pub(super) fn request<'a>(change: impl FnOnce(&mut Request<'a>)) -> Action<'a> {
    let mut action = Action::http(15006, "GET", "billing", "/");
    if let Content::Request(request) = &mut action.content {
        change(request);
    }
    action
}

/// Everything is allowed but what this rule refuses.
#[expect(clippy::needless_pass_by_value, reason = "it reads better where it is called")]
pub(super) fn all_but(rule: Value) -> World {
    World::new(&[
        ("all", json!({"action": "allow", "rules": [{}]})),
        ("no", json!({"action": "deny", "rules": [rule]})),
    ])
}

/// Nothing is allowed but what this rule allows.
#[expect(clippy::needless_pass_by_value, reason = "it reads better where it is called")]
pub(super) fn only(rule: Value) -> World {
    World::new(&[("only", json!({"action": "allow", "rules": [rule]}))])
}

fn denies(world: &World, action: &Action<'_>) -> bool {
    world.decides(WEB, action).starts_with("deny")
}

#[test]
fn rows_45_to_48_and_50_a_path_is_judged_on_all_its_readings() {
    let world = all_but(json!({"to": {"paths": ["/admin/**"]}}));
    for (row, paths) in [
        (45, &["//admin", "/./admin", "/x/../admin", "///admin/", "/x//..//../admin"][..]),
        (46, &["/%2fadmin", "/%5cadmin", "/x/%2e%2e/admin", "/x/%252e%252e/admin", "/%252fadmin"]),
        (47, &["/admin;x=1", "/admin%3bx", "/admin;/users", "/x/..;/admin"]),
        (48, &["/admin#x", "/admin%23x", "/x/../admin#"]),
        (50, &["/%c0%afadmin", "/%u002fadmin", "/%zz", "/%e0%80%afadmin", "/x%c0%ae%c0%ae/admin"]),
    ] {
        for path in paths {
            assert!(denies(&world, &get(path)), "row {row}: {path}");
        }
    }
    // And to allow, all readings have to be allowed.
    let world = only(json!({"to": {"paths": ["/x/**"]}}));
    for path in
        ["/x/../admin", "/x/%2e%2e/admin", "/x/%252e%252e/a", "/x/..;/a", "/x/%c0%ae", "/x/%zz"]
    {
        assert_eq!(world.decides(WEB, &get(path)), "deny ambiguous_path only 1", "{path}");
    }
}

#[test]
fn row_49_paths_have_case_unless_a_rule_says_otherwise() {
    let world = all_but(json!({"to": {"paths": ["/admin/**", "/stra\u{df}e", "/kiosk"]}}));
    assert!(!denies(&world, &get("/Admin")));
    let folded = json!({"to": {"paths": ["/admin/**", "/kiosk/{x}"], "ignore_case": true}});
    let world = all_but(folded.clone());
    for path in [
        "/Admin",
        "/ADMIN/x",
        "/%41dmin",
        "//AdMiN",
        "/x/../Admin",
        "/\u{212a}iosk/a",
        "/KIO\u{17f}k/a",
    ] {
        assert!(denies(&world, &get(path)), "{path}");
    }
    assert!(!denies(&world, &get("/administrator")));
    // To allow, case is that of ASCII: what else a program takes for the same nobody knows.
    let world = only(folded);
    assert!(!denies(&world, &get("/Admin/X")));
    assert!(!denies(&world, &get("/KIOSK/a")));
    assert!(denies(&world, &get("/\u{212a}iosk/a")));
}

#[test]
fn row_51_a_host_has_no_case_no_final_dot_and_no_port() {
    let world = all_but(json!({"to": {"hosts": ["admin.example.com"]}}));
    for host in ["admin.example.com.", "admin.example.com:443", "ADMIN.example.com.:8443"] {
        assert!(denies(&world, &to(host)), "{host}");
    }
    let world = only(json!({"to": {"not_hosts": ["admin.example.com"]}}));
    for host in ["admin.example.com.", "admin.example.com:443", "ADMIN.example.com.:8443"] {
        assert!(denies(&world, &to(host)), "{host}");
    }
    assert!(!denies(&world, &to("shop.example.com.")));
}

#[test]
fn row_52_no_wildcard_means_an_empty_label() {
    for pattern in ["*.example.com", "{tenant}.example.com"] {
        let world = only(json!({"to": {"hosts": [pattern]}}));
        assert!(!denies(&world, &to("a.example.com")));
        for host in [".example.com", "a..example.com", "example.com", "..example.com", ""] {
            assert!(denies(&world, &to(host)), "{pattern} {host:?}");
        }
    }
}

#[test]
fn row_53_the_method_is_that_of_the_request_line_and_its_reader_is_told() {
    let world = only(json!({"to": {"methods": ["GET"]}}));
    let lines = Lines(&[("x-http-method-override", "DELETE")]);
    // The engine judges what was sent; that rules look at methods is what tells the proxy to take such fields off.
    assert!(!denies(&world, &request(|request| request.fields = &lines)));
    assert!(world.policy().asks_method());
    for rule in [json!({"to": {"not_methods": ["PUT"]}}), json!({"to": {"grpc": ["a.B/*"]}})] {
        assert!(only(rule).policy().asks_method());
    }
    assert!(!only(json!({"to": {"paths": ["/a"]}})).policy().asks_method());
}

#[test]
fn row_54_every_value_of_a_field_counts() {
    let rule = json!({"when": {"headers": [{"name": "X-Role", "values": ["admin"]}]}});
    let (deny, allow) = (all_but(rule.clone()), only(rule));
    for (lines, refused, allowed) in [
        (&[("x-role", "user"), ("x-role", "admin")][..], true, false),
        (&[("x-role", "admin"), ("x-role", "user")], true, false),
        (&[("X-ROLE", "admin"), ("x-role", "admin")], true, true),
        (&[("x-role", "user, admin")], true, false),
        (&[("x-role", "user,admin")], true, false),
        (&[("x-role", "user")], false, false),
        (&[("x-role", "administrator")], false, false),
        (&[("x-role", "Admin")], false, false),
        (&[], true, false),
    ] {
        let lines = Lines(lines);
        let action = request(|request| request.fields = &lines);
        assert_eq!(denies(&deny, &action), refused, "{:?}", lines.0);
        assert_eq!(!denies(&allow, &action), allowed, "{:?}", lines.0);
    }
}

#[test]
fn row_55_what_is_absent_never_allows_and_always_refuses_by_a_not_form_as_well() {
    for part in [
        json!({"headers": [{"name": "x-role", "not_values": ["admin"]}]}),
        json!({"query": [{"name": "role", "not_values": ["admin"]}]}),
        json!({"headers": [{"name": "x-role", "values": ["*"]}]}),
        json!({"query": [{"name": "role", "values": ["*"]}]}),
    ] {
        let rule = json!({"when": part});
        assert!(denies(&only(rule.clone()), &get("/")), "{rule}");
        assert!(denies(&all_but(rule.clone()), &get("/")), "{rule}");
        assert!(denies(&only(rule.clone()), &Action::connection(1)), "{rule}");
        assert!(denies(&all_but(rule.clone()), &Action::connection(1)), "{rule}");
    }
}

#[test]
fn row_58_every_value_of_a_parameter_counts() {
    let rule = json!({"when": {"query": [{"name": "role", "values": ["admin"]}]}});
    let (deny, allow) = (all_but(rule.clone()), only(rule));
    for (query, refused, allowed) in [
        ("role=user&role=admin", "denied_by_rule", false),
        ("role=admin&role=user", "denied_by_rule", false),
        ("role=admin&role=admin", "denied_by_rule", true),
        ("r%6Fle=%61dmin&x=1", "denied_by_rule", true),
        ("role=user", "", false),
        ("Role=admin&role=user", "", false),
        ("role=admin+", "", false),
        ("role", "", false),
        ("", "denied_by_rule", false),
        ("role=user;role=admin", "unclear_input", false),
        ("role=admin&x=%zz", "unclear_input", false),
        ("role=%c0%af", "unclear_input", false),
    ] {
        let action = request(|request| request.query = Some(query));
        let expected = match refused {
            "" => "allow all 1".to_string(),
            reason => format!("deny {reason} no 1"),
        };
        assert_eq!(deny.decides(WEB, &action), expected, "{query}");
        assert_eq!(!denies(&allow, &action), allowed, "{query}");
    }
}

#[test]
fn row_60_to_switch_the_protocol_is_a_permission_of_its_own() {
    let rule = |upgrades: &[&str]| json!({"to": {"upgrades": upgrades}});
    let plain = json!({});
    for (rule, upgrade, allowed, refused) in [
        (plain.clone(), None, "allow only 1", true),
        (plain.clone(), Some("websocket"), "deny upgrade_not_allowed only 1", true),
        (plain, Some("connect"), "deny upgrade_not_allowed only 1", true),
        (rule(&["websocket"]), None, "deny no_rule", false),
        (rule(&["WebSocket"]), Some("websocket"), "allow only 1", true),
        (rule(&["websocket"]), Some("connect"), "deny upgrade_not_allowed only 1", false),
        (rule(&["connect", "h2c"]), Some("h2c"), "allow only 1", true),
        (rule(&["websocket"]), Some("websocket, h2c"), "deny upgrade_not_allowed only 1", true),
        (rule(&["*"]), Some("websocket, h2c"), "allow only 1", true),
        (rule(&["*"]), None, "deny no_rule", false),
    ] {
        let action = request(|request| request.upgrade = upgrade);
        assert_eq!(only(rule.clone()).decides(WEB, &action), allowed, "{rule} {upgrade:?}");
        // Beside a rule that would allow it.
        let no = ("no", json!({"action": "deny", "rules": [rule]}));
        let all = json!({"action": "allow", "rules": [{}, {"to": {"upgrades": ["*"]}}]});
        assert_eq!(denies(&World::new(&[("all", all), no]), &action), refused, "{upgrade:?}");
    }
}
