"""Every experiment at every scale that it has, whatever of it was run."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lillama.config.compose import scales_of
from lillama.core.errors import ConfigError
from lillama.report.counts import counts, in_words
from lillama.report.experiment import Found, Places, experiment_found

TRIAL = "tiny"  # its figures mean nothing: shown only where it was run


@dataclass(frozen=True, slots=True)
class Reported:
    """An experiment at its scales; ``problems`` are those at which it could not be read."""

    name: str
    scales: Sequence[Found]
    problems: Sequence[str]

    def line(self) -> str:
        """Summarise what was measured, in a line."""
        known = [f"{found.scale}: {in_words(counts(found.tables))}" for found in self.scales]
        return f"{self.name}: {'; '.join([*known, *self.problems])}"


def reported(names: Sequence[str], places: Places) -> Iterator[Reported]:
    """Read these experiments at every scale that they have, one after the other: it takes a second each."""
    for name in names:
        found: list[Found] = []
        problems: list[str] = []
        for scale in scales_of(name):
            if scale == TRIAL and not _was_run(name, places):
                continue
            try:
                found.append(experiment_found(name, scale, places))
            except ConfigError as error:
                problems.append(str(error))
        yield Reported(name, found, list(dict.fromkeys(problems)))


def _was_run(name: str, places: Places) -> bool:
    return any((folder / name / TRIAL).is_dir() for folder in (places.outputs, places.frozen))
