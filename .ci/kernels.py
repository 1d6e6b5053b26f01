"""Kernels that begin with everything imported, which takes longer than most notebooks do here.

A server imports once and forks for each kernel; Jupyter starts a small process that asks it for one and ends with it.

python .ci/kernels.py serve SOCKET     (started by .ci/notebooks.py)
python .ci/kernels.py kernel FILE      (started by Jupyter, by the kernel specification that `specify` writes)
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ADDRESS = "MAXTOKI_KERNELS"


def serve(address: str) -> None:
    """Fork a kernel for each connection, and say what it took when it has ended."""
    # matplotlib looks at this when it is imported, which in a kernel is after it was set.
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    import anndata  # noqa: F401
    import ipykernel.kernelapp
    import matplotlib.pyplot  # noqa: F401
    import scanpy  # noqa: F401
    import transformers.models.llama.modeling_llama
    import transformers.trainer  # noqa: F401
    import umap  # noqa: F401

    import maxtoki_toolkit as mt

    for name in ("pp", "tl", "pl", "get", "train", "models", "datasets", "reports", "widgets"):
        getattr(mt, name)
    server = socket.socket(socket.AF_UNIX)
    server.bind(address)
    server.listen()
    while True:
        connection, _ = server.accept()
        asked = json.loads(connection.makefile().readline())
        if (kernel := os.fork()) == 0:
            server.close()
            os.setsid()
            os.chdir(asked["cwd"])
            os.environ.clear()
            os.environ.update(asked["env"])
            # It would end with its parent, which is another one.
            os.environ.pop("JPY_PARENT_PID", None)
            sys.argv = ["ipykernel_launcher.py", "-f", asked["file"]]
            ipykernel.kernelapp.launch_new_instance()
            os._exit(0)
        _, _, used = os.wait4(kernel, 0)
        took = {"cpu": used.ru_utime + used.ru_stime, "memory": used.ru_maxrss}
        with contextlib.suppress(BrokenPipeError):
            connection.sendall((json.dumps(took) + "\n").encode())
        connection.close()


def kernel(file: str) -> None:
    """Be the process that Jupyter sees."""
    # Jupyter interrupts a kernel before it asks it to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.environ[ADDRESS])
    asked = {"file": file, "cwd": str(Path.cwd()), "env": dict(os.environ)}
    connection.sendall((json.dumps(asked) + "\n").encode())
    took = connection.makefile().readline()
    with Path(os.environ[ADDRESS] + ".jsonl").open("a") as log:
        log.write(took)


def start(folder: Path) -> subprocess.Popen:
    """Start the server, and have Jupyter start kernels by it."""
    address = str(folder / "kernels.sock")
    spec = folder / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True, exist_ok=True)
    argv = [sys.executable, __file__, "kernel", "{connection_file}"]
    (spec / "kernel.json").write_text(
        json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"})
    )
    os.environ |= {ADDRESS: address, "JUPYTER_PATH": str(folder / "jupyter")}
    server = subprocess.Popen([sys.executable, __file__, "serve", address])
    while not Path(address).exists():
        if server.poll() is not None:
            raise RuntimeError("The server of kernels did not start.")
        time.sleep(0.1)
    return server


def taken(folder: Path) -> list[dict]:
    """CPU seconds and peak memory (KiB) of the kernels that have ended."""
    log = folder / "kernels.sock.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines() if line] if log.exists() else []


if __name__ == "__main__":
    {"serve": serve, "kernel": kernel}[sys.argv[1]](sys.argv[2])
