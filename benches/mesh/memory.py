"""What things cost in memory, and whether it stays."""

import time

from machine import Load, rss_kib


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
    # What the first connections make once for all is not the cost of one more.
    Load("keep", cores.load, to=to, connections=64, requests=5, **tls).ready().go()
    before = settled_rss(stand.pids)
    load = Load("idle", cores.load, to=to, connections=count, **tls).ready()
    time.sleep(2)
    after = settled_rss(stand.pids)
    load.end()
    return (after - before) / count


def main(options, children, app, certificates):
    raise SystemExit("not yet")
