"""From a table of ``cloche.toml`` to the word that the command line would have (layer 2, pure)."""

from __future__ import annotations

from cloche.errors import UsageError
from cloche.model.request import MOUNT_OPTIONS, MountKind
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The options of a mount, as its word has them.
_OF_MOUNTS = ("at", "ro", "rw", "format", "fs", "part", "size")


def join_word(name: str, table: Mapping[str, object]) -> str:
    """Return the word of an option that a table with the right fields stands for.

    Raises:
        UsageError: No word can say this.
    """
    return {"share": _share, "disk": _disk, "mount": _mount}[name](table)


def _share(table: Mapping[str, object]) -> str:
    place = table.get("at")
    source = str(table["dir"])
    if place is not None and ":" in str(place):
        raise UsageError(f"{place!r} cannot be a share's place: it holds a colon", hint="Take another place.")
    if place is None and ":at=" in source:
        raise UsageError(
            f"the directory {source!r} is named like an option", hint="Say its place: at = PATH."
        )
    word = f"{source}:{'rw' if table.get('rw') else 'ro'}"
    return word if place is None else f"{word}:at={place}"


def _disk(table: Mapping[str, object]) -> str:
    tag, file, size = str(table["tag"]), table.get("file"), table.get("size")
    if "=" in tag:
        raise UsageError(f"{tag!r} cannot be a tag", hint="A tag has no equals sign.")
    if (file is None) == (size is None):
        raise UsageError(f"the disk {tag!r} needs a file or a size", hint="Say one of them.")
    word = f"{tag}=size:{size}" if file is None else f"{tag}={file}"
    if file is not None and str(file).startswith("size:"):
        raise _named_like_an_option("file", file)
    if file is not None or "format" in table:
        word += f",format={table.get('format', 'raw')}"
    if table.get("ro"):
        return f"{word},ro"
    if str(file).endswith(",ro"):
        raise _named_like_an_option("file", file)
    return word


def _mount(table: Mapping[str, object]) -> str:
    kind, source = str(table["kind"]), str(table.get("source", ""))
    if kind not in MOUNT_OPTIONS:
        raise UsageError(f"there is no mount {kind!r}", hint=f"There are {', '.join(MOUNT_OPTIONS)}.")
    if bool(source) != (kind != MountKind.RAM):
        raise UsageError(
            f"a mount of the kind {kind!r} has {'no' if source else 'a'} source",
            hint="Memory (ram) alone has none.",
        )
    words = [source] if source else []
    if any(part.partition("=")[0] in _OF_MOUNTS for part in source.split(",")[1:]):
        raise _named_like_an_option("source", source)
    for name in _OF_MOUNTS:
        if name == "ro" or name not in table:
            continue
        if name not in ("at", *MOUNT_OPTIONS[kind]):
            raise UsageError(f"a mount of the kind {kind!r} has no {name!r}")
        value = str(table[name])
        if "," in value:
            raise UsageError(f"{name} cannot be {value!r}: it holds a comma", hint="Take another one.")
        words.append(f"{name}={value}" if name != "rw" else name if table["rw"] else "ro")
    return f"{kind}:{','.join(words)}"


def _named_like_an_option(what: str, name: object) -> UsageError:
    return UsageError(f"the {what} {name!r} is named like an option", hint="Call it something else.")
