use super::*;

fn id(text: &str) -> Id {
    Id::parse(text).unwrap()
}

/// `hosts|paths|priority` to a router; values are the numbers of the lines.
fn router(kind: RouterKind, lines: &[&str]) -> Router<usize> {
    let mut router = Router::default();
    for (at, line) in lines.iter().enumerate() {
        router.insert(kind, &id(&at.to_string()), &place(kind, line), at);
    }
    router
}

fn place(kind: RouterKind, line: &str) -> Place {
    let parts: Vec<&str> = line.split('|').collect();
    let hosts = parts[0].split(' ').filter(|host| !host.is_empty());
    let priority = parts.get(2).map_or(0, |text| text.parse().unwrap());
    Place::parse(kind, hosts, parts[1].split(' '), priority).unwrap()
}

#[test]
fn the_exact_host_beats_the_longest_wildcard_and_both_beat_no_host() {
    let router = router(
        RouterKind::HostUri,
        &[
            "|/*",
            "*.com|/*",
            "*.b.com|/*",
            "a.b.com|/x",
            "*|/any",
            "Up.Case|/*",
            "*b.org|/*",
            "dot.net.|/*",
            "*.dots.net.|/*",
            "[2001:DB8::1]|/*",
        ],
    );
    for (host, path, found) in [
        ("a.b.com", "/x", 3),
        // Falls back: the exact host has no such path.
        ("a.b.com", "/y", 2),
        ("x.y.b.com", "/x", 2),
        ("b.com", "/x", 1),
        ("z.com", "/x", 1),
        ("com", "/x", 0),
        ("elsewhere", "/x", 0),
        ("elsewhere", "/any", 4),
        ("up.case", "/x", 5),
        ("b.org", "/", 6),
        ("ab.org", "/", 6),
        ("dot.net", "/", 7),
        ("a.b.dots.net", "/", 8),
        ("dots.net", "/", 0),
        ("[2001:db8::1]", "/", 9),
        ("", "/", 0),
    ] {
        let hit = router.find(host, path.as_bytes(), |_| true).unwrap();
        assert_eq!(*hit.value, found, "{host}{path}");
    }
}

#[test]
fn the_exact_path_beats_the_longest_prefix_whatever_the_priority() {
    let router = router(
        RouterKind::HostUri,
        &["|/foo", "|/foo*|9", "|/foo/*|9", "|/*|99", "|/foo/bar", "|/foobar/baz*"],
    );
    for (path, found) in [
        ("/foo", Some(0)),
        ("/foox", Some(1)),
        ("/foo/", Some(2)),
        ("/foo/x", Some(2)),
        ("/foo/bar", Some(4)),
        ("/foo/barx", Some(2)),
        ("/foobar/bazzz", Some(5)),
        ("/fo", Some(3)),
        ("/", Some(3)),
        ("*", None),
    ] {
        let hit = router.find("h", path.as_bytes(), |_| true);
        assert_eq!(hit.map(|hit| *hit.value), found, "{path}");
    }
}

#[test]
fn where_conditions_fail_the_next_best_is_tried() {
    let router =
        router(RouterKind::HostUri, &["h|/a/b", "h|/a/*", "h|/*", "*|/a/*", "|/a/b", "|/a/b|5"]);
    let mut order = Vec::new();
    let found = router.find("h", b"/a/b", |value| {
        order.push(*value);
        false
    });
    assert!(found.is_none());
    assert_eq!(order, [0, 1, 2, 3, 5, 4]);
}

#[test]
fn priority_orders_one_path_and_equals_follow_their_ids() {
    let router = router(RouterKind::HostUri, &["|/a|1", "|/a|3", "|/a|2", "|/a|3"]);
    let mut order = Vec::new();
    router.find("h", b"/a", |value| {
        order.push(*value);
        false
    });
    assert_eq!(order, [1, 3, 2, 0]);
}

#[test]
fn of_equal_priority_the_longer_written_path_is_tried_first() {
    let kind = RouterKind::UriWithParameter;
    let router = router(kind, &["|/u/:id", "|/u/:id/edit", "|/u/*", "|/u/*rest|1", "|/u/:other"]);
    let mut order = Vec::new();
    router.find("h", b"/u/7", |value| {
        order.push(*value);
        false
    });
    // Priority, then length: `:other`, `:id`, and the bare star.
    assert_eq!(order, [3, 4, 0, 2]);
}

#[test]
fn where_the_host_is_a_condition_the_path_and_its_priority_come_first() {
    for kind in [RouterKind::Uri, RouterKind::UriWithParameter] {
        let router = router(
            kind,
            &["a.b|/x*", "|/x*|1", "*.b|/x*|2", "|/x/y", "a.b *.b|/x*|3", "other|/x*|9", "|/x*|3"],
        );
        let tried = |host: &str, path: &str| {
            let mut order = Vec::new();
            router.find(host, path.as_bytes(), |value| {
                order.push(*value);
                false
            });
            order
        };
        assert_eq!(tried("a.b", "/x/y"), [3, 4, 6, 2, 1, 0]);
        assert_eq!(tried("c.b", "/xy"), [4, 6, 2, 1]);
        assert_eq!(tried("other", "/x"), [5, 6, 1]);
        let host = |host: &str| router.find(host, b"/x", |value| *value == 4).unwrap().host;
        assert_eq!((host("a.b"), host("c.b")), (Some(0), Some(1)));
    }
}

#[test]
fn the_matched_host_and_path_are_told() {
    let router = router(RouterKind::HostUri, &["a b *.c|/x /y /z*"]);
    let at = |host: &str, path: &str| {
        router.find(host, path.as_bytes(), |_| true).map(|hit| (hit.host.unwrap(), hit.path))
    };
    assert_eq!(at("a", "/x"), Some((0, 0)));
    assert_eq!(at("b", "/zzz"), Some((1, 2)));
    assert_eq!(at("q.c", "/y"), Some((2, 1)));
    assert_eq!(at("c", "/y"), None);
}

#[test]
fn parameters_are_caught_where_the_kind_has_them() {
    let kind = RouterKind::UriWithParameter;
    let router = router(
        kind,
        &[
            "|/user/:id",
            "|/user/:id/*rest|1",
            "|/user/me",
            "one *.two|/user/:id/edit|9",
            "|/files/*name",
            "|/mid/*/end",
            "|/a:b",
            "|/both/*x/:y",
        ],
    );
    for (host, path, found, caught) in [
        ("h", "/user/7", 0, vec![("id", "7")]),
        ("h", "/user/me", 2, vec![]),
        ("h", "/user/7/", 1, vec![("id", "7"), ("rest", "")]),
        ("h", "/user/7/a/b", 1, vec![("id", "7"), ("rest", "a/b")]),
        ("h", "/user/7/edit", 1, vec![("id", "7"), ("rest", "edit")]),
        ("one", "/user/7/edit", 3, vec![("id", "7")]),
        ("x.two", "/user/7/edit", 3, vec![("id", "7")]),
        ("h", "/files/a/b.txt", 4, vec![("name", "a/b.txt")]),
        ("h", "/mid/a/b/end", 5, vec![(":ext", "a/b")]),
        ("h", "/mid/a/end/end", 5, vec![(":ext", "a/end")]),
        ("h", "/a:b", 6, vec![]),
        ("h", "/both/a/b/c", 7, vec![("x", "a/b"), ("y", "c")]),
    ] {
        let hit = router.find(host, path.as_bytes(), |_| true).unwrap_or_else(|| panic!("{path}"));
        let parameters: Vec<(&str, &str)> = hit
            .parameters(path.as_bytes())
            .into_iter()
            .map(|(name, value)| (name, std::str::from_utf8(value).unwrap()))
            .collect();
        assert_eq!((*hit.value, parameters), (found, caught), "{host}{path}");
    }
    for path in ["/user/", "/user//x", "/mid/end", "/mid/x/ends", "/user"] {
        assert!(router.find("h", path.as_bytes(), |_| true).is_none(), "{path}");
    }
    let plain = self::router(RouterKind::HostUri, &["|/user/:id"]);
    assert!(plain.find("h", b"/user/7", |_| true).is_none());
    assert!(plain.find("h", b"/user/:id", |_| true).is_some());
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let parse = |host: &str, path: &str| {
        Place::parse(RouterKind::UriWithParameter, (!host.is_empty()).then_some(host), [path], 0)
            .unwrap_err()
            .to_string()
    };
    for (host, path, says) in [
        ("a.*.b", "/", "a star stands at the start"),
        ("a b", "/", "may have only"),
        ("a:80", "/", "compared without its port"),
        ("::1", "/", "stands in brackets"),
        ("[::g]", "/", "no IPv6 address"),
        ("*.", "/", "is empty"),
        ("", "", "is empty"),
        ("", "/a*b", "a star stands at the end"),
        ("", "/a/b*/c", "a star stands at the end"),
        ("", "/:/x", "no name"),
        ("", "/:a/:a", "one name"),
        ("", "/*a/b/*c/d", "more than one star"),
        ("", "/:a*b", "no star and no colon"),
    ] {
        let error = parse(host, path);
        assert!(error.contains(says), "{host} {path}: {error}");
    }
}

#[test]
fn a_change_leaves_older_versions_as_they_were_and_the_last_removal_leaves_nothing() {
    let kind = RouterKind::HostUri;
    let lines = ["a|/x /y*", "*.b|/x", "|/x", "a|/x|7", "|/xyz/abc", "|/xyz/abd*"];
    let old = router(kind, &lines);
    let mut new = old.clone();
    new.remove(kind, &id("3"), &place(kind, lines[3]));
    assert_eq!(*old.find("a", b"/x", |_| true).unwrap().value, 3);
    assert_eq!(*new.find("a", b"/x", |_| true).unwrap().value, 0);
    for (at, line) in lines.iter().enumerate() {
        new.remove(kind, &id(&at.to_string()), &place(kind, line));
    }
    assert!(new.anywhere.is_empty() && new.wildcards.is_empty());
    assert!(new.exact.is_empty());
    assert_eq!(*old.find("q", b"/xyz/abdd", |_| true).unwrap().value, 5);
}
