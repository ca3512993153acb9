"""Make calibration/assets/fashion_mnist.npz, the built-in image set, from the IDX files of Fashion-MNIST.

    python scripts/make_builtin_images.py --data /usr/share/datasets/fashion-mnist

Takes the first 100 training images of each class and the first 2,000 test images, in file order.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from calibration.idx import read_idx

TRAIN_PER_CLASS, TEST_IMAGES, CLASSES = 100, 2000, 10


@click.command(help=__doc__.split("\n", 1)[0])
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Folder with the four IDX files.",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("calibration/assets/fashion_mnist.npz"),
    show_default=True,
)
def main(data: Path, output: Path) -> None:
    labels = read_idx(data / "train-labels-idx1-ubyte.gz")
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == label)[:TRAIN_PER_CLASS] for label in range(CLASSES)]))
    np.savez_compressed(
        output,
        train_images=read_idx(data / "train-images-idx3-ubyte.gz")[chosen],
        train_labels=labels[chosen],
        test_images=read_idx(data / "t10k-images-idx3-ubyte.gz")[:TEST_IMAGES],
        test_labels=read_idx(data / "t10k-labels-idx1-ubyte.gz")[:TEST_IMAGES],
    )
    click.echo(f"{output}: {output.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
