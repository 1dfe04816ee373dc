"""Time the norms of a DiT block: python -m runtime.bench.adaln"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial

import torch

from runtime.bench.op import Case, main
from runtime.bench.tune import Tunable, rounding
from runtime.kernels import adaln as ops
from runtime.kernels.dispatch import implementation

SIZES = {"embedded": [(1, 16, 192), (4, 16, 192)], "full": [(1, 1560, 1536)]}  # B, P, E
FRAMES = 3


def cases(device: torch.device, shape: str) -> Iterator[Case]:
    gpu = device.type == "cuda"
    impls = ["torch", implementation("auto", device)]
    sizes = SIZES[shape] + ([(4, 1560, 1536), (8, 1560, 1536)] if gpu and shape == "full" else [])
    for dtype in (torch.bfloat16,) if gpu else (torch.float32, torch.bfloat16):
        for B, P, E in sizes:
            source = torch.Generator(device).manual_seed(0)
            made = {"generator": source, "device": device}
            x, y = (torch.randn(B, FRAMES * P, E, **made).to(dtype) for _ in range(2))
            gate, scale, shift = torch.randn(B, FRAMES, 3, 1, E, **made).to(dtype).unbind(2)
            weight, bias = torch.randn(2, E, **made).to(dtype)
            forms = {  # passes over [B, S, E]: what has to be read and written
                "adaln": (ops.adaln, (x, scale, shift), 2),
                "gated_residual": (ops.gated_residual, (x, y, gate), 3),
                "residual_adaln": (ops.residual_adaln, (x, y, gate, scale, shift), 4),
                "residual_layer_norm": (ops.residual_layer_norm, (x, y, gate, weight, bias), 4),
            }
            for name, (op, args, passes) in forms.items():
                exact = op(*(t.double() for t in args), impl="torch")
                runs = {impl: partial(op, *args, impl=impl) for impl in impls}
                errors = {impl: _error(run(), exact) for impl, run in runs.items()}
                if name.startswith("residual") and impls[1] != "torch":
                    # As the model calls it. The scratch grows by y a call, which costs the same.
                    scratch, label = x.clone(), f"{impls[1]} in place"
                    run = partial(op, scratch, *args[1:], impl=impls[1], into=scratch)
                    runs[label], errors[label] = run, _error(run(), exact)
                shown = f"B={B} S={FRAMES * P} E={E}"
                yield Case(name, shown, dtype, runs, errors, moved_bytes=passes * x.nbytes)


def tunables(device: torch.device) -> Iterator[Tunable]:
    """The widths that a launch asks for; the sum, norm and modulation together decide."""
    for size in SIZES:
        B, P, E = SIZES[size][-1]
        x, y = torch.randn(2, B, FRAMES * P, E, device=device).bfloat16()
        vectors = torch.randn(B, FRAMES, 3, 1, E, device=device).bfloat16().unbind(2)
        exact = ops.residual_adaln(*(t.double() for t in (x, y, *vectors)), impl="torch")
        yield Tunable(
            {"width": E},
            ops.SPACE,
            partial(ops.residual_adaln, x, y, *vectors, "triton"),
            partial(_error, exact=exact),
            rounding(exact),
        )


def _error(got: torch.Tensor | tuple, exact: torch.Tensor | tuple) -> float:
    if isinstance(got, torch.Tensor):
        return (got.double() - exact).abs().max().item()
    return max(_error(g, e) for g, e in zip(got, exact, strict=True))


if __name__ == "__main__":
    sys.exit(main("adaln", cases, __doc__ or ""))
