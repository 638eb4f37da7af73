"""The stage of other distributions: their trees are laid out by hand, looked at, and shown in a real jail."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cloche.host.facts import path_facts
from cloche.host.tools import require_own_binary
from cloche.model.guest import MakeSymlink
from cloche.model.jail import Dev, Jail, Proc
from cloche.plan.shown import describe_stage
from cloche.plan.stage import build_stage, late_links, stage_candidates
from support.plans import facts, plan, request
from support.wardens import ALONE, domain, output

if TYPE_CHECKING:
    from collections.abc import Callable

BUSYBOX = Path("/bin/busybox")


def lay(root: Path, entries: dict[str, str | None]) -> Path:
    """Make a tree: a text is a file's content, one that begins with ``->`` a link, None busybox."""
    for name, content in entries.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            shutil.copy(BUSYBOX, path)
        elif content.startswith("->"):
            path.symlink_to(content[2:])
        else:
            path.write_text(content)
    return root


def debian_12(root: Path) -> Path:
    """Return the host's own tree."""
    del root
    return Path("/")


def fedora(root: Path) -> Path:
    """Return one with lib64 and certificates below pki."""
    merged: dict[str, str | None] = {name: f"->usr/{name}" for name in ("bin", "sbin", "lib", "lib64")}
    return lay(
        root,
        merged
        | {
            "usr/bin/busybox": None,
            "usr/bin/sh": "->busybox",
            "usr/sbin/x": "",
            "usr/lib/x": "",
            "usr/lib64/libx.so": "lib64\n",
            "etc/pki/tls/certs/ca.pem": "certificate\n",
            "etc/pki/tls/private/key": "secret",
            "etc/ssl/certs": "->../pki/tls/certs",
            "etc/system-release": "Fedora\n",
            "etc/shadow": "secret",
            "etc/NetworkManager/wifi": "secret",
        },
    )


def nixos(root: Path) -> Path:
    """Return one with a store, profiles that are links, and a system in use below /run."""
    return lay(
        root,
        {
            "nix/store/bb/bin/busybox": None,
            "nix/store/bb/bin/sh": "->busybox",
            "nix/store/system/sw": "->/nix/store/bb",
            "nix/store/etc/fonts/fonts.conf": "fonts\n",
            "nix/var/nix/profiles/default": "->/nix/store/bb",
            "nix/var/nix/db/db.sqlite": "secret",
            "run/current-system": "->/nix/store/system",
            "run/secrets/key": "secret",
            "bin/sh": "->/nix/store/bb/bin/sh",
            "usr/bin/env": "->/nix/store/bb/bin/busybox",
            "etc/static": "->/nix/store/etc",
            "etc/fonts": "->/etc/static/fonts",
            "etc/wpa_supplicant/x": "secret",
        },
    )


def not_merged(root: Path) -> Path:
    """Return one with programs in /bin and /usr/bin, and what snap and flatpak leave."""
    return lay(
        root,
        {
            "bin/busybox": None,
            "bin/sh": "->busybox",
            "sbin/x": "",
            "lib/libx.so": "lib\n",
            "lib64/ld.so": "loader\n",
            "usr/bin/tool": "tool\n",
            "usr/local/bin/mine": "mine\n",
            "opt/vendor/app": "app\n",
            "snap/core/current/x": "secret",
            "var/lib/flatpak/app/x": "secret",
            "var/lib/private": "secret",
            "etc/alternatives/x": "->/usr/bin/tool",
        },
    )


SHOWN: dict[Callable[[Path], Path], str] = {
    debian_12: "/bin/sh -c 'echo sh'; test -e /etc/debian_version && echo version",
    fedora: "busybox cat /usr/lib64/libx.so /lib64/libx.so /etc/ssl/certs/ca.pem /etc/system-release",
    nixos: "P=/run/current-system/sw/bin; $P/busybox cat /etc/fonts/fonts.conf; /usr/bin/env echo env;"
    " /nix/var/nix/profiles/default/bin/busybox echo profile",
    not_merged: "/bin/busybox cat /lib/libx.so /lib64/ld.so /usr/local/bin/mine /opt/vendor/app /etc/alternatives/x",
}
SAID: dict[Callable[[Path], Path], str] = {
    debian_12: "sh\nversion\n",
    fedora: "lib64\nlib64\ncertificate\nFedora\n",
    nixos: "fonts\nenv\nprofile\n",
    not_merged: "lib\nloader\nmine\napp\ntool\n",
}


@pytest.mark.parametrize("layout", [debian_12, fedora, nixos, not_merged], ids=lambda layout: layout.__name__)
def test_programs_find_what_they_need_and_nothing_else(
    layout: Callable[[Path], Path], tmp_path: Path
) -> None:
    """In a jail that is made of the stage the layout's own shell runs, and what was to be hidden is not there."""
    root = layout(tmp_path / "root")
    source = "" if root == Path("/") else str(root)
    host = facts()._replace(paths=path_facts(stage_candidates(), source))
    stage = build_stage(host, hostname="cloche", machine_id="0" * 32, source=source)
    jail = Jail(namespaces=ALONE, root=(*stage, Proc(b"/proc"), Dev(b"/dev")))
    with domain(require_own_binary("cloche-warden")) as warden:
        assert output(warden, SHOWN[layout], jail) == f"{SAID[layout]}status: 0"
        if source:
            search = "busybox grep -rl ^secret /etc /nix /run /snap /var /usr 2>/dev/null"
            assert "/" not in output(warden, f"PATH=$PATH:/nix/store/bb/bin; {search}", jail)


def test_the_system_in_use_is_a_link_that_the_guest_makes(tmp_path: Path) -> None:
    """A machine's /run is its own: what NixOS finds its programs by is made there."""
    host = facts()._replace(paths=path_facts(stage_candidates(), str(nixos(tmp_path))))
    assert late_links(host) == ((b"/nix/store/system", b"/run/current-system"),)
    assert MakeSymlink(b"/nix/store/system", b"/run/current-system") in plan(request(), host).setup
    assert late_links(facts()._replace(paths={})) == ()


def test_the_table_says_of_each_place_how_and_why(tmp_path: Path) -> None:
    """Shown, a link, absent, made, empty or hidden; whatever the stage can show is in it once."""
    rows = describe_stage(path_facts(stage_candidates(), str(nixos(tmp_path))))
    table = {row.path: row for row in rows}
    assert len(table) == len(rows)
    assert set(stage_candidates()) <= set(table)
    assert table["/nix/store"].how == "shown"
    assert table["/run/current-system"].how == "link"
    assert table["/run/current-system"].why.endswith("(to /nix/store/system)")
    assert table["/lib64"].how == "absent"
    assert table["/home, /root"].how == "hidden"
    assert all(row.why for row in rows)
