//! `Chain`: the hooks of several plugins in running order, one slice a phase.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;

use super::{
    Access, Answered, BodyFilters, Encode, Exchange, Expr, Fault, Flow, Forward, Hooks, Log, Reply,
    ResponseBody, ResponseHead, Rewrite, Taken,
};
use crate::model::{Invalid, PluginMeta};

/// One compiled plugin with what its `_meta` says, ready for a place in chains. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Link {
    plugin: &'static str,
    priority: i32,
    hooks: Hooks,
    disabled: bool,
    guard: Option<Arc<Guard>>,
    authenticates: bool,
}

/// What stands around a plugin's hooks. Most plugins have none.
#[derive(Debug, Default)]
struct Guard {
    /// Runs the plugin only where this holds. Asked once an exchange, before the plugin's first hook.
    filter: Option<Expr>,
    /// In place of the body of the plugin's own refusals.
    error_response: Option<ErrorResponse>,
    /// Stands back on routes that have the plugin themselves.
    prefers_route: Option<&'static str>,
}

#[derive(Clone, Debug)]
struct ErrorResponse {
    content_type: &'static str,
    body: Bytes,
}

impl Link {
    /// A plugin's hooks with its `_meta`.
    ///
    /// APISIX lets a plugin run when its `_meta.filter` fails. Here a filter that could fail is refused, so that none can.
    ///
    /// # Errors
    /// `_meta.filter` is no expression, or `_meta.error_response` neither text nor object.
    pub fn new(
        plugin: &'static str,
        priority: i32,
        meta: Option<&PluginMeta>,
        hooks: Hooks,
    ) -> Result<Self, Invalid> {
        let mut link =
            Self { plugin, priority, hooks, disabled: false, guard: None, authenticates: false };
        let Some(meta) = meta else { return Ok(link) };
        link.disabled = meta.disable;
        link.priority = meta.priority.unwrap_or(priority);
        let filter = meta.filter.as_ref().map(Expr::parse).transpose();
        let filter = filter.map_err(|why| Invalid::new(format!("_meta.filter: {why}")))?;
        let error_response = meta.error_response.as_ref().map(ErrorResponse::new).transpose()?;
        if filter.is_some() || error_response.is_some() {
            link.guard = Some(Arc::new(Guard { filter, error_response, prefers_route: None }));
        }
        Ok(link)
    }

    /// Marks a plugin that finds consumers.
    #[must_use]
    pub fn authenticating(self) -> Self {
        Self { authenticates: true, ..self }
    }

    /// Marks a link of a global rule that stands back on routes that have the plugin themselves.
    #[must_use]
    pub fn preferring_route(self) -> Self {
        let guard = self.guard.as_deref();
        let guard = Guard {
            filter: guard.and_then(|guard| guard.filter.clone()),
            error_response: guard.and_then(|guard| guard.error_response.clone()),
            prefers_route: Some(self.plugin),
        };
        Self { guard: Some(Arc::new(guard)), ..self }
    }

    /// The plugin's name.
    pub fn plugin(&self) -> &'static str {
        self.plugin
    }

    /// Does it find consumers?
    pub fn authenticates(&self) -> bool {
        self.authenticates && !self.disabled
    }

    /// Is it left out of chains? It still takes the place of a less particular setting of the same plugin.
    pub fn is_disabled(&self) -> bool {
        self.disabled
    }
}

impl ErrorResponse {
    fn new(value: &Value) -> Result<Self, Invalid> {
        match value {
            Value::String(text) => {
                Ok(Self { content_type: "text/plain; charset=utf-8", body: text.clone().into() })
            }
            Value::Object(_) => {
                Ok(Self { content_type: "application/json", body: format!("{value}\n").into() })
            }
            _ => Err(Invalid::new("_meta.error_response is a text or an object")),
        }
    }
}

struct Step<H: ?Sized> {
    hook: Arc<H>,
    plugin: &'static str,
    guard: Option<Arc<Guard>>,
}

impl<H: ?Sized> Step<H> {
    fn applies(&self, exchange: &mut Exchange) -> bool {
        let Some(guard) = &self.guard else { return true };
        !guard.stands_back(exchange)
            && guard.filter.as_ref().is_none_or(|filter| exchange.judge(filter))
    }

    /// For phases that only look: the answer that was given first, or the present one.
    fn applied(&self, exchange: &Exchange) -> bool {
        let Some(guard) = &self.guard else { return true };
        !guard.stands_back(exchange)
            && guard.filter.as_ref().is_none_or(|filter| exchange.judged(filter))
    }

    /// The plugin's own refusal, with the operator's body where one is set.
    fn dress(&self, mut reply: Box<Reply>) -> Flow {
        let error = self.guard.as_ref().and_then(|guard| guard.error_response.as_ref());
        if let Some(error) = error.filter(|_| reply.status >= 400 && !reply.is_kept) {
            reply.body = error.body.clone();
            reply.fields.retain(|(name, _)| !name.eq_ignore_ascii_case("content-type"));
            reply.fields.push(("Content-Type".into(), error.content_type.into()));
        }
        Flow::Reply(reply)
    }
}

impl Guard {
    fn stands_back(&self, exchange: &Exchange) -> bool {
        self.prefers_route.is_some_and(|plugin| {
            exchange.route.as_ref().is_some_and(|route| route.plugins.contains(&plugin))
        })
    }
}

type Steps<H> = Box<[Step<H>]>;

/// The hooks of several plugins, each phase in its running order: higher priority first, equal ones by name.
///
/// A phase without hooks is an empty slice: `has_…` says so, and nothing is awaited, wrapped or looked up.
#[derive(Default)]
pub struct Chain {
    rewrite: Steps<dyn Rewrite>,
    access: Steps<dyn Access>,
    forward: Steps<dyn Forward>,
    answered: Steps<dyn Answered>,
    response_head: Steps<dyn ResponseHead>,
    response_body: Steps<dyn ResponseBody>,
    encode: Steps<dyn Encode>,
    log: Steps<dyn Log>,
    plugins: Box<[&'static str]>,
    authenticates: bool,
    reads_body: bool,
    asks_within: bool,
}

impl std::fmt::Debug for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Chain").field(&self.plugins).finish()
    }
}

macro_rules! asking_phase {
    ($phase:ident, $has:ident, $what:literal) => {
        #[doc = concat!("Is there a hook for ", $what, "?")]
        pub fn $has(&self) -> bool {
            !self.$phase.is_empty()
        }

        #[doc = concat!("Runs the hooks for ", $what, " until one answers.")]
        ///
        /// # Errors
        /// What a hook says, with its plugin's name in the cause.
        pub async fn $phase(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
            for step in &self.$phase {
                if !step.applies(exchange) {
                    continue;
                }
                match step.hook.$phase(exchange).await {
                    Ok(Flow::Next) => {}
                    Ok(Flow::Reply(reply)) => return Ok(step.dress(reply)),
                    Err(fault) => return Err(fault.of_plugin(step.plugin)),
                }
            }
            Ok(Flow::Next)
        }
    };
}

impl Chain {
    /// Sorts links into phases; disabled ones are left out.
    pub fn new(links: impl IntoIterator<Item = Link>) -> Self {
        let mut links: Vec<Link> = links.into_iter().filter(|link| !link.disabled).collect();
        links.sort_by(|a, b| b.priority.cmp(&a.priority).then_with(|| a.plugin.cmp(b.plugin)));
        Self {
            rewrite: steps(&links, |link| link.hooks.rewrite.as_ref()),
            access: steps(&links, |link| link.hooks.access.as_ref()),
            forward: steps(&links, |link| link.hooks.forward.as_ref()),
            answered: steps(&links, |link| link.hooks.answered.as_ref()),
            response_head: steps(&links, |link| link.hooks.response_head.as_ref()),
            response_body: steps(&links, |link| link.hooks.response_body.as_ref()),
            encode: steps(&links, |link| link.hooks.encode.as_ref()),
            log: steps(&links, |link| link.hooks.log.as_ref()),
            plugins: links.iter().map(|link| link.plugin).collect(),
            authenticates: links.iter().any(|link| link.authenticates),
            reads_body: links.iter().any(|link| link.hooks.reads_body),
            asks_within: links.iter().any(|link| link.hooks.asks_within),
        }
    }

    /// The plugins, in running order.
    pub fn plugins(&self) -> &[&'static str] {
        &self.plugins
    }

    /// Is there a plugin that finds consumers? Without one there is nothing to merge after `rewrite`.
    pub fn authenticates(&self) -> bool {
        self.authenticates
    }

    /// May one of its plugins ask for the request's body?
    pub fn reads_body(&self) -> bool {
        self.reads_body
    }

    /// May one of its plugins ask further requests in the caller's name?
    pub fn asks_within(&self) -> bool {
        self.asks_within
    }

    asking_phase!(rewrite, has_rewrite, "`rewrite`");
    asking_phase!(access, has_access, "`access`");
    asking_phase!(forward, has_forward, "`forward`");

    /// Is there a hook for what an upstream has answered?
    pub fn has_answered(&self) -> bool {
        !self.answered.is_empty()
    }

    /// Shows the plugins what the upstream has answered. `Some` is the answer in its place; who watches the body is added.
    pub fn answered(
        &self,
        exchange: &mut Exchange,
        bodies: &mut BodyFilters,
    ) -> Option<Box<Reply>> {
        for step in &self.answered {
            if !step.applied(exchange) {
                continue;
            }
            match step.hook.answered(exchange) {
                Taken::Passes => {}
                Taken::Watched(watch) => bodies.watch(watch),
                Taken::Replaced(reply) => return Some(reply),
            }
        }
        None
    }

    /// Tells the plugins that the upstream has not answered. `Some` is the answer that there is nevertheless.
    pub fn failed(&self, exchange: &mut Exchange, fault: &Fault) -> Option<Box<Reply>> {
        self.answered.iter().find_map(|step| match step.applied(exchange) {
            true => step.hook.failed(exchange, fault),
            false => None,
        })
    }

    /// Is there a hook for the response's head?
    pub fn has_response_head(&self) -> bool {
        !self.response_head.is_empty()
    }

    /// Runs the hooks for the response's head, all of them.
    ///
    /// # Errors
    /// The first hook that cannot serve the response, with its plugin's name in the cause.
    pub fn response_head(&self, exchange: &mut Exchange) -> Result<(), Fault> {
        for step in &self.response_head {
            if step.applies(exchange) {
                step.hook.response_head(exchange).map_err(|fault| fault.of_plugin(step.plugin))?;
            }
        }
        Ok(())
    }

    /// May a plugin want to filter bodies?
    pub fn has_response_body(&self) -> bool {
        !self.response_body.is_empty()
    }

    /// Collects the filters for this response's body.
    pub fn filters(&self, exchange: &Exchange, filters: &mut BodyFilters) {
        for step in &self.response_body {
            if step.applied(exchange)
                && let Some(filter) = step.hook.filter(exchange)
            {
                filters.add(filter);
            }
        }
    }

    /// Adds filters that give the body another coding; they come behind all others.
    pub fn encode(&self, exchange: &mut Exchange, filters: &mut BodyFilters) {
        for step in &self.encode {
            if step.applies(exchange)
                && let Some(filter) = step.hook.encode(exchange)
            {
                filters.add(filter);
            }
        }
    }

    /// Is there a hook for the end?
    pub fn has_log(&self) -> bool {
        !self.log.is_empty()
    }

    /// Tells the plugins that the exchange is over.
    pub fn log(&self, exchange: &Exchange) {
        for step in &self.log {
            if step.applied(exchange) {
                step.hook.log(exchange);
            }
        }
    }
}

fn steps<H: ?Sized>(
    links: &[Link],
    hook: impl for<'a> Fn(&'a Link) -> Option<&'a Arc<H>>,
) -> Steps<H> {
    let step = |link: &Link| {
        let hook = hook(link)?.clone();
        Some(Step { hook, plugin: link.plugin, guard: link.guard.clone() })
    };
    links.iter().filter_map(step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::tests::{exchange, reply};
    use async_trait::async_trait;
    use serde_json::json;

    /// Writes its name into the request wherever it runs, and answers where it shall.
    struct Mark(&'static str, Option<u16>);

    #[async_trait]
    impl Rewrite for Mark {
        async fn rewrite(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
            exchange.request.append("ran", self.0.as_bytes());
            Ok(match self.1 {
                Some(status) => Flow::json(status, &json!({"by": self.0})),
                None => Flow::Next,
            })
        }
    }
    #[async_trait]
    impl Access for Mark {
        async fn access(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
            self.rewrite(exchange).await
        }
    }
    impl ResponseHead for Mark {
        fn response_head(&self, exchange: &mut Exchange) -> Result<(), Fault> {
            exchange.response.append("ran", self.0.as_bytes());
            if self.0 == "bad" { Err(Fault::gateway("no", "why")) } else { Ok(()) }
        }
    }

    fn link(name: &'static str, priority: i32, meta: Value) -> Link {
        let hooks = Hooks::of(Mark(name, None)).rewrite().access().response_head().done();
        let meta: PluginMeta = serde_json::from_value(meta).unwrap();
        Link::new(name, priority, Some(&meta), hooks).unwrap()
    }

    fn ran(exchange: &Exchange) -> Vec<&str> {
        exchange.request.all("ran").map(|name| std::str::from_utf8(name).unwrap()).collect()
    }

    #[tokio::test]
    async fn higher_priority_runs_first_meta_sorts_anew_and_disabled_ones_stay_out() {
        let chain = Chain::new([
            link("low", 1, json!({})),
            link("out", 50, json!({"disable": true})),
            link("high", 10, json!({})),
            link("raised", 0, json!({"priority": 99})),
            link("b-tie", 5, json!({})),
            link("a-tie", 5, json!({})),
        ]);
        let mut exchange = exchange("GET", "/", "h");
        assert!(matches!(chain.rewrite(&mut exchange).await.unwrap(), Flow::Next));
        assert_eq!(ran(&exchange), ["raised", "high", "a-tie", "b-tie", "low"]);
        assert_eq!(chain.plugins(), ["raised", "high", "a-tie", "b-tie", "low"]);
        assert!(chain.has_access() && !chain.has_forward() && !chain.has_log());
    }

    #[tokio::test]
    async fn the_first_reply_ends_a_phase_and_wears_the_operators_body() {
        let answer = |meta: Value| {
            let hooks = Hooks::of(Mark("stop", Some(403))).access().done();
            let meta: PluginMeta = serde_json::from_value(meta).unwrap();
            Chain::new([
                Link::new("stop", 5, Some(&meta), hooks).unwrap(),
                link("after", 1, json!({})),
            ])
        };
        for (meta, body) in [
            (json!({}), "{\"by\":\"stop\"}\n"),
            (json!({"error_response": {"code": 7}}), "{\"code\":7}\n"),
            (json!({"error_response": "go away"}), "go away"),
        ] {
            let mut exchange = exchange("GET", "/", "h");
            let reply = reply(answer(meta).access(&mut exchange).await.unwrap());
            assert_eq!((reply.status, &reply.body[..]), (403, body.as_bytes()));
            assert_eq!(ran(&exchange), ["stop"]);
        }
    }

    #[tokio::test]
    async fn a_filter_is_asked_once_and_its_answer_holds_for_later_phases() {
        let chain = Chain::new([
            link("yes", 2, json!({"filter": [["arg_a", "==", "1"], ["status", "==", null]]})),
            link("no", 1, json!({"filter": [["arg_a", "==", "2"]]})),
        ]);
        let mut exchange = exchange("GET", "/?a=1", "h");
        chain.rewrite(&mut exchange).await.unwrap();
        exchange.response.set_status(200);
        chain.response_head(&mut exchange).unwrap();
        assert_eq!(ran(&exchange), ["yes"]);
        assert_eq!(exchange.response.all("ran").collect::<Vec<_>>(), [b"yes"]);
        let meta = PluginMeta { filter: Some(json!(["x"])), ..PluginMeta::default() };
        assert!(Link::new("p", 1, Some(&meta), Hooks::none()).is_err());
    }

    #[tokio::test]
    async fn a_link_that_prefers_the_route_stands_back_where_the_route_has_the_plugin() {
        let chain = Chain::new([link("twice", 2, json!({})).preferring_route()]);
        let mut here = exchange("GET", "/", "h");
        chain.access(&mut here).await.unwrap();
        assert_eq!(ran(&here), ["twice"]);
        let mut there = exchange("GET", "/", "h");
        let mut info = crate::pipeline::tests::route_info();
        info.plugins.push("twice");
        there.route = Some(Arc::new(info));
        chain.access(&mut there).await.unwrap();
        assert!(ran(&there).is_empty());
    }

    #[test]
    fn a_fault_names_its_plugin() {
        let chain = Chain::new([link("bad", 2, json!({})), link("own", 1, json!({}))]);
        let mut exchange = exchange("GET", "/", "h");
        assert_eq!(chain.response_head(&mut exchange).unwrap_err().cause, "bad: why");
    }
}
