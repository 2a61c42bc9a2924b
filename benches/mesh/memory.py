"""What things cost in memory, and whether it stays.

Each figure is a difference between two states of a process that was warm before, divided by the number of things between them:
what the first one makes once for all is not the cost of one more.
"""

import json
import re
import shutil
import statistics
import time
from pathlib import Path

from machine import OUT, Cores, Failed, Load, descendants, free_port, make_certificates, rss_kib, wait_for_port
from peers import BODY_SIZE
from wardgate import Wardgate, from_environment


def parts_kib(pids):
    """RSS, and of it what is the process' own, not pages of its binary."""
    total = {"VmRSS": 0, "RssAnon": 0, "RssFile": 0}
    for root in pids:
        for pid in descendants(root):
            text = Path(f"/proc/{pid}/status").read_text()
            for name in total:
                total[name] += int(re.search(rf"{name}:\s+(\d+)", text).group(1))
    return total


def settled_rss(pids):
    """RSS when it does not fall any more: buffers of what has ended are given back after a while."""
    seen = rss_kib(pids)
    for _ in range(12):
        time.sleep(0.5)
        now = rss_kib(pids)
        if now >= seen - 64:
            return min(seen, now)
        seen = now
    return seen


def of_idle_connections(stand, count, cores, tls, port=None):
    """KiB that each of `count` held connections costs, each after one request."""
    to = f"127.0.0.1:{port or stand.inner}"
    Load("keep", cores.load, to=to, connections=64, requests=5, **tls).ready().go()
    before = settled_rss(stand.pids)
    load = Load("idle", cores.load, to=to, connections=count, **tls).ready()
    time.sleep(2)
    after = settled_rss(stand.pids)
    load.end()
    return (after - before) / count


def main(options, children, app, certificates):
    binaries = from_environment(options)
    if not binaries:
        raise Failed("--memory and --churn are about ours: WARDGATE names no binary")
    run = Figures(options, children, app, certificates, binaries[0].binary)
    if options.churn:
        run.churn(options.churn)
        return
    for figure in (run.at_rest, run.workers, run.idle_mtls, run.idle_plain, run.pooled_plain, run.pooled_mtls, run.under_way, run.routes):
        figure()
    print("\n| what | figure |\n|---|---:|")
    for what, figure in run.rows:
        print(f"| {what} | {figure} |")
    if options.json:
        Path(options.json).write_text(json.dumps(run.rows, indent=1))


class Slow:
    """An application that takes its time, in place of App."""

    def __init__(self, children, cores, seconds):
        self.h1 = free_port()
        self.process = children.start("app-slow", [Load.binary(), "slow", "--listen", f"127.0.0.1:{self.h1}",
                                                   "--seconds", seconds, "--size", BODY_SIZE], cores)
        wait_for_port(self.h1, self.process)

    def port(self, _protocol):
        return self.h1


class Figures:
    def __init__(self, options, children, app, certificates, binary):
        self.options, self.children, self.app, self.certificates, self.binary = options, children, app, certificates, binary
        self.cores = Cores()
        self.rows = []
        self.count = 1000 if options.quick else 5000
        self.tls = {"certificates": certificates, "client": "shop", "server": "billing.bench.local"}

    def told(self, what, figure):
        print(f"{what}: {figure}", flush=True)
        self.rows.append((what, figure))

    def start(self, shape="inbound", app=None, inner=None, **variant):
        peer = Wardgate(self.binary, **variant)
        # What an outbound proxy stands before is a port alone.
        stand = getattr(peer, shape)(self.children, app or (inner if inner else self.app), self.certificates, self.cores.proxy)
        return stand.wait()

    def stop(self, stand):
        self.children.stop(stand.processes)

    def at_rest(self):
        for shape, name in (("inbound", "sidecar"), ("plain", "ingress")):
            stand = self.start(shape)
            time.sleep(1)
            parts = parts_kib(stand.pids)
            self.told(f"{name} at rest, 1 worker: RSS", f"{parts['VmRSS'] / 1024:.1f} MiB")
            self.told(f"{name} at rest: of it anonymous / pages of files",
                      f"{parts['RssAnon'] / 1024:.1f} / {parts['RssFile'] / 1024:.1f} MiB")
            self.stop(stand)

    def workers(self):
        seen = []
        for workers in (1, 17):
            # Of several starts the leanest: what a start happens to leave behind differs by more than a worker costs.
            rests = []
            for _ in range(3):
                stand = self.start(workers=workers)
                time.sleep(1)
                rests.append(parts_kib(stand.pids)["RssAnon"])
                self.stop(stand)
            seen.append(min(rests))
        self.told("an idle worker", f"{(seen[1] - seen[0]) / 16:.0f} KiB")

    def idle_mtls(self):
        stand = self.start()
        cost = of_idle_connections(stand, self.count, self.cores, self.tls)
        self.told(f"an idle mTLS connection at the inbound proxy ({self.count} held)", f"{cost:.1f} KiB")
        self.stop(stand)

    def idle_plain(self):
        stand = self.start("plain")
        cost = of_idle_connections(stand, self.count, self.cores, {}, stand.door)
        self.told(f"an idle plain connection at the ingress ({self.count} held)", f"{cost:.1f} KiB")
        self.stop(stand)

    def pooled_plain(self):
        self._pooled("a pooled plain upstream connection, with its node", "plain", self.app.h1)

    def pooled_mtls(self):
        inbound = self.start()
        self._pooled("a pooled mTLS upstream connection, with its node", "outbound", inbound.inner)
        self.stop(inbound)

    def _pooled(self, what, shape, behind):
        """One client asks node after node, each at an address of its own, so that nothing but their connections adds up."""
        count = 400 if self.options.quick else 2000
        port = free_port()
        relay = self.children.start("relay-many", [Load.binary(), "relay", "--listen", f"127.0.0.1:{port}", "--addresses", count,
                                                   "--to", f"127.0.0.1:{behind}"], self.cores.load)
        wait_for_port(port, relay)
        nodes = {f"127.1.{number // 250}.{number % 250 + 1}:{port}": 1 for number in range(count)}
        stand = self.start(shape, inner=port if shape == "outbound" else None, nodes=nodes)
        first = stand.pids[:1]
        ask = {"to": f"127.0.0.1:{stand.door}", "connections": 1, "warm": 0, "size": BODY_SIZE}
        Load("keep", self.cores.load, requests=count // 2, **ask).ready().go()
        (before, few) = settled_rss(first), connections_from(first[0], port)
        Load("keep", self.cores.load, requests=count, **ask).ready().go()
        (after, many) = settled_rss(first), connections_from(first[0], port)
        if many < count * 0.95:
            raise Failed(f"{many} of {count} upstream connections were kept")
        self.told(f"{what} ({many} kept)", f"{(after - before) / (many - few):.1f} KiB")
        self.stop(stand)
        self.children.stop([relay])

    def under_way(self):
        """Requests that wait for their answers: both connections and what is held meanwhile."""
        count = 400 if self.options.quick else 2000
        slow = Slow(self.children, self.cores.load, 3 + count / 500)
        for shape, what in (("plain", "a plain exchange under way, both its connections"),
                            ("mesh", "an exchange under way at the outbound proxy, both its connections")):
            stand = self.start(shape, slow, pool=count)
            first = stand.pids[:1]
            before = settled_rss(first)
            load = Load("keep", self.cores.load, to=f"127.0.0.1:{stand.door}", connections=count, requests=1, warm=0,
                        size=BODY_SIZE).ready()
            load.begin()
            # All must be on their way together, handshakes included.
            time.sleep(2.5 + count / 500)
            self.told(what, f"{(rss_kib(first) - before) / count:.1f} KiB")
            load.result()
            self.stop(stand)
        self.children.stop([slow.process])

    def routes(self):
        counts = (1, 10_000) if self.options.quick else (1, 10_000, 100_000)
        seen = {}
        for count in counts:
            began = time.monotonic()
            stand = self.start("plain", routes=count)
            ready = time.monotonic() - began
            # Routes are read before the door opens; what reading them took is given back a little later.
            time.sleep(2)
            seen[count] = settled_rss(stand.pids)
            cost = f", {(seen[count] - seen[1]) / (count - 1):.2f} KiB a route" if count > 1 else ""
            self.told(f"{count:,} routes: RSS", f"{seen[count] / 1024:.1f} MiB{cost} (door open after {ready:.1f} s)")
            self.stop(stand)

    # ------------------------------------------------------------ churn

    def churn(self, seconds):
        """Connections come and go, configuration and certificates change; RSS of both sidecars is sampled each second."""
        stand = self.start("mesh")
        outbound, inbound = stand.processes
        began, number, samples = time.monotonic(), 0, []
        slice_seconds = 5
        print("second  RSS outbound  RSS inbound (MiB)")
        while (now := time.monotonic() - began) < seconds:
            number += 1
            loads = [
                Load("fresh", self.cores.load, to=f"127.0.0.1:{stand.inner}", connections=2, seconds=slice_seconds, **self.tls),
                Load("fresh", self.cores.load, to=f"127.0.0.1:{stand.door}", connections=2, seconds=slice_seconds),
            ]
            held = Load("idle", self.cores.load, to=f"127.0.0.1:{stand.inner}", connections=200, **self.tls).ready()
            kept = Load("keep", self.cores.load, to=f"127.0.0.1:{stand.door}", connections=8 + number % 25, seconds=2).ready()
            self._change(outbound, number)
            self._change(inbound, number)
            if number % 6 == 0:
                self._renew(number)
            kept.go()
            for load in loads:
                load.result()
            held.end()
            row = (now, rss_kib([outbound.pid]) / 1024, rss_kib([inbound.pid]) / 1024)
            samples.append(row)
            print(f"{row[0]:6.0f}  {row[1]:12.1f}  {row[2]:11.1f}", flush=True)
        grown = False
        for index, name in ((1, "outbound"), (2, "inbound")):
            # The first quarter is warming up.
            rest = samples[len(samples) // 4:]
            slope = slope_of([(row[0] / 3600, row[index]) for row in rest])
            early = statistics.median(row[index] for row in samples[len(samples) // 4:len(samples) // 2] or samples)
            late = statistics.median(row[index] for row in samples[-max(1, len(samples) // 4):])
            print(f"{name}: second quarter {early:.1f} MiB, last quarter {late:.1f} MiB, slope {slope:+.1f} MiB/hour after warming up")
            grown |= late > early * 1.03 + 2
        if self.options.json:
            Path(self.options.json).write_text(json.dumps(samples))
        if grown:
            raise Failed(f"memory grew in {seconds:.0f} s of churn" + (" (a short run: it may be warming up)" if seconds < 600 else ""))

    def _change(self, process, number):
        """Routes come and go, and the one that is used changes its name; the file is replaced whole."""
        resources = json.loads(json.dumps(process.resources))
        used = resources["routes"][0]
        used["name"] = f"version-{number}"
        shared = {key: used[key] for key in ("workload_selector", "upstream_id") if key in used}
        for at in range(number % 50):
            resources["routes"].append({"id": f"c{number}-{at}", "uri": f"/churn/{number}/{at}/*", **shared})
        beside = process.folder / "resources.new"
        beside.write_text(json.dumps(resources))
        beside.rename(process.folder / "resources.json")

    def _renew(self, number):
        """New leaves of the same root, over the old files."""
        fresh = make_certificates(OUT / "certificates.new", root=self.certificates, serial=number * 10)
        for file in sorted(fresh.glob("*.key")) + sorted(fresh.glob("*.pem")):
            if file.stem.split(".")[0] in ("shop", "billing"):
                shutil.move(file, self.certificates / file.name)


def connections_from(pid, port):
    """How many established connections the process has to that port."""
    inodes = {match.group(1) for link in Path(f"/proc/{pid}/fd").iterdir()
              if (match := re.match(r"socket:\[(\d+)\]", read_link(link)))}
    rows = (line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:])
    return sum(row[3] == "01" and int(row[2].split(":")[1], 16) == port and row[9] in inodes for row in rows)


def read_link(link):
    try:
        return str(link.readlink())
    except OSError:
        return ""


def slope_of(points):
    if len(points) < 2:
        return 0.0
    return statistics.linear_regression(*zip(*points)).slope
