"""Run a command on a worker of a dask.distributed scheduler, in this folder, which the worker's machine has to share.

    OVSEG_LAUNCH="python scripts/launch_dask.py tcp://HOST:8786 GPU=1" make repro JOBS=32

GPU=1 is what the worker has to have free (`dask worker --resources GPU=1`); without it, any worker will do.
"""

import os
import subprocess
import sys

from distributed import Client


def run(command, folder):
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")
    return done.returncode, done.stdout


if __name__ == "__main__":
    address, *command = sys.argv[1:]  # the command is `python scripts/execute.py ...`
    needed = {}
    while "=" in command[0]:
        name, number = command.pop(0).split("=")
        needed[name] = float(number)
    job = Client(address).submit(run, [sys.executable, *command[1:]], os.getcwd(), resources=needed, pure=False)
    code, output = job.result()
    print(output, end="")
    sys.exit(code)
