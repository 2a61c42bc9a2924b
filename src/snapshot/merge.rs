//! Which plugin settings win: consumer, group, route, plugin config, service. Whole settings are replaced, never fields.

use std::collections::BTreeMap;

use super::compiled::Merged;
use crate::pipeline::{Chain, Link};

/// One resource's plugins, compiled, by name. A disabled one is among them: it cancels a less particular one.
pub(super) type Links = BTreeMap<&'static str, Link>;

/// A route's own plugins before its plugin config's before its service's.
pub(super) fn of_route(own: &Links, config: Option<&Links>, service: Option<&Links>) -> Links {
    let mut merged = service.cloned().unwrap_or_default();
    merged.extend(config.into_iter().flatten().map(|(name, link)| (*name, link.clone())));
    merged.extend(own.iter().map(|(name, link)| (*name, link.clone())));
    merged
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
        let route = of_route(&own, Some(&config), Some(&service));
        let chain = Chain::new(route.values().cloned());
        // By name: a, b, c, d; e is disabled on the route, and so is the service's.
        assert_eq!(run(&chain, "access").await, ["service", "config", "route", "route"]);

        let group = links("group", &["b", "d", "f"]);
        let consumer = links("consumer", &["d", "g"]);
        let merged = with_consumer(&route, &consumer, Some(&group));
        assert_eq!(
            run(&merged.chain, "access").await,
            ["service", "group", "route", "consumer", "group", "consumer"]
        );
        // f and g came with the consumer alone: only they rewrite late.
        assert_eq!(run(&merged.late, "rewrite").await, ["group", "consumer"]);
    }
}
