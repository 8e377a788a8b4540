"""A headless Chromium, controlled by the DevTools protocol: JSON messages over pipes, ended by a zero byte."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe")
# Chromium reads commands from file descriptor 3 and answers on 4
START = (
    "import os, sys; a, b = map(int, sys.argv[1:3]); os.dup2(a, 3); os.dup2(b, 4); os.execv(sys.argv[3], sys.argv[3:])"
)
SECONDS = 60


class Browser:
    """One tab of the browser. events: all events that it reported, such as requests and errors."""

    def __init__(self, profile):
        pipes = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (*os.pipe(), *os.pipe())]  # numbers above 3 and 4
        command = [sys.executable, "-c", START, str(pipes[0]), str(pipes[3])]
        command += [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(command, pass_fds=(pipes[0], pipes[3]), stderr=subprocess.DEVNULL)
        os.close(pipes[0]), os.close(pipes[3])
        self.answers, self.commands, self.read, self.number = pipes[2], pipes[1], b"", 0
        self.events, self.session = [], None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method, **params):
        """Send a command and return its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while (answer := self.receive()).get("id") != self.number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def receive(self):
        end = time.monotonic() + SECONDS
        while b"\0" not in self.read:
            ready, _, _ = select.select([self.answers], [], [], max(0, end - time.monotonic()))
            assert ready, f"Chromium did not answer within {SECONDS} s"
            part = os.read(self.answers, 1 << 16)
            assert part, "Chromium ended"
            self.read += part
        message, _, self.read = self.read.partition(b"\0")
        return json.loads(message)

    def open(self, address):
        """Load a page and return when its scripts have run."""
        self.events.clear()
        self.send("Page.navigate", url=address)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self.receive())

    def resize(self, width, height=800):
        mobile = width < 600
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)

    def run(self, script):
        """Return the value of a JavaScript expression, or of the promise that it returns."""
        result = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def errors(self):
        """Exceptions, and the errors and warnings in the log, such as refused scripts and styles."""
        logged = [e["params"]["entry"] for e in self.events if e["method"] == "Log.entryAdded"]
        thrown = [e["params"]["exceptionDetails"] for e in self.events if e["method"] == "Runtime.exceptionThrown"]
        return thrown + [entry for entry in logged if entry["level"] in ("error", "warning")]

    def requests(self):
        """The addresses that the page requested."""
        return [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]

    def screenshot(self, path):
        picture = self.send("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(picture["data"]))

    def close(self):
        try:
            self.send("Browser.close")
        finally:
            self.process.wait(SECONDS)
            os.close(self.answers), os.close(self.commands)
