"""All checkpoints of strangers, and the table of them in docs/checkpoints.md.

PYTHONPATH=parity_tests python -m strangers.rows
"""

from strangers import of_facebook, of_huggingface, of_jax, of_timm, of_torch
from strangers.row import Stranger

STRANGERS: list[Stranger] = [
    *of_timm.ROWS,
    *of_facebook.ROWS,
    *of_torch.ROWS,
    *of_huggingface.ROWS,
    *of_jax.ROWS,
]


def table() -> str:
    """Rows of Markdown."""
    lines = ["| Written by | What is in it | Read |", "|---|---|---|"]
    for row in STRANGERS:
        read = f"no: {row.read}" if row.refused and not row.partly else row.read
        lines.append(f"| {row.writer} | {row.wrote} | {read} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
