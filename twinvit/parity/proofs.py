"""`twinvit report`: one HTML page a proof, from what is on disk."""

from __future__ import annotations

from pathlib import Path

from shared_vit.errors import UserError


def report(runs: tuple[Path, ...], /) -> int:
    """Write the pages of proofs on disk: parity.html, lockstep.html, audit.html next to their
    files.

    `twinvit compare --html` and `twinvit port explain --html` write their own.

    Args:
        runs: folders that `twinvit parity`, `twinvit parity --lockstep` or `twinvit audit` wrote.
    """
    if not runs:
        raise UserError("twinvit report needs a folder that a proof was written to")
    for run in runs:
        try:
            pages = _pages(run)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"the files of the proof in {run} are broken, or of another version: {error!r:.200}"
            ) from error
        if not pages:
            raise UserError(
                f"{run} holds no proof: `twinvit parity --run_dir={run}`, with or without "
                f"--lockstep, makes one, and `twinvit audit {run}` one of a run"
            )
        for page in pages:
            print(f"page: {page}", flush=True)
    return 0


def _pages(run: Path) -> list[Path]:
    from twinvit.lockstep import page as lockstep_page
    from twinvit.lockstep import record as lockstep_record
    from twinvit.parity import page as parity_page

    pages = []
    if (run / lockstep_record.RESULT).exists():
        pages.append(lockstep_page.lockstep_page(run))
    if (run / lockstep_record.AUDIT).exists():
        pages.append(lockstep_page.audit_page(run))
    if parity_page.is_parity(run):
        pages.append(parity_page.parity_page(run))
    return pages
