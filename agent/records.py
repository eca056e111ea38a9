"""What is kept on disk of each instance, so that a restart of the agent forgets nothing that a person may ask for."""

from __future__ import annotations

import shutil

import msgspec
import structlog

from agent.home import AgentHome, write_whole
from wire.engine import RuntimeKind
from wire.messages import LastExit

KEPT_EXITS = 5
KEPT_LINES = 50

log = structlog.get_logger(__name__)


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Attempts and ends of one instance, and the choices that must not flip."""

    spec_hash: str = ""
    runtime: RuntimeKind = RuntimeKind.AUTO  # chosen for spec_hash
    attempts: int = 0  # starts so far
    stops: int = 0  # of these, ended by `stop-engines`: the start that follows is no restart
    port: int = 0  # last port of the process runtime: kept where it is free
    exits: tuple[LastExit, ...] = ()


class Records:
    """The records of all instances, read once and written through. One process owns them (the home is locked)."""

    def __init__(self, home: AgentHome) -> None:
        self._home = home
        self._records: dict[str, Record] = {}

    def get(self, instance_id: str) -> Record:
        if instance_id not in self._records:
            self._records[instance_id] = self._read(instance_id)
        return self._records[instance_id]

    def put(self, instance_id: str, record: Record) -> None:
        if self._records.get(instance_id) == record:
            return
        self._records[instance_id] = record
        write_whole(self._home.instance(instance_id) / "record.json", msgspec.json.encode(record))

    def add_exit(self, instance_id: str, last: LastExit) -> None:
        record = self.get(instance_id)
        exits = (*record.exits, last)[-KEPT_EXITS:]
        self.put(instance_id, msgspec.structs.replace(record, exits=exits))

    def add_stop(self, instance_id: str) -> None:
        record = self.get(instance_id)
        self.put(instance_id, msgspec.structs.replace(record, stops=record.stops + 1))

    def forget(self, instance_id: str) -> None:
        self._records.pop(instance_id, None)
        shutil.rmtree(self._home.instance(instance_id), ignore_errors=True)

    def known(self) -> set[str]:
        """Instances with a folder: what an earlier run of the agent left."""
        if not self._home.instances.is_dir():
            return set()
        return {path.name for path in self._home.instances.iterdir() if path.is_dir()}

    def _read(self, instance_id: str) -> Record:
        path = self._home.instance(instance_id) / "record.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=Record)
        except FileNotFoundError:
            return Record()
        except msgspec.DecodeError as error:
            log.warning("record.damaged", instance=instance_id, error=str(error))
            return Record()
