"""What the paper published: Zephyr-7B on MMLU and WMDP, one seed. Shown next to one's own numbers.

Sources are sections and tables of Huu-Tien et al.; the figures' curves are published as pictures only and are not here.
"""

from __future__ import annotations

import pandas as pd

SOURCE = "published (Huu-Tien et al.; Zephyr-7B, MMLU and WMDP, one seed)"

# Table 1: (method, RNA) -> (accuracy, standard error) of College Biology default, perturbed; Computer Security
# default, perturbed.
TABLE_1 = {
    ("Base", False): ((64.5, 4.0), (63.8, 4.0), (63.0, 4.8), (68.0, 4.6)),
    ("RMU", False): ((64.5, 4.0), (50.0, 5.0), (50.0, 5.0), (45.0, 5.0)),
    ("RMU", True): ((63.8, 4.0), (44.4, 4.1), (52.0, 5.0), (48.0, 5.0)),
    ("Adaptive RMU", False): ((61.8, 4.0), (31.2, 3.8), (50.0, 5.0), (44.0, 4.9)),
    ("Adaptive RMU", True): ((65.2, 3.9), (60.4, 4.0), (53.0, 5.0), (48.0, 5.0)),
    ("RSV", False): ((63.8, 4.0), (43.0, 4.1), (48.0, 5.0), (49.0, 5.0)),
    ("RSV", True): ((65.9, 3.9), (60.4, 4.0), (49.0, 5.0), (57.0, 4.9)),
}
TABLE_1_TASKS = ("MMLU C. Bio.", "MMLU C. Sec.")
# Section 6.2: coefficient, and nu of the best performance.
COEFFICIENT = {"RMU": "c=6.5", "Adaptive RMU": "beta=3", "RSV": "c=10"}
NU = {"RMU": 0.03, "Adaptive RMU": 0.08, "RSV": 0.09}
# Section 6.4, MMLU: what perturbation costs an RM model, and what RNA wins back under it, in points.
DROP = {"RMU": 8.5, "Adaptive RMU": 14.8, "RSV": 8.9}
GAIN = {"RMU": 3.9, "Adaptive RMU": 14.8, "RSV": 10.4}


def table_1() -> pd.DataFrame:
    """Table 1 as rows: method, rna, task, query, acc, stderr (in percent)."""
    rows = []
    for (method, rna), cells in TABLE_1.items():
        places = [(task, query) for task in TABLE_1_TASKS for query in ("default", "perturbed")]
        for (task, query), (acc, stderr) in zip(places, cells, strict=True):
            rows.append({"method": method, "rna": rna, "task": task, "query": query, "acc": acc, "stderr": stderr})
    return pd.DataFrame(rows)


def beside(method: str) -> dict[str, object]:
    """What section 6 says of a method, for a row of a table."""
    return {
        "published c, β": COEFFICIENT.get(method),
        "published ν": NU.get(method),
        "published drop on MMLU": DROP.get(method),
        "published gain by RNA": GAIN.get(method),
    }
