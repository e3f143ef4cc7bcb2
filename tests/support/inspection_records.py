"""Records of analyses of stored models."""

from typing import Any

from raycap.results import InspectionRecord, Moment, Provenance, Record


def inspection_record(
    trial_id: str, step: int, name: str, body: Record, options: dict[str, Any] | None = None
) -> InspectionRecord[Record]:
    """The record of an analysis of a trial's model after some steps."""
    return InspectionRecord[Record](
        trial_id=trial_id,
        moment=Moment(step=step, exposures=step / 2),
        name=name,
        options=options or {},
        model_sha256="0" * 64,
        seconds=1.0,
        provenance=Provenance(git_commit="test", versions={}, host="", device="cpu"),
        body=body,
    )
