"""How one row of the sampling settings table is laid out: int32 words, floats bit for bit.

`settings` is int32 [S, SETTINGS_WIDTH], one row per slot. runtime/device_sampling.py writes rows, the sampling
kernels read them. A row says everything small about a slot; which tokens came before stands in `history`
(kernels/history.py), which may come next in `masks`: int32 [S, mask_words(V)], bit `id % 32` of word `id // 32`.
"""

from __future__ import annotations

FLAGS = 0  # bits, below
TEMPERATURE = 1  # float32; above 0 unless the row is greedy
TOP_K = 2  # 0 = off; below the vocabulary
LOG_MIN_P = 3  # float32 ln(min_p); -inf = off
TOP_P = 4  # float64, low word first; 1.0 = off
SEED = 6  # low word, high word
FIRST_FREE = 8  # the first position at which a stop id may be chosen
REPETITION_PENALTY = 9  # float32, 1.0 = off
FREQUENCY_PENALTY = 10  # float32
PRESENCE_PENALTY = 11  # float32
STOP_COUNT = 12
BIAS_COUNT = 13
STOP_IDS = 16  # ascending, distinct
MOST_STOPS = 512
BIAS_IDS = STOP_IDS + MOST_STOPS  # ascending, distinct
MOST_BIASES = 1024
BIASES = BIAS_IDS + MOST_BIASES  # float32, in the order of their ids
SETTINGS_WIDTH = BIASES + MOST_BIASES

GREEDY = 1  # the highest logit wins; temperature, filters and seed are not read
FILTERED = 2  # top_k, top_p or min_p is on
PENALISED = 4  # a penalty is on: `history` is read and kept
BIASED = 8  # at least one bias
MASKED = 16  # `masks` says which tokens may be chosen, in every step anew


def mask_words(vocab: int) -> int:
    """Words of one slot's row of `masks`."""
    return -(-vocab // 32)
