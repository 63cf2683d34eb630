import subprocess
import sys

from afd_serve.servers.processes import started_at
from afd_serve.servers.triton_supervisor import _find_stubs

_SERVER = """
import os, subprocess, sys, time
ended = subprocess.Popen([sys.executable, "-c", ""])
os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
stub = subprocess.Popen(["triton_python_backend_stub", "600"], executable="/bin/sleep")
while not open(f"/proc/{stub.pid}/cmdline", "rb").read():  # for a moment Linux has started it, but not yet named it
    time.sleep(0.001)
print(stub.pid, flush=True)
time.sleep(600)
"""


def test_a_child_that_has_just_ended_does_not_end_the_supervisor() -> None:
    with subprocess.Popen([sys.executable, "-c", _SERVER], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        stub = int(server.stdout.readline())
        try:
            assert _find_stubs(server) == {(stub, started_at(stub))}
        finally:
            subprocess.run(["kill", str(stub)], check=True)
            server.kill()
