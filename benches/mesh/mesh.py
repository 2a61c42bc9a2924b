"""The measuring half of run.sh. Everything listens on 127.0.0.1; everything that is started is stopped again."""

import argparse
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
OUT = HERE / "out"
BODY = "0123456789abcdef" * 64  # 1 KiB
TICK = os.sysconf("SC_CLK_TCK")
TRUST_DOMAIN = "bench.local"
SCENARIOS = {
    "A": "client > outbound > mTLS > inbound > app (both proxies together)",
    "C": "client > ingress > app, plain HTTP",
}


def main():
    options = arguments()
    OUT.mkdir(exist_ok=True)
    proxy_core, load_core = cores(options)
    certificates = make_certificates(OUT / "certificates")
    children = Children()
    try:
        app = start_app(children, load_core)
        stands = []
        for peer in options.peers:
            for scenario in options.scenarios:
                stands.append(STANDS[peer](children, scenario, app, certificates, proxy_core))
        for stand in stands:
            stand.wait_until_ready(children)
        results = measure(stands, options, load_core)
    finally:
        children.stop()
    print_tables(results, options)
    (OUT / "results.json").write_text(json.dumps(results, indent=1))


def arguments():
    parser = argparse.ArgumentParser(prog="run.sh", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default 5)")
    parser.add_argument("--seconds", type=int, default=3, help="length of one cell at saturation (default 3)")
    parser.add_argument("--connections", type=int, default=32, help="connections at saturation (default 32)")
    parser.add_argument("--rate", type=int, default=1000, help="requests per second at fixed rate; 0 leaves it out (default 1000)")
    parser.add_argument("--only", choices=["nginx", "wardgate"], help="one of the two instead of both")
    parser.add_argument("--scenario", choices=list(SCENARIOS), help="one scenario instead of all")
    options = parser.parse_args()
    options.peers = [options.only] if options.only else ["nginx", "wardgate"]
    options.scenarios = [options.scenario] if options.scenario else list(SCENARIOS)
    return options


def cores(_options):
    available = sorted(os.sched_getaffinity(0))
    if len(available) < 2:
        print("only one core: proxies and load share it, so compare nothing but the ratios", file=sys.stderr)
    return available[0], available[-1]


# ---------------------------------------------------------------- processes


class Children:
    """What was started here, to be stopped here."""

    def __init__(self):
        self.running = []

    def start(self, name, command, core):
        log = open(OUT / f"{name}.log", "wb")
        child = subprocess.Popen(
            ["taskset", "-c", str(core), *command],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )
        child.name = name
        self.running.append(child)
        return child

    def stop(self):
        for child in self.running:
            if child.poll() is None:
                child.terminate()
        deadline = time.monotonic() + 10
        for child in self.running:
            try:
                child.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()


def descendants(pid):
    """The process and all its children's children."""
    found, open_ends = [], [pid]
    while open_ends:
        pid = open_ends.pop()
        found.append(pid)
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            open_ends += map(int, task.read_text().split())
    return found


def cpu_ms(pids):
    total = 0
    for root in pids:
        for pid in descendants(root):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])  # utime, stime
    return total * 1000 / TICK


def rss_kib(pids):
    total = 0
    for root in pids:
        for pid in descendants(root):
            line = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
            total += int(line.group(1)) if line else 0
    return total


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# ---------------------------------------------------------------- certificates


def make_certificates(folder):
    """One root and three P-256 leaves that are lawful SVIDs and that nginx, which checks a host name, accepts too."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)

    def openssl(*words, stdin=None):
        subprocess.run(["openssl", *words], check=True, cwd=folder, input=stdin, text=True, capture_output=True)

    new_key = ["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out"]
    openssl(*new_key, "root.key")
    openssl("req", "-x509", "-new", "-key", "root.key", "-subj", "/O=bench", "-days", "1", "-out", "bundle.pem",
            "-addext", "keyUsage=critical,keyCertSign,cRLSign",
            "-addext", f"subjectAltName=URI:spiffe://{TRUST_DOMAIN}")
    for number, name in enumerate(["shop", "billing", "ingress"], start=2):
        (folder / f"{name}.ext").write_text(
            "basicConstraints=critical,CA:FALSE\n"
            "keyUsage=critical,digitalSignature\n"
            "extendedKeyUsage=serverAuth,clientAuth\n"
            "subjectKeyIdentifier=hash\n"
            "authorityKeyIdentifier=keyid\n"
            f"subjectAltName=URI:spiffe://{TRUST_DOMAIN}/{name},DNS:{name}.{TRUST_DOMAIN}\n")
        openssl(*new_key, f"{name}.key")
        openssl("req", "-new", "-key", f"{name}.key", "-subj", f"/O=bench/CN={name}", "-out", f"{name}.csr")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "bundle.pem", "-CAkey", "root.key", "-set_serial", str(number),
                "-days", "1", "-sha256", "-extfile", f"{name}.ext", "-out", f"{name}.pem")
    return folder


# ---------------------------------------------------------------- what is compared


class Stand:
    """One proxy topology under one scenario: where to send requests, and whose CPU to count."""

    def __init__(self, peer, scenario, port, processes):
        self.peer, self.scenario, self.port, self.processes = peer, scenario, port, processes
        self.url = f"http://127.0.0.1:{port}/bench"
        self.pids = [process.pid for process in processes]

    def wait_until_ready(self, children):
        deadline = time.monotonic() + 20
        answer = "no answer"
        while time.monotonic() < deadline:
            for child in self.processes:
                if child.poll() is not None:
                    log = (OUT / f"{child.name}.log").read_text(errors="replace")[-2000:]
                    sys.exit(f"{child.name} ended with {child.returncode}:\n{log}")
            try:
                with urllib.request.urlopen(self.url, timeout=2) as response:
                    body = response.read().decode()
                    if response.status == 200 and body == BODY:
                        return
                    answer = f"{response.status}, {len(body)} bytes"
            except OSError as error:
                answer = str(error)
            time.sleep(0.1)
        logs = "\n".join(f"--- {child.name}.log\n" + (OUT / f"{child.name}.log").read_text(errors="replace")[-2000:]
                         for child in self.processes)
        sys.exit(f"{self.peer} {self.scenario} does not answer as it should ({answer}):\n{logs}")


def nginx(children, name, core, http):
    """Starts an nginx with one worker, whose `http` block ends in the given text."""
    folder = OUT / name
    folder.mkdir(exist_ok=True)
    user = "user root;\n" if os.getuid() == 0 else ""
    temporary = "".join(f"  {kind}_temp_path {folder}/{kind};\n" for kind in
                        ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"])
    (folder / "nginx.conf").write_text(
        f"{user}daemon off;\nworker_processes 1;\npid {folder}/pid;\nerror_log {folder}/error.log warn;\n"
        "events { worker_connections 8192; }\n"
        f"http {{\n{temporary}  access_log off;\n  keepalive_requests 1000000000;\n  keepalive_timeout 300s;\n{http}}}\n")
    return children.start(name, ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")], core)


def start_app(children, core):
    port = free_port()
    nginx(children, "app", core, f'  default_type text/plain;\n  server {{ listen 127.0.0.1:{port}; return 200 "{BODY}"; }}\n')
    return port


def nginx_upstream(port):
    return ("  upstream next {\n"
            f"    server 127.0.0.1:{port};\n    keepalive 320;\n    keepalive_requests 1000000000;\n    keepalive_timeout 300s;\n  }}\n")


def nginx_stand(children, scenario, app, certificates, core):
    port = free_port()
    pass_plain = '      proxy_http_version 1.1;\n      proxy_set_header Connection "";\n      proxy_set_header Host $host;\n'
    if scenario == "C":
        ingress = nginx(children, "nginx-ingress", core, nginx_upstream(app) +
                        f"  server {{\n    listen 127.0.0.1:{port};\n    location / {{\n"
                        f"      proxy_pass http://next;\n{pass_plain}    }}\n  }}\n")
        return Stand("nginx", scenario, port, [ingress])
    inner = free_port()
    outbound = nginx(children, "nginx-shop", core, nginx_upstream(inner) +
                     f"  server {{\n    listen 127.0.0.1:{port};\n    location / {{\n      proxy_pass https://next;\n{pass_plain}"
                     "      proxy_ssl_protocols TLSv1.3;\n      proxy_ssl_session_reuse off;\n"
                     f"      proxy_ssl_certificate {certificates}/shop.pem;\n      proxy_ssl_certificate_key {certificates}/shop.key;\n"
                     f"      proxy_ssl_trusted_certificate {certificates}/bundle.pem;\n      proxy_ssl_verify on;\n"
                     f"      proxy_ssl_name billing.{TRUST_DOMAIN};\n      proxy_ssl_server_name on;\n    }}\n  }}\n")
    inbound = nginx(children, "nginx-billing", core, nginx_upstream(app) +
                    f"  server {{\n    listen 127.0.0.1:{inner} ssl;\n    ssl_protocols TLSv1.3;\n"
                    f"    ssl_certificate {certificates}/billing.pem;\n    ssl_certificate_key {certificates}/billing.key;\n"
                    f"    ssl_client_certificate {certificates}/bundle.pem;\n    ssl_verify_client on;\n"
                    "    ssl_session_tickets off;\n    ssl_session_cache off;\n"
                    f"    location / {{\n      proxy_pass http://next;\n{pass_plain}    }}\n  }}\n")
    return Stand("nginx", scenario, port, [outbound, inbound])


def wardgate_stand(children, scenario, app, certificates, core):
    port = free_port()

    def start(name, role, doors, resources):
        folder = OUT / f"wardgate-{name}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        settings = {
            "role": role,
            "trust_domain": TRUST_DOMAIN,
            "state_dir": str(folder / "state"),
            "identity": {"source": "files", "certificate": f"{certificates}/{name}.pem",
                         "key": f"{certificates}/{name}.key", "bundle": f"{certificates}/bundle.pem"},
            "resources": str(folder / "resources.yaml"),
            "status": f"127.0.0.1:{free_port()}",
            "audit": {"file": str(folder / "audit.jsonl")},
            "workers": 1,
            **doors,
        }
        # JSON is YAML; both files are read by the YAML reader.
        (folder / "settings.yaml").write_text(json.dumps(settings, indent=2) + "\n")
        (folder / "resources.yaml").write_text(json.dumps(resources, indent=2) + "\n#END\n")
        command = [os.environ["WARDGATE"], "run", "-c", str(folder / "settings.yaml")]
        return children.start(f"wardgate-{name}", command, core)

    pool = {"size": 320, "idle_timeout": 300, "requests": 1000000000}
    to_app = {"id": "app", "type": "roundrobin", "nodes": {f"127.0.0.1:{app}": 1}, "keepalive_pool": pool}
    if scenario == "C":
        ingress = start("ingress", "ingress", {"ingress": {"http": f"127.0.0.1:{port}"}}, {
            "routes": [{"id": "app", "uri": "/*", "upstream_id": "app"}],
            "upstreams": [to_app],
        })
        return Stand("wardgate", scenario, port, [ingress])
    inner = free_port()
    outbound = start(
        "shop", "sidecar",
        {"sidecar": {"app": f"http://127.0.0.1:{free_port()}", "inbound": f"127.0.0.1:{free_port()}", "outbound": f"127.0.0.1:{port}"}},
        {
            "routes": [{"id": "to-billing", "uri": "/*", "workload_selector": {"listener": "outbound"}, "upstream_id": "billing"}],
            "upstreams": [{
                "id": "billing", "type": "roundrobin", "scheme": "https", "nodes": {f"127.0.0.1:{inner}": 1}, "keepalive_pool": pool,
                "tls": {"identity": "svid", "spiffe_ids": [f"spiffe://{TRUST_DOMAIN}/billing"]},
            }],
        })
    inbound = start(
        "billing", "sidecar",
        {"sidecar": {"app": f"http://127.0.0.1:{app}", "inbound": f"127.0.0.1:{inner}", "outbound": f"127.0.0.1:{free_port()}"}},
        {
            "routes": [{"id": "app", "uri": "/*", "workload_selector": {"listener": "inbound"}, "upstream_id": "app"}],
            "upstreams": [to_app],
            "identity_policies": [{
                "id": "billing-read", "action": "allow",
                "rules": [{"from": {"principals": [f"spiffe://{TRUST_DOMAIN}/shop"]}, "to": {"methods": ["GET"]}}],
            }],
        })
    return Stand("wardgate", scenario, port, [outbound, inbound])


STANDS = {"nginx": nginx_stand, "wardgate": wardgate_stand}


# ---------------------------------------------------------------- measuring


def measure(stands, options, core):
    cells = []
    for round_number in range(1, options.rounds + 1):
        # Another order each round, so that nobody always runs after the same neighbour.
        order = stands if round_number % 2 else stands[::-1]
        for stand in order:
            saturate(stand, options, core, 1)  # warm up
            cell = {"round": round_number, "peer": stand.peer, "scenario": stand.scenario}
            cell |= saturate(stand, options, core, options.seconds)
            if options.rate:
                cell |= at_fixed_rate(stand, options, core)
            cell["rss_mib"] = rss_kib(stand.pids) / 1024
            cells.append(cell)
            print(f"round {round_number} {stand.scenario} {stand.peer:9}" +
                  "".join(f"  {name} {value:.1f}" for name, value in cell.items() if isinstance(value, float)), flush=True)
    return cells


def saturate(stand, options, core, seconds):
    before = cpu_ms(stand.pids)
    text = subprocess.run(
        ["taskset", "-c", str(core), "wrk", "-t", "1", "-c", str(options.connections), "-d", f"{seconds}s", "--latency", stand.url],
        check=True, capture_output=True, text=True).stdout
    used = cpu_ms(stand.pids) - before
    requests = int(re.search(r"(\d+) requests in", text).group(1))
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", text) or re.search(r"Socket errors: (.*)", text)
    if bad or not requests:
        sys.exit(f"{stand.peer} {stand.scenario}: the load saw errors ({bad.group(0) if bad else 'no answer'}); figures would lie")
    return {
        "rps": float(re.search(r"Requests/sec:\s+([\d.]+)", text).group(1)),
        "cpu_ms_per_1000": used * 1000 / requests,
        "p50_us": microseconds(re.search(r"50%\s+(\S+)", text).group(1)),
        "p99_us": microseconds(re.search(r"99%\s+(\S+)", text).group(1)),
    }


def microseconds(text):
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text).groups()
    return float(number) * {"us": 1, "ms": 1e3, "s": 1e6, "m": 60e6}[unit]


def at_fixed_rate(stand, options, core):
    """An open loop: h2load sends at its rate, however late answers are, and logs each one's time."""
    clients, seconds = 10, max(2, options.seconds)
    total = options.rate * seconds
    log = OUT / "h2load.log"
    log.unlink(missing_ok=True)
    before = cpu_ms(stand.pids)
    subprocess.run(
        ["taskset", "-c", str(core), "h2load", "--h1", "-t", "1", "-c", str(clients), "-n", str(total),
         # Connections start apart, so that their clocks do not tick together and send in bursts.
         "-r", "1", "--rate-period", "7ms", "--rps", str(options.rate / clients), f"--log-file={log}", stand.url],
        check=True, capture_output=True, text=True)
    used = cpu_ms(stand.pids) - before
    rows = [line.split("\t") for line in log.read_text().splitlines()]
    if len(rows) != total or any(row[1] != "200" for row in rows):
        sys.exit(f"{stand.peer} {stand.scenario}: {len(rows)} of {total} answers at fixed rate, or one was no 200")
    times = sorted(int(row[2]) for row in rows)
    return {
        "rate_cpu_ms_per_1000": used * 1000 / total,
        "rate_p50_us": float(times[len(times) // 2]),
        "rate_p99_us": float(times[len(times) * 99 // 100]),
    }


# ---------------------------------------------------------------- tables

ROWS = [
    ("requests/s", "rps", "{:,.0f}"),
    ("CPU ms per 1,000 requests", "cpu_ms_per_1000", "{:.1f}"),
    ("p50 at saturation, us", "p50_us", "{:.0f}"),
    ("p99 at saturation, us", "p99_us", "{:.0f}"),
    ("CPU ms per 1,000 at the fixed rate", "rate_cpu_ms_per_1000", "{:.0f}"),
    ("p50 at the fixed rate, us", "rate_p50_us", "{:.0f}"),
    ("p99 at the fixed rate, us", "rate_p99_us", "{:.0f}"),
    ("RSS of the proxies, MiB", "rss_mib", "{:.1f}"),
]


def print_tables(cells, options):
    print(f"\nMedians of {options.rounds} interleaved rounds; {options.connections} connections for {options.seconds} s at saturation, "
          f"{options.rate}/s at the fixed rate. 1 KiB bodies, loopback, one worker per proxy, proxies on one core.")
    for scenario in options.scenarios:
        print(f"\n{scenario}: {SCENARIOS[scenario]}\n")
        both = len(options.peers) == 2
        print("| | " + " | ".join(options.peers) + (" | wardgate/nginx |" if both else " |"))
        print("|---|" + "---:|" * (len(options.peers) + both))
        for title, key, form in ROWS:
            values = [[cell[key] for cell in cells if cell["peer"] == peer and cell["scenario"] == scenario and key in cell]
                      for peer in options.peers]
            if not all(values):
                continue
            medians = [statistics.median(value) for value in values]
            shown = [form.format(median) for median in medians]
            if both:
                # The median of the rounds' own ratios: neighbours in time share the machine's mood.
                ratios = [ours / theirs for theirs, ours in zip(*values) if theirs]
                shown.append(f"{statistics.median(ratios):.2f}" if ratios else "-")
            print(f"| {title} | " + " | ".join(shown) + " |")


if __name__ == "__main__":
    main()
