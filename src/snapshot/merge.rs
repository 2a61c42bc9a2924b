//! Which plugin settings win: consumer, group, route, plugin config, service. Whole settings are replaced, never fields.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use super::compiled::Merged;
use crate::pipeline::{Chain, Link};

/// One resource's plugins, compiled, by name. A disabled one is among them: it cancels a less particular one.
pub(super) type Links = BTreeMap<&'static str, Link>;

/// A set of plugins and the chain that they make. Clones share both: a hundred thousand routes that have no other plugins than
/// their service has, or none at all, hold them once.
#[derive(Clone, Debug)]
pub(super) struct Plugins {
    pub(super) links: Arc<Links>,
    pub(super) chain: Arc<Chain>,
}

impl Plugins {
    /// None at all.
    pub(super) fn none() -> Self {
        static NONE: LazyLock<Plugins> =
            LazyLock::new(|| Plugins { links: Arc::default(), chain: Arc::default() });
        NONE.clone()
    }
}

impl From<Links> for Plugins {
    fn from(links: Links) -> Self {
        if links.is_empty() {
            return Self::none();
        }
        let chain = Arc::new(Chain::new(links.values().cloned()));
        Self { links: Arc::new(links), chain }
    }
}

/// A route's own plugins before its plugin config's before its service's.
pub(super) fn of_route(
    own: &Plugins,
    config: Option<&Plugins>,
    service: Option<&Plugins>,
) -> Plugins {
    let sets = [service, config, Some(own)];
    let mut sets = sets.into_iter().flatten().filter(|set| !set.links.is_empty());
    let Some(least) = sets.next() else { return Plugins::none() };
    let mut merged: Option<Links> = None;
    for set in sets {
        let merged = merged.get_or_insert_with(|| Links::clone(&least.links));
        merged.extend(set.links.iter().map(|(name, link)| (*name, link.clone())));
    }
    merged.map_or_else(|| least.clone(), Plugins::from)
}

/// The consumer's own plugins before its group's before the route's.
///
/// What the consumer alone brings has not rewritten yet when the consumer is found: it does so late, in a chain of its own.
/// What the route has as well has run its `rewrite` with the route's settings; from `access` on the consumer's hold.
/// What carries a credential on a consumer is no plugin there.
pub(super) fn with_consumer(route: &Links, own: &Links, group: Option<&Links>) -> Merged {
    let mut brought: Links = group.cloned().unwrap_or_default();
    brought.extend(own.iter().map(|(name, link)| (*name, link.clone())));
    brought.retain(|_, link| !link.authenticates());
    let late = brought.iter().filter(|(name, _)| !route.contains_key(*name));
    let late = Chain::new(late.map(|(_, link)| link.clone()));
    let mut merged = route.clone();
    merged.extend(brought);
    Merged { chain: Chain::new(merged.into_values()), late }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::{Access, Exchange, Fault, Flow, Hooks, PluginMeta, Rewrite};
    use async_trait::async_trait;

    /// Says in the request whose settings it has.
    struct Tag(&'static str);
    #[async_trait]
    impl Rewrite for Tag {
        async fn rewrite(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
            exchange.request.append("rewrite", self.0.as_bytes());
            Ok(Flow::Next)
        }
    }
    #[async_trait]
    impl Access for Tag {
        async fn access(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
            exchange.request.append("access", self.0.as_bytes());
            Ok(Flow::Next)
        }
    }

    fn links(of: &'static str, plugins: &[&'static str]) -> Links {
        let link = |plugin: &'static str| {
            let name = plugin.trim_start_matches('-');
            let meta = PluginMeta { disable: name != plugin, ..PluginMeta::default() };
            let hooks = Hooks::of(Tag(of)).rewrite().access().done();
            (name, Link::new(name, 0, Some(&meta), hooks).unwrap())
        };
        plugins.iter().map(|plugin| link(plugin)).collect()
    }

    async fn run(chain: &Chain, phase: &str) -> Vec<String> {
        let mut exchange = crate::pipeline::tests::exchange("GET", "/", "h");
        if phase == "rewrite" {
            chain.rewrite(&mut exchange).await.unwrap();
        } else {
            chain.access(&mut exchange).await.unwrap();
        }
        let tags = exchange.request.all(phase);
        tags.map(|tag| String::from_utf8(tag.to_vec()).unwrap()).collect()
    }

    #[tokio::test]
    async fn consumer_beats_group_beats_route_beats_plugin_config_beats_service() {
        let service = links("service", &["a", "b", "c", "d", "e"]);
        let config = links("config", &["b", "c", "d"]);
        let own = links("route", &["c", "d", "-e"]);
        let [own, config, service] = [own, config, service].map(Plugins::from);
        let route = of_route(&own, Some(&config), Some(&service));
        // By name: a, b, c, d; e is disabled on the route, and so is the service's.
        assert_eq!(run(&route.chain, "access").await, ["service", "config", "route", "route"]);
        assert!(route.links.contains_key("e"), "to cancel a less particular one");

        let group = links("group", &["b", "d", "f"]);
        let consumer = links("consumer", &["d", "g"]);
        let merged = with_consumer(&route.links, &consumer, Some(&group));
        assert_eq!(
            run(&merged.chain, "access").await,
            ["service", "group", "route", "consumer", "group", "consumer"]
        );
        // f and g came with the consumer alone: only they rewrite late.
        assert_eq!(run(&merged.late, "rewrite").await, ["group", "consumer"]);
    }

    #[test]
    fn routes_with_no_plugins_but_their_services_share_them_with_it() {
        let service = Plugins::from(links("service", &["a", "b"]));
        let none = Plugins::from(Links::new());
        let shared = of_route(&none, Some(&none), Some(&service));
        assert!(Arc::ptr_eq(&shared.chain, &service.chain));
        assert!(Arc::ptr_eq(&shared.links, &service.links));
        let empty = of_route(&none, None, None);
        assert!(Arc::ptr_eq(&empty.chain, &Plugins::none().chain));
    }
}
