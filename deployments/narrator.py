"""Events of the controller's decisions: told once at each transition, not on each pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from deployments.events import log_event
from deployments.leases import Judgement
from deployments.models import Deployment, Event, Instance, Severity
from deployments.planner import FAILING, Outcome, Subject
from deployments.rollout import Move, Seen, Stage
from deployments.scheduler import Placement

_PLACEMENT_KINDS = ("deployment.unplaceable", "deployment.placeable")
_ROLLOUT_KINDS = ("rollout.started", "rollout.halted", "rollout.resumed", "rollout.finished")
_LOSS_KINDS = ("fleet.mass_loss", "fleet.mass_loss_over")
_LOOK_BACK = 5000  # events


@dataclass
class Narrator:
    """What was last told, by deployment. `mass_loss_open`: whether a predecessor left one announced."""

    placement: dict[int, str] = field(default_factory=dict)
    rollout: dict[int, str] = field(default_factory=dict)
    mass_loss_open: bool = False

    @classmethod
    def resume(cls) -> Narrator:
        """From the events of earlier leaders."""
        narrator = cls()
        kinds = (*_PLACEMENT_KINDS, *_ROLLOUT_KINDS)
        rows = Event.objects.filter(kind__in=kinds, deployment__isnull=False).order_by("-id")
        for kind, deployment_id in rows.values_list("kind", "deployment_id")[:_LOOK_BACK]:
            told = narrator.placement if kind in _PLACEMENT_KINDS else narrator.rollout
            told.setdefault(deployment_id, kind)
        last = Event.objects.filter(kind__in=_LOSS_KINDS).order_by("-id").values_list("kind", flat=True).first()
        narrator.mass_loss_open = last == "fleet.mass_loss"
        return narrator

    def news(self, deployment: Deployment, subject: Subject, outcome: Outcome) -> list[str]:
        """Kinds of events that this outcome is the first to call for; none when nothing should run."""
        if subject.wanted.replicas == 0:
            return []
        placement_before = self.placement.get(deployment.pk, "deployment.placeable")
        placement = "deployment.unplaceable" if outcome.unplaceable else "deployment.placeable"
        rollout_before = self.rollout.get(deployment.pk, "rollout.finished")
        rollout = _rollout_kind(rollout_before, deployment, subject, outcome)
        news = [placement] if placement != placement_before else []
        return news + ([rollout] if rollout != rollout_before else [])

    def tell(self, deployment: Deployment, news: list[str], outcome: Outcome, now: datetime) -> None:
        """Store the events of `news`; `remember` them once that is committed."""
        for kind in news:
            severity, message, remedy = _words(kind, deployment, outcome)
            details = {"refusals": dict(outcome.refusals)} if kind == "deployment.unplaceable" else {}
            log_event(
                kind,
                message,
                severity=severity,
                remedy=remedy,
                details=details,
                deployment_id=deployment.pk,
                now=now,
            )

    def remember(self, deployment: Deployment, news: list[str]) -> None:
        for kind in news:
            told = self.placement if kind in _PLACEMENT_KINDS else self.rollout
            told[deployment.pk] = kind

    def tell_placed(self, deployment: Deployment, instance: Instance, placement: Placement, now: datetime) -> None:
        log_event(
            "instance.placed",
            f"{deployment.name} was placed on {placement.server_name}, {placement.reason}.",
            deployment_id=deployment.pk,
            instance_id=instance.pk,
            server_id=placement.server_id,
            now=now,
        )

    def tell_move(self, deployment: Deployment, one: Seen, move: Move, now: datetime) -> None:
        why = f": {move.reason}" if move.reason else ""
        links = {
            "deployment_id": deployment.pk,
            "instance_id": one.id,
            "server_id": one.server_id if one.server_name != "a removed server" else None,
            "now": now,
        }
        if move.to is Stage.ENDED:
            log_event("instance.ended", f"{deployment.name} on {one.server_name} has ended{why}.", **links)
        elif move.reason.startswith(FAILING):
            log_event(
                "instance.given_up",
                f"{deployment.name} on {one.server_name} kept failing; another server is tried. "
                f"Its reason: {move.reason.removeprefix(FAILING)}",
                severity=Severity.WARNING,
                remedy="Look at the exits of the instance; that server is avoided for an hour.",
                **links,
            )
        elif one.stage is Stage.RUN:
            log_event("instance.draining", f"{deployment.name} on {one.server_name} is being stopped{why}.", **links)

    def tell_leases(self, judged: Judgement, names: dict[str, str], now: datetime) -> None:
        for server_id in judged.newly_lost:
            log_event(
                "server.lost",
                f"{names[server_id]} was not heard of for a whole lease.",
                severity=Severity.ERROR,
                remedy="Check that it is up and its agent runs and reaches the master; its engines may still serve.",
                server_id=server_id,
                now=now,
            )
        for server_id in judged.found:
            log_event("server.found", f"{names[server_id]} is back.", server_id=server_id, now=now)
        if judged.mass_loss_began:
            missing = sorted(names[key] for key in judged.memory.vanished)
            log_event(
                "fleet.mass_loss",
                f"{len(missing)} servers vanished together; nothing is evicted until they are back: "
                f"{', '.join(missing[:10])}{' ...' if len(missing) > 10 else ''}.",
                severity=Severity.ERROR,
                remedy="Look at the master's own network first. Servers that are truly gone: revoke them, and their "
                "instances are placed elsewhere.",
                details={"servers": missing},
                now=now,
            )
        if judged.mass_loss_ended:
            log_event("fleet.mass_loss_over", "Enough servers are back: evictions are judged as usual again.", now=now)


def _rollout_kind(before: str, deployment: Deployment, subject: Subject, outcome: Outcome) -> str:
    if outcome.halted:
        return "rollout.halted"
    if outcome.updating:
        return "rollout.resumed" if before in ("rollout.halted", "rollout.resumed") else "rollout.started"
    old_left = any(one.revision != deployment.revision_id for one in subject.instances)
    ready = sum(one.ready for one in subject.instances if one.revision == deployment.revision_id)
    if not old_left and ready >= subject.wanted.replicas:
        return "rollout.finished"
    return before


def _words(kind: str, deployment: Deployment, outcome: Outcome) -> tuple[Severity, str, str]:
    name = deployment.name
    number = deployment.revision.number if deployment.revision else 0
    return {
        "deployment.unplaceable": (
            Severity.WARNING,
            f"{name} has no place for all of its replicas. {outcome.explanation}.",
            "Free memory, add or activate servers, or lower replicas, context or the model's size.",
        ),
        "deployment.placeable": (Severity.INFO, f"{name} has a place for all of its replicas again.", ""),
        "rollout.started": (Severity.INFO, f"Revision {number} of {name} is being rolled out.", ""),
        "rollout.resumed": (Severity.INFO, f"The rollout of revision {number} of {name} goes on.", ""),
        "rollout.finished": (Severity.INFO, f"Revision {number} of {name} is rolled out.", ""),
        "rollout.halted": (
            Severity.ERROR,
            f"The rollout of revision {number} of {name} is halted. {outcome.explanation}.",
            "Look at the new instance's exits; then update it again, or roll back to an earlier revision.",
        ),
    }[kind]
