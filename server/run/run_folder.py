"""Commit and load the run folder: state, resolved configuration, metrics line by line.

Every file is written whole or not at all, so a killed coordinator leaves the last committed state
and never half of one.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from fedwinnow.curation.atomic_files import write_atomically
from fedwinnow.curation.config.identity import identity
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.config.strict_toml import canonical_json, to_toml
from fedwinnow.curation.errors import ConfigError, OutputError, ProtocolError
from fedwinnow.curation.protocol import wire
from fedwinnow.server.run.fold import initial_state
from fedwinnow.server.state import RunState, run_config


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFolder:
    """Folder with the files of one run."""

    folder: Path

    @classmethod
    def open(cls, config: RunConfig, *, resume: bool) -> "RunFolder":
        """Create the run folder, or open the one that is there.

        Raises:
            OutputError: the folder cannot be written, or holds another run and ``resume`` is off.
            ConfigError: ``resume`` is on and the configuration differs from the committed run's.
        """
        store = cls(folder=Path(config.run.output) / config.run.name)
        committed = store.load()
        if committed is not None and not resume:
            message = (
                f"run folder {store.folder} holds a run in phase {committed.phase}; "
                "resume it with --resume, choose another run.name, or remove the folder"
            )
            raise OutputError(message)
        if committed is not None and identity(run_config(committed)) != identity(config):
            message = (
                f"{store.folder}: the configuration differs from the committed run's "
                f"({store.folder / 'run.toml'}); resume with the same settings"
            )
            raise ConfigError(message)
        write_atomically(store.folder / "run.toml", to_toml(config).encode())
        return store

    def begin(self, config: RunConfig, run: str) -> RunState:
        """Return the committed state, or the first one; waits and quorum are those of ``config``.

        Raises:
            ConfigError: the committed run is another one: its data or anchors were changed since.
        """
        committed = self.load()
        if committed is None:
            return initial_state(config, run)
        if committed.run != run:
            message = (
                f"{self.folder}: holds run {committed.run}, this one is {run}: data or anchors "
                "were changed since; choose another run.name, or remove the folder"
            )
            raise ConfigError(message)
        return replace(committed, config=canonical_json(config))

    @property
    def state_file(self) -> Path:
        """Return the path of the file that holds the committed state."""
        return self.folder / "state" / "state.safetensors"

    def commit(self, state: RunState) -> None:
        """Write the state; after this returns a crash loses nothing of it.

        Raises:
            OutputError: the disk is full or the folder cannot be written.
        """
        write_atomically(self.state_file, wire.dump(state))
        lines = [_metrics_line(state, index) for index in range(len(state.records))]
        write_atomically(self.folder / "metrics.jsonl", "".join(lines).encode())

    def load(self) -> RunState | None:
        """Return the last committed state, or None before the first commit.

        Raises:
            OutputError: the file cannot be read, or holds no state of this version.
        """
        try:
            data = self.state_file.read_bytes()
        except (FileNotFoundError, NotADirectoryError):  # nothing there, or no place for it
            return None
        except OSError as error:
            message = f"{self.state_file}: cannot be read ({error.strerror}); check its permissions"
            raise OutputError(message) from error
        try:
            return wire.restore(data, RunState)
        except ProtocolError as error:
            message = (
                f"{self.state_file}: no state that this version of fedwinnow can go on from "
                f"({error}); finish the run with the version that began it, or start it under "
                "a new run.name"
            )
            raise OutputError(message) from error


def _metrics_line(state: RunState, index: int) -> str:
    record = state.records[index]
    losses = record.public_losses
    line = {
        "phase": record.phase,
        "round": record.round,
        "arm": record.arm,
        "eval_loss": sum(losses) / len(losses) if losses else None,
        "own_loss": record.own_loss_sum / record.own_samples if record.own_samples else None,
        "merge": dict(record.merge),
        "weights": {site: part.weight for site, part in record.sites.items()},
        "missing": dict(record.missing),
        "seconds": record.seconds,
        "bytes_down": record.bytes_down,
        "bytes_up": record.bytes_up,
    }
    return json.dumps(line, ensure_ascii=False) + "\n"
