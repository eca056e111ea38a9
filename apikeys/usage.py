"""Usage: batches of gateways counted exactly once, sums for quotas and people, export as CSV."""

from __future__ import annotations

import csv
import datetime as dt
import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields

import structlog
from django.db import IntegrityError, transaction
from django.db.models import F, Q, QuerySet, Sum
from django.db.models.functions import Coalesce, TruncDay

from apikeys import latency
from apikeys.errors import InvalidPeriod
from apikeys.models import ApiKey, Project, UsageHour
from apikeys.models import UsageBatch as UsageBatchRow
from apikeys.money import from_nano
from apikeys.signals import usage_recorded
from wire.feed import UsageBatch, UsageRow

log = structlog.get_logger(__name__)

COUNTERS = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens", "duration_ms", "ttft_ms", "cost")
HISTOGRAMS = ("durations", "ttfts")
_ROWS_A_STATEMENT = 50  # keeps a statement below SQLite's 999 parameters
_KEY_ID = re.compile(r"[a-z0-9]{8}")
_LAST_HOUR = 4_102_444_800  # the year 2100: far from what dates can hold
_LARGEST_STATUS = 32_767
_LARGEST_COUNT = 10**15  # thousands of such rows still fit in a 64-bit sum
_RowId = tuple[dt.datetime, str, str, int]  # hour, key, model, status


@dataclass
class _Sum:
    """Of one row."""

    counters: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTERS, 0))
    histograms: dict[str, list[int]] = field(default_factory=lambda: {name: [] for name in HISTOGRAMS})


# ------------------------------------------------------------------------------------------------ counting


def record_batch(batch: UsageBatch, now: dt.datetime) -> bool:
    """Count a gateway's batch; False when it was counted before. Either way it may be acknowledged.

    One transaction: the batch's id and its sums are kept together or not at all. Rows of a key that is gone, and rows
    that no database could keep, are logged and left out, so that no batch is delivered for ever.
    """
    rows = [row for row in batch.rows if _KEY_ID.fullmatch(row.key_id) and abs(row.hour) <= _LAST_HOUR]
    with transaction.atomic():
        try:
            with transaction.atomic():
                UsageBatchRow.objects.create(batch_id=batch.batch_id, received_at=now)
        except IntegrityError:
            log.info("usage.repeated", batch=batch.batch_id)
            return False
        projects = dict(ApiKey.objects.filter(pk__in={row.key_id for row in rows}).values_list("pk", "project"))
        kept = [row for row in rows if row.key_id in projects]
        sums = _summed(kept)
        _add(sums, projects)
        _mark_used(sums)
        transaction.on_commit(lambda: usage_recorded.send(sender=None, key_ids=frozenset(projects)))
    if dropped := len(batch.rows) - len(kept):
        unknown = sorted({row.key_id for row in batch.rows} - projects.keys())
        log.warning("usage.rows_dropped", batch=batch.batch_id, count=dropped, unknown_keys=unknown[:20])
    return True


def _summed(rows: Iterable[UsageRow]) -> dict[_RowId, _Sum]:
    """Sums by row id, in one order for every process: two writers then never wait for each other in a circle."""
    sums: dict[_RowId, _Sum] = {}
    for row in rows:
        hour = dt.datetime.fromtimestamp(row.hour - row.hour % 3600, dt.UTC)
        row_id = (hour, row.key_id, _model_name(row.model), min(max(0, row.status), _LARGEST_STATUS))
        into = sums.setdefault(row_id, _Sum())
        for counter in COUNTERS:
            into.counters[counter] += min(max(0, getattr(row, counter)), _LARGEST_COUNT)
        for name in HISTOGRAMS:
            into.histograms[name] = latency.added(into.histograms[name], latency.accepted(getattr(row, name)))
    return dict(sorted(sums.items()))


def _model_name(text: str) -> str:
    """What a client asked for may be any text: no NUL, no lone surrogate, no line break goes into the table."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text[:120])


def _add(sums: dict[_RowId, _Sum], projects: dict[str, uuid.UUID]) -> None:
    """Make the rows that are missing, at zero, then raise all of them by their sums.

    The batch's id was written before, so that SQLite's one writer, too, reads rows nobody else changes.
    """
    if not sums:
        return
    UsageHour.objects.bulk_create(
        [
            UsageHour(hour=hour, key_id=key_id, project_id=projects[key_id], model=model, status=status)
            for hour, key_id, model, status in sums
        ],
        ignore_conflicts=True,
        batch_size=_ROWS_A_STATEMENT,
    )
    candidates = UsageHour.objects.select_for_update().filter(
        hour__in={row_id[0] for row_id in sums}, key__in={row_id[1] for row_id in sums}
    )
    rows = []
    for row in candidates.order_by("pk"):
        told = sums.get((row.hour, row.key_id, row.model, row.status))
        if told is None:
            continue
        for counter, value in told.counters.items():
            setattr(row, counter, F(counter) + value)
        for name, histogram in told.histograms.items():  # the row is locked, so nobody else adds to it meanwhile
            setattr(row, name, latency.added(getattr(row, name), histogram))
        rows.append(row)
    UsageHour.objects.bulk_update(rows, [*COUNTERS, *HISTOGRAMS], batch_size=_ROWS_A_STATEMENT)


def _mark_used(sums: dict[_RowId, _Sum]) -> None:
    newest: dict[str, dt.datetime] = {}
    for hour, key_id, _, _ in sums:
        newest[key_id] = max(hour, newest.get(key_id, hour))
    for hour in sorted(set(newest.values())):
        used = sorted(key_id for key_id, last in newest.items() if last == hour)
        older = Q(last_used_at__isnull=True) | Q(last_used_at__lt=hour)
        stale = ApiKey.objects.filter(older, pk__in=used)
        # Locked in one order, and not against the rows that point to them: two writers never wait in a circle.
        locked = list(stale.select_for_update(no_key=True).order_by("pk").values_list("pk", flat=True))
        ApiKey.objects.filter(older, pk__in=locked).update(last_used_at=hour)


def delete_old_batches(before: dt.datetime) -> int:
    """Forget the ids of batches received before `before`; no gateway keeps an undelivered batch that long."""
    deleted, _ = UsageBatchRow.objects.filter(received_at__lt=before).delete()
    return deleted


# ------------------------------------------------------------------------------------------------ sums for quotas


@dataclass(frozen=True)
class UsedUp:
    """Prompt and completion tokens of the current UTC day and month, and the month's cost in nano-units."""

    today: int = 0
    month: int = 0
    cost: int = 0

    def __add__(self, other: UsedUp) -> UsedUp:
        return UsedUp(self.today + other.today, self.month + other.month, self.cost + other.cost)


NOTHING = UsedUp()


@dataclass(frozen=True)
class UsedBy:
    keys: dict[str, UsedUp]
    projects: dict[uuid.UUID, UsedUp]
    models: dict[tuple[uuid.UUID, str], UsedUp]
    """By project and public name."""


def used_since(now: dt.datetime) -> UsedBy:
    """What every key, project, and project by model used this UTC day and month. One query."""
    day = now.astimezone(dt.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    tokens = F("prompt_tokens") + F("completion_tokens")
    rows = (
        UsageHour.objects.filter(hour__gte=day.replace(day=1))
        .order_by()
        .values("key_id", "project_id", "model")
        .annotate(month=Sum(tokens), today=Coalesce(Sum(tokens, filter=Q(hour__gte=day)), 0), spent=Sum("cost"))
    )
    found = UsedBy({}, {}, {})
    for row in rows:
        used, project = UsedUp(today=row["today"], month=row["month"], cost=row["spent"]), row["project_id"]
        found.keys[row["key_id"]] = found.keys.get(row["key_id"], NOTHING) + used
        found.projects[project] = found.projects.get(project, NOTHING) + used
        found.models[project, row["model"]] = found.models.get((project, row["model"]), NOTHING) + used
    return found


# ------------------------------------------------------------------------------------------------ sums for people

GROUPS = ("hour", "day", "project", "key", "model", "status")


@dataclass(frozen=True)
class UsageTotal:
    """Summed usage of one group; the fields that were not grouped by are None."""

    hour: dt.datetime | None = None
    day: dt.date | None = None
    project_id: uuid.UUID | None = None
    project: str | None = None
    key_id: str | None = None
    key: str | None = None
    model: str | None = None
    status: int | None = None
    requests: int = 0
    errors: int = 0  # requests that ended with status 400 or more
    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompt tokens
    completion_tokens: int = 0
    total_tokens: int = field(default=0)
    duration_ms: int = 0
    ttft_ms: int = 0
    cost: int = 0  # nano-units
    # By the requests whose latency is known; None when there is none, or latencies were not asked for.
    duration_p50_ms: int | None = None
    duration_p95_ms: int | None = None
    ttft_p50_ms: int | None = None
    ttft_p95_ms: int | None = None


_GROUP_FIELDS = {
    "hour": {"hour": F("hour")},
    "day": {"day": TruncDay("hour", tzinfo=dt.UTC)},
    "project": {"project_id": F("project_id"), "project_name": F("project__name")},
    "key": {"key_id": F("key_id"), "key_name": F("key__name")},
    "model": {"model": F("model")},
    "status": {"status": F("status")},
}


def totals(
    *,
    by: str | Iterable[str] = ("day",),
    project: Project | uuid.UUID | str | None = None,
    key: ApiKey | str | None = None,
    model: str | None = None,
    since: dt.datetime | None = None,
    until: dt.datetime | None = None,
    within: QuerySet[Project] | None = None,
    latencies: bool = False,
) -> list[UsageTotal]:
    """Usage from `since` (inclusive) to `until` (exclusive), summed by `by`, oldest first. One query.

    `by` is any of GROUPS, or empty for one sum over all. `within` limits it to these projects (what a person may see).
    `latencies` adds percentiles, by one more query that reads every row. Raises InvalidPeriod.
    """
    groups = (by,) if isinstance(by, str) else tuple(dict.fromkeys(by))
    rows = _selected(groups, project=project, key=key, model=model, since=since, until=until, within=within)
    names: dict[str, object] = {}
    for group in groups:
        names |= _GROUP_FIELDS[group]
    aliases = {name: expression for name, expression in names.items() if name not in ("hour", "model", "status")}
    plain = [name for name in names if name not in aliases]
    aliases = {f"by_{name}": expression for name, expression in aliases.items()}
    sums = {f"sum_{counter}": Coalesce(Sum(counter), 0) for counter in COUNTERS}
    failed = Coalesce(Sum("requests", filter=Q(status__gte=400)), 0)
    found = _histograms(rows, plain, aliases) if latencies else {}
    if not groups:
        return [_total(rows.aggregate(**sums, sum_errors=failed), found.get((), ((), ())))]
    grouped = rows.order_by().values(*plain, **aliases).annotate(**sums, sum_errors=failed)
    columns = [*plain, *aliases]
    return [
        _total(row, found.get(tuple(row[name] for name in columns), ((), ()))) for row in grouped.order_by(*columns)
    ]


_Histograms = tuple[Sequence[int], Sequence[int]]


def _histograms(
    rows: QuerySet[UsageHour], plain: Sequence[str], aliases: dict[str, object]
) -> dict[tuple[object, ...], _Histograms]:
    """(durations, times to the first token) of each group."""
    found: dict[tuple[object, ...], _Histograms] = {}
    told = rows.order_by().annotate(**aliases).values_list(*plain, *aliases, *HISTOGRAMS)
    for *group, durations, ttfts in told.iterator(chunk_size=5000):
        before = found.get(tuple(group), ((), ()))
        found[tuple(group)] = (latency.added(before[0], durations), latency.added(before[1], ttfts))
    return found


def _selected(groups: tuple[str, ...], **asked: object) -> QuerySet[UsageHour]:
    since, until, within = asked["since"], asked["until"], asked["within"]
    if unknown := set(groups) - set(GROUPS):
        raise InvalidPeriod(f"Usage cannot be grouped by {', '.join(sorted(unknown))}.")
    if since is not None and until is not None and since >= until:
        raise InvalidPeriod("`since` is not before `until`.")
    wanted = {"project": asked["project"], "key": asked["key"], "model": asked["model"]}
    rows = UsageHour.objects.filter(**{name: value for name, value in wanted.items() if value})
    if since is not None:
        rows = rows.filter(hour__gte=since)
    if until is not None:
        rows = rows.filter(hour__lt=until)
    return rows if within is None else rows.filter(project__in=within)


def _total(row: dict[str, object], histograms: _Histograms) -> UsageTotal:
    day = row.get("by_day")
    durations, ttfts = histograms
    return UsageTotal(
        hour=row.get("hour"),
        day=day.date() if isinstance(day, dt.datetime) else None,
        project_id=row.get("by_project_id"),
        project=row.get("by_project_name"),
        key_id=row.get("by_key_id"),
        key=row.get("by_key_name"),
        model=row.get("model"),
        status=row.get("status"),
        duration_p50_ms=latency.percentile(durations, 0.5),
        duration_p95_ms=latency.percentile(durations, 0.95),
        ttft_p50_ms=latency.percentile(ttfts, 0.5),
        ttft_p95_ms=latency.percentile(ttfts, 0.95),
        errors=row["sum_errors"],
        total_tokens=row["sum_prompt_tokens"] + row["sum_completion_tokens"],
        **{counter: row[f"sum_{counter}"] for counter in COUNTERS},
    )


# ------------------------------------------------------------------------------------------------ export


class _Line:
    """File that hands back what is written to it: the csv writer's line."""

    def write(self, line: str) -> str:
        return line


def csv_lines(rows: Iterable[UsageTotal]) -> Iterator[str]:
    """Lines of a CSV file (RFC 4180) with a header; no cell can be taken for a formula by a spreadsheet."""
    names = [item.name for item in fields(UsageTotal)]
    writer = csv.writer(_Line())
    yield writer.writerow(names)
    for row in rows:
        yield writer.writerow([_cell(_shown(row, name)) for name in names])


def _shown(row: UsageTotal, name: str) -> object:
    return f"{from_nano(row.cost):f}" if name == "cost" else getattr(row, name)


_FORMULA_STARTS = (*"=+-@\t\r\n", *"\uff1d\uff0b\uff0d\uff20")  # the latter: full-width ones (OWASP, CSV injection)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC).isoformat()
    if isinstance(value, int):
        return str(value)
    text = str(value)
    return f"'{text}" if text.lstrip(" ").startswith(_FORMULA_STARTS) else text
