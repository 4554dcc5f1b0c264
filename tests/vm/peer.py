#!/usr/bin/env python3
"""The guest of the tests moved by QEMU's own migration and by Godwit, on this host, in one run: the table in docs/qemu.md.

    boot ─▶ `ready` ─▶ move over loopback ─▶ whole laps of checking ─▶ one row
     │                   │                         │
     └── console, stamped┴─ longest silence        └── is the guest right?
     └── a clock outside, which the guest asks ──▶ how long it stood still, as seen from inside

Always true: every run has a guest of its own, so damage done by one never shows in another; all have the same processors, memory,
disk, network card and load; a guest that was not right afterwards is said to be so in its row, beside the times.

    tests/vm/build.sh target/vm/guest && cargo build --release
    tests/vm/peer.py target/vm/guest target/release/godwit      # the table on standard output, each run on standard error
"""

import argparse
import collections
import glob
import json
import math
import os
import platform
import queue
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

MODES = {
    # QEMU's own. Name: (downtime limit in ms, or None for QEMU's default of 300; TLS; post-copy)
    "QEMU, pre-copy": (None, False, False),
    "QEMU, pre-copy, 20 ms": (20, False, False),
    "QEMU, pre-copy, TLS": (None, True, False),
    "QEMU, pre-copy, TLS, 20 ms": (20, True, False),
    "QEMU, post-copy at once": (None, False, True),
    "QEMU, post-copy at once, TLS": (None, True, True),
}
# Godwit's: (settings, mode). It always encrypts.
GODWIT = {
    "Godwit, pre-copy": ([], "pre-copy"),
    "Godwit, pre-copy, 20 ms": (["maxDowntimeMs=20"], "pre-copy"),
    "Godwit, post-copy at once": (["allowPostCopy=true"], "post-copy"),
}
NODES = ("node-a", "node-b", "node-c")
BOOT_SECONDS_MAX = 120
MIGRATE_SECONDS_MAX = 180
CHECK_SECONDS_MAX = 120
# A guest that says nothing for so long is taken for dead.
SILENT_SECONDS_MAX = 15
# Ticks before the move, and after it, that its silence is looked for in.
AROUND_SECONDS = 2


class Failed(Exception):
    """A run that came to no end, and why."""


class Said:
    """All lines of one guest, wherever it ran, stamped with this host's clock as they come.

    A line may begin on the source and end on the target, so their consoles are one stream: bytes of the older one first.
    """

    def __init__(self):
        self.consoles = []
        self.reader = None
        self.begun = b""
        self.changed = threading.Condition()
        self.ticks = []
        self.laps = None
        self.wrong = 0
        self.ready = False
        self.bad = []
        self.jumps = 0

    def listen(self, path):
        """From here on the guest is heard there too."""
        self.consoles.append(connect(path))
        if self.reader is None or not self.reader.is_alive():
            self.reader = threading.Thread(target=self._read, daemon=True)
            self.reader.start()

    def _read(self):
        while True:
            consoles = list(self.consoles)
            ready, _, _ = select.select(consoles, [], [], 0.05)
            for console in consoles:
                if console not in ready:
                    continue
                try:
                    read = console.recv(1 << 16)
                except OSError:
                    read = b""
                if not read:
                    self.consoles.remove(console)
                *lines, self.begun = (self.begun + read).split(b"\n")
                for line in lines:
                    self.add(time.monotonic(), line.decode(errors="replace").split())
            if not self.consoles:
                return

    def add(self, now, words):
        with self.changed:
            if words[:1] == ["tick"] and len(words) == 6:
                if self.ticks and int(words[1]) != self.ticks[-1][1] + 1:
                    self.jumps += 1
                self.ticks.append((now, int(words[1]), int(words[5])))
            elif words[:1] == ["stat"] and len(words) == 19:
                # mem, area, file, disk
                self.laps = [int(words[at]) for at in (4, 6, 9, 13)]
                self.wrong = int(words[18])
            elif words[:1] == ["ready"]:
                self.ready = True
            elif words:
                self.bad.append(" ".join(words))
            self.changed.notify_all()

    def wait(self, what, seconds, test):
        """Until `test` holds; fails when the guest is silent for long or `seconds` are over."""
        end = time.monotonic() + seconds
        with self.changed:
            while not test():
                now = time.monotonic()
                if now > end:
                    raise Failed(f"{what}: not within {seconds} s")
                if self.ticks and now - self.ticks[-1][0] > SILENT_SECONDS_MAX:
                    raise Failed(f"silent since {SILENT_SECONDS_MAX} s {' / '.join(self.bad[-2:])}".strip())
                self.changed.wait(0.2)

    def silence(self, begun, ended):
        """The longest time between two ticks around a move, in ms."""
        with self.changed:
            stamps = [at for at, *_ in self.ticks if begun - AROUND_SECONDS <= at <= ended + AROUND_SECONDS]
        return max((after - before) * 1000 for before, after in zip(stamps, stamps[1:]))


    def stood_still(self, begun, ended):
        """By how much the guest's own clock fell behind the one outside, in ms; looked at when answers come soon again."""
        with self.changed:
            before = [ahead for at, _, ahead in self.ticks if begun - AROUND_SECONDS <= at <= begun and ahead]
            after = [ahead for at, _, ahead in self.ticks if ended + 0.7 <= at <= ended + 0.7 + AROUND_SECONDS and ahead]
        return (statistics.median(after) - statistics.median(before)) / 1e6 if before and after else float("nan")


class Clock:
    """Answers each datagram with this host's monotonic clock in decimal ns."""

    def __init__(self):
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self._answer, daemon=True).start()

    def _answer(self):
        while True:
            _, caller = self.socket.recvfrom(64)
            self.socket.sendto(str(time.monotonic_ns()).encode(), caller)


class Cluster:
    """Three nodes of Godwit on this host."""

    def __init__(self, program):
        self.program = os.path.abspath(program)
        self.folder = tempfile.TemporaryDirectory(prefix="godwit-peer-")
        self.processes = []
        self.moves = 0
        self.ask("ca", "init", self.path("ca"))
        voters = "".join(f'{node} = "127.0.0.{host}:7310"\n' for host, node in enumerate(NODES, 1))
        for host, node in enumerate(NODES, 1):
            self.ask("ca", "issue", "--ca", self.path("ca"), "--out", self.path(node), node)
            with open(self.path(node, "node.toml"), "w", encoding="ascii") as config:
                config.write(f"""cluster = "peer"
name = "{node}"
state = "{self.path(node)}"
[identity]
ca = "ca.pem"
certificate = "node.pem"
key = "node.key"
[control]
listen = "127.0.0.{host}:7310"
[control.voters]
{voters}[migration]
listen = "127.0.0.{host}:7410"
udp_payload_bytes_max = 6540
[admin]
socket = "{self.path(node, "admin.sock")}"
""")
            with open(self.path(node, "log"), "wb") as log:
                command = [self.program, "node", "run", "--config", self.path(node, "node.toml")]
                self.processes.append(subprocess.Popen(command, stdout=log, stderr=log))
        end = time.monotonic() + 30
        while self.answer("get", "nodes").count("reachable") < len(NODES):
            if time.monotonic() > end:
                raise Failed("the nodes did not come up")
            time.sleep(0.1)

    def path(self, *names):
        return os.path.join(self.folder.name, *names)

    def answer(self, *words):
        """What is said; empty if it failed."""
        environment = {**os.environ, "GODWIT_SOCKET": self.path(NODES[0], "admin.sock")}
        done = subprocess.run([self.program, *words], env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            self.error = done.stderr.strip()
            return ""
        return done.stdout

    def ask(self, *words):
        self.error = None
        said = self.answer(*words)
        if self.error is not None:
            raise Failed(f"godwit {words[0]} {words[1]}: {self.error}")
        return said

    def consoles(self):
        return set(glob.glob(self.path("node-*", "guests", "*", "console.sock")))

    def end(self):
        for process in self.processes:
            process.terminate()
            process.wait()
        self.folder.cleanup()


class Qmp:
    """One client of a QMP socket."""

    def __init__(self, path):
        self.socket = connect(path)
        self.answers = queue.Queue()
        self.events = collections.deque()
        threading.Thread(target=self._read, daemon=True).start()
        self.answers.get(timeout=10)
        self.ask("qmp_capabilities")

    def _read(self):
        try:
            with self.socket.makefile("rb") as lines:
                for line in lines:
                    message = json.loads(line)
                    if "event" in message:
                        self.events.append((time.monotonic(), message["event"]))
                    else:
                        self.answers.put(message)
        except OSError:
            pass
        self.answers.put({"error": {"desc": "QEMU has closed its QMP socket"}})

    def ask(self, command, **arguments):
        self.socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        try:
            answer = self.answers.get(timeout=30)
        except queue.Empty:
            raise Failed(f"{command}: no answer") from None
        if "error" in answer:
            raise Failed(f"{command}: {answer['error']['desc']}")
        return answer["return"]

    def event(self, name):
        """When it came last; None if it has not."""
        return next((at for at, event in reversed(list(self.events)) if event == name), None)


class Machine:
    """One QEMU."""

    def __init__(self, folder, name, setup, said, incoming):
        console, qmp = f"{folder}/{name}.console", f"{folder}/{name}.qmp"
        endpoint = "server" if incoming else "client"
        command = [
            "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-accel", "tcg",
            "-machine", "q35,memory-backend=ram", "-m", f"{setup.mib}M", "-smp", str(setup.cpus),
            "-object", f"memory-backend-memfd,id=ram,size={setup.mib}M,share=on",
            "-kernel", f"{setup.guest}/vmlinuz", "-initrd", f"{setup.guest}/initramfs.cpio.gz",
            "-append", f"console=ttyS0 quiet panic=-1 oops=panic {setup.load}",
            "-chardev", f"socket,id=console,path={console},server=on,wait=off", "-serial", "chardev:console",
            "-qmp", f"unix:{qmp},server=on,wait=off",
            "-drive", f"if=none,id=disk,format=raw,cache=none,aio=threads,file={folder}/disk",
            "-device", "virtio-blk-pci,drive=disk", "-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net",
            "-object", f"tls-creds-psk,id=tls,endpoint={endpoint},dir={folder}",
            *(["-incoming", "defer"] if incoming else ["-S"]),
        ]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        try:
            said.listen(console)
            self.qmp = Qmp(qmp)
        except BaseException:
            self.end()
            raise

    def end(self):
        self.process.kill()
        self.process.wait()


def connect(path):
    end = time.monotonic() + 10
    while True:
        one = socket.socket(socket.AF_UNIX)
        try:
            one.connect(path)
            return one
        except OSError:
            one.close()
            if time.monotonic() > end:
                raise Failed(f"{path}: nobody listens after 10 s") from None
            time.sleep(0.01)


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def prepare(machine, limit, tls, post):
    """The same capabilities and parameters on both sides, as QEMU demands."""
    capabilities = {"events": True, "postcopy-ram": post}
    machine.qmp.ask("migrate-set-capabilities",
                    capabilities=[{"capability": name, "state": state} for name, state in capabilities.items()])
    # 0: no limit. The default of 128 MiB/s would measure the limit.
    parameters = {"max-bandwidth": 0, "tls-creds": "tls" if tls else ""}
    if limit is not None:
        parameters["downtime-limit"] = limit
    machine.qmp.ask("migrate-set-parameters", **parameters)


def migrate(source, target, mode):
    limit, tls, post = MODES[mode]
    prepare(source, limit, tls, post)
    prepare(target, limit, tls, post)
    address = f"tcp:127.0.0.1:{free_port()}"
    target.qmp.ask("migrate-incoming", uri=address)
    begun = time.monotonic()
    source.qmp.ask("migrate", uri=address)
    switched = not post
    while True:
        info = source.qmp.ask("query-migrate")
        status = info.get("status")
        if status == "active" and not switched:
            source.qmp.ask("migrate-start-postcopy")
            switched = True
        # It is completed a moment before its times are there.
        if status == "completed" and info.get("total-time"):
            break
        if status in ("failed", "cancelled"):
            raise Failed(f"migration {status}: {info.get('error-desc', 'without a reason')}")
        if time.monotonic() - begun > MIGRATE_SECONDS_MAX:
            raise Failed(f"still {status} after {MIGRATE_SECONDS_MAX} s")
        time.sleep(0.02)
    while target.qmp.event("RESUME") is None:
        if target.process.poll() is not None or time.monotonic() - begun > MIGRATE_SECONDS_MAX:
            raise Failed("the target does not run")
        time.sleep(0.01)
    return begun, time.monotonic(), info


def check(said):
    """Waits until everything has been compared from beginning to end since now; what was wrong, or None."""
    with said.changed:
        before = list(said.laps)
    # `mem` counts the laps of all processors together; 4 are enough for 2 of them.
    wanted = [then + more for then, more in zip(before, (4, 2, 2, 2))]

    def late():
        return [part for part, now, then in zip(("memory", "area", "files", "disk"), said.laps, wanted) if now < then]

    try:
        said.wait("whole laps", CHECK_SECONDS_MAX, lambda: said.wrong or not late())
    except Failed as failed:
        raise Failed(f"{failed}, its {', '.join(late())} stands") from None
    if said.wrong:
        return f"{said.wrong} wrong: {'; '.join(said.bad[:2])}"
    if said.jumps:
        return f"count jumped {said.jumps} times"
    return None


def run(setup, mode):
    """One guest, one move; its figures, and what was wrong with the guest."""
    said = Said()
    machines = []
    with tempfile.TemporaryDirectory(prefix="godwit-peer-") as folder:
        with open(f"{folder}/disk", "wb") as disk:
            disk.truncate(64 << 20)
        with open(f"{folder}/keys.psk", "w", encoding="ascii") as keys:
            keys.write(f"qemu:{os.urandom(32).hex()}\n")
        try:
            machines.append(Machine(folder, "source", setup, said, incoming=False))
            machines[0].qmp.ask("cont")
            said.wait("ready", BOOT_SECONDS_MAX, lambda: (said.ready and said.laps) or said.wrong)
            machines.append(Machine(folder, "target", setup, said, incoming=True))
            time.sleep(AROUND_SECONDS)
            begun, ended, info = migrate(*machines, mode)
            # What the source had is gone with it: nothing may need it any more.
            machines[0].end()
            try:
                wrong = check(said)
            except Failed as failed:
                dead = machines[1].process.poll() is not None
                wrong = "its QEMU has ended" if dead else str(failed)
            return {
                "total": info["total-time"],
                "downtime": info["downtime"],
                "still": said.stood_still(begun, ended),
                "silence": said.silence(begun, ended),
                "sent": info["ram"]["transferred"] / (1 << 20),
            }, wrong
        except Failed as failed:
            return None, str(failed)
        finally:
            for machine in machines:
                machine.end()


def run_godwit(cluster, setup, mode):
    """The same by Godwit, between two nodes of a cluster that is there."""
    said, known, moving = Said(), cluster.consoles(), threading.Event()
    cluster.moves += 1
    guest, (settings, how) = f"vm{cluster.moves}", GODWIT[mode]

    def listen():
        heard = set(known)
        while not moving.is_set():
            for console in cluster.consoles() - heard:
                heard.add(console)
                said.listen(console)
            time.sleep(0.005)

    with tempfile.TemporaryDirectory(prefix="godwit-peer-") as folder:
        with open(f"{folder}/disk", "wb") as disk:
            disk.truncate(64 << 20)
        threading.Thread(target=listen, daemon=True).start()
        try:
            cluster.ask("guest", "create", guest, "--runner", "qemu", "--on", NODES[0], "--memory", f"{setup.mib}Mi",
                        "--cpus", str(setup.cpus), "--accel", "tcg", "--disk", f"{folder}/disk", "--network", "user",
                        "--kernel", f"{setup.guest}/vmlinuz", "--initrd", f"{setup.guest}/initramfs.cpio.gz",
                        "--append", f"console=ttyS0 quiet panic=-1 oops=panic {setup.load}")
            said.wait("ready", BOOT_SECONDS_MAX, lambda: (said.ready and said.laps) or said.wrong)
            time.sleep(AROUND_SECONDS)
            begun = time.monotonic()
            changed = [word for setting in settings for word in ("--set", setting)]
            moved = json.loads(cluster.ask("migrate", guest, "--to", NODES[1], "--mode", how, *changed, "--wait", "-o", "json"))
            ended = time.monotonic()
            measured = moved["measured"]
            source = measured["source"]
            try:
                wrong = check(said)
            except Failed as failed:
                wrong = str(failed)
            return {
                "total": source["total_us"] / 1000,
                "downtime": (source["pause_us"] + source["state_us"] + source["commit_us"] + measured["resume_us"]) / 1000,
                "still": said.stood_still(begun, ended),
                "silence": said.silence(begun, ended),
                "sent": source["wire_bytes"] / (1 << 20),
            }, wrong
        except Failed as failed:
            return None, str(failed)
        finally:
            moving.set()
            cluster.answer("guest", "stop", guest)


def row(setup, mode, results):
    moved = [figures for figures, _ in results if figures]

    def cell(name):
        # A guest that is gone has not said how long it stood still.
        values = sorted(figures[name] for figures in moved if not math.isnan(figures[name]))
        return f"{values[0]:.0f} / {statistics.median(values):.0f} / {values[-1]:.0f}" if values else "–"

    wrongs = [wrong for _, wrong in results if wrong]
    right = f"right {len(results) - len(wrongs)} of {len(results)}"
    verdict = right + (f": {'; '.join(dict.fromkeys(wrongs))}" if wrongs else "")
    size = f"{setup.mib} MiB" if setup.mib % 1024 else f"{setup.mib // 1024} GiB"
    vm = f"{size}, {setup.cpus} vCPU"
    cells = [vm, mode, *(cell(name) for name in ("total", "downtime", "still", "silence", "sent")), verdict]
    return "| " + " | ".join(cells) + " |"


def main():
    parser = argparse.ArgumentParser(description="the guest of the tests moved by QEMU itself and by Godwit, as a table")
    parser.add_argument("guest", help="what tests/vm/build.sh has made")
    parser.add_argument("godwit", nargs="?", help="the program, of a release build; without it, QEMU's rows alone")
    parser.add_argument("--mib", default="512,2048", help="memory sizes (default %(default)s)")
    parser.add_argument("--cpus", default="1,2", help="virtual processors (default %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each (default %(default)s)")
    parser.add_argument("--modes", help="modes, divided by ';' (default all)")
    parser.add_argument("--rate", type=int, default=2000, help="pages written per second (default %(default)s)")
    arguments = parser.parse_args()
    load = [f"{one:.1f}" for one in os.getloadavg()]
    modes = arguments.modes.split(";") if arguments.modes else [*MODES, *(GODWIT if arguments.godwit else [])]
    cluster = Cluster(arguments.godwit) if arguments.godwit else None
    clock = Clock()
    version = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True).stdout
    print(f"{version.splitlines()[0]}, TCG, Linux {platform.release()}, {os.cpu_count()} cores, "
          f"load before {load[0]}; each cell: best / median / worst of {arguments.runs}.\n")
    print("| VM | moved by | total ms | downtime, as it says, ms | stood still ms | silence ms | MiB sent | guest afterwards |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for mib in (int(word) for word in arguments.mib.split(",")):
        for cpus in (int(word) for word in arguments.cpus.split(",")):
            # Half of the memory holds what never changes, so that there is something to send.
            words = {"rate": arguments.rate, "set_mib": 64, "area_mib": mib // 2, "lap_s": max(4, mib // 256), "disk_mib": 8,
                     "out": f"10.0.2.2:{clock.port}"}
            setup = argparse.Namespace(guest=os.path.abspath(arguments.guest), mib=mib, cpus=cpus,
                                       load=" ".join(f"vmload.{name}={value}" for name, value in words.items()))
            for mode in modes:
                results = []
                for _ in range(arguments.runs):
                    results.append(run(setup, mode) if mode in MODES else run_godwit(cluster, setup, mode))
                    print(setup.mib, setup.cpus, mode, *results[-1], "load", os.getloadavg()[0], file=sys.stderr)
                print(row(setup, mode, results), flush=True)
    if cluster:
        cluster.end()
    print(f"\nLoad afterwards {os.getloadavg()[0]:.1f}.")


if __name__ == "__main__":
    main()
