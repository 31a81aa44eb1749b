"""What a report says, as plain data: the page draws it and ``vortex report --json`` prints it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True, slots=True)
class Place:
    """A span of a line in a source file of the flow: 1-based line and columns, the end exclusive, 0 where unknown."""

    source: int
    """Which of :attr:`Compilation.sources`."""
    line: int
    col: int
    end: int
    call: str
    """The function of several ops that is called there; empty for a single op."""


@dataclass(frozen=True, slots=True)
class Source:
    """A file that a person wrote, as far as the report may show it."""

    name: str
    lines: tuple[str, ...]
    """Empty where the file cannot be shown."""
    why_not: str
    """Why it cannot; empty where it can."""


@dataclass(frozen=True, slots=True)
class Text:
    """One text of a compilation, a line an entry; locations are taken out of IR and stand in ``places``."""

    title: str
    language: str
    """``ir``, ``tir``, ``cuda``, ``ptx``, ``sass``, ``schedule`` or ``traceback``."""
    lines: tuple[str, ...]
    places: tuple[tuple[int, ...], ...]
    """For each line those of :attr:`Compilation.places` that it computes; or empty where that is known of none."""
    target: str = ""
    kernel: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """A pass that ran."""

    name: str
    stage: str
    target: str
    changed: bool
    milliseconds: float
    ops: int
    """Of what it left."""
    text: int
    """Which of :attr:`Compilation.texts` it left, its predecessor's where it changed nothing."""
    added: Mapping[str, int] = field(default_factory=dict)
    """Ops that it made, by name: those that are more than before."""
    removed: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Remark:
    """Something that is so, and what would change it."""

    rule: str
    sort: str
    """``passed``, ``missed`` (it costs time) or ``analysis``."""
    kernel: str
    """Empty where it is about all."""
    message: str
    help: str
    place: int
    """Which of :attr:`Compilation.places`, -1 for none."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a kernel does in one layer's step, all rows."""

    read: float
    """Bytes, as ``written``."""
    written: float
    buffers: Mapping[str, float]
    flops: float = 0.0
    """Products and sums of the IR; 0 where none are counted."""
    microseconds: Mapping[str, float] = field(default_factory=dict)
    """Predicted, by the name of the GPU; empty for a CPU."""
    limiter: Mapping[str, str] = field(default_factory=dict)
    """What it is predicted to wait for, by the name of the GPU."""
    worth: Mapping[str, str] = field(default_factory=dict)
    """How far off such predictions were where kernels were measured, by the name of the GPU."""
    off: Mapping[str, bool] = field(default_factory=dict)
    """Whether that is more than a quarter, or nothing is known."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A kernel's time in a results file."""

    shape: str
    microseconds: float
    megabytes: float
    """That the file says it reads; 0 where it says nothing."""
    of_copy: float
    """Share of the speed of a copy on that GPU; 0 where it says nothing."""
    asked: bool
    """Whether the shape is the report's."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A record of the tuning database."""

    id: str
    bucket: str
    configuration: str
    microseconds: float
    differs: str
    """In which components its key is another; empty where only the bucket may be."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel for one target."""

    target: str
    name: str
    kind: str
    variant_of: str
    """The kernel that it stands for at some shapes; empty for that one."""
    digest: str
    origin: str
    """Where its schedule came from, in words."""
    knobs: Mapping[str, str]
    serves: str
    """The shapes that it is for; empty for all."""
    resources: Mapping[str, object]
    cost: Cost | None
    why_no_cost: str
    measured: tuple[Measured, ...]
    database: str
    """What the tuning database says of it, in words."""
    neighbours: tuple[Neighbour, ...]
    texts: tuple[int, ...]
    no_texts: Mapping[str, str]
    """Why a text is missing, or its lines are of no known place, by its language."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """A page program as a picture."""

    title: str
    svg: str


@dataclass(frozen=True, slots=True)
class Compilation:
    """One dump or artifact."""

    name: str
    """Of the flow."""
    path: str
    form: str
    status: str
    error: str
    command: str
    versions: Mapping[str, str]
    identity: Mapping[str, str]
    """Hashes, by what they are of."""
    workload: str
    """The shape that costs are told at, in words."""
    machines: tuple[str, ...]
    """The GPUs that times are predicted for."""
    seconds: Mapping[str, float]
    verdict: tuple[str, ...]
    """In sentences."""
    sources: tuple[Source, ...]
    places: tuple[Place, ...]
    texts: tuple[Text, ...]
    steps: tuple[Step, ...]
    kernels: tuple[Kernel, ...]
    remarks: tuple[Remark, ...]
    not_assessed: Mapping[str, str]
    """Why nothing is known of a program's speed, by target."""
    drawings: tuple[Drawing, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """What one page shows."""

    compilations: tuple[Compilation, ...]

    def as_json(self) -> dict[str, object]:
        """The documented form; docs/report.md has the schema."""
        return {"report": 1, **asdict(self)}
