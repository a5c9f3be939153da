"""One measurement in a process of its own: ``python -m benchmarks.child CASE [--quick] SUBJECT…``.

Prints a line of JSON per subject: the row of figures, why the subject cannot do it, or what went wrong.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.cases import CASES
from benchmarks.measure import NotPossible
from benchmarks.subjects import OFF


def outcome(case: str, subject: str, quick: bool) -> dict[str, Any]:
    """Measure, and say how it went."""
    if subject.endswith(OFF):
        gc.collect()
        gc.freeze()
        gc.disable()
    try:
        return {"row": CASES[case].measure(subject, quick)}
    except NotPossible as reason:
        return {"not possible": str(reason)}
    except Exception as error:  # noqa: BLE001 - the other subjects of the run go on
        return {"error": f"{type(error).__name__}: {error}"[:200]}
    finally:
        gc.enable()


def main(arguments: Sequence[str]) -> None:
    """Measure one case for each subject."""
    case, *rest = arguments
    subjects = [word for word in rest if word != "--quick"]
    for subject in subjects:
        print(json.dumps({"subject": subject, **outcome(case, subject, "--quick" in rest)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
