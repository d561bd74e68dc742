"""On a machine with an NVIDIA GPU: every case on the card, against the definition in float64 on the CPU."""

from __future__ import annotations

import pytest
import torch
from cases import CASES, Case
from test_engines import largest_errors, outputs_of

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_chosen_engine_agrees_with_the_definition(case: Case) -> None:
    expected = outputs_of(case, case.tensors(torch.float64), "reference")
    on_card = {name: t.cuda() for name, t in case.tensors(torch.float64).items()}
    found = {name: t.cpu() for name, t in outputs_of(case, on_card, "auto").items()}
    errors = largest_errors(found, expected)
    assert max(errors.values()) < 1e-12, errors


def test_autocast_on_the_card() -> None:
    case = Case("autocast", (9, 10))
    tensors = {name: t.cuda().requires_grad_() for name, t in case.tensors(torch.float32).items()}
    with torch.autocast("cuda", dtype=torch.float16):
        y = case(tensors, "auto")
    assert y.dtype is torch.float16
    gradients = torch.autograd.grad(y.float().sum(), list(tensors.values()))
    assert all(g.dtype is torch.float32 and g.is_cuda for g in gradients)


def test_device_mix_is_refused() -> None:
    tensors = Case("mix", (9, 10)).tensors(torch.float32)
    with pytest.raises(ValueError, match=r"w: expected on cuda:0, where x is, got cpu"):
        Case("mix", (9, 10))({**tensors, "x": tensors["x"].cuda()}, "auto")
