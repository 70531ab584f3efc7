"""One process of a layout, as the supervisor starts it: python -m gristmill.train.parallel.rank JOB.json"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from threading import Thread
from typing import Any

from gristmill.errors import RequestError, WorkError
from gristmill.files import read_json, write_json
from gristmill.stage import quiet
from gristmill.train.parallel.launch import FAILED, REFUSED, processes
from gristmill.train.pretrain import PretrainConfig, work


def _die_with_parent() -> None:
    sys.stdin.read()
    os._exit(3)


def main(job_file: str) -> None:
    Thread(target=_die_with_parent, daemon=True).start()
    job = read_json(Path(job_file))
    config = PretrainConfig.model_validate(job["config"])
    inputs = {name: Path(path) for name, path in job["inputs"].items()}
    out_dir = Path(job["out_dir"])

    def report(done: float, total: float, unit: str = "", **values: Any) -> None:
        told = {"done": done, "total": total, "unit": unit, "values": values}
        print(json.dumps(told), flush=True)

    try:
        with processes(config.layout) as mesh:
            first = mesh is None or mesh.first
            listener = report if first else quiet
            metrics = work(config, inputs, out_dir, mesh, listener, job["log_every"])
            if first:
                write_json(out_dir / "job_result.json", metrics)
    except (RequestError, WorkError) as error:
        code = REFUSED if isinstance(error, RequestError) else FAILED
        print(json.dumps({"error": str(error), "code": code}), flush=True)
        sys.exit(code)


if __name__ == "__main__":
    main(sys.argv[1])
