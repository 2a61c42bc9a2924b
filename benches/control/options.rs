//! What is measured, and how much of it.

use std::fmt;

use super::stand::StoreKind;

const HELP: &str =
    "benches/control/run.sh [--quick] [--routes N] [--upstreams N] [--planes N] [--changes N]
    [--rate WRITES_A_SECOND] [--seconds N] [--down SECONDS] [--stores embedded,etcd]";

#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) routes: usize,
    pub(crate) upstreams: usize,
    /// Simulated data planes.
    pub(crate) planes: usize,
    /// Changes that concern all of them.
    pub(crate) changes: usize,
    pub(crate) rate: u32,
    pub(crate) seconds: u64,
    /// How long etcd is away.
    pub(crate) down: u64,
    pub(crate) stores: Vec<StoreKind>,
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { routes, upstreams, planes, changes, .. } = self;
        write!(
            f,
            "{routes} routes, {upstreams} upstreams, {planes} simulated data planes, {changes} changes"
        )
    }
}

impl Options {
    /// `None` when there is nothing to do but to say how it is called.
    pub(crate) fn parse(words: impl Iterator<Item = String>) -> Option<Self> {
        let mut words = words.filter(|word| word != "--bench").peekable();
        if words.peek().is_none() || words.peek().is_some_and(|word| word == "--help") {
            println!("{HELP}");
            return None;
        }
        let mut options = Self {
            routes: 100_000,
            upstreams: 20_000,
            planes: 1000,
            changes: 20,
            rate: 500,
            seconds: 60,
            down: 60,
            stores: vec![StoreKind::Embedded, StoreKind::Etcd],
        };
        while let Some(word) = words.next() {
            let mut value =
                || words.next().unwrap_or_else(|| panic!("{word} needs a value\n{HELP}"));
            match &*word {
                "--run" => {}
                "--quick" => {
                    let stores = options.stores;
                    options = Self {
                        routes: 5000,
                        upstreams: 1000,
                        planes: 100,
                        changes: 10,
                        rate: 200,
                        seconds: 10,
                        down: 5,
                        stores,
                    };
                }
                "--routes" => options.routes = value().parse().unwrap(),
                "--upstreams" => options.upstreams = value().parse().unwrap(),
                "--planes" => options.planes = value().parse().unwrap(),
                "--changes" => options.changes = value().parse().unwrap(),
                "--rate" => options.rate = value().parse().unwrap(),
                "--seconds" => options.seconds = value().parse().unwrap(),
                "--down" => options.down = value().parse().unwrap(),
                "--stores" => {
                    let named = |name: &str| {
                        StoreKind::named(name)
                            .unwrap_or_else(|| panic!("no store {name:?}\n{HELP}"))
                    };
                    options.stores = value().split(',').map(named).collect();
                }
                _ => panic!("{word}?\n{HELP}"),
            }
        }
        Some(options)
    }
}
