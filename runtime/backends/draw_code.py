"""Writes the heaviest part of a draw over a whole vocabulary: a random word for every token, over its likelihood.

The words are those of `runtime.philox`, bit for bit. The quotients find the few tokens that can win; who draws
computes these exactly, so what is rounded here decides nothing.
"""

from __future__ import annotations

from llvmlite import ir

from headrace.runtime.backends.vector_code import F32, I32, I64, POINTER, Code
from headrace.runtime.philox import MULTIPLIER_0, MULTIPLIER_1, ROUNDS, WEYL_0, WEYL_1

WORDS = 4  # of one counter: so many tokens share it
MASK = 0xFFFFFFFF


class DrawCode:
    """The function `name(gaps, words, quotients, blocks, seed, position)` in `module`, written when this is born.

    words[id] is the random word of each id below 4 * lanes * blocks, quotients[id] = words[id] / exp(gaps[id]).
    gaps, quotients: float32 of that length. words: uint32. blocks, seed (the bits of the key), position: int64."""

    def __init__(self, module: ir.Module, name: str, lanes: int) -> None:
        self.code = code = Code(module, name, [POINTER, POINTER, POINTER, I64, I64, I64], lanes, "float32")
        gaps, words_out, quotients, blocks, seed, position = code.function.args
        to = code.to
        keys = [
            self._spread(to.and_(half, code.whole(MASK))) for half in (seed, to.lshr(seed, code.whole(32)))
        ]
        place = self._spread(position)
        steps = ir.Constant(ir.VectorType(I64, lanes), list(range(lanes)))
        with code.loop(code.whole(0), blocks) as block:
            first = to.mul(block, code.whole(lanes))
            counter = to.add(self._spread(first), steps)
            words = self._words(counter, place, keys)
            at = to.mul(first, code.whole(WORDS))
            for part, ordered in enumerate(self._in_order(words)):
                here = to.add(at, code.whole(part * lanes))
                to.store(ordered, code.at(words_out, here), align=4)
                likely = code.exp(code.load(code.at(gaps, here), lanes))
                number = to.uitofp(ordered, ir.VectorType(F32, lanes))
                code.store(to.fdiv(number, likely), code.at(quotients, here))
        code.finish()

    def _spread(self, value: ir.Value) -> ir.Value:
        """An int64 vector of the same."""
        lanes, to = self.code.lanes, self.code.to
        rest = ir.Constant(ir.VectorType(I64, lanes), ir.Undefined)
        one = to.insert_element(rest, value, ir.Constant(I32, 0))
        return to.shuffle_vector(one, rest, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))

    def _words(self, counter: ir.Value, position: ir.Value, keys: list[ir.Value]) -> list[ir.Value]:
        """Philox4x32-10 of (counter, position, 0, 0), each of the four words in the low half of an int64."""
        to, kind = self.code.to, counter.type

        def same(number: int) -> ir.Constant:
            return ir.Constant(kind, [number] * kind.count)

        zero = same(0)
        a, b, c, d = counter, position, zero, zero
        for step in range(ROUNDS):
            left, right = to.mul(a, same(MULTIPLIER_0)), to.mul(c, same(MULTIPLIER_1))
            first, second = (
                to.and_(to.add(key, same(step * weyl & MASK)), same(MASK))
                for key, weyl in zip(keys, (WEYL_0, WEYL_1), strict=True)
            )
            a, b, c, d = (
                to.xor(to.xor(to.lshr(right, same(32)), b), first),
                to.and_(right, same(MASK)),
                to.xor(to.xor(to.lshr(left, same(32)), d), second),
                to.and_(left, same(MASK)),
            )
        return [a, b, c, d]

    def _in_order(self, words: list[ir.Value]) -> list[ir.Value]:
        """Four vectors of int32 words in the order of their tokens, of vectors of first, second... words."""
        to, lanes = self.code.to, self.code.lanes
        narrow = ir.VectorType(I32, lanes)
        a, b, c, d = (to.trunc(each, narrow) for each in words)

        def picked(left: ir.Value, right: ir.Value, places: list[int]) -> ir.Value:
            return to.shuffle_vector(left, right, ir.Constant(ir.VectorType(I32, len(places)), places))

        every = list(range(2 * lanes))
        firsts, seconds = picked(a, b, every), picked(c, d, every)  # a then b, c then d
        found = []
        for part in range(WORDS):
            places = []
            for token in range(part * lanes, (part + 1) * lanes):
                counter, word = divmod(token, WORDS)
                places.append(counter + word * lanes)
            found.append(picked(firsts, seconds, places))
        return found
