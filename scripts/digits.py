"""Write scikit-learn's handwritten digits as pictures of 32 pixels, for scripts/train.py and scripts/accuracy.py.

    pip install scikit-learn
    python scripts/digits.py --output build/digits        # build/digits/train/0/0001.png, ..., build/digits/val/9/0123.png

1,797 pictures of 8x8 pixels (Alpaydin and Kaynak 1998, UCI, CC BY 4.0), enlarged; 497 of them, drawn with a seed, are held out.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from PIL import Image

SIZE, HELD_OUT, SEED, LEVELS = 32, 497, 0, 16


@click.command(help=__doc__.split("\n", 1)[0])
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), default=Path("build/digits"), show_default=True
)
def main(output: Path) -> None:
    from sklearn.datasets import load_digits

    found = load_digits()
    for place, index in enumerate(np.random.default_rng(SEED).permutation(len(found.target))):
        folder = output / ("val" if place < HELD_OUT else "train") / str(found.target[index])
        folder.mkdir(parents=True, exist_ok=True)
        levels = (found.images[index] * 255 / LEVELS).round().astype(np.uint8)
        picture = Image.fromarray(levels).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        picture.save(folder / f"{index:04d}.png")
    click.echo(f"{len(found.target) - HELD_OUT} and {HELD_OUT} pictures -> {output}")


if __name__ == "__main__":
    main()
