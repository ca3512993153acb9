"""PyTorch computes in true FP32, whatever the process asked for before."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from runtimes.backends._torch_settings import SETTINGS


@pytest.fixture(name="_asked_for_less")
def asked_for_less_fixture() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("_asked_for_less")
def test_products_are_in_fp32_where_the_process_asked_for_tf32() -> None:
    with SETTINGS.exact(1):
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == "high"
