# SPDX-License-Identifier: BSD-3-Clause
"""A PTX module as one C++ file: its variables, its functions, and the tables that register them."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from . import arithmetic, bitwise, control, memory
from .mutate import Mutation, find_mutations
from .operands import WORDS, Body, UnsupportedError, cpp_label, cpp_name, layout
from .registry import HANDLERS
from .resources import Resources
from .syntax import SIZES, Function, Instruction, Label, Module, PtxError, Variable, parse_module

_SHARED_BASE = 1024  # kSharedBase of kernel_api.h
_FIBER_BYTES = 24 << 10  # for the runtime and the C library's functions
_FAMILIES = (arithmetic, bitwise, control, memory)  # imported for the handlers they register

_CLASSES = {
    **dict.fromkeys(("ld", "ldu", "ldmatrix"), "load"),
    **dict.fromkeys(("st", "stmatrix"), "store"),
    **dict.fromkeys(("atom", "red"), "atomic"),
    **dict.fromkeys(("bar", "barrier", "membar", "fence"), "barrier"),
    **dict.fromkeys(("shfl", "vote", "match", "redux", "elect"), "warp"),
    **dict.fromkeys(("bra", "brx", "call", "ret", "exit"), "branch"),
    **dict.fromkeys(("ex2", "lg2", "rcp", "rsqrt", "sqrt", "tanh", "sin", "cos"), "special"),
    **{"cp": "copy", "mma": "mma", "fma": "fma", "cvt": "convert"},
}


@dataclass
class Translation:
    cpp: str
    unsupported: Counter[str]  # reason -> instructions that will stop a thread


@dataclass
class _File:
    """What the functions of a module share while they are translated."""

    module: Module
    checked: bool
    name: str
    mutations: dict[int, Mutation] = field(default_factory=dict)  # by line
    functions: dict[str, Function] = field(default_factory=dict)
    pointers: dict[str, str] = field(default_factory=dict)
    sites: list[Instruction] = field(default_factory=list)
    site_of: dict[int, int] = field(default_factory=dict)
    class_counts: list[Counter[str]] = field(default_factory=list)
    unsupported: Counter[str] = field(default_factory=Counter)

    def add_site(self, instruction: Instruction) -> int:
        if instruction.line not in self.site_of:
            self.site_of[instruction.line] = len(self.sites)
            self.sites.append(instruction)
        return self.site_of[instruction.line]


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _emit_variable(variable: Variable) -> str:
    word = WORDS[SIZES[variable.type]]
    values = []
    for value in variable.initial:
        if re.fullmatch(r"0[fFdD][0-9a-fA-F]+", value):
            value = "0x" + value[2:]
        if not re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)U?", value):
            raise PtxError(f"variable {variable.name}: the initial value {value!r}")
        values.append(f"{word}({value.rstrip('U')}ull)")
    align = max(variable.align, 8)
    return (
        f"alignas({align}) static {word} {cpp_name(variable.name)}[{max(variable.count, 1)}] = "
        f"{{{', '.join(values)}}};"
    )


def _emit_instruction(file: _File, body: Body, instruction: Instruction) -> str:
    handler = HANDLERS.get(instruction.opcode)
    try:
        if handler is None:
            raise UnsupportedError("unknown instruction")
        text = handler(body, instruction)
    except (UnsupportedError, KeyError, ValueError) as error:
        name = ".".join((instruction.opcode, *instruction.modifiers))
        file.unsupported[f"{name}: {error}"] += 1
        text = f"unsupported(th, {file.add_site(instruction)});"
    guard = ""
    if instruction.guard:
        guard = f"{'!' if instruction.negated else ''}{body.value(instruction.guard, 'pred')}"
    mutation = file.mutations.get(instruction.line)
    if mutation is None:
        return f"if ({guard}) {{ {text} }}" if guard else f"{{ {text} }}"
    number = mutation.number(file.name, file.module.target)
    if mutation.kind in ("weaken", "alone"):
        # The hook of the access looks at it, and drops the order; or the vote, and does not wait.
        text = f"const bool {mutation.kind} = mutated(th, {number}); {text}"
        return f"if ({guard}) {{ {text} }}" if guard else f"{{ {text} }}"
    if mutation.kind == "take":
        return f"if (({guard}) || mutated(th, {number})) {{ {text} }}"
    return f"if ({f'({guard}) && ' if guard else ''}!mutated(th, {number})) {{ {text} }}"


def _emit_body(file: _File, body: Body) -> list[str]:
    """Translate the instructions; in a checked build, count the runs of each basic block."""
    lines = []
    at_block_start = True
    for item in body.function.body:
        if isinstance(item, Label):
            body.seen_labels.add(item.name)
            lines.append(f"{cpp_label(item.name)}:;")
            at_block_start = True
            continue
        if file.checked and at_block_start:
            lines.append(f"if (th.block_counts) ++th.block_counts[{len(file.class_counts)}];")
            file.class_counts.append(Counter())
        at_block_start = item.opcode in ("bra", "brx", "ret", "exit")
        if file.checked:
            file.class_counts[-1][_CLASSES.get(item.opcode, "other")] += 1
        lines.append(_emit_instruction(file, body, item))
    return lines


def _emit_prologue(body: Body, lines: list[str]) -> list[str]:
    """Declare the registers in use, and the function's own memory."""
    function = body.function
    prologue = ["Span* const spans = th.spans; (void)spans;", "uint32_t fuel = kFuel; (void)fuel;"]
    if body.uses_carry:
        prologue.append("bool carry = false; (void)carry;")
    by_type: dict[str, list[str]] = {}
    for name, type_ in body.used.items():
        word = "bool" if type_ == "pred" else WORDS[SIZES[type_]]
        by_type.setdefault(word, []).append(f"{cpp_name(name)} = 0")
    prologue += [f"{word} {', '.join(names)};" for word, names in by_type.items()]
    for variable in function.variables:
        if variable.space in ("local", "param"):
            name = cpp_name(variable.name)
            size = max(variable.bytes, 1)
            prologue.append(f"alignas({max(variable.align, 8)}) char {name}[{size}];")
            # Memory that was never written reads as NaN.
            prologue.append(f"__builtin_memset({name}, 0xff, {size});")
    return [*prologue, *lines]


def _emit_function(file: _File, function: Function, shared: dict[str, int]) -> str:
    pointers = dict(file.pointers)
    for variable in function.variables:
        if variable.space in ("local", "param"):
            pointers[variable.name] = cpp_name(variable.name)
    if function.is_kernel:
        offsets, _ = layout(function.parameters, 0)
        pointers |= {name: f"(parameters + {offset})" for name, offset in offsets.items()}
        head = f"static void kernel_{function.name}(ThreadState& th, const char* parameters)"
    else:
        passed = [*function.results, *function.parameters]
        pointers |= {variable.name: cpp_name(variable.name) for variable in passed}
        head = _function_head(function)
    body = Body(function, file.checked, shared, pointers, file.functions, file.add_site)
    lines = _emit_body(file, body)
    unused = "(void)parameters;\n" if function.is_kernel else ""
    return f"{head} {{\n{unused}" + "\n".join(_emit_prologue(body, lines)) + "\n}\n"


def _function_head(function: Function) -> str:
    passed = [*function.results, *function.parameters]
    arguments = "".join(f", char* {cpp_name(variable.name)}" for variable in passed)
    return f"[[maybe_unused]] static void function_{function.name}(ThreadState& th{arguments})"


def _functions_of(module: Module, kernel: Function) -> list[Function]:
    """Return the kernel, and the functions that it may call."""
    return [f for f in module.functions if not f.is_kernel or f is kernel]


def _texts(functions: list[Function]) -> Iterator[str]:
    for item in (item for f in functions for item in f.body):
        if isinstance(item, Instruction):
            yield item.text


def _shared_layout(module: Module, function: Function) -> tuple[dict[str, int], int]:
    """Return the addresses of the shared variables that a kernel may use, and the end of them."""
    functions = _functions_of(module, function)
    words = {word for text in _texts(functions) for word in re.findall(r"[\w$]+", text)}
    own = [v for f in functions for v in f.variables if v.space == "shared"]
    common = [v for v in module.variables if v.space == "shared" and v.name in words]
    variables = [*common, *own]
    offsets, end = layout([v for v in variables if v.count], 0)
    dynamic = [v for v in variables if not v.count]
    if dynamic:
        align = max(16, *(v.align for v in dynamic))
        end = -(-end // align) * align
        offsets |= {v.name: end for v in dynamic}
    return {name: _SHARED_BASE + offset for name, offset in offsets.items()}, end


def _emit_kernel_info(
    module: Module, function: Function, shared_end: int, resources: Resources
) -> str:
    offsets, end = layout(function.parameters, 0)
    parameters = ", ".join(
        f"{{{offsets[variable.name]}, {variable.bytes}}}" for variable in function.parameters
    )
    used = resources.kernels.get(function.name)
    registers, local = (used.registers, used.stack_bytes) if used else (0, 0)
    depot = sum(v.bytes for v in function.variables)
    # Unoptimised, every register has a place of its own on the stack.
    stack = _FIBER_BYTES + 2 * depot + 16 * len(function.body)
    reads_timer = any("%globaltimer" in text for text in _texts(_functions_of(module, function)))
    return (
        f"static const Parameter parameters_{function.name}[] = {{{parameters or '{0, 0}'}}};\n"
        f"#define KERNEL_{function.name} {{{_quoted(function.name)}, kernel_{function.name}, "
        f"parameters_{function.name}, {len(function.parameters)}, {end}, {shared_end}, 16, "
        f"{registers}, {local}, {function.max_threads}, {stack}, {str(reads_timer).lower()}}}\n"
    )


def translate(
    ptx: str, name: str, checked: bool = False, resources: Resources | None = None
) -> Translation:
    """Translate the text of a PTX module; `name` is what messages call the module."""
    resources = resources or Resources({})
    module = parse_module(ptx)
    file = _File(module, checked, name)
    file.functions = {f.name: f for f in module.functions if not f.is_kernel}
    if checked:
        file.mutations = {mutation.line: mutation for mutation in find_mutations(module)}
    globals_ = [v for v in module.variables if v.space in ("global", "const")]
    globals_ += [v for f in module.functions for v in f.variables if v.space in ("global", "const")]
    file.pointers = {variable.name: cpp_name(variable.name) for variable in globals_}
    parts = ['#include "floating.h"\n#include "kernel_api.h"\n']
    parts.append("namespace cuda_on_cpu {\nnamespace {\n")
    parts.append("constexpr uint32_t kFuel = 4096;  // turns of a loop between preemptions\n")
    parts += [_emit_variable(variable) + "\n" for variable in globals_]
    parts += [_function_head(f) + ";\n" for f in file.functions.values() if f.has_body]
    infos = []
    for function in module.functions:
        if not function.has_body:
            continue
        shared, end = _shared_layout(module, function)
        parts.append(_emit_function(file, function, shared))
        if function.is_kernel:
            infos.append((function.name, _emit_kernel_info(module, function, end, resources)))
    parts += [info for _, info in infos]
    parts.append(_emit_tables(file, name, [kernel for kernel, _ in infos], globals_))
    return Translation("".join(parts), file.unsupported)


def _emit_tables(file: _File, name: str, kernels: list[str], globals_: list[Variable]) -> str:
    sites = ", ".join(f"{{{site.line}, {_quoted(site.text)}}}" for site in file.sites)
    variables = ", ".join(f"{{{_quoted(v.name)}, {cpp_name(v.name)}, {v.bytes}}}" for v in globals_)
    counts = ", ".join(
        f"{{{block}, {_quoted(kind)}, {count}}}"
        for block, counter in enumerate(file.class_counts)
        for kind, count in counter.items()
    )
    target = file.module.target
    mutations = ", ".join(
        f"{{{m.number(name, target)}, {m.line}, "
        f"{', '.join(map(_quoted, (m.function, m.kind, m.text)))}}}"
        for m in file.mutations.values()
    )
    kernel_infos = ", ".join(f"KERNEL_{kernel}" for kernel in kernels)
    class_count_count = sum(len(counter) for counter in file.class_counts)
    return (
        f"const KernelInfo kKernels[] = {{{kernel_infos or '{}'}}};\n"
        f"const Variable kVariables[] = {{{variables or '{}'}}};\n"
        f"const Site kSites[] = {{{sites or '{}'}}};\n"
        f"const ClassCount kClassCounts[] = {{{counts or '{}'}}};\n"
        f"const Mutation kMutations[] = {{{mutations or '{}'}}};\n"
        f"const Module kModule = {{{_quoted(name)}, {file.module.target}, "
        f"{str(file.checked).lower()}, kKernels, {len(kernels)}, kVariables, {len(globals_)}, "
        f"kSites, {len(file.sites)}, kClassCounts, {class_count_count}, "
        f"{len(file.class_counts)}, kMutations, {len(file.mutations)}}};\n"
        "const Registration registration(kModule);\n"
        "}  // namespace\n}  // namespace cuda_on_cpu\n"
    )
