"""Runs inside of the storage VM: takes requests from the tests outside, one JSON object a line, and answers them.

    {"id": 1, "op": "run", "argv": [...], "env": {...}, "cwd": "/", "input": "...", "timeout": 60}
    {"id": 2, "op": "run", ..., "lines": true}     also sends each line that comes on descriptor REPORTS_FD
    {"id": 3, "op": "clock", "now": 1700000000.0}
    {"id": 4, "op": "kill", "target": 2}           ends the process group of another request

Answers: {"id": 1, "status": 0, "stdout": "...", "stderr": "..."}; {"id": 2, "line": "..."} before the
answer of a request with lines; {"id": 0, "hello": BOOT_ID} when somebody connects.
"""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import tempfile
import threading
import time

PORT = "/dev/virtio-ports/pvetools"
MOST = 4 << 20


class Agent:
    def __init__(self, port):
        self.port = port
        self.lock = threading.Lock()
        self.running = {}

    def send(self, **message):
        data = json.dumps(message).encode() + b"\n"
        with self.lock:
            view = memoryview(data)
            while view:
                view = view[os.write(self.port, view) :]

    def serve(self):
        pending = b""
        while True:
            data = os.read(self.port, 65536)
            if not data:  # nobody is connected outside
                time.sleep(0.05)
                continue
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                if line.strip():
                    self.take(line)

    def take(self, line):
        try:
            request = json.loads(line)
        except ValueError:
            return  # the rest of a line that was cut when the other side went away
        if request["op"] == "hello":
            boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            self.send(id=request["id"], hello=boot)
        elif request["op"] == "clock":
            time.clock_settime(time.CLOCK_REALTIME, request["now"])
            self.send(id=request["id"], status=0, stdout="", stderr="")
        elif request["op"] == "kill":
            process = self.running.get(request["target"])
            if process:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            self.send(id=request["id"], status=0, stdout="", stderr="")
        else:
            threading.Thread(target=self.run, args=(request,), daemon=True).start()

    def run(self, request):
        try:
            answer = self.answer(request)
        except OSError as error:
            answer = {"status": 127, "stdout": "", "stderr": str(error)}
        self.send(id=request["id"], **answer)

    def answer(self, request):
        environment = {**os.environ, **request.get("env", {})}
        lines = None
        extra = ()
        if request.get("lines"):
            lines, write = os.pipe()
            environment["REPORTS_FD"] = str(write)
            extra = (write,)
        # Files instead of pipes: a daemon that a command leaves would keep a pipe open.
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            process = subprocess.Popen(
                request["argv"],
                env=environment,
                cwd=request.get("cwd", "/"),
                stdin=subprocess.PIPE if request.get("input") else subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                pass_fds=extra,
                start_new_session=True,
            )
            self.running[request["id"]] = process
            reader = None
            if lines is not None:
                os.close(extra[0])
                reader = threading.Thread(target=self.forward, args=(request["id"], lines), daemon=True)
                reader.start()
            status = self.wait(process, request)
            if reader:
                reader.join(10)
            del self.running[request["id"]]
            return {"status": status, "stdout": text(out), "stderr": text(err)}

    def wait(self, process, request):
        if request.get("input"):
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(request["input"].encode())
            process.stdin.close()
        try:
            return process.wait(request.get("timeout", 120))
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return -1

    def forward(self, number, descriptor):
        with os.fdopen(descriptor, encoding="utf-8", errors="replace") as file:
            for line in file:
                self.send(id=number, line=line.rstrip("\n"))


def text(file):
    size = file.seek(0, 2)
    file.seek(max(0, size - MOST))
    return file.read().decode(errors="replace")


def main():
    while not pathlib.Path(PORT).exists():
        time.sleep(0.1)
    Agent(os.open(PORT, os.O_RDWR)).serve()


if __name__ == "__main__":
    main()
