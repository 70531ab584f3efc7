"""Log-probabilities of given tokens, and hidden states for embeddings, chunk by chunk as a prompt is computed."""

from __future__ import annotations

import torch
from torch import Tensor

from gristmill.engine.generation import Generation
from gristmill.engine.runner import Runner
from gristmill.engine.sampler import token_logprob
from gristmill.engine.scoring import LOGIT_BYTES


def read_prompt(runner: Runner, g: Generation, hidden_TD: Tensor, vocab_size: int) -> None:
    """Take the hidden states of the next T tokens of the prompt, before they count as computed."""
    if g.task == "embed":
        g.hidden.append(hidden_TD)
        return
    first = g.num_computed
    targets = g.prompt[first + 1 : first + 1 + len(hidden_TD)]  # the last one of all has none
    top = g.params.prompt_logprobs
    rows = max(1, LOGIT_BYTES // (4 * vocab_size))
    for at in range(0, len(targets), rows):
        wanted = targets[at : at + rows]
        logits_TV = runner.logits(hidden_TD[at : at + len(wanted)])
        if g.task == "score":
            chosen = torch.tensor(wanted, device=logits_TV.device)[:, None]
            g.scores += logits_TV.log_softmax(-1).gather(1, chosen)[:, 0].tolist()
        else:
            assert top is not None
            g.prompt_logprobs += [
                token_logprob(row_V, token, top)
                for row_V, token in zip(logits_TV, wanted, strict=True)
            ]
