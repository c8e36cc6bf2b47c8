"""Starts vLLM's server as `rollout.server` wants it: `python -m tpg.rollouts.vllm.serve MODEL [vLLM's options]`.

MODEL is the policy's hub id or folder, of which only the config is read; the weights come from the training. The
server obeys whoever reaches its port: keep it on a network that you trust.
"""

import os
import runpy
import sys

NEEDED = [
    *("--load-format", "dummy", "--skip-tokenizer-init", "--generation-config", "vllm"),
    *("--hf-overrides", '{"tie_word_embeddings": false}'),  # a shared output layer would keep its former weights
    *("--logits-processors", "tpg.rollouts.vllm.drawing:Drawing", "--logprobs-mode", "processed_logits"),
    *("--worker-extension-cls", "tpg.rollouts.vllm.server.TakesWeights", "--no-async-scheduling"),
    *("--enable-scale-out", "--disable-uvicorn-access-log"),
]


def main() -> None:
    """Run vLLM's own server in this process."""
    os.environ.update(VLLM_SERVER_DEV_MODE="1", VLLM_USE_V2_MODEL_RUNNER="0")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        raise SystemExit(__doc__)
    # By module: the `vllm` command looks for a package of that name, and the one for CPUs has another.
    sys.argv[1:] = ["--model", *sys.argv[1:], *NEEDED]
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")


if __name__ == "__main__":
    main()
