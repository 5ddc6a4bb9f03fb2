"""A run on the screen: a live line on a terminal, now and then a plain one elsewhere."""

from __future__ import annotations

import time
from typing import Any

from anyformer.train.log import Watch

LINES = 20  # plain lines that a run prints where there is no terminal


class Screen(Watch):
    """Shows loss, learning rate, gradient norm, tokens a second and the time left. Use as a context manager.

    Args:
        quiet: show nothing at all.
    """

    def __init__(self, quiet: bool = False):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self.console = Console(quiet=quiet, highlight=False)
        bar, text = BarColumn(bar_width=16), TextColumn("{task.fields[text]}")
        self.bar = Progress(bar, text, console=self.console, disable=not self.console.is_terminal or quiet)
        self.task = self.bar.add_task("", text="")
        self.first: tuple[int, float] | None = None
        self.printed = 0
        self.unit = "bits per byte"  # of what is measured

    def __enter__(self) -> Screen:
        self.bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.stop()

    def say(self, text: str) -> None:
        """A line of its own."""
        self.console.print(text, markup=False, soft_wrap=True)

    def steps(self, row: dict[str, Any], speed: float, steps: int) -> None:
        """Moves the line on."""
        now, step = time.monotonic(), row["step"]
        self.first = self.first or (step, now)
        done = step - self.first[0]
        left = f"{_clock((now - self.first[1]) / done * (steps - step))} left" if done else ""
        text = (
            f"step {step}/{steps}  loss {row['loss']:.3f}  lr {row['lr']:.1e}  grad {row['grad_norm']:.2f}  "
            f"{speed:,.0f} tokens/s  {reported(row)}{left}"
        )
        if self.bar.disable:
            if step * LINES // steps > self.printed:
                self.printed = step * LINES // steps
                self.say(text)
        else:
            self.bar.update(self.task, completed=step, total=steps, text=text)

    def evaluated(self, step: int, held_out: float) -> None:
        """A line for an evaluation."""
        self.say(f"step {step}: held-out {held_out:.3f} {self.unit}")


def reported(row: dict[str, Any]) -> str:
    """What the model's parts report (`train.figures`), or nothing."""
    losses = [f"{name[4:]} {value:.3f}  " for name, value in row.items() if name.startswith("aux_")]
    names = [name.removesuffix("_least") for name in row if name.endswith("_least")]
    return "".join(losses + [f"{n} {row[f'{n}_least']:.3f} to {row[f'{n}_greatest']:.3f}  " for n in names])


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
