"""PyTorch's PT2E quantization, of TorchAO, after training and while training, by the new exporter; run by scripts/make_strangers.py with the folder.

TorchAO's own `quantize_` (of linear layers, dynamic) is not here: the exporter of PyTorch 2.14 has no ONNX for its aten._int_mm.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from stranger_makers import FREE
from stranger_networks import CLASSES, TinyResNet, settled
from stranger_readings import pictures
from torchao.quantization.pt2e import move_exported_model_to_eval
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e, prepare_qat_pt2e
from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86


def main(folder: Path, *, trained: bool) -> None:
    """Write pt2e_static.onnx or pt2e_trained.onnx."""
    network = settled(TinyResNet(), FREE).train(trained)
    images = [pictures(8, FREE.size, seed=500 + number) for number in range(4)]
    batches = [torch.from_numpy(FREE.network_input(one)) for one in images]
    free = ({0: torch.export.Dim("batch", min=2, max=64)},)
    program = torch.export.export(network, (batches[0],), dynamic_shapes=free).module()
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config(is_qat=trained))
    program = (prepare_qat_pt2e if trained else prepare_pt2e)(program, quantizer)
    optimizer = torch.optim.SGD(program.parameters(), lr=1e-3) if trained else None
    for one in batches:
        logits = program(one)
        if optimizer:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits, torch.arange(8) % CLASSES).backward()  # type: ignore[no-untyped-call]  # torch does not type it
            optimizer.step()
    program = convert_pt2e(program)
    if trained:
        move_exported_model_to_eval(program)
    name = "pt2e_trained" if trained else "pt2e_static"
    torch.onnx.export(
        program,
        (batches[0],),
        folder / f"{name}.onnx",
        dynamo=True,
        external_data=False,
        input_names=["input"],
        output_names=["logits"],
        dynamic_shapes=free,
    )
    with torch.no_grad():
        np.savez(folder / f"{name}.npz", images=images[0], answers=program(batches[0]).numpy())


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for while_training in (False, True):
        main(Path(sys.argv[1]), trained=while_training)
