"""Make random weights behave like trained ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from calibration.data import built_in, inputs_from_source, with_channels
from exporter.models.determinism import plain_fp32
from exporter.models.failing_layer import foreign_code, reason, watch_layers, where_it_failed
from runtimes.errors import TraceError
from runtimes.preprocess import MODES, Preprocess

STATISTICS_IMAGES = 8
RESIDUAL_SCALE = 0.1
PATCH_SHARE = 0.1
"""Share of a filter's power. With it, the convolutions after the first one of a random ResNet-20 answer real images
5.1 dB louder than white noise of the same power; a trained network's do so by 5.8 dB, white filters by 0 dB."""


def make_random_behave(module: nn.Module, preprocess: Preprocess, name: str) -> None:
    """Give random weights the activations and the noise stability of a trained network, in place.

    Plain random weights give logits of 1e8 at ResNet-152's depth, and a network so chaotic that rounding changes the
    answer. So the last batch norm of each residual branch gets the weight 0.1 (its usual start is 0; Goyal et al. 2017,
    arXiv 1706.02677, section 5.1), and the batch norms' statistics are those of real images.

    A trained network damps noise, since its filters respond to what its inputs contain (Arora et al. 2018,
    arXiv 1802.05296). White filters pass on noise as they do images, batch norm removes the images' mean and scales up
    the rest, and in every layer the noise gains on the signal: of a picture of 352 pixels rounded to eight bits, 35 dB
    were left in a ResNet-50's first stage and 27 dB in its last. So a patch of its convolution's input is mixed into
    each filter (Lehmann and Ebner 2021, "Are Image Patches Beneficial for Initializing Convolutional Neural Network
    Models?", do so before training).

    Args:
        preprocess: how images reach the module.
        name: what messages call the module.

    Raises:
        TraceError: the module does not take a batch of images.
    """
    for block in module.modules():
        last = getattr(block, "bn3", None) or getattr(block, "bn2", None)
        if isinstance(last, nn.BatchNorm2d) and last.affine:
            nn.init.constant_(last.weight, RESIDUAL_SCALE)
    source = (
        built_in("train") if preprocess.channels in MODES else with_channels(built_in("train"), preprocess.channels)
    )
    inputs = torch.from_numpy(inputs_from_source(source, preprocess, STATISTICS_IMAGES))
    hooks = []
    module.eval()  # as a whole: in training mode a head may want labels, and dropout would shift the statistics
    for layer in module.modules():
        if isinstance(getattr(layer, "running_var", None), Tensor):
            layer.training = True
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.momentum = None  # a cumulative average: after one batch, that batch's statistics
        elif isinstance(layer, nn.Conv2d):
            hooks.append(layer.register_forward_pre_hook(_take_in_patches))
    with watch_layers(module) as inside:

        def batch_error(error: BaseException) -> TraceError:
            return TraceError(
                f"{name} does not take a batch of {len(inputs)} images{where_it_failed(inside, error)}: "
                f"{reason(error)}; "
                "give --weights FILE"
            )

        try:
            with foreign_code(batch_error), plain_fp32(), torch.inference_mode():
                module(inputs)
        finally:
            for hook in hooks:
                hook.remove()
    module.eval()


def _take_in_patches(layer: nn.Conv2d, inputs: tuple[Any, ...]) -> None:
    """Mix a centred patch of the inputs, from a random place of a random image, into each filter, in place.

    The filter's norm stays about the same.
    """
    if len(inputs) != 1 or inputs[0].ndim != 4:
        return  # a foreign network may feed a convolution in another way; its filters stay white
    weight, (filters, channels, height, width) = layer.weight, layer.weight.shape
    centred = inputs[0] - inputs[0].mean((0, 2, 3), keepdim=True)
    padded = functional.pad(centred, (width // 2, width // 2, height // 2, height // 2))
    image, top, left = (
        torch.randint(int(count), (filters, 1, 1, 1))
        for count in (len(padded), padded.shape[2] - height + 1, padded.shape[3] - width + 1)
    )
    channel = (torch.arange(filters) // (filters // layer.groups) * channels)[:, None] + torch.arange(channels)
    patches = padded[image, channel[:, :, None, None], top + torch.arange(height)[:, None], left + torch.arange(width)]
    norms, own = (torch.linalg.vector_norm(one, dim=(1, 2, 3), keepdim=True) for one in (patches, weight))
    patches *= own / norms.clamp(min=torch.finfo(norms.dtype).tiny)
    weight.copy_((1 - PATCH_SHARE) ** 0.5 * weight + PATCH_SHARE**0.5 * patches)
