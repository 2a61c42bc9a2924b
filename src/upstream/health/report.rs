//! What is known of nodes, for operators: rows as APISIX's `/v1/healthcheck` has them, and metrics.

use serde::Serialize;

use super::condition::Status;
use crate::observe::{MetricKind, Registry};
use crate::upstream::breaker::Limit;
use crate::upstream::cluster_state::ClusterState;
use crate::upstream::{Cluster, Endpoint, Roster};

/// What was counted of a node since its last change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NodeCounter {
    /// Successes one after the other.
    pub success: u8,
    /// Bad statuses.
    pub http_failure: u8,
    /// Failed connections.
    pub tcp_failure: u8,
    /// Late answers.
    pub timeout_failure: u8,
}

/// One node of an upstream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeReport {
    /// The node's address.
    pub ip: String,
    /// The port that is probed.
    pub port: u16,
    /// The node as it is written.
    pub hostname: String,
    /// By its checks.
    pub status: Status,
    /// What it rests on.
    pub counter: NodeCounter,
    /// Is it taken out by outlier detection? Ours, not APISIX's.
    pub ejected: bool,
}

/// One upstream that is checked, in the shape of APISIX's `/v1/healthcheck`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HealthReport {
    /// The resource: `/apisix/upstreams/1`.
    pub name: String,
    /// What its probes speak: http, https or tcp.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Its nodes.
    pub nodes: Vec<NodeReport>,
}

impl HealthReport {
    fn of(cluster: &Cluster) -> Option<Self> {
        let checks = cluster.resilience()?.active_checks()?;
        let node = |endpoint: &std::sync::Arc<Endpoint>| {
            let counters = endpoint.condition().counters();
            NodeReport {
                ip: endpoint.address().ip().to_string(),
                port: checks.port.unwrap_or(endpoint.port),
                hostname: endpoint.host.clone(),
                status: endpoint.condition().status(),
                counter: NodeCounter {
                    success: counters.success,
                    http_failure: counters.http_failure,
                    tcp_failure: counters.tcp_failure,
                    timeout_failure: counters.timeout,
                },
                ejected: endpoint.condition().is_ejected(),
            }
        };
        Some(Self {
            name: format!("/apisix/{}", cluster.name),
            kind: checks.type_name(),
            nodes: cluster.endpoints().iter().map(node).collect(),
        })
    }

    /// Is it about this resource: `upstreams` and `1`?
    pub fn is_of(&self, kind: &str, id: &str) -> bool {
        let own = self.name.strip_prefix("/apisix/").and_then(|name| name.split_once('/'));
        own == Some((kind, id))
    }
}

impl Roster {
    /// The upstreams that are checked, by name, and how their nodes are.
    pub fn health(&self) -> Vec<HealthReport> {
        let states = self.held::<ClusterState>();
        let clusters = states.iter().filter_map(|state| state.newest());
        let mut reports: Vec<_> =
            clusters.filter_map(|cluster| HealthReport::of(&cluster)).collect();
        reports.sort_by(|a, b| a.name.cmp(&b.name));
        reports
    }

    /// Shows in `registry` how upstreams and their nodes are, whenever somebody looks.
    pub fn show(&self, registry: &Registry) {
        let name = "apisix_upstream_status";
        registry.describe(name, MetricKind::Gauge, "Upstream status from health check");
        let roster = self.clone();
        registry.gathered(name, MetricKind::Gauge, move |row| {
            for report in roster.health() {
                for node in &report.nodes {
                    let (ip, port) = (&node.ip, node.port.to_string());
                    let labels = [("name", &*report.name), ("ip", ip), ("port", &port)];
                    row(&labels, f64::from(u8::from(node.status.is_usable())));
                }
            }
        });
        for (name, kind, help, of) in FAMILIES {
            registry.describe(name, *kind, help);
            let roster = self.clone();
            registry.gathered(name, *kind, move |row| {
                for state in roster.held::<ClusterState>() {
                    of(&state, row);
                }
            });
        }
    }
}

/// Takes labels and the value.
type Row<'a> = &'a mut dyn FnMut(&[(&str, &str)], f64);
type Family = (&'static str, MetricKind, &'static str, fn(&ClusterState, Row<'_>));

const FAMILIES: &[Family] = &[
    (
        "wardgate_upstream_nodes",
        MetricKind::Gauge,
        "Nodes with a weight, by whether requests may go there.",
        |state, row| {
            let Some(cluster) = state.newest() else { return };
            let mut counts = [("usable", 0_u32), ("unhealthy", 0), ("ejected", 0)];
            for endpoint in cluster.endpoints().iter().filter(|endpoint| endpoint.weight > 0) {
                let condition = endpoint.condition();
                let at = match (condition.status().is_usable(), condition.is_ejected()) {
                    (true, false) => 0,
                    (false, _) => 1,
                    (true, true) => 2,
                };
                counts[at].1 += 1;
            }
            for (name, count) in counts {
                row(&[("upstream", &state.name), ("state", name)], f64::from(count));
            }
        },
    ),
    (
        "wardgate_upstream_under_way",
        MetricKind::Gauge,
        "What resilience.limits and the retry budget count.",
        |state, row| {
            let under_way = &state.under_way;
            for (name, count) in [
                ("connections", &under_way.connections),
                ("pending_requests", &under_way.pending),
                ("requests", &under_way.requests),
                ("retries", &under_way.retries),
            ] {
                let count = count.load(std::sync::atomic::Ordering::Relaxed);
                row(&[("upstream", &state.name), ("of", name)], f64::from(count));
            }
        },
    ),
    (
        "wardgate_upstream_overflows_total",
        MetricKind::Counter,
        "Requests that a limit of the upstream refused.",
        |state, row| {
            for (limit, count) in Limit::ALL.into_iter().zip(&state.counts.overflows) {
                row(&[("upstream", &state.name), ("limit", limit.name())], value(count));
            }
        },
    ),
    (
        "wardgate_upstream_retries_total",
        MetricKind::Counter,
        "Further attempts, and those that the budget refused.",
        |state, row| {
            let counts = &state.counts;
            let name = ("upstream", &*state.name);
            row(&[name, ("outcome", "begun")], value(&counts.retries));
            row(&[name, ("outcome", "over_budget")], value(&counts.retries_refused));
        },
    ),
    (
        "wardgate_upstream_hedges_total",
        MetricKind::Counter,
        "Attempts beside a slow one, and those that answered first.",
        |state, row| {
            let name = ("upstream", &*state.name);
            row(&[name, ("outcome", "begun")], value(&state.counts.hedges));
            row(&[name, ("outcome", "won")], value(&state.counts.hedges_won));
        },
    ),
    (
        "wardgate_upstream_ejections_total",
        MetricKind::Counter,
        "Nodes taken out by outlier detection, and those that max_ejection_percent left in.",
        |state, row| {
            let counts = &state.counts;
            let name = ("upstream", &*state.name);
            row(&[name, ("outcome", "ejected")], value(&counts.ejections));
            row(&[name, ("outcome", "left_in")], value(&counts.ejections_refused));
        },
    ),
    (
        "wardgate_upstream_probes_total",
        MetricKind::Counter,
        "Active checks, by whether there was an answer.",
        |state, row| {
            let [answered, failed] = &state.counts.probes;
            let name = ("upstream", &*state.name);
            row(&[name, ("outcome", "answered")], value(answered));
            row(&[name, ("outcome", "failed")], value(failed));
        },
    ),
    (
        "wardgate_upstream_health_changes_total",
        MetricKind::Counter,
        "How often a node became usable or unusable by its checks.",
        |state, row| {
            let [unusable, usable] = &state.counts.transitions;
            let name = ("upstream", &*state.name);
            row(&[name, ("to", "unhealthy")], value(unusable));
            row(&[name, ("to", "healthy")], value(usable));
        },
    ),
];

#[expect(clippy::cast_precision_loss, reason = "a metric's value")]
fn value(counter: &std::sync::atomic::AtomicU64) -> f64 {
    counter.load(std::sync::atomic::Ordering::Relaxed) as f64
}
