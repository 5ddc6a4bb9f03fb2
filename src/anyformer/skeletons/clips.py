"""Kinds of media of any size: pictures and videos in one sequence, sounds in chunks.

N media, P positions that they take, K chunks of a sound, T positions of a chunk, S a tower's width, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from anyformer.core.checks import readable
from anyformer.core.front import Input, Inputs
from anyformer.core.part import Part
from anyformer.core.recipe import Recipe
from anyformer.parts.cubes import Cubes
from anyformer.parts.projector import Bridge, Merger, Projector
from anyformer.skeletons.base import Output, Skeleton
from anyformer.skeletons.media import Medium, marks_of

SECONDS = "seconds"


class Views(Medium):
    """Pictures of any size, whose patches stand one after another in one sequence (`Cubes`), with places on three axes.

    Args: those of `Medium`; `project` makes one position of the patches of a cell.

    Shape: pixel_values (patches of all pictures, numbers of a patch), grid_thw (N, 3) -> (1, P, D).
    """

    packed = True

    def __init__(
        self,
        dim: int,
        token: int,
        tower: Recipe[Skeleton],
        project: Recipe[Merger],
        around: Sequence[int] = (),
    ):
        super().__init__(dim, token, tower, project, grid=True, around=around)  # type: ignore[arg-type]

    def bridge(self, project: Any, dim: int) -> Any:
        if not isinstance(self.front, Cubes):
            raise ValueError(f"Views: the front-end of the tower must be Cubes, got {type(self.front).__name__}")
        return project.build(dim, self.tower.width, self.front.merge**2)

    @property
    def front(self) -> Cubes:
        return self.tower.entrances()[0].front

    def forward(self, given: Inputs) -> tuple[Output, Tensor]:
        self.check(given)
        return super().forward({name: value for name, value in given.items() if name != SECONDS})

    def check(self, given: Inputs) -> None:
        """Raises ValueError for a picture of several frames."""
        grid = given.get("grid_thw")
        if grid is not None and grid.ndim == 2 and readable(grid) and bool((late := grid[:, 0] > 1).any()):
            at = int(late.nonzero()[0])
            raise ValueError(
                f"{self.prefix}grid_thw: picture {at} has {int(grid[at, 0])} frames; a video is another medium, with "
                "the seconds of its frames"
            )

    def each(self, out: Output, vectors: Tensor, given: Inputs) -> list[Tensor]:
        return list(vectors[0].split(self.lengths(given)))

    def lengths(self, given: Inputs) -> list[int]:
        self.front.length(given)
        return (given["grid_thw"].prod(1) // self.project.cells).tolist()

    def entries(self, given: Inputs) -> dict[str, list[int]]:
        return {"pixel_values": given["grid_thw"].prod(1).tolist()}

    def times(self, given: Inputs, frame: Tensor, view: Tensor) -> Tensor:
        """The place in time of positions, from their frames and the numbers of their views; a picture has one frame."""
        return frame * 0

    def marks(self, given: Inputs) -> Tensor:
        grid, m = given["grid_thw"], self.front.merge
        cells = self.front.cells_of(grid, given["pixel_values"].shape[0] // self.project.cells)
        every = torch.arange(len(grid), device=grid.device)
        late = self.times(given, grid[:, 0] - 1, every)  # (N,)
        most = torch.stack((late, *(grid[:, 1:] // m - 1).unbind(1))).amax(0)
        size = grid.prod(1) // self.project.cells
        place = torch.stack((self.times(given, cells.frame, cells.grid), cells.row, cells.column), 1)
        return marks_of(place, cells.inside, cells.inside == (size - 1)[cells.grid], most[cells.grid])


class Videos(Views):
    """Videos, read by the tower and the projector of another kind of medium, with places in time: a frame of patches
    that begins after s seconds stands at floor(s · rate).

    Args:
        like: the name of the medium whose tower and projector are used.
        rate: places of a second.
        token, around: as of `Medium`.

    Shape: pixel_values, grid_thw as of `Views`, and seconds (N,): from one frame of patches to the next -> (1, P, D).
    """

    def __init__(self, dim: int, token: int, like: str, rate: float = 25.0, around: Sequence[int] = ()):
        Part.__init__(self)
        if rate <= 0:
            raise ValueError(f"Videos: rate is {rate}; expected more than 0 places a second")
        self.like, self.rate, self.cut, self.grid = like, rate, 0, True
        self.shared: tuple[Any, ...] = ()  # in a tuple, so that its parameters are stored once
        self.stands(token, around)

    def share(self, media: Any) -> None:
        """Takes the medium whose tower is used, from all of them by name."""
        if self.like not in media or type(media[self.like]) is not Views:
            raise ValueError(f"Videos: like={self.like!r} is no kind of Views before it; there are {', '.join(media)}")
        self.shared = (media[self.like],)

    @property
    def tower(self) -> Any:  # type: ignore[override]
        return self.shared[0].tower

    @property
    def project(self) -> Any:  # type: ignore[override]
        return self.shared[0].project

    def reads(self) -> dict[str, Input]:
        return {**super().reads(), SECONDS: Input(())}

    def example(self, rows: int, noise: torch.Generator) -> dict[str, Tensor]:
        made = self.front.example(rows, (1, 1, 2), noise)
        return {**made, SECONDS: (torch.arange(rows) % 3 + 1) / (2 * self.rate)}

    def check(self, given: Inputs) -> None:
        """Raises ValueError for videos without the seconds of their frames, or with others than theirs."""
        seconds, count = given.get(SECONDS), len(given["grid_thw"]) if "grid_thw" in given else 0
        if seconds is None:
            raise ValueError(
                f"{self.prefix}pixel_values came without {self.prefix}{SECONDS}: how long a frame of patches lasts "
                f"decides where a video stands in time. Pass ({count},) seconds: frames of a patch / frames a second"
            )
        if seconds.shape != (count,) or not seconds.is_floating_point():
            raise ValueError(
                f"{self.prefix}{SECONDS} must be {count} numbers of seconds, one for each video; got {seconds.dtype} "
                f"of shape {tuple(seconds.shape)}"
            )
        if readable(seconds) and not bool((seconds.isfinite() & (seconds > 0)).all()):
            raise ValueError(f"{self.prefix}{SECONDS} must be above 0 and finite; got {seconds.tolist()}")

    def times(self, given: Inputs, frame: Tensor, view: Tensor) -> Tensor:
        return (frame.float() * given[SECONDS].float()[view] * self.rate).long()


class Sounds(Medium):
    """Sounds of any length, whose tower reads them in chunks (`Chunks`): their positions are joined again.

    Args: those of `Medium`; `project` makes one position of several: `Averager.of(…)`.

    Shape: input_features (N, M, F), feature_attention_mask (N, F) -> (N, P, D).
    """

    def __init__(
        self,
        dim: int,
        token: int,
        tower: Recipe[Skeleton],
        project: Recipe[Bridge] = Projector.of(),
        around: Sequence[int] = (),
    ):
        super().__init__(dim, token, tower, project, around=around)

    def arrange(self, hidden: Tensor, given: Inputs) -> Tensor:
        return hidden.unflatten(0, (next(iter(given.values())).shape[0], -1)).flatten(1, 2)  # (N, K T, …)

    def lengths(self, given: Inputs) -> list[int]:
        front = self.tower.entrances()[0].front
        if front.mask not in given:
            sounds = given[front.main]
            front.length(given)
            counts = [-(-sounds.shape[2] // 2) // self.project.cells] * len(sounds)
        else:
            counts = super().lengths(given)
        for number, count in enumerate(counts):
            if not count:
                raise ValueError(f"sound {number} is too short: it makes no position")
        return counts
