//! What tests of this room and of the plugins make their exchanges of.

use std::sync::Arc;

use super::{Client, Exchange, Flow, Head, Reply, RouteInfo};
use crate::identity::Peer;
pub(crate) use crate::identity::token_forge::TokenWorld;
use crate::model::{Id, Labels, Listeners};

/// A caller from 192.0.2.7 with the identity `spiffe://shop/web`.
pub(crate) fn client() -> Client {
    Client {
        connection: 1,
        door: Listeners::Inbound,
        address: "192.0.2.7:40000".parse().unwrap(),
        local: "192.0.2.1:9080".parse().unwrap(),
        introduced: None,
        peer: Some(Arc::new(Peer {
            id: "spiffe://shop/web".parse().unwrap(),
            serial: "0a".into(),
            spki_sha256: "0b".into(),
            sha256: "0c".into(),
            not_after: 0,
            issuer_ski: None,
            bundle_revision: "".into(),
            purpose: crate::identity::Purpose::Client,
            chain: Arc::default(),
        })),
        me: Some("spiffe://shop/cart".parse().unwrap()),
        tls: false,
        sni: None,
    }
}

/// An exchange on route `r1`, called `first`.
pub(crate) fn exchange(method: &str, target: &str, authority: &str) -> Exchange {
    let mut exchange = Exchange::new(Arc::new(client()));
    exchange.request = Head::request(method, target, authority);
    exchange.route = Some(Arc::new(route_info()));
    exchange
}

pub(crate) fn route_info() -> RouteInfo {
    RouteInfo {
        upstream: None,
        must_record: false,
        id: Id::parse("r1").unwrap(),
        name: Some("first".into()),
        labels: Labels::new(),
        service: None,
        service_name: None,
        paths: vec!["/*".into()],
        hosts: Vec::new(),
        plugins: Vec::new(),
    }
}

/// The reply of a hook that must have given one.
pub(crate) fn reply(flow: Flow) -> Reply {
    match flow {
        Flow::Reply(reply) => *reply,
        Flow::Next => panic!("the hook let the exchange pass"),
    }
}
