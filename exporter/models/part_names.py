"""Translate what training scripts and libraries call the parts of a residual network to torchvision's names."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """A way of naming the parts.

    Attributes:
        name: what messages call it.
        rules: pattern of a name's beginning -> torchvision's.
    """

    name: str
    rules: tuple[tuple[str, str], ...]


HUGGING_FACE = Layout(
    "Hugging Face's names",
    (
        (r"embedder\.embedder\.convolution\.", "conv1."),
        (r"embedder\.embedder\.normalization\.", "bn1."),
        *((rf"encoder\.stages\.{stage - 1}\.layers\.", f"layer{stage}.") for stage in range(1, 5)),
    ),
)
"""`transformers.models.resnet.modeling_resnet`; its head stands outside, as `classifier.1`."""
HEAD = r"(?:(?:cls_)?head\.)?(?:fc|linear|classifier|head|last_linear)"
"""Pattern of a head's names; `cls_head.fc` and `head.fc` are MMPretrain's, `last_linear` is pretrainedmodels'."""
LAYOUTS = (
    Layout(
        "torchvision's or a tutorial's names",
        (
            (r"(conv|conv1\.0|stem\.0)\.", "conv1."),
            (r"(bn|conv1\.1|stem\.1)\.", "bn1."),
            (rf"{HEAD}(\.\d+)?\.(?=(weight|bias)$)", "fc."),
            *((rf"(conv{stage + 1}_x|stage{stage}|layers\.{stage - 1})\.", f"layer{stage}.") for stage in range(1, 5)),
        ),
    ),
    HUGGING_FACE,
    Layout(
        "d2l.ai's names",
        (
            (r"0\.0\.", "conv1."),
            (r"0\.1\.", "bn1."),
            *((rf"({stage}|b{stage + 1})\.(?=\d+\.)", f"layer{stage}.") for stage in range(1, 5)),
            (r"(7|last\.2)\.", "fc."),
        ),
    ),
    Layout(
        "nn.Sequential's numbers",
        (
            (r"0\.", "conv1."),
            (r"1\.", "bn1."),
            *((rf"({stage + 3}|resnet_block{stage})\.(?=\d+\.)", f"layer{stage}.") for stage in range(1, 5)),
            (r"(9|10|fc\.\d+)\.", "fc."),
        ),
    ),
)
BLOCK_RULES = (
    (r"\.shortcut\.", ".downsample."),
    (r"\.downsample\.(weight|bias)$", r".downsample.0.\1"),
    (r"\.downsample\.convolution\.", ".downsample.0."),
    (r"\.downsample\.normalization\.", ".downsample.1."),
    *((rf"\.layer\.{place}\.convolution\.", f".conv{place + 1}.") for place in range(3)),
    *((rf"\.layer\.{place}\.normalization\.", f".bn{place + 1}.") for place in range(3)),
    *((rf"\.residual_function\.{3 * place}\.", f".conv{place + 1}.") for place in range(3)),
    *((rf"\.residual_function\.{3 * place + 1}\.", f".bn{place + 1}.") for place in range(3)),
)
KNOWN = re.compile(
    r"((conv1|bn1|fc)|layer[1-4]\.\d+\.(conv[123]|bn[123]|downsample\.[01]))"
    r"\.(weight|bias|running_mean|running_var|num_batches_tracked)"
)
"""torchvision's names of a residual network's tensors."""


def torchvision_name(key: str, layout: Layout) -> str:
    """torchvision's name of the tensor that `layout` calls `key`; a name without a rule stays as it is."""
    for pattern, replacement in layout.rules:
        changed, times = re.subn(f"^{pattern}", replacement, key)
        if times:
            key = changed
            break
    for pattern, replacement in BLOCK_RULES:
        key = re.sub(pattern, replacement, key)
    return key
