"""Compiles every Triton kernel for a GPU that need not be there; run by test_triton_compiles."""

from __future__ import annotations

import itertools
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from interkd.kernels._triton.depthwise import correlate, slide
from interkd.kernels._triton.frame_gradients import frame_gradients
from interkd.kernels._triton.frame_losses import frame_losses
from interkd.kernels._triton.lattice import sweep_halves, sweep_occupancies
from interkd.kernels._triton.norm_backward import slopes_of_inputs, sum_slopes
from interkd.kernels._triton.norm_forward import activate, moments
from interkd.kernels._triton.prepare import combine, prepare

TRANSCRIPTS = ("targets", "frame_lengths", "target_lengths")
TEACHER = ("compared_lengths", "frame_offsets", "entry_offsets", "tokens", "log_probs", "selected")
OF_THE_WAY_AROUND = (
    *("around", "partial_around", "weight_around", "bias_around", "norm_around"),
    *("running_mean_around", "running_var_around", "slope_around"),
)
FRAMES = ("logits", "out", "x", "around", "slope", "slope_x", "slope_around")
TYPES = {
    "*i64": (*TRANSCRIPTS, "compared_lengths", "frame_offsets", "entry_offsets", "seed"),
    "*i32": ("tokens", "slot_of", "slots", "occupancy"),
    "*i1": ("selected", "impossible", "mask"),
    "i64": ("offset1", "offset2", "offset3", "out1", "out2", "out3"),
    "i32": (
        *("batch", "T", "width", "vocab_size", "entries", "teacher_length", "blank"),
        *("channels", "taps", "dilation", "lanes"),
        *("rows", "shares", "threshold", "stream"),
        *("first_head", "all_heads", "ctc_heads", "distilled_heads"),
    ),
    "fp32": (
        *("temperature", "enlarge"),
        *("momentum", "epsilon", "momentum_around", "epsilon_around"),
    ),
}
OF_A_BATCH = {"batch", "T", "width", "teacher_length", "entries", "rows", "lanes", "shares"}
TYPE_OF = {name: kind for kind, names in TYPES.items() for name in names}


def compile_kernel(kernel: Any, constants: dict[str, Any], frames: str = "*fp32") -> None:
    """Every argument without another type is a float pointer; what is not there is None."""
    for parameter in kernel.params:
        if parameter.name in OF_A_BATCH and not parameter.do_not_specialize:
            raise AssertionError(f"{kernel.__name__} is compiled anew for another {parameter.name}")
    signature, values = {}, {}
    absent = set() if constants.get("CTC", True) else set(TRANSCRIPTS)
    absent |= set() if constants.get("DISTILL", True) else set(TEACHER)
    absent |= set() if constants.get("SELECTED", True) else {"selected"}
    absent |= set() if constants.get("AROUND", True) else set(OF_THE_WAY_AROUND)
    absent |= set() if constants.get("DROPOUT", True) else {"seed"}
    for place, name in enumerate(kernel.arg_names):
        if name in constants or name in absent:
            signature[name] = "constexpr"
            values[(place,)] = constants.get(name)
        else:
            signature[name] = TYPE_OF.get(name, frames if name in FRAMES else "*fp32")
    source = ASTSource(fn=kernel, signature=signature, constexprs=values)
    triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 2})


def main() -> None:
    """Compiles them all; an exception is the failure."""
    for block, with_occupancy in ((32, True), (512, False)):
        compile_kernel(sweep_halves, {"BLOCK": block})
        compile_kernel(sweep_occupancies, {"BLOCK": block, "WITH_OCCUPANCY": with_occupancy})
    compile_kernel(combine, {"ZERO_INFINITY": True, "HEADS": 4, "BLOCK": 256})
    sizes = {"BLOCK": 256, "BLOCK_U": 64, "BLOCK_K": 16}
    halves = ((True, True), (True, False), (False, True))
    for (ctc, distill), tail in itertools.product(halves, (0, 1, 2)):
        if not distill and tail != 2:
            continue
        asked = {"CTC": ctc, "DISTILL": distill, "TAIL": tail, **sizes}
        compile_kernel(prepare, asked)
        odd = ctc != (tail == 1)  # the other settings in some combination
        asked |= {"SELECTED": distill and odd, "SQUARED": odd}
        logits = "*bf16" if odd else "*fp32"
        compile_kernel(frame_gradients, {**asked, "ALIGNED": True}, logits)
        asked |= {"TAU": not odd, "WITH_GRADIENT": True, "ALIGNED": odd, "ONE_BLOCK": odd}
        compile_kernel(frame_losses, asked, logits)
    compile_kernel(slide, {"FLIP": True, "LANES": 16, "BLOCK_C": 64})
    compile_kernel(correlate, {"STEPS": 33, "LANES": 8, "BLOCK_C": 64})
    sizes = {"ROWS": 16, "BLOCK_C": 64}
    compile_kernel(moments, {**sizes, "ROWS": 128}, "*bf16")
    for around in (False, True):
        asked = {**sizes, "AROUND": around}
        compile_kernel(sum_slopes, asked, "*bf16")
        compile_kernel(slopes_of_inputs, {**asked, "SHARES": 32}, "*bf16")
        compile_kernel(activate, {**asked, "DROPOUT": not around, "SHARES": 32}, "*bf16")
    print("compiled")


if __name__ == "__main__":
    main()
