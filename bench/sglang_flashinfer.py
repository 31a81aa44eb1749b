"""FlashInfer for SGLang's dense backend of that name: what it calls, compiled for sm_90a and without a GPU, to carry.

SGLang 0.5.23 asks for flashinfer-python 0.7.2, and its bundle has apache-tvm-ffi 0.1.11; the compiler is that of torch
2.11 there, CUDA 13.0. For heads of 128 in bf16 these are five modules, 20 minutes on a busy core: decoding with CUDA
cores (what SGLang chooses for fewer than four heads a KV head), paged FA2 (a prompt's cached part, and decoding with
tensor cores), FA3 (its new part), what merges the two, and norms, which sglang-kernel takes from FlashInfer where it is
there. RoPE, activations and what writes K and V are SGLang's own and sglang-kernel's, and with --sampling-backend
pytorch FlashInfer samples nothing.

    python3.12 -m venv peer && peer/bin/pip install --no-deps flashinfer-python==0.7.2
    peer/bin/pip install torch==2.11.0 apache-tvm-ffi==0.1.11 nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 \\
      nvidia-nvvm==13.0.88 'nvidia-cuda-cccl<13.1' numpy requests tqdm nvidia-ml-py jinja2 packaging filelock ninja \\
      click tabulate einops
    export CUDA_HOME=$PWD/peer/lib/python3.12/site-packages/nvidia/cu13 PATH=$PWD/peer/bin:$PATH
    nice -n 10 python bench/sglang_flashinfer.py DIR

It may be called again: what is built stays. ``DIR/flashinfer.txz`` goes where bench/sglang_bundle.sh's result is, and
bench/parts/serve.sh carries it, unpacks it and tries it:

    python3 bench/sglang_flashinfer.py --try        # on the GPU machine: loads there, and attends rightly
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def specs() -> dict[str, Callable[[], Any]]:
    """By a short name; the quick ones first."""
    from flashinfer.jit.cascade import gen_cascade_module
    from flashinfer.jit.norm import gen_norm_module
    from flashinfer_prebuild import attention

    return {"cascade": gen_cascade_module, "norm": gen_norm_module, **attention()}


def attempt() -> None:
    """Decoding, a prompt with a part of it cached and norms, called as SGLang calls them, beside torch's own."""
    import flashinfer
    import torch

    torch.manual_seed(0)
    batch, length, heads, dim = 2, 1000, 8, 128
    made = {"device": "cuda", "dtype": torch.bfloat16}
    workspace = torch.empty(256 << 20, device="cuda", dtype=torch.uint8)
    k, v = (torch.randn(batch * length, heads, dim, **made) for _ in range(2))
    rows = torch.randperm(batch * length, device="cuda").int().view(batch, length)
    starts = torch.arange(batch + 1, device="cuda", dtype=torch.int32)
    last = torch.ones(batch, device="cuda", dtype=torch.int32)
    one = (2 * heads, heads, dim)

    def compare(what: str, q: Any, got: Any) -> None:
        new = len(q) // batch
        hidden = torch.ones(new, length, device="cuda", dtype=torch.bool).triu(length - new + 1)
        wide = q.float().view(batch, new, 2 * heads, dim).transpose(1, 2)
        keys, values = (x[rows.long()].transpose(1, 2).float().repeat_interleave(2, 1) for x in (k, v))
        scores = ((wide @ keys.mT) * dim**-0.5).masked_fill(hidden, -torch.inf)
        want = scores.softmax(-1) @ values
        off = float((got.float().view(batch, new, 2 * heads, dim).transpose(1, 2) - want).abs().max())
        print(f"FlashInfer, {what}: off by at most {off:.4f}")
        if not off < 0.02:
            raise SystemExit("FlashInfer is wrong")

    pages = (k, v)  # of one token each, as SGLang has them
    for tensor_cores in (False, True):
        decode = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            workspace, "NHD", backend="fa2", use_tensor_cores=tensor_cores
        )
        words = (starts * length, rows.flatten(), last, *one, 1)
        decode.begin_forward(*words, data_type=torch.bfloat16, q_data_type=torch.bfloat16)
        q = torch.randn(batch, 2 * heads, dim, **made)
        compare(f"decoding with {'tensor' if tensor_cores else 'CUDA'} cores", q, decode.forward(q, pages))
    rows_of_model, weight = torch.randn(64, 2048, **made), torch.randn(2048, **made)
    normed = torch.nn.functional.rms_norm(rows_of_model.float(), (2048,), weight.float(), 1e-6)
    off = float((flashinfer.norm.rmsnorm(rows_of_model, weight, 1e-6).float() - normed).abs().max())
    print(f"FlashInfer, norms: off by at most {off:.4f}")
    if not off < 0.1:
        raise SystemExit("FlashInfer is wrong")
    new = 300
    q = torch.randn(batch * new, 2 * heads, dim, **made)
    ragged = flashinfer.BatchPrefillWithRaggedKVCacheWrapper(workspace, "NHD", backend="auto")
    ragged.begin_forward(starts * new, starts * new, *one, q_data_type=torch.bfloat16)
    ids = rows[:, length - new :].flatten().long()
    fresh = ragged.forward_return_lse(q, k[ids], v[ids], causal=True, sm_scale=dim**-0.5)
    paged = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD", backend="fa2")
    cached = (starts * (length - new), rows[:, : length - new].flatten(), last)
    paged.begin_forward(
        starts * new, *cached, *one, 1, q_data_type=torch.bfloat16, kv_data_type=torch.bfloat16, non_blocking=True
    )
    before = paged.forward_return_lse(q, pages, causal=False, sm_scale=dim**-0.5)
    compare(f"300 new tokens, by {ragged._backend}", q, flashinfer.merge_state(*fresh, *before)[0])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--try", dest="attempt", action="store_true", help="where it can be imported, beside a GPU")
    parser.add_argument("out", type=Path, nargs="?", help="folder outside the repository")
    args = parser.parse_args()
    if args.attempt:
        attempt()
        return 0
    if not args.out:
        parser.error("the folder to build in is needed")
    from flashinfer_prebuild import build, environment, pack

    environment(args.out.resolve(), Path(os.environ["CUDA_HOME"]) / "include", jobs=1)
    built = build(specs())
    made = pack(args.out.resolve(), built)
    print(f"{len(built)} modules, {made.stat().st_size / 1e6:.1f} MB in {made}")
    return 0 if len(built) == len(specs()) else 1


if __name__ == "__main__":
    sys.exit(main())
