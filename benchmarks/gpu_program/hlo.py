"""Optimised HLO, as XLA prints it: a program's kernels, what they read and write, its products.

The text is that of `jax.stages.Compiled.as_text()`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from functools import cached_property

BITS = {"pred": 8, "c64": 64, "c128": 128}  # others end in their width: f32, bf16, u8, f8e4m3fn
FREE = frozenset(
    "parameter constant bitcast tuple get-tuple-element after-all partition-id replica-id "
    "opt-barrier call while conditional".split()
)
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
PRODUCT_CALLS = ("__cublas$", "__cudnn$conv", "__triton$gemm")
ATTENTION_CALLS = "__cudnn$fmha"

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-$]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-$]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\]")


@dataclass(frozen=True)
class Array:
    """Element type and shape of one array."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * _bits(self.dtype) // 8


def _bits(dtype: str) -> int:
    if dtype in BITS:
        return BITS[dtype]
    width = re.match(r"[a-z]+(\d+)", dtype)
    return int(width[1]) if width else 0  # tokens have no size


@dataclass
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    outputs: list[Array]
    operands: list[str]
    attributes: str
    root: bool
    number: int | None = None  # of a parameter

    @cached_property
    def target(self) -> str:
        """What a custom call calls; "" for other instructions."""
        match = re.search(r'custom_call_target="([^"]+)"', self.attributes)
        return match[1] if match else ""

    @cached_property
    def calls(self) -> list[str]:
        """Computations that it calls by name."""
        pattern = r"(?:calls|to_apply|body|condition|called_computations)=\{?%?([\w.\-$]+)"
        return re.findall(pattern, self.attributes)


@dataclass
class Computation:
    """Instructions by name, in order."""

    name: str
    entry: bool
    instructions: dict[str, Instruction] = field(default_factory=dict)

    @property
    def root(self) -> Instruction:
        return next(i for i in self.instructions.values() if i.root)


def parse(text: str) -> dict[str, Computation]:
    """Every computation of a module, by name."""
    module: dict[str, Computation] = {}
    current = None
    for line in text.splitlines():
        if current is None:
            match = _COMPUTATION.match(line)
            if match:
                current = Computation(match[2], bool(match[1]))
                module[current.name] = current
        elif line.startswith("}"):
            current = None
        else:
            instruction = _instruction(line)
            if instruction:
                current.instructions[instruction.name] = instruction
    return module


def _instruction(line: str) -> Instruction | None:
    match = _INSTRUCTION.match(line)
    if not match:
        return None
    root, name, shapes, opcode, rest = match.groups()
    end = _closing(rest)
    arrays = [
        Array(dtype, tuple(int(n) for n in dims.split(",") if n))
        for dtype, dims in _ARRAY.findall(shapes)
    ]
    operands = re.findall(r"%([\w.\-$]+)", rest[:end])
    number = int(rest[:end]) if opcode == "parameter" else None
    return Instruction(name, opcode, arrays, operands, rest[end:], bool(root), number)


def _closing(text: str) -> int:
    """Where the parenthesis closes that was open before `text`."""
    depth = 1
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return i
    return len(text)


@dataclass
class Kernel:
    """One launch, of kind product, attention, collective or other, and its arrays in memory."""

    instruction: Instruction
    kind: str
    reads: list[Array]
    writes: list[Array]
    whole_reads: list[Array]  # of the operands, where a kernel reads a slice

    @property
    def bytes(self) -> int:
        """Each operand once, a slice by its own size; nothing is credited to a cache."""
        return sum(a.bytes for a in self.reads + self.writes)


def kernels(module: dict[str, Computation]) -> list[Kernel]:
    """Launches of the entry and of what it calls; the body of a loop is counted once."""
    found: list[Kernel] = []

    def walk(computation: Computation) -> None:
        for instruction in computation.instructions.values():
            if instruction.opcode in ("call", "while", "conditional"):
                for name in instruction.calls:
                    walk(module[name])
            elif not _is_free(instruction):
                found.append(_kernel(module, computation, instruction))

    walk(next(c for c in module.values() if c.entry))
    return found


def _is_free(instruction: Instruction) -> bool:
    return instruction.opcode in FREE or instruction.opcode.endswith("-done")


def _kernel(
    module: dict[str, Computation], computation: Computation, instruction: Instruction
) -> Kernel:
    operands = [computation.instructions[o] for o in instruction.operands]
    whole = [a for o in operands for a in o.outputs]
    reads = whole
    if instruction.opcode == "fusion":
        inner = module[instruction.calls[0]]
        reads = [a for i, o in enumerate(operands) for a in _read_of_parameter(inner, i, o.outputs)]
    return Kernel(instruction, _kind(module, instruction), reads, instruction.outputs, whole)


def _kind(module: dict[str, Computation], instruction: Instruction) -> str:
    opcode, target = instruction.opcode, instruction.target
    if opcode.removesuffix("-start") in COLLECTIVES:
        return "collective"
    if target.startswith(ATTENTION_CALLS):
        return "attention"
    if target.startswith(PRODUCT_CALLS) or opcode in ("dot", "convolution"):
        return "product"
    inner = [i for c in instruction.calls for i in module[c].instructions.values()]
    if any(i.opcode in ("dot", "convolution") for i in inner):
        return "product"
    if any(c in instruction.attributes for c in COLLECTIVES) and opcode == "async-start":
        return "collective"
    return "other"


def _read_of_parameter(inner: Computation, index: int, whole: list[Array]) -> list[Array]:
    """What a fusion reads of a parameter: the slices, if it uses nothing else of it."""
    name = next(i.name for i in inner.instructions.values() if i.number == index)
    slices: list[Array] = []
    waiting = [name]
    while waiting:
        current = waiting.pop()
        for user in inner.instructions.values():
            if current not in user.operands:
                continue
            if user.opcode in ("slice", "dynamic-slice"):
                slices += user.outputs
            elif user.opcode in ("bitcast", "reshape"):
                waiting.append(user.name)
            else:
                return whole
    size = sum(a.bytes for a in slices)
    return slices if slices and size < sum(a.bytes for a in whole) else whole


def aliases(text: str) -> int:
    """How many outputs take over the memory of an input."""
    match = re.search(r"input_output_alias=\{(.*?)\}, \w+=", text.splitlines()[0])
    return len(re.findall(r"(?:may|must)-alias", match[1])) if match else 0


@dataclass(frozen=True)
class Product:
    """A matrix product: element types, and operations (2 for a multiply-accumulate)."""

    inputs: tuple[str, str]
    output: str
    flops: int

    @property
    def types(self) -> str:
        return f"{self.inputs[0]} x {self.inputs[1]} -> {self.output}"


def products(module: dict[str, Computation]) -> list[Product]:
    """The products of `kernels(module)`; cuBLAS's and cuDNN's calls by their operands."""
    found = []
    for kernel in kernels(module):
        if kernel.kind != "product":
            continue
        own = kernel.instruction
        if own.opcode == "custom-call":
            found.append(_product(kernel.whole_reads[:2], kernel.writes[0], own.attributes))
            continue
        for computation in own.calls:
            inner = module[computation].instructions
            for i in inner.values():
                if i.opcode == "dot":
                    inputs = [inner[o].outputs[0] for o in i.operands]
                    found.append(_product(inputs, i.outputs[0], i.attributes))
    return found


def _product(inputs: list[Array], output: Array, attributes: str) -> Product:
    contracted = re.search(r'lhs_contracting_dim(?:ension)?s"?[=:][{\[]([\d",]*)', attributes)
    axes = [int(n) for n in re.findall(r"\d+", contracted[1])] if contracted else []
    depth = math.prod(inputs[0].shape[a] for a in axes)
    types = (inputs[0].dtype, inputs[1].dtype)
    return Product(types, output.dtype, 2 * output.elements * depth)
