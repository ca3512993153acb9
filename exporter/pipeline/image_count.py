"""The count of images that a proof runs, for its progress bar."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from runtimes.base import Runtime
from runtimes.progress import Progress
from runtimes.specs import BatchRange


class ImageCount:
    """How many images have been run by models that run one after the other, each all `images` of them.

    A model that runs fewer counts as done when it is closed; one that runs some of them again, at another batch size,
    counts none above `images`.
    """

    def __init__(self, step: str, images: int, models: int, progress: Progress) -> None:
        self.step, self.images, self.models, self.progress = step, images, models, progress
        self.finished = self.rows = 0

    def __call__(self, runtime: Runtime) -> Runtime:
        """The same model, counted; closing it closes `runtime`."""
        return _Counted(runtime, self)

    def add(self, rows: int) -> None:
        """Count images that the model at hand has run."""
        self.rows = min(self.rows + rows, self.images)
        self.progress(self.step, self.finished + self.rows, self.models * self.images)

    def finish_model(self) -> None:
        """Count the model at hand as done."""
        self.add(self.images)
        self.finished, self.rows = self.finished + self.images, 0


class _Counted(Runtime):
    def __init__(self, runtime: Runtime, count: ImageCount) -> None:
        super().__init__(runtime.inputs, runtime.outputs, runtime.batch)
        self.runtime, self.count = runtime, count

    @classmethod
    def open(cls, path: Path, *, provider: str | None = None, batch: BatchRange | None = None) -> _Counted:
        raise NotImplementedError("it is made from a runtime that is open")

    @property
    def provider(self) -> str:
        return self.runtime.provider

    def _run(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        outputs = self.runtime.run(feeds)
        self.count.add(len(next(iter(feeds.values()))))
        return outputs

    def _close(self) -> None:
        self.runtime.close()
        self.count.finish_model()
