"""What works packs off: one at a time here, or many elsewhere, which changes no number."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from hybridlm.ablate.job import Outcome, Pack, Settings
from hybridlm.ablate.trial import run_pack

PATIENCE = 0.2  # seconds that `finished` waits for news
Together = Literal["seed", "arm"]
"""What makes a pack: the learning rates of an arm and a seed, which share their samples; or all trials of an arm."""


class Executor(ABC):
    """Works packs off, up to `slots` at a time.

    together: how trials are packed. workers: of the data of a pack.
    """

    slots: int
    together: Together = "seed"
    workers: int = 0

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder, self.settings = folder, settings

    @abstractmethod
    def start(self, pack: Pack) -> None:
        """Begin to work a pack off."""

    @abstractmethod
    def finished(self) -> list[tuple[Pack, Outcome]]:
        """The packs that have ended since; waits a moment if none has."""

    @abstractmethod
    def stop(self) -> None:
        """Tell every pack to save and end, and wait for it."""

    @abstractmethod
    def close(self) -> None:
        """Give back what was held."""


class Here(Executor):
    """In this process: what a debugger wants. stop: asked after each step."""

    slots = 1

    def __init__(self, folder: Path, settings: Settings, stop: Callable[[], bool]) -> None:
        super().__init__(folder, settings)
        self._stop, self._ended = stop, []

    def start(self, pack: Pack) -> None:
        self._ended.append((pack, run_pack(pack, self.folder, self.settings, self._stop)))

    def finished(self) -> list[tuple[Pack, Outcome]]:
        ended, self._ended = self._ended, []
        return ended

    def stop(self) -> None:
        """A pack that is asked after each step has ended by now."""

    def close(self) -> None:
        """Nothing is held."""
