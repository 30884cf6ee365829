"""Output whose reader has ended is discarded; the computation continues."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from typing import TextIO, cast

import pytest
from rich.console import Console

from medcl3d.io.output import LosableOutput


def test_output_passes_through():
    stream = io.StringIO()
    Console(file=cast(TextIO, LosableOutput(stream)), width=80).print("a line")
    assert stream.getvalue() == "a line\n"
    assert not LosableOutput(stream).isatty()


@pytest.mark.parametrize("buffering", [1, -1])
def test_a_closed_pipe_is_replaced_by_the_null_device(buffering):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w", buffering=buffering) as stream:
        console = Console(file=cast(TextIO, LosableOutput(stream)))
        for _ in range(3):
            console.print("a line")
        assert os.path.samestat(os.fstat(stream.fileno()), os.stat(os.devnull))


def test_the_process_ends_normally():
    code = (
        "import sys; from rich.console import Console; from medcl3d.io.output import LosableOutput\n"
        "sys.stdin.read()\n"
        "console = Console(file=LosableOutput(sys.stdout))\n"
        "console.print('a line'); console.print('a line'); print('finished', file=sys.stderr)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdin is not None and child.stdout is not None and child.stderr is not None
        child.stdout.close()
        child.stdin.close()
        assert child.stderr.read() == "finished\n"
    assert child.returncode == 0
