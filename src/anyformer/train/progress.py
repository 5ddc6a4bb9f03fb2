"""Progress display of a run: a live panel on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import Any

from anyformer.train.energy import Energy
from anyformer.train.loggers import Observer

LINES = 20  # plain lines that a run prints where there is no terminal


class Screen(Observer):
    """Shows loss, learning rate, gradient norm, tokens a second, the share of the time outside model and optimiser,
    memory and the time left. Use as a context manager.

    Args:
        quiet: show nothing at all.

    Attributes:
        flops: of a step, and `peak`, a second's of this machine: with both, the share of the machine is shown.
        memory: a function that gives the bytes that the run holds now, or None.
        energy: the counter of the processor's energy, or None.
    """

    def __init__(self, quiet: bool = False):
        from rich.console import Console
        from rich.live import Live

        self.console = Console(quiet=quiet, highlight=False)
        self.plain = quiet or not self.console.is_terminal
        self.live = Live(console=self.console, refresh_per_second=4, transient=False)
        self.first: tuple[int, float] | None = None
        self.printed = 0
        self.unit = "bits per byte"  # of what is measured
        self.flops = self.peak = 0.0
        self.memory: Any = None
        self.energy: Energy | None = None

    def __enter__(self) -> Screen:
        if not self.plain:
            self.live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if not self.plain:
            self.live.stop()

    def message(self, text: str) -> None:
        """A line of its own."""
        self.console.print(text, markup=False, soft_wrap=True)

    def on_steps(self, row: dict[str, Any], speed: float, steps: int) -> None:
        """Moves the panel on."""
        now, step = time.monotonic(), row["step"]
        self.first = self.first or (step, now)
        done = step - self.first[0]
        facts = {
            "loss": f"{row['loss']:.3f}",
            "lr": f"{row['lr']:.1e}",
            "grad": f"{row['grad_norm']:.2f}",
            "": f"{speed:,.0f} tokens/s",
        }
        if "outside" in row:  # making batches, checks, logs
            facts["outside"] = f"{100 * row['outside']:.1f} %"
        if self.flops and self.peak:
            facts["of peak"] = f"{100 * self.flops * speed / row['tokens'] / self.peak:.0f} %"
        facts |= reported(row)
        if self.memory is not None and (held := self.memory()):
            facts["memory"] = f"{held / 1e9:.2f} GB"
        if self.energy is not None:
            facts["energy"] = f"{self.energy.joules() / 3600:.2f} Wh"
        if done:
            facts["left"] = _clock((now - self.first[1]) / done * (steps - step))
        if self.plain:
            if step * LINES // steps > self.printed:
                self.printed = step * LINES // steps
                line = "  ".join(
                    f"{value} {name}" if name == "left" else f"{name} {value}".strip() for name, value in facts.items()
                )
                self.message(f"step {step}/{steps}  {line}")
        else:
            self.live.update(_panel(step, steps, facts))

    def on_evaluation(self, step: int, held_out: float) -> None:
        """A line for an evaluation."""
        self.message(f"step {step}: held-out {held_out:.3f} {self.unit}")


def reported(row: dict[str, Any]) -> dict[str, str]:
    """Metrics of the model's parts (`train.step_loss.metrics`) as text; empty if there are none."""
    losses = {name[4:]: f"{value:.3f}" for name, value in row.items() if name.startswith("aux_")}
    names = [name.removesuffix("_least") for name in row if name.endswith("_least")]
    return losses | {n: f"{row[f'{n}_least']:.3f} to {row[f'{n}_greatest']:.3f}" for n in names}


def _panel(step: int, steps: int, facts: dict[str, str]) -> Any:
    """
    ```
    ╭─ step 120/1000 ──────────────────────────────────────────────────────────╮
    │ ━━━━━━━━╸                                                                │
    │ loss 3.214   lr 1.2e-03   grad 0.61   5,120 tokens/s   left 1:12         │
    ╰──────────────────────────────────────────────────────────────────────────╯
    ```
    """
    from rich.panel import Panel
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    line = Text("   ").join(Text.assemble((f"{name} ", "dim"), (value, "bold")) for name, value in facts.items())
    body = Table.grid(expand=True)
    body.add_row(ProgressBar(total=steps, completed=step))
    body.add_row(line)
    return Panel(body, title=f"step {step}/{steps}", title_align="left")


def _clock(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
