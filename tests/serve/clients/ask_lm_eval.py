"""Evaluate a server by lm-eval. usage: ask_lm_eval.py PACKAGES RESULT URL TOKENIZER_DIRECTORY TASKS_DIRECTORY"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

packages, result, url, tokenizer, tasks = sys.argv[1:]
sys.path.append(packages)

from lm_eval import simple_evaluate  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

MANAGER = TaskManager(include_path=tasks, include_defaults=False)
COMPLETIONS = {
    "model": "plain",
    "base_url": f"{url}/v1/completions",
    "tokenizer_backend": "huggingface",
    "tokenizer": tokenizer,
    "tokenized_requests": True,
    "max_length": 1024,
    "max_retries": 1,
}
CHAT = {
    "model": "plain",
    "base_url": f"{url}/v1/chat/completions",
    "max_retries": 1,
    "num_concurrent": 2,
}


def asked(model: str, arguments: dict[str, Any], task: str, chat: bool = False) -> dict[str, Any]:
    made = simple_evaluate(
        model=model,
        model_args=arguments,
        tasks=[task],
        task_manager=MANAGER,
        apply_chat_template=chat,
        bootstrap_iters=0,
        log_samples=True,
    )
    assert made is not None
    samples = sorted(made["samples"][task], key=lambda sample: sample["doc_id"])
    return {
        "answers": [sample["filtered_resps"] for sample in samples],
        "accuracy": made["results"][task].get("acc,none"),
    }


several = {**COMPLETIONS, "num_concurrent": 3, "batch_size": 2}
told = {
    "choices": asked("local-completions", COMPLETIONS, "choices"),
    "choices, several at once": asked("local-completions", several, "choices"),
    "texts": asked("local-completions", COMPLETIONS, "texts"),
    "chat": asked("local-chat-completions", CHAT, "texts", chat=True),
}
Path(result).write_text(json.dumps(told), encoding="utf-8")
