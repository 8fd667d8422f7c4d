"""Clients of all kinds at a server whose budget moves every second: what is lost, and what goes over the ceiling.

    python bench/soak.py MODEL.qd --seconds 600 --clients 16

Each client sends prompts of all lengths, greedy and drawn, whole and streamed; one in eight vanishes in the middle.
Prints one line of JSON; exits with 1 where a request ended without an answer, or more than the budget was in use.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any


class Server:
    """`qdeploy serve` in a process of its own."""

    def __init__(self, model: Path, threads: int) -> None:
        command = [sys.executable, "-m", "qdeploy", "serve", str(model), "--port", "0", "--threads", str(threads)]
        environment = {**os.environ, "QDEPLOY_ADMIN_TOKEN": "soak"}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        for line in self.process.stderr or ():
            if line.startswith("API"):
                self.port = int(line.rpartition(":")[2].partition("/")[0])
                break
        while self.call("GET", "/ready")[0] != 200:
            time.sleep(0.05)

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and body of an answer; JSON is parsed."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Authorization": "Bearer soak"})
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, json.loads(text) if text.startswith(b"{") else text
        except ConnectionRefusedError:
            return 0, None
        finally:
            connection.close()

    def resident(self) -> int:
        """Bytes of memory that the process has."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) << 10
        return 0


class Soak:
    """What happened so far."""

    def __init__(self, server: Server, seconds: float) -> None:
        self.server, self.end = server, time.monotonic() + seconds
        self.statuses: dict[str, int] = {}
        self.lost: list[str] = []
        self.lock = threading.Lock()
        self.over = 0

    def count(self, status: object) -> None:
        """Notes an answer."""
        with self.lock:
            self.statuses[str(status)] = self.statuses.get(str(status), 0) + 1

    def client(self, number: int) -> None:
        """Asks until the time is up."""
        draw = random.Random(number)
        while time.monotonic() < self.end:
            words = draw.choice((1, 8, 40, 90))
            body = {
                "prompt": " ".join(draw.choice("abcdefgh") for _ in range(words)),
                "max_tokens": draw.randint(1, 40),
            }
            body |= {"temperature": draw.choice((0, 1)), "stream": draw.random() < 0.5}
            try:
                if draw.random() < 1 / 8:
                    self.vanish(body)
                    continue
                status, answer = self.server.call("POST", "/v1/completions", body)
                self.count(status)
                if isinstance(answer, bytes) and not answer.endswith(b"[DONE]\n\n") and b'"error"' not in answer:
                    self.lost.append("a stream without an end")
            except (OSError, http.client.HTTPException) as error:
                self.lost.append(f"{type(error).__name__}: {error}")

    def vanish(self, body: dict[str, Any]) -> None:
        """Asks, and does not wait."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=120)
        connection.request("POST", "/v1/completions", json.dumps(body))
        connection.close()
        self.count("vanished")

    def governor(self) -> None:
        """Moves the budget every second, and looks whether it is kept."""
        draw = random.Random(0)
        while time.monotonic() < self.end:
            memory = self.server.call("GET", "/v1/memory")[1]
            budget = draw.randint(memory["floor"], int(1.2 * memory["ceiling"]))
            status, _ = self.server.call("PUT", "/v1/memory", {"budget": budget})
            self.count(f"budget {status}")
            time.sleep(1)
            if status == 200 and not (now := self.server.call("GET", "/v1/memory")[1])["pending"]:
                self.over = max(self.over, now["memory"] - now["budget"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    server = Server(options.model, options.threads)
    try:
        start = server.resident()
        soak = Soak(server, options.seconds)
        threads = [threading.Thread(target=soak.client, args=(n,)) for n in range(options.clients)]
        threads.append(threading.Thread(target=soak.governor))
        for thread in threads:
            thread.start()
        peak = 0
        while any(thread.is_alive() for thread in threads):
            peak = max(peak, server.resident())
            time.sleep(0.2)
        idle = server.call("GET", "/v1/memory")[1]
        report = {
            "statuses": soak.statuses,
            "lost": soak.lost,
            "over_budget": soak.over,
            "still_running": idle["running"],
        }
        report |= {"resident_ready": start, "resident_peak": peak, "resident_end": server.resident()}
        report |= {"held_end": idle["memory"], "ceiling": idle["ceiling"]}
        print(json.dumps(report))
        return int(bool(soak.lost) or soak.over > 0 or idle["running"] > 0)
    finally:
        server.process.terminate()
        server.process.wait(30)


if __name__ == "__main__":
    sys.exit(main())
