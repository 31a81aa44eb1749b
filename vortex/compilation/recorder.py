"""What a compilation leaves behind on its way: dumps, the time of each part, the text of each stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from vortex.artifact.resumed import Resumed, as_json
from vortex.compilation.dump import DumpDir, free_folder
from vortex.compilation.flow_files import FlowFile
from vortex.compilation.lowered import Lowered
from vortex.compilation.reproducer import DUMP_OF
from vortex.compilation.tvm_dump import TvmDump
from vortex.errors import VortexError
from vortex.install.identity import digest
from vortex.install.versions import versions
from vortex.ir.core import Function, Module
from vortex.ir.printer import attr, print_module
from vortex.passes.manager import Choice, Choose, PassCall, PassContext, Ran, run_pipeline
from vortex.spec import REQUIRED
from vortex.targets.target import STAGES, Target

OnStep = Callable[[str, str, str, str], None]
"""Called after each step with its name, its target (or ""), and the text before and after."""


class Record:
    """Follows one compilation; ``texts`` collects what goes into the artifact's ``ir/``."""

    def __init__(
        self,
        dump: Path | Literal["auto"] | None,
        argv: list[str],
        targets: list[str],
        on_step: OnStep | None,
        seconds: dict[str, float],
        choose: Choose | None = None,
        resumed: tuple[Resumed, ...] = (),
        *,
        to: str = STAGES[-1],
        dump_tvm: bool = False,
    ) -> None:
        """``dump`` is as :func:`vortex.driver.compile_flow` takes it, ``to`` the stage that ends the compilation."""
        self.about: dict[str, Any] = {"argv": argv, "targets": targets, "versions": versions(), **as_json(resumed)}
        self.texts: dict[str, str] = {}
        self.sources: dict[str, str] = {}
        """Texts of stage ``src`` by file name."""
        self.origin = ""
        """Text of the flow IR that the compilation began with."""
        self._wanted, self._on_step, self._seconds, self._choose = dump, on_step, seconds, choose
        self._dump: DumpDir | None = None
        self._dump_tvm = dump_tvm
        self._suffix = "-".join([*targets, *([] if to == STAGES[-1] else [to])])
        """What people look for in the name of the default folder."""

    @property
    def path(self) -> Path | None:
        """The dump folder, once there is one."""
        return self._dump.path if self._dump else None

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Finish the dump whatever happens; an error gets a note that names it."""
        try:
            yield
        except BaseException as e:
            if self._dump:
                message = f"error[{e.code}]: {e.message}" if isinstance(e, VortexError) else repr(e)
                with suppress(VortexError):  # the disk may be what failed
                    self._close("failed", error=message)
                setattr(e, DUMP_OF, self._dump.path)
                if isinstance(e, VortexError) and len(self._dump.steps) > 1:
                    e.note(f"what came before is in {self._dump.path}")
            raise
        self._close("ok")

    def _close(self, status: str, **about: object) -> None:
        if self._dump:
            self._dump.close(status, **about, seconds={k: round(v, 6) for k, v in self._seconds.items()})

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        """Count what happens inside as ``part``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[part] = self._seconds.get(part, 0.0) + time.perf_counter() - start

    def start(self, name: str, module: Module, calls: Sequence[PassCall], files: Sequence[FlowFile] = ()) -> None:
        """The module that everything begins with, the passes that it goes through, the files it was traced from."""
        text = print_module(module)
        self._open(module, name, text, *map(str, calls), str(self._choose), str(bool(files)))
        self.texts |= {f"source/{f.name}": f.text for f in files}
        self.about["sources"] = {f.path: f.name for f in files}
        if self._dump:
            for f in files:
                self._dump.write(f.name, f.text)
            self._dump.about["sources"] = self.about["sources"]
        self.texts[f"{module.name}.{name}.{module.stage}"] = text
        self.origin = text if module.stage == "flow" else ""
        self._step(name, module.stage, "", text, "", 0.0)

    def _open(self, module: Module, *asked: str) -> None:
        """Begin the dump. ``asked`` is what decides it beside targets and last stage: the same goes into one default
        folder and anything else into another.
        """
        if self._wanted is None:
            return
        short = digest(*asked, str(self._dump_tvm))[:8]
        auto = Path("dumps") / f"{module.name}-{short}-{self._suffix}"
        path = free_folder(auto) if self._wanted == "auto" else self._wanted
        self._dump = DumpDir.open(path, flow=module.name, spec=_spec(module), **self.about)

    def run(self, module: Module, calls: Sequence[PassCall], target: Target | None = None) -> Module:
        """``module`` after the passes, each recorded."""
        start = time.perf_counter()
        name = target.name if target else ""

        found = 0

        def choose(program: Module, f: Function, target: Target) -> Choice | None:
            nonlocal found
            assert self._choose is not None
            choice = self._choose(program, f, target)
            found += choice is not None
            return choice

        def on_pass(ran: Ran) -> None:
            nonlocal start, found
            seconds = time.perf_counter() - start
            self._step(str(ran.call), ran.stage, ran.before, ran.after, name, seconds, looked_up=found > 0)
            start, found = time.perf_counter(), 0

        return run_pipeline(module, calls, PassContext(target, self._choose and choose), on_pass)

    def _step(
        self, name: str, stage: str, before: str, text: str, target: str, seconds: float, *, looked_up: bool = False
    ) -> None:
        if self._dump:
            self._dump.step(name, stage, text, before=before, target=target, seconds=seconds, looked_up=looked_up)
        if self._on_step:
            self._on_step(name, target, before, text)

    def lowered(self, lowered: Sequence[Lowered]) -> None:
        """The TensorIR of every target."""
        if self._dump is None:
            texts = [k.text for low in lowered for k in low.kernels.values()]
            texts += [text for low in lowered for text in low.sources.values()]
            self._open(lowered[0].program, *texts)
        kernels: dict[str, list[dict[str, Any]]] = {}
        programs: dict[str, str] = {}
        for low in lowered:
            target = low.target.name
            text = print_module(low.program)
            self.texts[f"{low.program.name}.{target}.page"] = text
            if low.flow:
                self.texts[f"{low.program.name}.trace.flow"] = low.flow
            for k, source in low.kernels.items():
                self.texts[f"{k}.{target}.tir"] = source.text
            if self._dump:
                programs[target] = self._dump.holding(text) or self._dump.write(f"program.{target}.page", text).name
                kernels[target] = [{"name": k, **self._kernel(k, target, s)} for k, s in low.kernels.items()]
        if self._dump:
            self._dump.about |= {"programs": programs, "kernels": kernels}
            if lowered[0].flow and not self._dump.holding(lowered[0].flow):
                self._dump.write("00-trace.flow", lowered[0].flow)
            self._dump.about["origin"] = self._dump.holding(lowered[0].flow) if lowered[0].flow else None
            for edited, stage in ((".tir", "tir"), (".cu or .ll", "src")):
                command = f"vortex compile --from {stage} {self._dump.path}"
                self._dump.commands.append(f"# after an edit of a {edited} file: {command}")

    def _kernel(self, name: str, target: str, source: Any) -> dict[str, Any]:
        assert self._dump is not None
        file = self._dump.write(f"{name}.{target}.tir", source.text).name
        return {
            "file": file,
            "kind": source.kind,
            "symbol": source.symbol,
            "args": list(source.args),
            "page_words": source.page_words,
            "row_words": source.row_words,
            "schedule": {k: attr(v) if isinstance(v, dict) else v for k, v in source.schedule.items()},
            "digest": source.digest,
        }

    def tvm_passes(self, low: Lowered) -> TvmDump | None:
        """Where TVM's own passes on the kernels of a target go; None where nobody wants them."""
        if self._dump is None or not self._dump_tvm:
            return None
        return TvmDump(self._dump, low.target.name, {k.symbol: name for name, k in low.kernels.items()})

    def resources(self, target: str, found: Mapping[str, Mapping[str, object]]) -> None:
        """What the kernels of a target take of its GPU, by symbol; a CPU's take nothing that is told."""
        if self._dump and found:
            self._dump.about.setdefault("resources", {})[target] = {name: dict(used) for name, used in found.items()}

    def text(self, name: str, text: str) -> None:
        """A text of stage ``src``."""
        self.sources[name] = text
        if self._dump and text:
            self._dump.write(name, text)


def _spec(module: Module) -> dict[str, Any]:
    return {k: module.attrs[k] for k in (*REQUIRED, "kv_lora_rank", "kv_dtype") if k in module.attrs}
