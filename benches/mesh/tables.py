"""What was measured, as tables in Markdown."""

import statistics

# Of one cell; the ratio is told for those with True.
ROWS = [
    ("CPU ms per 1,000 requests", "cpu_ms_per_1000", "{:.1f}", True),
    ("CPU ms per body", "cpu_ms_per_body", "{:.0f}", True),
    ("requests/s", "rps", "{:,.0f}", False),
    ("MiB/s", "mib_per_second", "{:,.0f}", False),
    ("p50 at saturation, us", "p50_us", "{:.0f}", False),
    ("p99 at saturation, us", "p99_us", "{:.0f}", False),
    ("CPU ms per 1,000 at the fixed rate", "rate_cpu_ms_per_1000", "{:.0f}", True),
    ("p50 at the fixed rate, us", "rate_p50_us", "{:.0f}", True),
    ("p90 at the fixed rate, us", "rate_p90_us", "{:.0f}", True),
    ("p99 at the fixed rate, us", "rate_p99_us", "{:.0f}", False),
    ("KiB per idle connection", "kib_per_connection", "{:.1f}", True),
    ("RSS at rest of one proxy, MiB", "rest_mib", "{:.1f}", False),
    ("RSS of the proxies after load, MiB", "rss_mib", "{:.1f}", False),
]
COSTS = {"cpu_ms_per_1000": "{:.1f}", "cpu_ms_per_body": "{:.0f}", "kib_per_connection": "{:.1f}"}
YARDSTICKS = ("nginx", "haproxy")


def show(cells, failures, options, topologies):
    names = [peer.name for peer in options.contestants]
    print(f"\nMedians of {options.rounds} interleaved rounds of {options.seconds:g} s; {options.connections} connections in A, B, C; "
          f"{options.rate}/s at the fixed rate. Bodies of 1 KiB, loopback, proxies on one core.")
    for topology in options.topologies:
        detail(topology, topologies[topology], names, cells)
    summary(names, cells, failures, options.topologies)


def values(cells, peer, topology, key):
    return {cell["round"]: cell[key] for cell in cells
            if cell["peer"] == peer and cell["topology"] == topology and key in cell}


def ratio(cells, peer, other, topology, key):
    """The median of the rounds' own ratios: neighbours in time share the machine's mood."""
    ours, theirs = (values(cells, name, topology, key) for name in (peer, other))
    both = [ours[number] / theirs[number] for number in ours if theirs.get(number)]
    return statistics.median(both) if both else None


def detail(topology, title, names, cells):
    names = [name for name in names if any(cell["peer"] == name and cell["topology"] == topology for cell in cells)]
    if not names:
        return
    others = [name for name in names if name not in YARDSTICKS]
    ratios = [(name, yard) for name in others for yard in YARDSTICKS if yard in names and name.startswith("wardgate")]
    print(f"\n{topology}: {title}\n")
    print("| | " + " | ".join([*names, *(f"{name} / {yard}" for name, yard in ratios)]) + " |")
    print("|---|" + "---:|" * (len(names) + len(ratios)))
    for row, key, form, compared in ROWS:
        medians = [statistics.median(found.values()) if (found := values(cells, name, topology, key)) else None for name in names]
        if not any(median is not None for median in medians):
            continue
        shown = ["-" if median is None else form.format(median) for median in medians]
        for name, yard in ratios:
            found = ratio(cells, name, yard, topology, key) if compared else None
            shown.append("" if found is None else f"{found:.2f}")
        print(f"| {row} | " + " | ".join(shown) + " |")


def summary(names, cells, failures, topologies):
    """One line a contestant: its cost in each topology, and the ratio to nginx and to HAProxy."""
    print("\nCPU ms per 1,000 requests (E: per body; I: KiB per connection); in brackets the ratios to nginx and HAProxy in the same rounds\n")
    print("| | " + " | ".join(topologies) + " |")
    print("|---|" + "---:|" * len(topologies))
    for name in names:
        shown = []
        for topology in topologies:
            for key, form in COSTS.items():
                if found := values(cells, name, topology, key):
                    text = form.format(statistics.median(found.values()))
                    told = [ratio(cells, name, yard, topology, key) for yard in YARDSTICKS]
                    if any(told):
                        text += f" ({', '.join('-' if one is None else f'{one:.2f}' for one in told)})"
                    shown.append(text)
                    break
            else:
                failed = any(failure["peer"] == name and failure["topology"] == topology for failure in failures)
                shown.append("FAILED" if failed else "-")
        print(f"| {name} | " + " | ".join(shown) + " |")
