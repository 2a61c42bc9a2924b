"""The measuring half of run.sh. Everything listens on 127.0.0.1; everything that is started is stopped again."""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import time

import memory
import tables
import wardgate
from machine import OUT, Children, Cores, Failed, Load, cpu_ms, log_of, make_certificates, rss_kib
from peers import BODY_SIZE, LARGE_SIZE, OTHERS, App

TOPOLOGIES = {
    "A": "client > outbound > mTLS > inbound > app, HTTP/1.1 (both proxies together)",
    "B": "mTLS client > inbound > app, HTTP/1.1",
    "C": "client > ingress > app, plain HTTP/1.1",
    "D": "new mTLS connections at the inbound proxy, one request each",
    "E": "one body of 100 MiB through A",
    "F": "gRPC, unary, through A: 8 connections x 8 streams",
    "G": "HTTP/2 GET through A: 8 connections x 8 streams",
    "I": "idle mTLS connections held at the inbound proxy",
}
# Debian's nginx 1.22 keeps no HTTP/2 connection to the next hop busy with more than one stream, and stalls under load.
KNOWN_FAILURES = {("nginx", "F")}


def main():
    options = arguments()
    OUT.mkdir(exist_ok=True)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    children = Children()
    try:
        certificates = make_certificates(OUT / "certificates")
        app = App(children, Cores(max(options.workers)).load)
        if options.memory or options.churn:
            return memory.main(options, children, app, certificates)
        cells, failures = [], []
        for topology in options.topologies:
            measure(topology, options, children, app, certificates, cells, failures)
    except Failed as failure:
        sys.exit(f"\n{failure}")
    finally:
        children.stop()
    tables.show(cells, failures, options, TOPOLOGIES)
    report = {"options": {key: value for key, value in vars(options).items() if key != "contestants"},
              "cells": cells, "failures": failures}
    (OUT / "results.json").write_text(json.dumps(report, indent=1))
    if options.json:
        with open(options.json, "w") as file:
            json.dump(report, file, indent=1)
    if any((failure["peer"], failure["topology"]) not in KNOWN_FAILURES for failure in failures):
        sys.exit(1)


def arguments():
    parser = argparse.ArgumentParser(prog="run.sh", description=__doc__)
    parser.add_argument("--topologies", default="".join(TOPOLOGIES), metavar="A,B", help="which of ABCDEFGI (default all)")
    parser.add_argument("--only", metavar="NAMES", help="of nginx,haproxy,envoy,relay,wardgate (default all that are there but relay)")
    parser.add_argument("--rounds", type=int, help="interleaved rounds (default 5)")
    parser.add_argument("--seconds", type=float, help="length of one cell (default 3)")
    parser.add_argument("--quick", action="store_true", help="2 rounds of 1 s: does it work, and about how fast")
    parser.add_argument("--connections", type=int, default=32, help="connections at saturation in A, B, C (default 32)")
    parser.add_argument("--rate", type=int, default=1000, help="requests per second at fixed rate in A; 0 leaves it out (default 1000)")
    parser.add_argument("--idle", type=int, help="connections held in I (default 5000)")
    parser.add_argument("--json", metavar="FILE", help="all cells, as out/results.json has them")
    ours = parser.add_argument_group("variants of ours, each beside the plain one in the same rounds")
    ours.add_argument("--routes", default="1", metavar="1,10000", help="routes loaded")
    ours.add_argument("--plugins", default="0", metavar="0,5,10,keyed", help="plugins on the route, those beyond 5 in a global rule; keyed: key-auth, limit-count, prometheus")
    ours.add_argument("--workers", default="1", metavar="1,2", help="worker threads")
    ours.add_argument("--audit", default="on", metavar="on,each,off", help="allows aggregated, each with a record of its own, or not recorded")
    ours.add_argument("--against", action="append", default=[], metavar="NAME=BINARY", help="another binary of ours beside it")
    extra = parser.add_argument_group("memory of ours (README.md)")
    extra.add_argument("--memory", action="store_true", help="what a connection, a route, a pooled connection and a worker cost")
    extra.add_argument("--churn", type=float, default=0, metavar="SECONDS", help="connections and changes come and go; does RSS grow?")
    options = parser.parse_args()
    options.topologies = [letter for letter in options.topologies.upper() if letter != ","]
    unknown = [letter for letter in options.topologies if letter not in TOPOLOGIES]
    if unknown:
        parser.error(f"no such topology: {', '.join(unknown)}; there are {', '.join(TOPOLOGIES)}")
    options.rounds = options.rounds or (2 if options.quick else 5)
    options.seconds = options.seconds or (1 if options.quick else 3)
    options.idle = options.idle or (1000 if options.quick else 5000)
    for key in ("routes", "plugins", "workers"):
        values = getattr(options, key).split(",")
        setattr(options, key, [value if (key, value) == ("plugins", "keyed") else int(value) for value in values])
    if "keyed" in options.plugins and set(options.topologies) - {"A", "B", "C"}:
        parser.error("--plugins keyed: the load of A, B and C alone carries the key (--topologies A,B,C)")
    # All contestants get the same requests, so that what is compared is what they do with them.
    options.path = "/bench?apikey=bench-key" if "keyed" in options.plugins else "/bench"
    options.audit = options.audit.split(",")
    if set(options.audit) - {"on", "each", "off"}:
        parser.error("--audit: on (allows are aggregated), each, or off (what is refused alone is recorded)")
    options.against = [pair.split("=", 1) for pair in options.against]
    wanted = options.only.split(",") if options.only else ["nginx", "haproxy", "envoy", "wardgate"]
    if set(wanted) - {*OTHERS, "wardgate"}:
        parser.error(f"--only: of {', '.join(OTHERS)}, wardgate")
    options.contestants = [peer for name, peer in OTHERS.items() if name in wanted and peer.is_there()]
    options.contestants += wardgate.from_environment(options) if "wardgate" in wanted else []
    return options


# ---------------------------------------------------------------- measuring


def measure(topology, options, children, app, certificates, cells, failures):
    """All rounds of one topology, its contestants side by side."""
    stands = {}

    def drop(peer, failure):
        logs = "\n".join(log_of(child) for child in stands[peer].processes) if peer in stands else ""
        print(f"\n{topology} {peer.name} FAILED: {failure}\n{logs}\n", file=sys.stderr, flush=True)
        failures.append({"topology": topology, "peer": peer.name, "failure": str(failure)})
        if peer in stands:
            children.stop(stands.pop(peer).processes)

    for peer in options.contestants:
        try:
            stand = begin(peer, topology, children, app, certificates)
            if stand:
                stands[peer] = stand
                stand.wait()
                stand.rest_mib = rss_at_rest(stand)
        except Failed as failure:
            drop(peer, failure)
    for number in range(1, options.rounds + 1):
        # Another order each round, so that nobody always runs after the same neighbour.
        order = list(stands) if number % 2 else list(stands)[::-1]
        for peer in order:
            cores = Cores(getattr(peer, "workers", 1))
            try:
                cell = MEASURES[topology](stands[peer], options, cores, certificates)
            except Failed as failure:
                drop(peer, failure)
                continue
            cell = {"round": number, "topology": topology, "peer": peer.name, **cell,
                    "rss_mib": rss_kib(stands[peer].pids) / 1024, "rest_mib": stands[peer].rest_mib}
            cells.append(cell)
            print(f"{topology} round {number} {peer.name:24}" +
                  "".join(f"  {name} {value:.1f}" for name, value in cell.items() if isinstance(value, float)), flush=True)
        if topology == "I":
            break  # memory does not depend on the machine's mood
    children.stop([process for stand in stands.values() for process in stand.processes])


def begin(peer, topology, children, app, certificates):
    cores = Cores(getattr(peer, "workers", 1)).proxy
    if topology == "C":
        return peer.plain(children, app, certificates, cores)
    if topology in "BDI":
        return peer.inbound(children, app, certificates, cores) if peer.inbound else None
    return peer.mesh(children, app, certificates, cores, {"F": "grpc", "G": "h2"}.get(topology, "h1"))


def rss_at_rest(stand):
    """Of one proxy, before it has carried anything: the last started, which is the inbound one in the mesh."""
    time.sleep(0.7)  # nginx opens its port before it has a worker
    return rss_kib(stand.pids[-1:]) / 1024


def over_mtls(certificates):
    return {"certificates": certificates, "client": "shop", "server": "billing.bench.local"}


def counted(stand, work):
    """The load's report, and the proxies' CPU while it ran."""
    before = cpu_ms(stand.pids)
    report = work()
    used = cpu_ms(stand.pids) - before
    return report, used


def kept(stand, options, cores, port, **more):
    load = Load("keep", cores.load, to=f"127.0.0.1:{port}", connections=options.connections, seconds=options.seconds,
                size=BODY_SIZE, path=options.path, **more).ready()
    report, used = counted(stand, load.go)
    return {
        "cpu_ms_per_1000": used * 1000 / report["requests"],
        "rps": report["requests"] / report["seconds"],
        "p50_us": float(report["p50_us"]),
        "p99_us": float(report["p99_us"]),
    }


def at_fixed_rate(stand, options, cores):
    load = Load("rate", cores.load, to=f"127.0.0.1:{stand.door}", connections=10, rate=options.rate,
                seconds=max(2, options.seconds), size=BODY_SIZE, path=options.path).ready()
    report, used = counted(stand, load.go)
    return {
        "rate_cpu_ms_per_1000": used * 1000 / report["requests"],
        "rate_p50_us": float(report["p50_us"]),
        "rate_p90_us": float(report["p90_us"]),
        "rate_p99_us": float(report["p99_us"]),
    }


def mesh_hop(stand, options, cores, _certificates):
    cell = kept(stand, options, cores, stand.door)
    return cell | (at_fixed_rate(stand, options, cores) if options.rate else {})


def ingress_mtls(stand, options, cores, certificates):
    return kept(stand, options, cores, stand.inner, **over_mtls(certificates))


def plain(stand, options, cores, _certificates):
    return kept(stand, options, cores, stand.door)


def handshakes(stand, options, cores, certificates):
    def connect(seconds):
        return Load("fresh", cores.load, to=f"127.0.0.1:{stand.inner}", connections=8, seconds=seconds,
                    size=BODY_SIZE, **over_mtls(certificates)).result()

    connect(0.3)
    report, used = counted(stand, lambda: connect(options.seconds))
    return {"cpu_ms_per_1000": used * 1000 / report["requests"], "rps": report["requests"] / report["seconds"],
            "p50_us": float(report["p50_us"]), "p99_us": float(report["p99_us"])}


def bulk(stand, options, cores, _certificates):
    bodies = max(1, round(options.seconds * 2))
    load = Load("keep", cores.load, to=f"127.0.0.1:{stand.door}", connections=1, requests=bodies, path="/large",
                size=LARGE_SIZE).ready()
    report, used = counted(stand, load.go)
    return {"cpu_ms_per_body": used / report["requests"],
            "mib_per_second": report["requests"] * LARGE_SIZE / 2**20 / report["seconds"]}


def http2(stand, options, cores, extra=(), size=BODY_SIZE):
    """Over h2load: every stream must have ended well, with exactly the bytes that the app sent."""

    def run(count):
        words = ["taskset", "-c", cores.load, "h2load", "-t", "1", "-c", "8", "-m", "8", "-n", str(count), *extra,
                 f"http://127.0.0.1:{stand.door}/bench"]
        try:
            text = subprocess.run(words, capture_output=True, text=True, timeout=20 + options.seconds * 5).stdout
        except subprocess.TimeoutExpired:
            raise Failed(f"{count} requests over HTTP/2 did not end: it stalls") from None
        succeeded = re.search(r"status codes: (\d+) 2xx, 0 3xx, 0 4xx, 0 5xx", text)
        data = re.search(r"\((\d+)\) data", text)
        if not succeeded or int(succeeded.group(1)) != count or not data or int(data.group(1)) != count * size:
            raise Failed(f"expected {count} answers of {size} bytes over HTTP/2:\n{text}")
        return float(re.search(r"finished in [\d.]+\w+, ([\d.]+) req/s", text).group(1))

    run(640)  # pools fill
    pace = run(3200)
    count = max(640, int(pace * options.seconds) // 64 * 64)
    rps, used = counted(stand, lambda: run(count))
    return {"cpu_ms_per_1000": used * 1000 / count, "rps": rps}


def grpc(stand, options, cores, _certificates):
    question = OUT / "question"
    question.write_bytes(b"\0\0\0\0\x10" + b"q" * 16)
    return http2(stand, options, cores, ["-d", str(question), "-H", "content-type: application/grpc", "-H", "te: trailers"],
                 BODY_SIZE + 5)


def get(stand, options, cores, _certificates):
    return http2(stand, options, cores)


def idle(stand, options, cores, certificates):
    cost = memory.of_idle_connections(stand, options.idle, cores, over_mtls(certificates))
    return {"kib_per_connection": cost}


MEASURES = {"A": mesh_hop, "B": ingress_mtls, "C": plain, "D": handshakes, "E": bulk, "F": grpc, "G": get, "I": idle}

if __name__ == "__main__":
    os.chdir(OUT.parent)
    main()
