"""Makes machine code for this CPU of what `step_code` writes, and finds the team of threads that runs it.

LLVM comes with the package llvmlite; no compiler of the machine is asked. The team is torch's own OpenMP team, so
the threads that wait for each other in a step are those that wait in torch's ops, and no second team competes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from pathlib import Path

import llvmlite.binding as llvm
import torch
from llvmlite import ir

from headrace.runtime.backends.step_code import StepCode
from headrace.runtime.backends.step_form import TILE, Means, StepSizes

TEAM = ("GOMP_parallel", "GOMP_barrier", "omp_get_thread_num")
Run = Callable[[int], None]


class NoNativeStep(Exception):
    """Why this machine runs no native step."""


def vector_width() -> tuple[int, int]:
    """float32 numbers of a vector register of this CPU, and how many such registers it has."""
    features = dict(llvm.get_host_cpu_features())
    if features.get("avx512f"):
        return 16, 32
    if features.get("avx2") and features.get("fma"):
        return 8, 16
    if llvm.get_process_triple().split("-")[0] in ("aarch64", "arm64"):
        return 4, 32
    raise NoNativeStep("this CPU has neither AVX2 nor NEON")


def team_addresses() -> dict[str, int]:
    """Where the OpenMP calls that torch uses are in memory."""
    found = {}
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*")):
        library = ctypes.CDLL(str(path))
        for name in TEAM:
            function = getattr(library, name, None)
            if function is not None:
                found[name] = ctypes.cast(function, ctypes.c_void_p).value or 0
    if len(found) < len(TEAM):
        raise NoNativeStep("torch's threads cannot be reached on this system; one thread could be used")
    return found


def means_of(sizes: StepSizes, threads: int) -> Means:
    """What of this CPU a step of `sizes` uses."""
    lanes, registers = vector_width()
    features = dict(llvm.get_host_cpu_features())
    tiles = bool(sizes.tileable and features.get("amx-tile") and features.get("amx-bf16"))
    if tiles:
        ask = getattr(torch.cpu, "_init_amx", None)  # the kernel's leave to use tiles
        tiles = ask is not None and bool(ask())
    return Means(lanes, registers, tiles, threads > 1)


def row_counts(sizes: StepSizes, means: Means) -> tuple[int, ...]:
    """The row counts that have a function of their own; a step of others runs the next larger one."""
    if means.tiles:
        return (TILE,)
    # Where the reading of weights takes longest, a second row is free; so few functions do. Beyond these counts
    # torch is faster: bfloat16 is widened by hand here, and multiplied by the CPU there.
    return (2, 8) if sizes.stored == "float32" else (1, 4)


def compile_module(module: ir.Module) -> llvm.ExecutionEngine:
    """The functions of `module` as machine code for this CPU, for as long as the result lives."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module.triple = llvm.get_process_triple()
    target = llvm.Target.from_triple(module.triple).create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3, jit=True
    )
    compiled = llvm.parse_assembly(str(module))
    compiled.verify()
    passes = llvm.create_pass_builder(target, llvm.create_pipeline_tuning_options(speed_level=2))
    passes.getModulePassManager().run(compiled, passes)
    engine = llvm.create_mcjit_compiler(compiled, target)
    engine.finalize_object()
    return engine


class NativeStep:
    """Compiled steps of one model. Raises NoNativeStep where they cannot be.

    threads: of the team; the one that calls is among them. `runs` has (rows, run), run(state) runs a step of at
    most so many rows; state: address of what `step_form.STATE` lists. The call gives up the GIL."""

    def __init__(self, sizes: StepSizes, threads: int) -> None:
        self.means = means = means_of(sizes, threads)
        addresses = team_addresses() if threads > 1 else {}
        for name, address in addresses.items():
            llvm.add_symbol(name, address)
        module = ir.Module("headrace")
        counts = row_counts(sizes, means)
        for rows in counts:
            StepCode(module, f"step_{rows}", sizes, rows, means)
        self._engine = compile_module(module)
        self.runs: list[tuple[int, Run]] = []
        for rows in counts:
            address = self._engine.get_function_address(f"step_{rows}")
            run: Run
            if threads > 1:
                start = ctypes.CFUNCTYPE(
                    None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint
                )(addresses["GOMP_parallel"])
                run = partial(_run_in_team, start, address, threads)
            else:
                run = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)
            self.runs.append((rows, run))

    @property
    def most(self) -> int:
        """Rows of the largest step."""
        return self.runs[-1][0]


def _run_in_team(start: Callable[..., None], address: int, threads: int, state: int) -> None:
    start(address, state, threads, 0)
