# SPDX-License-Identifier: BSD-3-Clause
"""The text of a PTX module, parsed: declarations, functions, labels and instructions.

Instructions stay text in their operands: what an operand means depends on the opcode.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

SIZES = {
    **{"pred": 1, "b8": 1, "u8": 1, "s8": 1},
    **{"b16": 2, "u16": 2, "s16": 2, "f16": 2, "bf16": 2},
    **{"b32": 4, "u32": 4, "s32": 4, "f32": 4, "f16x2": 4, "bf16x2": 4, "tf32": 4},
    **{"b64": 8, "u64": 8, "s64": 8, "f64": 8},
}

_VARIABLE = re.compile(
    r"(?:\.(?:visible|weak|extern|common)\s+)*\.(global|const|shared|local|param)\s+"
    r"(?:\.attribute\([^)]*\)\s*)?(?:\.align\s+(\d+)\s+)?\.(\w+)\s+"
    r"(?:\.ptr\s*(?:\.\w+\s+)*(?:\.align\s+\d+\s+)?)?([\w$]+)\s*((?:\[[^\]]*\])*)"
    r"(?:\s*=\s*(.*))?$",
    re.S,
)
_FUNCTION = re.compile(
    r"(?:\.(?:visible|weak|extern)\s+)*\.(entry|func)\s*(?:\(([^()]*)\)\s*)?([\w$]+)\s*"
    r"(?:\(([^()]*)\))?\s*(.*)$",
    re.S,
)
_REGISTERS = re.compile(r"\.reg\s*\.(\w+)\s+(.*)$", re.S)
_HEAD = re.compile(r"\s*(?:\.(?:visible|weak|extern)\s+)*\.(?:entry|func)\b")
_GUARD = re.compile(r"@(!?)([%\w$]+)\s+(.*)$", re.S)
_LABEL = re.compile(r"([\w$]+):\s*")
_NAME = re.compile(r"[%$\w]+")


class PtxError(Exception):
    """The text is not PTX as this parser knows it."""


@dataclass
class Variable:
    space: str
    align: int
    type: str
    name: str
    count: int  # elements; 0 for an extern array, sized at launch
    initial: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return self.count * SIZES[self.type]


@dataclass(frozen=True)
class Instruction:
    line: int
    text: str
    guard: str | None
    negated: bool
    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[str, ...]


@dataclass(frozen=True)
class Label:
    name: str


@dataclass
class Function:
    name: str
    is_kernel: bool
    parameters: list[Variable]
    results: list[Variable]
    max_threads: int = 0
    registers: dict[str, str] = field(default_factory=dict)
    ranges: dict[str, str] = field(default_factory=dict)  # "%r" of "%r<9>" -> type
    variables: list[Variable] = field(default_factory=list)
    branch_targets: dict[str, list[str]] = field(default_factory=dict)
    body: list[Instruction | Label] = field(default_factory=list)
    has_body: bool = False


@dataclass
class Module:
    target: int
    variables: list[Variable]
    functions: list[Function]


def split_operands(text: str) -> list[str]:
    """Split at the commas that stand in no bracket."""
    parts: list[str] = []
    depth = 0
    start = 0
    for i, char in enumerate(text):
        if char in "{[(":
            depth += 1
        elif char in "}])":
            depth -= 1
        elif char == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    last = text[start:].strip()
    return [*parts, last] if last else parts


def parse_variable(text: str) -> Variable:
    match = _VARIABLE.match(text.strip())
    if match is None or match[3] not in SIZES:
        raise PtxError(f"a declaration that is not understood: {text.strip()[:120]!r}")
    space, align, type_, name, dims, initial = match.groups()
    count = 1
    for size in re.findall(r"\[\s*(\d*)\s*\]", dims):
        count *= int(size or 0)
    values = split_operands(initial.strip().strip("{}")) if initial else []
    return Variable(space, int(align or SIZES[type_]), type_, name, count, values)


def parse_instruction(text: str, line: int) -> Instruction:
    guard, negated, rest = None, False, text
    if match := _GUARD.match(text):
        guard, negated, rest = match[2], match[1] == "!", match[3]
    head, _, operands = rest.partition(" ")
    opcode, *modifiers = head.replace("::", "__").split(".")
    return Instruction(
        line, text, guard, negated, opcode, tuple(modifiers), tuple(split_operands(operands))
    )


@dataclass
class _Scope:
    """A block in braces: statements with their lines, and blocks within."""

    items: "list[tuple[int, str] | _Scope]" = field(default_factory=list)


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Yield (line, statement); braces that open or close a block are statements of their own."""
    line, start, start_line, depth = 1, 0, 1, 0
    blank = True  # nothing but white space since `start`
    for token in re.finditer(r'"[^"]*"|[\n{};:]|[^\s"{};:]+', text):
        word = token[0]
        if word == "\n":
            line += 1
            continue
        if blank:
            start_line = line
        end = token.end()
        # A brace within a statement belongs to a vector operand or to an initial value, unless the
        # statement is the head of a function.
        if word == "{" and depth == 0 and (blank or _HEAD.match(text, start)):
            if not blank:
                yield start_line, text[start : token.start()].strip()
            yield line, "{"
        elif word in "{}" and (word == "{" or depth > 0):
            depth += 1 if word == "{" else -1
            blank = False
            continue
        elif word == "}":
            yield line, "}"
        elif word == ";":
            yield start_line, text[start : token.start()].strip()
        elif word == ":" and depth == 0 and _LABEL.fullmatch(text[start:end].strip()):
            yield start_line, text[start:end].strip()
        else:
            blank = False
            continue
        start, blank = end, True


def _blank_out(text: str) -> str:
    """Drop comments and line information, but keep every line where it is."""
    text = re.sub(r"/\*.*?\*/", lambda m: "\n" * m[0].count("\n"), text, flags=re.S)
    text = re.sub(r"//[^\n]*", "", text)
    text = re.sub(r"^[ \t]*\.(?:loc|file|section)\b[^\n]*", "", text, flags=re.M)
    return re.sub(r"^[ \t]*\.(version|target|address_size)\b([^\n]*)", r".\1 \2;", text, flags=re.M)


def _flatten(
    scope: _Scope, outer: dict[str, str], counter: list[int], depth: int
) -> Iterator[tuple[int, str]]:
    """Yield the statements of all blocks, with names of inner blocks made unique."""
    names = dict(outer)
    if depth > 0:
        counter[0] += 1
        for item in scope.items:
            if isinstance(item, _Scope):
                continue
            declared: list[str] = []
            if match := _REGISTERS.match(item[1]):
                declared = split_operands(match[2])
            elif item[1].startswith(".param"):
                declared = [parse_variable(item[1]).name]
            elif match := _LABEL.fullmatch(item[1]):
                declared = [match[1]]
            names.update({name: f"{name}__{counter[0]}" for name in declared})
    for item in scope.items:
        if isinstance(item, _Scope):
            yield from _flatten(item, names, counter, depth + 1)
        elif names:
            yield item[0], _NAME.sub(lambda m: names.get(m[0], m[0]), item[1])
        else:
            yield item


def _add_statement(function: Function, line: int, text: str) -> None:
    if match := _LABEL.fullmatch(text):
        function.body.append(Label(match[1]))
    elif match := _REGISTERS.match(text):
        for name in split_operands(match[2]):
            if ranged := re.fullmatch(r"(%?[\w$]+)<\d+>", name):
                function.ranges[ranged[1]] = match[1]
            else:
                function.registers[name] = match[1]
    elif text.startswith((".local", ".shared", ".param", ".extern")):
        function.variables.append(parse_variable(text))
    elif text.startswith(".branchtargets"):
        last = function.body.pop()
        assert isinstance(last, Label)
        function.branch_targets[last.name] = split_operands(text.removeprefix(".branchtargets"))
    elif text.startswith(".pragma"):
        pass
    elif text.startswith("."):
        raise PtxError(f"line {line}: a directive that is not understood: {text[:80]!r}")
    else:
        function.body.append(parse_instruction(" ".join(text.split()), line))


def _parse_head(text: str) -> Function:
    match = _FUNCTION.match(text)
    if match is None:
        raise PtxError(f"the head of a function that is not understood: {text[:120]!r}")
    kind, results, name, parameters, directives = match.groups()
    max_threads = 0
    if limit := re.search(r"\.(?:maxntid|reqntid)\s+([\d,\s]+)", directives):
        max_threads = 1
        for size in limit[1].split(","):
            max_threads *= int(size)
    if ".reqnctapercluster" in directives or ".explicitcluster" in directives:
        raise PtxError(f"{name}: clusters are not supported")
    return Function(
        name,
        kind == "entry",
        [parse_variable(p) for p in split_operands(parameters or "")],
        [parse_variable(p) for p in split_operands(results or "")],
        max_threads,
    )


def parse_module(text: str) -> Module:
    module = Module(0, [], [])
    stack: list[_Scope] = []
    head: Function | None = None
    for line, statement in _statements(_blank_out(text)):
        if statement == "{":
            stack.append(_Scope())
            if len(stack) > 1:
                stack[-2].items.append(stack[-1])
        elif statement == "}":
            scope = stack.pop()
            if not stack:
                assert head is not None
                head.has_body = True
                for at, inner in _flatten(scope, {}, [0], 0):
                    if inner:
                        _add_statement(head, at, inner)
        elif stack:
            stack[-1].items.append((line, statement))
        elif re.search(r"\.(?:entry|func)\b", statement):
            head = _parse_head(statement)
            module.functions.append(head)
        elif statement.startswith(".target"):
            target = re.search(r"sm_(\d+)", statement)
            assert target is not None
            module.target = int(target[1])
        elif re.match(r"(\.\w+\s+)*\.(?:global|const|shared)\b", statement):
            module.variables.append(parse_variable(statement))
        elif statement and not statement.startswith((".version", ".address_size", ".alias")):
            raise PtxError(f"line {line}: a statement that is not understood: {statement[:80]!r}")
    if stack or not module.target:
        raise PtxError("the text ends early, or has no .target")
    return module
