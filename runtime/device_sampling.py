"""What one slot's sampling needs on a device: a row of settings, and the cells of its history.

Pure numpy: a grant goes in, words come out; whoever owns the device copies them there. kernels/settings.py gives
the layout, kernels/history.py the meaning of a cell; the arithmetic is that of runtime/sampling.py.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from headrace.kernels import settings as words
from headrace.runtime.plan import SlotGrant

_MOST = (1 << 31) - 1


def settings_row(grant: SlotGrant, width: int) -> NDArray[np.int32]:
    """The row of `settings` for the slot's new owner: int32 [SETTINGS_WIDTH]. `width`: how many logits a row has.

    Two biases for one id are added here, in float64, and rounded once. The caller has checked that there are at
    most MOST_STOPS stop ids and MOST_BIASES biases, and that all ids lie below `width`.
    """
    params = grant.params
    row = np.zeros(words.SETTINGS_WIDTH, dtype=np.int32)
    floats = row.view(np.float32)
    top_k = params.top_k if params.top_k < width else 0

    stops = np.array(sorted(params.stop_ids), dtype=np.int64)
    biased = np.array([token for token, _ in params.logit_bias], dtype=np.int64)
    biased, places = np.unique(biased, return_inverse=True)
    sums = np.zeros(len(biased), dtype=np.float64)
    np.add.at(sums, places, [bias for _, bias in params.logit_bias])
    for ids, most in ((stops, words.MOST_STOPS), (biased, words.MOST_BIASES)):
        assert len(ids) <= most, f"{len(ids)} ids, room for {most}"
        assert ids.size == 0 or (ids[0] >= 0 and ids[-1] < width), "ids are checked when a prompt is prepared"

    flags = 0
    if params.greedy:
        flags |= words.GREEDY
    elif top_k or params.top_p < 1.0 or params.min_p > 0.0:
        flags |= words.FILTERED
    if params.needs_history:
        flags |= words.PENALISED
    if len(biased):
        flags |= words.BIASED
    if grant.guided:
        flags |= words.MASKED

    row[words.FLAGS] = flags
    floats[words.TEMPERATURE] = params.temperature
    row[words.TOP_K] = top_k
    floats[words.LOG_MIN_P] = math.log(params.min_p) if params.min_p > 0.0 else -math.inf
    row[words.TOP_P : words.TOP_P + 2] = np.array([params.top_p], dtype="<f8").view("<i4")
    row[words.SEED : words.SEED + 2] = np.array([params.seed], dtype="<u8").view("<i4")
    row[words.FIRST_FREE] = min(grant.prompt_len + (params.min_tokens if len(stops) else 0), _MOST)
    floats[words.REPETITION_PENALTY] = params.repetition_penalty
    floats[words.FREQUENCY_PENALTY] = params.frequency_penalty
    floats[words.PRESENCE_PENALTY] = params.presence_penalty
    row[words.STOP_COUNT] = len(stops)
    row[words.BIAS_COUNT] = len(biased)
    row[words.STOP_IDS : words.STOP_IDS + len(stops)] = stops
    row[words.BIAS_IDS : words.BIAS_IDS + len(biased)] = biased
    floats[words.BIASES : words.BIASES + len(biased)] = sums
    return row


def history_cells(grant: SlotGrant, width: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(ids, cells), both int32 [n], ids distinct and ascending: what kernels.history.reset writes for this grant.

    A cell is 1 + how often the token stands in the output. Ids outside the logits are left out: they have no logit
    to penalise. Only for grants whose params need a history.
    """
    assert grant.params.needs_history and len(grant.history) >= grant.prompt_len
    known = np.array(grant.history, dtype=np.int64)
    output = np.arange(len(known)) >= grant.prompt_len
    inside = (known >= 0) & (known < width)
    ids, places = np.unique(known[inside], return_inverse=True)
    cells = np.ones(len(ids), dtype=np.int32)
    np.add.at(cells, places, output[inside])
    return ids.astype(np.int32), cells
