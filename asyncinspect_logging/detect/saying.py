"""What the records `wait`, `acquire` and `release` say of a resource, of who waits for it, and of who has it."""

from __future__ import annotations

from typing import Any, Final

from .. import process
from .held import Hold, Owner, Resource, Wait

__all__ = ["hold_said", "owner_said", "resource_said", "wait_said"]

#: Holders that a record lists; where there are more, it says that it does not list all.
_MAX_LISTED: Final = 100


def resource_said(resource: Resource) -> dict[str, Any]:
    said = {"kind": resource.kind, "id": f"{resource.id:016x}"}
    if resource.name is not None:
        said["name"] = resource.name
    return said


def owner_said(owner: Owner) -> dict[str, Any]:
    said = {"owner": f"{owner.number:016x}", "task": owner.name}
    if owner.root:
        said["root"] = process.span_id(owner.root)
    return said


def wait_said(wait: Wait) -> dict[str, Any]:
    said = {"resource": resource_said(wait.resource), "at": str(wait.at), **owner_said(wait.owner)}
    holders = list(wait.resource.holders.values())
    said["holders"] = [hold_said(hold) for hold in holders[:_MAX_LISTED]]
    if wait.resource.freers() is None or len(holders) > _MAX_LISTED:
        said["open"] = True
    if wait.timed:
        said["timeout"] = True
    return said


def hold_said(hold: Hold) -> dict[str, Any]:
    said = {**owner_said(hold.owner), "at": str(hold.at), "t": hold.t}
    task = hold.owner.task()
    if task is None or task.done():
        said["over"] = True
    if hold.permits > 1:
        said["count"] = hold.permits
    if hold.span:
        said |= {"id": process.span_id(hold.span), "name": hold.span_name}
    return said
