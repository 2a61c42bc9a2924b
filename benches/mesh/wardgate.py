"""Ours, with everything on that it has in earnest: identities verified, policy decided, decisions on file, metrics counted."""

import json
import os
import shutil
import time
import urllib.request

from machine import OUT, TRUST_DOMAIN, Cores, Failed, free_port, log_of
from peers import Sidecars

# What stands before many a service: who calls, how often, and what is counted of it. The key comes with each request, of all contestants.
KEYED = {
    "key-auth": {},
    "limit-count": {"count": 1000000000, "time_window": 3600, "key": "consumer_name", "rejected_code": 429},
    "prometheus": {},
}
CALLER = {"username": "bench", "plugins": {"key-auth": {"key": "bench-key"}}}
# Plugins as they stand on a route of a service, then the same number once more for all routes.
PLUGINS = {
    "request-id": {"include_in_response": False},
    "ip-restriction": {"whitelist": ["127.0.0.0/8"]},
    "limit-count": {"count": 1000000000, "time_window": 3600, "rejected_code": 429},
    "proxy-rewrite": {"headers": {"set": {"x-passed": "billing"}}},
    "response-rewrite": {"headers": {"set": {"x-served": "billing"}}},
}
EVERYWHERE = {
    "prometheus": {},
    "ip-restriction": {"blacklist": ["192.0.2.0/24"]},
    "limit-count": {"count": 1000000000, "time_window": 60, "rejected_code": 429},
    "proxy-rewrite": {"headers": {"set": {"x-global": "yes"}}},
    "response-rewrite": {"headers": {"set": {"x-global": "yes"}}},
}


class Wardgate:
    """One binary, and in what it differs from the plain case."""

    protocols = ("h1", "h2", "grpc")

    def __init__(self, binary, name="wardgate", routes=1, plugins=0, workers=1, audit="on", nodes=None, pool=320):
        self.binary, self.name = binary, name
        self.routes, self.plugins, self.workers, self.audit = routes, plugins, workers, audit
        # In place of the next hop's address, and connections kept to each.
        self.nodes, self.pool = nodes, pool

    def is_there(self):
        return self.binary

    def _start(self, children, name, role, cores, certificates, doors, resources):
        folder = OUT / f"{self.name}-{name}".replace(" ", "-")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        settings = {
            "role": role,
            "trust_domain": TRUST_DOMAIN,
            "state_dir": str(folder / "state"),
            "identity": {"source": "files", "certificate": f"{certificates}/{name}.pem",
                         "key": f"{certificates}/{name}.key", "bundle": f"{certificates}/bundle.pem"},
            "resources": str(folder / "resources.json"),
            "status": f"127.0.0.1:{free_port()}",
            "audit": {"file": str(folder / "audit.jsonl")},
            "decision_log": {"allows": {"on": "aggregated", "each": "each", "off": "none"}[self.audit]},
            "workers": self.workers,
            "limits": {"idle_seconds": 600},
            **doors,
        }
        self._furnish(resources)
        # JSON is YAML.
        (folder / "settings.yaml").write_text(json.dumps(settings, indent=2) + "\n")
        (folder / "resources.json").write_text(json.dumps(resources, indent=1))
        if self.workers > 1:
            cores = Cores(self.workers).proxy
        child = children.start(folder.name, [self.binary, "run", "-c", folder / "settings.yaml"], cores)
        child.until_ready = lambda: until_ready(child)
        child.folder, child.resources, child.status = folder, resources, settings["status"]
        return child

    def _furnish(self, resources):
        """Other routes beside the one that is used, and plugins."""
        used = resources["routes"][0]
        if self.plugins == "keyed":
            used["plugins"] = KEYED
            resources["consumers"] = [CALLER]
        elif self.plugins:
            used["plugins"] = dict(list(PLUGINS.items())[:self.plugins])
        if self.plugins != "keyed" and self.plugins > len(PLUGINS):
            chosen = list(EVERYWHERE.items())[:self.plugins - len(PLUGINS)]
            resources["global_rules"] = [{"id": "everywhere", "plugins": dict(chosen)}]
        resources["routes"] += other_routes(used, self.routes - 1)

    def inbound(self, children, app, certificates, cores, protocol="h1"):
        inner = free_port()
        scheme = "http" if protocol == "h1" else "grpc"
        process = self._start(
            children, "billing", "sidecar", cores, certificates,
            {"sidecar": {"app": f"{scheme}://127.0.0.1:{app.port(protocol)}", "inbound": f"127.0.0.1:{inner}",
                         "outbound": f"127.0.0.1:{free_port()}"}},
            {
                "routes": [{"id": "app", "uri": "/*", "workload_selector": {"listener": "inbound"}, "upstream_id": "app"}],
                "upstreams": [self._upstream("app", app.port(protocol), scheme)],
                "identity_policies": [{
                    "id": "billing-use", "action": "allow",
                    "rules": [{"from": {"principals": [f"spiffe://{TRUST_DOMAIN}/shop"]}, "to": {"methods": ["GET", "POST"]}}],
                }],
            })
        return Sidecars([process], inner=inner)

    def mesh(self, children, app, certificates, cores, protocol="h1"):
        inbound = self.inbound(children, app, certificates, cores, protocol)
        outbound = self.outbound(children, inbound.inner, certificates, cores, protocol)
        return Sidecars([*outbound.processes, *inbound.processes], door=outbound.door, inner=inbound.inner)

    def outbound(self, children, inner, certificates, cores, protocol="h1"):
        door = free_port()
        process = self._start(
            children, "shop", "sidecar", cores, certificates,
            {"sidecar": {"app": f"http://127.0.0.1:{free_port()}", "inbound": f"127.0.0.1:{free_port()}",
                         "outbound": f"127.0.0.1:{door}"}},
            {
                "routes": [{"id": "to-billing", "uri": "/*", "workload_selector": {"listener": "outbound"},
                            "upstream_id": "billing"}],
                "upstreams": [{
                    **self._upstream("billing", inner, "https" if protocol == "h1" else "grpcs"),
                    "tls": {"identity": "svid", "spiffe_ids": [f"spiffe://{TRUST_DOMAIN}/billing"]},
                }],
            })
        return Sidecars([process], door=door)

    def plain(self, children, app, certificates, cores):
        door = free_port()
        process = self._start(
            children, "ingress", "ingress", cores, certificates,
            {"ingress": {"http": f"127.0.0.1:{door}", "https": None}},
            {
                "routes": [{"id": "app", "uri": "/*", "upstream_id": "app"}],
                "upstreams": [self._upstream("app", app.h1, "http")],
            })
        return Sidecars([process], door=door)

    def _upstream(self, name, port, scheme):
        return {"id": name, "type": "roundrobin", "scheme": scheme, "nodes": self.nodes or {f"127.0.0.1:{port}": 1},
                "keepalive_pool": {"size": self.pool, "idle_timeout": 600, "requests": 1000000000}}


def until_ready(child):
    """A door is open before the first configuration is in force."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://{child.status}/status/ready", timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.02)
    raise Failed(f"{child.name} does not get ready:\n{log_of(child)}")


def other_routes(like, count):
    """Routes that other requests would find: some with a host of their own, some by path alone."""
    shared = {key: like[key] for key in ("workload_selector", "upstream_id") if key in like}
    for number in range(count):
        if number % 2:
            yield {"id": f"other-{number}", "uri": f"/other/{number}/*", **shared}
        else:
            yield {"id": f"other-{number}", "uri": "/api/*", "host": f"h{number}.example", **shared}


def from_environment(options):
    """The contestants of ours: the plain case, and one for each variant asked for."""
    binary = os.environ.get("WARDGATE", "")
    if not binary:
        return []
    found = [Wardgate(binary)]
    found += [Wardgate(path, name=f"wardgate {label}") for label, path in options.against]
    for key, plain in (("routes", 1), ("plugins", 0), ("workers", 1), ("audit", "on")):
        for value in getattr(options, key):
            if value != plain:
                found.append(Wardgate(binary, name=f"wardgate {key}={value}", **{key: value}))
    return found
