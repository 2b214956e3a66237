"""From a path, flags and an environment to one checked Config.

The order: the working directory, the dotenv file, the root file, its includes (each replaces whole sections of what came
before), the `-o` flags over everything; then one conversion of the merged tree. Every problem of every file is reported
at once. RoadRunner's rules hold with its holes closed: `-o` beats includes, includes lie beside the including file (the
working directory is the fallback), variables are expanded exactly once in every text, unknown keys are errors.

Nothing global is touched: the caller changes into `source.working_directory` and exports `source.environment`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, cast

from trailboss.config.convert import (
    Findings,
    convert_section,
    expand_dotted_keys,
    find_key,
    unknown_key,
)
from trailboss.config.dotenv import parse_dotenv
from trailboss.config.problems import ConfigError, Problem
from trailboss.config.reading import read_text, read_tree
from trailboss.config.rules import consumed_pipelines, contradictions
from trailboss.config.schema import UNAVAILABLE_SECTIONS, Config, ConfigSource, section_keys
from trailboss.config.substitution import substitute
from trailboss.config.tree import OVERRIDE_FILE, Node, find, lay_over, parse_override, plain

__all__ = ["DEFAULT_FILES", "LoadRequest", "load"]

DEFAULT_FILES: Final = (".rr.yaml", "trailboss.yaml")
_VERSION: Final = "3"
_VERSION_REMEDY: Final = 'write version: "3"'
_INCLUDES_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """What the command line said."""

    path: str | None = None
    """The file; None: the first of DEFAULT_FILES in the working directory."""
    workdir: str | None = None
    """The working directory; None: the folder of the file. A relative `path` is relative to it."""
    overrides: Sequence[str] = ()
    """`key=value` texts; later ones win."""
    dotenv: str | None = None
    """A file of environment variables; $DOTENV_PATH wins over it."""
    environ: Mapping[str, str] | None = field(default=None, repr=False)
    """The environment; None: the process's own."""
    plugin_sections: Mapping[str, type] = field(default_factory=dict)
    """Section name -> dataclass of third-party plugins; found in `Config.extensions`."""
    without_file: bool = False
    """True: there is no file, `overrides` say everything."""
    require_version: bool = True
    """False lets an empty file without `version` pass, which `reset` needs for older Laravel Octane."""


def load(request: LoadRequest) -> Config:
    """Return the configuration that `request` names. Raises ConfigError with every problem found."""
    return _Loading(request).config()


class _Loading:
    """One load: the collected findings and the files read so far."""

    def __init__(self, request: LoadRequest) -> None:
        self._request = request
        self._findings = Findings()
        self._here = _working_directory()
        self._files: list[str] = []
        self._environ = dict(os.environ if request.environ is None else request.environ)
        self._added: dict[str, str] = {}
        self._unreadable = False

    def config(self) -> Config:
        """Do all the steps in order."""
        path, workdir = self._locate()
        self._read_dotenv(workdir)
        root = self._read_root(path)
        overrides = self._overrides()
        is_empty = not root.value
        self._include(root, overrides, os.path.dirname(path), workdir)
        for parts, node in overrides:
            lay_over(root, parts, node)
        self._check_version(root, is_empty)
        config = self._convert(root)
        self._raise_problems()
        assert config is not None
        config = replace(
            config,
            notes=tuple(self._findings.notes),
            source=ConfigSource(
                path=path,
                files=tuple(self._files),
                working_directory=workdir,
                merged=cast("Mapping[str, object]", plain(root)),
                environment=self._added,
                places=self._findings.places,
            ),
        )
        self._findings.problems.extend(contradictions(config))
        self._raise_problems()
        return _with_spelled_consume(config)

    def _raise_problems(self) -> None:
        if self._findings.problems:
            order = {file: index for index, file in enumerate(self._files)}
            key = lambda problem: (order.get(problem.file, len(order)), problem.line)  # noqa: E731  used once, right below
            raise ConfigError(sorted(self._findings.problems, key=key))

    def _locate(self) -> tuple[str, str]:
        """Return the absolute paths of the root file ("" for none) and of the working directory."""
        request = self._request
        base = os.path.join(self._here, request.workdir or "")
        if "\x00" in base or (request.workdir and not os.path.isdir(base)):
            raise ConfigError(
                [Problem(self._shown(base), 0, "-w", "there is no such folder", "create it or correct -w")]
            )
        if request.without_file:
            return "", os.path.normpath(base)
        if request.path is not None:
            path = os.path.normpath(os.path.join(base, request.path))
        else:
            candidates = [os.path.join(base, name) for name in DEFAULT_FILES]
            path = next(filter(os.path.exists, candidates), "")
            if not path:
                looked_for = " nor ".join(DEFAULT_FILES)
                message = f"there is neither {looked_for} in {base}"
                raise ConfigError([Problem("", 0, "", message, "create one, or name a file with -c FILE")])
        return path, os.path.normpath(base) if request.workdir else os.path.dirname(path)

    def _shown(self, path: str) -> str:
        """Return a path as a person at this prompt would write it."""
        relative = os.path.relpath(path, self._here) if "\x00" not in path else "(path)"
        return path if relative.startswith("..") else relative

    def _read_dotenv(self, workdir: str) -> None:
        name = self._environ.get("DOTENV_PATH") or self._request.dotenv
        if not name:
            return
        path = os.path.join(workdir, name)
        shown = self._shown(path)
        try:
            self._added = parse_dotenv(read_text(path, shown), shown, self._environ)
        except ConfigError as error:
            self._findings.problems.extend(error.problems)
        self._environ.update(self._added)

    def _read_root(self, path: str) -> Node:
        if not path:
            self._files.append(OVERRIDE_FILE)
            return Node({}, "", OVERRIDE_FILE)
        self._files.append(self._shown(path))
        return self._read(path) or Node({}, "", self._shown(path))

    def _read(self, path: str) -> Node | None:
        """Return the tree of one file, expanded; None where it is empty or a problem was recorded."""
        shown = self._shown(path)
        try:
            root = read_tree(path, shown)
        except ConfigError as error:
            self._findings.problems.extend(error.problems)
            self._unreadable = True
            return None
        if root is None or root.value is None:
            return None
        if not isinstance(root.value, dict):
            self._findings.add(
                root.problem("", "the file is not a list of sections", "begin with version: and sections")
            )
            self._unreadable = True
            return None
        self._substitute(root)
        expand_dotted_keys(root, Config, self._findings)
        for name, section in self._request.plugin_sections.items():
            written = find(root.value, name)
            if written is not None:
                expand_dotted_keys(root.value[written], section, self._findings, name)
        return root

    def _substitute(self, root: Node) -> None:
        problems, notes = substitute(root, self._environ)
        self._findings.notes.extend(notes)
        for problem in problems:
            self._findings.add(problem)

    def _overrides(self) -> list[tuple[tuple[str, ...], Node]]:
        overrides: list[tuple[tuple[str, ...], Node]] = []
        for text in self._request.overrides:
            try:
                parts, node = parse_override(text)
            except ConfigError as error:
                self._findings.problems.extend(error.problems)
                continue
            holder = Node({".".join(parts): node}, "", OVERRIDE_FILE)
            self._substitute(holder)
            overrides.append((parts, node))
        return overrides

    def _include(
        self, root: Node, overrides: Sequence[tuple[tuple[str, ...], Node]], folder: str, workdir: str
    ) -> None:
        """Replace sections of `root` by those of the files that `include` names, later ones over earlier ones."""
        assert isinstance(root.value, dict)
        written = find(root.value, "include")
        node = root.value.pop(written) if written else None
        for parts, value in overrides:
            if [part.lower() for part in parts] == ["include"]:
                node = value
        if node is None or node.value is None:
            return
        version = self._version_of(root, overrides)
        for name in self._include_names(node):
            path = self._include_path(name, folder, workdir)
            included = self._read(path)
            self._files.append(self._shown(path))
            if included is None:
                continue
            self._check_included(included, version)
            assert isinstance(included.value, dict)
            for section, value in included.value.items():
                if section.lower() not in ("version", "include"):
                    root.value[find(root.value, section) or section] = value

    def _include_names(self, node: Node) -> list[str]:
        """Return the names in `include`: a list, a text split at commas, or for -o at white space."""
        if isinstance(node.value, list) and all(isinstance(child.value, str) for child in node.value):
            names = [child.text for child in node.value]
        elif isinstance(node.value, str):
            names = node.text.split() if node.is_override else [part.strip() for part in node.text.split(",")]
        else:
            self._findings.add(
                node.problem("include", "not a list of files", "write include: [a.yaml, b.yaml]")
            )
            return []
        if len(names) > _INCLUDES_MAX:
            self._findings.add(
                node.problem("include", f"more than {_INCLUDES_MAX} files", "include fewer files")
            )
            return []
        if any(not name or "\x00" in name for name in names):
            self._findings.add(
                node.problem("include", "a name of a file that is empty or cannot be one", "correct it")
            )
            return []
        return names

    def _include_path(self, name: str, folder: str, workdir: str) -> str:
        beside = os.path.normpath(os.path.join(folder, name))
        below = os.path.normpath(os.path.join(workdir, name))
        return beside if os.path.exists(beside) or not os.path.exists(below) else below

    def _version_of(self, root: Node, overrides: Sequence[tuple[tuple[str, ...], Node]]) -> str:
        version = _text_at(root, "version")
        for parts, value in overrides:
            if len(parts) == 1 and parts[0].lower() == "version":
                version = value.text
        return version

    def _check_included(self, included: Node, version: str) -> None:
        assert isinstance(included.value, dict)
        own = _text_at(included, "version")
        if own != version or not own:
            written = find(included.value, "version")
            place = included.value[written] if written else included
            what = (
                "not the version of the file that includes it" if own else "an included file without version"
            )
            self._findings.add(place.problem("version", what, _VERSION_REMEDY))
        nested = find(included.value, "include")
        if nested:
            message = "has no effect in an included file"
            self._findings.notes.append(
                included.value[nested].problem("include", message, "list it in the root file")
            )

    def _check_version(self, root: Node, is_empty: bool) -> None:
        assert isinstance(root.value, dict)
        written = find(root.value, "version")
        node = root.value[written] if written else None
        if node is None or node.value is None:
            if not self._unreadable and (self._request.require_version or not is_empty):
                file = self._files[0]
                self._findings.add(
                    Problem(file, 1, "version", "the version of the format is missing", _VERSION_REMEDY)
                )
            return
        if node.text == _VERSION and isinstance(node.value, str | int):
            if not isinstance(node.value, str):
                node.value = _VERSION
                self._findings.notes.append(
                    node.problem("version", "RoadRunner refuses it unquoted", _VERSION_REMEDY)
                )
            return
        if node.text in ("2.7", "2", "2.0") and not node.substituted:
            message = f"{node.text} configurations are not supported"
        else:
            message = "not a version of the format that is supported"
        self._findings.add(node.problem("version", message, _VERSION_REMEDY))
        node.value = node.text = _VERSION

    def _convert(self, root: Node) -> Config | None:
        """Convert sections of plugins first, then everything else; None where a problem was recorded."""
        assert isinstance(root.value, dict)
        known = section_keys(Config)
        extensions: dict[str, object] = {}
        core: dict[str, Node] = {}
        for written, node in root.value.items():
            brought = find_key(self._request.plugin_sections, written)
            if find_key(known, written) is not None:
                core[written] = node
            elif brought is not None:
                if node.value is not None:
                    section = self._request.plugin_sections[brought]
                    self._findings.places[brought] = (node.file, node.line)
                    extensions[brought] = convert_section(section, node, brought, self._findings)
            elif written.lower() in UNAVAILABLE_SECTIONS:
                self._findings.add(node.problem(written.lower(), *UNAVAILABLE_SECTIONS[written.lower()]))
            elif written.lower() != "include":
                self._findings.add(
                    unknown_key(Config, written, node, "", tuple(self._request.plugin_sections))
                )
        config = convert_section(Config, replace(root, value=core), "", self._findings)
        return replace(config, extensions=extensions) if isinstance(config, Config) else None


def _text_at(root: Node, name: str) -> str:
    assert isinstance(root.value, dict)
    written = find(root.value, name)
    return root.value[written].text if written else ""


def _with_spelled_consume(config: Config) -> Config:
    """Return the configuration with the names in jobs.consume spelled as the pipelines are."""
    if config.jobs is None or not config.jobs.consume:
        return config
    return replace(config, jobs=replace(config.jobs, consume=consumed_pipelines(config.jobs)))


def _working_directory() -> str:
    """Return the working directory by the name it was entered with, where the shell has noted it.

    Of a deployment that is a link to its newest release, that is the link, which a later release changes.
    """
    physical, noted = os.getcwd(), os.environ.get("PWD", "")
    try:
        if os.path.isabs(noted) and os.path.normpath(noted) == noted and os.path.samefile(noted, physical):
            return noted
    except OSError:
        pass
    return physical
