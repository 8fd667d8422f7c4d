"""Our server beside llama.cpp's: tokens per second, time to first token and memory with 1, 4 and 16 clients.

    python bench/serve.py int4.qd                                        ours alone
    python bench/serve.py int4.qd --peer llama-server Q4_0.gguf          both, in turns, two threads each

Each client sends prompts of 128 random tokens one after the other and reads 32 tokens of answer, greedy, as a stream.
The two serve the same prompts in turns, and the better of the turns counts. A last line holds a shared prefix of 512
tokens: the second request's time to first token as a part of the first's. llama-server is built from llama.cpp's own
source with -DLLAMA_BUILD_SERVER=ON.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROMPT, ANSWER, CONTEXT = 128, 32, 1024
CLIENTS = (1, 4, 16)


@dataclass
class Timed:
    """One answer: seconds to its first token and to its end, and how many tokens it has."""

    first: float
    whole: float
    tokens: int


@dataclass
class Server:
    """A server that listens."""

    process: subprocess.Popen[bytes]
    port: int

    def ask(self, prompt: Sequence[int]) -> Timed:
        """Sends a prompt and reads its answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        body: dict[str, Any] = {"prompt": list(prompt), "max_tokens": ANSWER, "temperature": 0, "stream": True}
        body["stream_options"] = {"include_usage": True}
        start, first, tokens = time.monotonic(), 0.0, 0
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        for line in connection.getresponse():
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                first = first or time.monotonic() - start
                tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
        connection.close()
        return Timed(first, time.monotonic() - start, tokens)

    def resident(self) -> float:
        """MB of memory that the process has."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        return 0.0


@contextmanager
def running(command: Sequence[str], port: int) -> Iterator[Server]:
    """Starts a server and waits until it answers."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            if process.poll() is not None:
                raise SystemExit(f"{command[0]} ended with {process.returncode}")
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            try:
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    break
            except OSError:
                time.sleep(0.1)
            finally:
                connection.close()
        yield Server(process, port)
    finally:
        process.terminate()
        process.wait(60)


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def prompts(count: int, seed: int) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(300, 30_000) for _ in range(PROMPT)] for _ in range(count)]


def load(server: Server, clients: int, each: int, seed: int) -> dict[str, float]:
    """Clients that ask one after the other, all at once."""
    wanted = prompts(clients * each, seed)
    start = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(server.ask, wanted))
    seconds = time.monotonic() - start
    firsts = sorted(answer.first for answer in answers)
    return {
        "tokens_per_second": sum(answer.tokens for answer in answers) / seconds,
        "first_p95": firsts[min(len(firsts) - 1, int(0.95 * len(firsts)))],
        "resident_mb": server.resident(),
    }


def shared_prefix(server: Server) -> float:
    """Time to first token of a second request with the same 512 tokens, as a part of the first's."""
    draw = random.Random(99)
    prefix = [draw.randrange(300, 30_000) for _ in range(512)]
    first, second = (server.ask([*prefix, *tail[:16]]) for tail in prompts(2, 7))
    return second.first / first.first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--peer", nargs=2, metavar=("LLAMA_SERVER", "GGUF"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--each", type=int, default=2, help="requests of a client in a turn")
    options = parser.parse_args()
    threads, rows = str(options.threads), []
    commands = {"qdeploy": [sys.executable, "-m", "qdeploy", "serve", str(options.model), "--threads", threads]}
    if options.peer:
        binary, file = options.peer
        commands["llama-server"] = [binary, "-m", file, "-t", threads, "-np", "16", "-c", str(16 * CONTEXT)]
    for turn in range(options.turns):
        for name, command in commands.items():
            port = free_port()
            with running([*command, "--port", str(port)], port) as server:
                server.ask(prompts(1, 0)[0])
                rows += [
                    {"server": name, "clients": n, **load(server, n, options.each, 10 * turn + n)} for n in CLIENTS
                ]
                rows.append({"server": name, "clients": 0, "shared_prefix": shared_prefix(server)})
                print(json.dumps(rows[-4:]), file=sys.stderr)
    report(rows)


def report(rows: Sequence[dict[str, Any]]) -> None:
    """The better turn of each server and number of clients, a line each."""
    for name in dict.fromkeys(row["server"] for row in rows):
        for clients in CLIENTS:
            own = [row for row in rows if row["server"] == name and row["clients"] == clients]
            best = max(own, key=lambda row: row["tokens_per_second"])
            print(json.dumps({**best, "first_p95": min(row["first_p95"] for row in own)}))
        ratios = [row["shared_prefix"] for row in rows if row["server"] == name and row["clients"] == 0]
        print(json.dumps({"server": name, "shared_prefix": min(ratios)}))


if __name__ == "__main__":
    main()
