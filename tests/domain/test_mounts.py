"""Mounts in real machines: images of all kinds, memory, directories of the guest, and what cannot be mounted."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from support.disks import backed_qcow2, empty_qcow2, gpt
from support.errors import check_error

if TYPE_CHECKING:
    from pathlib import Path

    from support.runs import Runner


@pytest.fixture
def tree(folder: Path, cloche: Runner) -> Path:
    """Return a small directory of the ordinary user's, to be made images of."""
    path = folder / "tree"
    make(cloche, f"mkdir -p {path}/sub; echo inside > {path}/file; ln -s /etc {path}/out")
    return path


def make(cloche: Runner, script: str) -> None:
    """Run a script on the host as the ordinary user."""
    done = cloche.user.run(["sh", "-ec", f"PATH=$PATH:/usr/sbin:/sbin; {script}"], timeout=120)
    assert done.returncode == 0, done.stderr


def make_partitioned(path: Path, ext4: Path) -> None:
    """Put the image of a file system behind a partition table (MBR; the second partition begins at 2 MiB)."""
    entry = bytes(446) + bytes(16)
    start, count = (2 << 20) // 512, ext4.stat().st_size // 512
    entry += bytes([0, 0, 0, 0, 0x83, 0, 0, 0]) + start.to_bytes(4, "little") + count.to_bytes(4, "little")
    with path.open("wb") as file:
        file.write(entry.ljust(510, b"\0") + b"\x55\xaa")
        file.seek(2 << 20)
        file.write(ext4.read_bytes())
    os.chown(path, ext4.stat().st_uid, ext4.stat().st_gid)


def test_images_of_every_kind_are_read(cloche: Runner, folder: Path, tree: Path) -> None:
    """The guest finds by itself what is on an image; nothing of it is written, run as root, or a device."""
    make(
        cloche,
        f"""cd {folder}
        mke2fs -q -t ext4 -d tree a.ext4 8M
        mksquashfs tree a.squashfs -quiet -no-progress
        mkfs.erofs a.erofs tree >/dev/null 2>&1
        xorriso -as mkisofs -quiet -J -R -o a.iso tree""",
    )
    make_partitioned(folder / "a.disk", folder / "a.ext4")
    (folder / "a.gpt").write_bytes(gpt((folder / "a.ext4").read_bytes()))
    kinds = ("ext4", "squashfs", "erofs")
    options = [f"--mount=host-image:{folder}/a.{kind},at=/m/{kind}" for kind in kinds]
    script = "for kind in ext4 squashfs erofs; do cat /m/$kind/file; readlink /m/$kind/out; done; "
    script += "touch /m/ext4/new 2>&1 | grep -o Read-only; grep -c ' /m/.* ro,nosuid,nodev' /proc/mounts"
    done = cloche.sh(script, *options)
    assert done.stdout == b"inside\n/etc\n" * 3 + b"Read-only\n3\n", done.stderr
    options = [
        f"--mount=host-image:{folder}/a.iso,at=/m/iso",
        f"--mount=host-image:{folder}/a.disk,at=/m/disk,part=2,fs=ext4",
        f"--mount=host-image:{folder}/a.gpt,at=/m/gpt,part=2",
        # Seen twice: one disk, and another partition of none.
        "--mount=guest-bind:/m/iso/sub,at=/m/sub,ro",
    ]
    done = cloche.sh(
        "cat /m/iso/file /m/disk/file /m/gpt/file; grep -c ' /m/sub iso9660 ro' /proc/mounts", *options
    )
    assert done.stdout == b"inside\n" * 3 + b"1\n", done.stderr


def test_what_is_written_to_an_image_stays(cloche: Runner, folder: Path, tree: Path) -> None:
    """A raw image, one in qcow2 and one without owners keep what was written; who may not write sees so."""
    make(
        cloche,
        f"""cd {folder}; truncate -s 40M a.fat; mkfs.vfat a.fat >/dev/null
        mke2fs -q -t ext4 -E root_owner a.ext4 16M""",
    )
    qcow2 = folder / "a.qcow2"
    qcow2.write_bytes(empty_qcow2(32 << 20))
    os.chown(qcow2, cloche.user.entry.pw_uid, cloche.user.entry.pw_gid)
    image = f"{qcow2},format=qcow2"
    script = "mkfs.ext4 -q -E root_owner=65534:65534 /dev/disk/by-tag/d"
    made = cloche.sh(script, "--privileged", f"--disk=d={image}")
    assert made.returncode == 0, made.stderr
    options: tuple[str, ...] = (
        f"--mount=host-image:{folder}/a.ext4,at=/m/ext4,rw",
        f"--mount=host-image:{folder}/a.fat,at=/m/fat,rw",
        f"--mount=host-image:{image},at=/m/qcow2,rw",
    )
    done = cloche.sh(
        "echo one > /m/ext4/a; echo two > /m/fat/b; stat -c %U /m/fat/b; (echo 3 > /m/qcow2/c) 2>&1 | grep -o denied",
        *options,
    )
    assert done.stdout == f"{cloche.user.entry.pw_name}\ndenied\n".encode(), done.stderr
    # Closed cleanly: they can be read at once.
    options = tuple(option.removesuffix(",rw") for option in options)
    again = cloche.sh("cat /m/ext4/a /m/fat/b; stat -c %U /m/qcow2", *options)
    assert again.stdout == b"one\ntwo\nnobody\n", again.stderr


def test_memory_and_directories_of_the_guest(cloche: Runner, folder: Path) -> None:
    """Memory is the caller's and limited; a share lies in it; directories of the guest are shown at other places."""
    done = cloche.sh(
        "cd /scratch && dd if=/dev/zero of=big bs=1M count=9 2>&1 | grep -o 'No space'; ls -A /scratch/shared;"
        " rm big; echo x > f; cat /again/f; touch /fixed/f 2>&1 | grep -o Read-only; stat -c %u /scratch",
        *("--mount=ram:at=/scratch,size=8M", f"--share={folder}:at=/scratch/shared"),
        *("--mount=guest-bind:/scratch,at=/again", "--mount=guest-bind:/scratch,at=/fixed,ro"),
    )
    uid = cloche.user.entry.pw_uid
    assert done.stdout == f"No space\nx\nRead-only\n{uid}\n".encode(), done.stderr


def test_an_empty_disk_goes_with_the_machine(cloche: Runner) -> None:
    """It has the size that was asked for, takes no room of the host's, and leaves nothing."""
    script = "blockdev --getsize64 /dev/disk/by-tag/s; mkfs.ext4 -q /dev/disk/by-tag/s; "
    script += "cat /sys/block/vda/serial; echo; cat /sys/block/vdb/serial; "
    script += "cmp -n 4096 /dev/vdb /dev/zero && echo apart"
    done = cloche.sh(script, "--privileged", "--disk=s=size:3G", "--disk=t=size:3G")
    assert done.stdout == f"{3 << 30}\ns\ntapart\n".encode(), done.stderr
    left = cloche.user.run(["sh", "-c", "ls -A ${XDG_CACHE_HOME:-$HOME/.cache}/cloche/disks"])
    assert left.stdout == b""


def test_what_cannot_be_mounted(cloche: Runner, folder: Path, tree: Path) -> None:
    """Each ends with one sentence that names the image or the place, and none with a machine that runs on."""
    make(
        cloche,
        f"""cd {folder}; mke2fs -q -t ext4 -d tree a.ext4 8M; truncate -s 1M zeros; : > empty
        mksquashfs tree cut -quiet -no-progress; truncate -s 60 cut; head -c 1M /dev/urandom >> cut""",
    )
    make_partitioned(folder / "disk", folder / "a.ext4")
    qcow2 = folder / "q"
    qcow2.write_bytes(empty_qcow2(1 << 20))
    os.chown(qcow2, cloche.user.entry.pw_uid, cloche.user.entry.pw_gid)
    backed = folder / "backed"
    backed.write_bytes(backed_qcow2(8 << 20, os.fsencode(folder / "a.ext4")))
    image = f"--mount=host-image:{folder}"

    def refuse(status: int, *words: str, options: tuple[str, ...]) -> None:
        check_error(cloche(*options, "true"), status, *words)

    refuse(125, "no file system that", "zeros", options=(f"{image}/zeros,at=/m",))
    refuse(125, "no file system that", "part=N", options=(f"{image}/disk,at=/m",))
    refuse(125, "has no partition 7", options=(f"{image}/disk,at=/m,part=7",))
    refuse(125, "no squashfs file system", options=(f"{image}/a.ext4,at=/m,fs=squashfs",))
    refuse(125, "has no file system ntfs9", options=(f"{image}/a.ext4,at=/m,fs=ntfs9",))
    refuse(125, "cut", options=(f"{image}/cut,at=/m",))
    refuse(125, "it is empty", options=(f"{image}/empty,at=/m",))
    refuse(125, "it is neither a file nor", options=(f"{image}/tree,at=/m",))
    refuse(125, "No such file", options=(f"{image}/none,at=/m",))
    # In an image a place is only where it has one, and no link of it leads elsewhere.
    inner = f"--share={folder}:rw:at=/m"
    refuse(125, "has no such directory", options=(f"{image}/a.ext4,at=/m", inner + "/none"))
    refuse(125, "a symbolic link of what is at /m", options=(f"{image}/a.ext4,at=/m", inner + "/out"))
    refuse(125, "the guest has no such directory", options=("--mount=guest-bind:/nowhere,at=/m",))
    refuse(125, "looks like a qcow2 image", options=(f"{image}/q,at=/m",))
    # What it lies over is the owner's to read, and no guest's to choose.
    refuse(125, "denied", "without a backing file", options=(f"{image}/backed,format=qcow2,at=/m",))


def test_an_image_is_written_to_by_one_domain_only(cloche: Runner, folder: Path, tree: Path) -> None:
    """Several read it at once; whoever would write while another one has it is told so."""
    make(cloche, f"cd {folder}; mke2fs -q -t ext4 -d tree a.ext4 8M")
    mount = f"--mount=host-image:{folder}/a.ext4,at=/m"
    first = cloche.popen(mount, "sh", "-c", "echo up; read x", stdin=subprocess.PIPE)
    assert first.stdout is not None
    assert first.stdout.readline() == b"up\n"
    assert cloche(mount, "cat", "/m/file").stdout == b"inside\n"
    check_error(cloche(mount + ",rw", "true"), 125, "another domain has it")
    first.communicate(b"\n", timeout=60)


def test_a_list_names_what_is_copied_in(cloche: Runner, folder: Path, tree: Path) -> None:
    """Names in it are relative to it; what it says wrongly is told with its line."""
    (folder / "list").write_text("# what the program needs\n\n/etc/app/conf=tree/file\n/srv/copy=tree/sub\n")
    done = cloche.sh("cat /etc/app/conf; ls -d /srv/copy", f"-I{folder}/list", cwd=folder.parent)
    assert done.stdout == b"inside\n/srv/copy\n", done.stderr
    (folder / "list").write_text("/etc/app/conf=tree/file\nconf\n")
    check_error(cloche(f"-I{folder}/list", "true"), 125, "list, line 2")
    check_error(cloche(f"-I{folder}/none", "true"), 125, "No such file")
