"""Processes, their CPU and memory, ports, certificates: what every measurement needs and none is about."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
OUT = HERE / "out"
TICK = os.sysconf("SC_CLK_TCK")
TRUST_DOMAIN = "bench.local"


class Failed(Exception):
    """A wrong answer, or a process that is not as it should be: the run ends, since its figures would lie."""


class Cores:
    """Proxies on one core, load and applications on another. With more workers than cores to spare they share all."""

    def __init__(self, workers=1):
        available = sorted(os.sched_getaffinity(0))
        if len(available) < 2:
            print("only one core: proxies and load share it, so compare nothing but the ratios", file=sys.stderr)
        if workers == 1:
            self.proxy, self.load = str(available[0]), str(available[-1])
        elif len(available) >= 2 * workers:
            self.proxy = ",".join(map(str, available[:workers]))
            self.load = ",".join(map(str, available[workers:]))
        else:
            self.proxy = self.load = ",".join(map(str, available))


# ---------------------------------------------------------------- processes


class Children:
    """What was started here, to be stopped here."""

    def __init__(self):
        self.running = []

    def start(self, name, command, cores, **more):
        log = open(OUT / f"{name}.log", "wb")
        child = subprocess.Popen(
            ["taskset", "-c", cores, *map(str, command)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, **more,
        )
        child.name = name
        self.running.append(child)
        return child

    def stop(self, chosen=None):
        chosen = self.running if chosen is None else chosen
        for child in chosen:
            if child.poll() is None:
                child.terminate()
        deadline = time.monotonic() + 3
        for child in chosen:
            try:
                child.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        self.running = [child for child in self.running if child not in chosen]


def log_of(child):
    return f"--- {child.name}.log\n" + (OUT / f"{child.name}.log").read_text(errors="replace")[-2000:]


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
    """User and system time of the whole trees, with what ended children have used."""
    total = 0
    for root in pids:
        for pid in descendants(root):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
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


def wait_for_port(port, child):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise Failed(f"{child.name} ended with {child.returncode}:\n{log_of(child)}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise Failed(f"{child.name} does not listen:\n{log_of(child)}")


# ---------------------------------------------------------------- load


class Load:
    """A run of mesh-load; with `ready` it stands and is warm, and waits for `go`."""

    def __init__(self, verb, cores, **options):
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        self.child = subprocess.Popen(
            ["taskset", "-c", cores, os.environ["MESH_LOAD"], verb, *words],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def ready(self):
        if self.child.stdout.readline().strip() != "ready":
            self.fail()
        return self

    def go(self):
        self.child.stdin.write("go\n")
        self.child.stdin.flush()
        return self.result()

    def result(self):
        line = self.child.stdout.readline()
        if not line.startswith("{"):
            self.fail()
        self.child.stdin.close()
        self.child.wait()
        self.child.stdout.close()
        self.child.stderr.close()
        return json.loads(line)

    def end(self):
        """Lets go of held connections; fails when one was gone."""
        self.child.stdin.close()
        return self.result()

    def fail(self):
        self.child.kill()
        raise Failed(f"the load saw an error: {self.child.communicate()[1].strip() or 'no result'}")


# ---------------------------------------------------------------- certificates


def make_certificates(folder):
    """One root and P-256 leaves that are lawful SVIDs and that peers which check a host name accept too."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)

    def openssl(*words):
        subprocess.run(["openssl", *words], check=True, cwd=folder, text=True, capture_output=True)

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
        # HAProxy wants both in one file.
        (folder / f"{name}.both.pem").write_text((folder / f"{name}.pem").read_text() + (folder / f"{name}.key").read_text())
    return folder
