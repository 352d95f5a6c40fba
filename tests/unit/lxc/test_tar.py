"""Container archives: the members of a stream, what may be unpacked, and GNU tar at work."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvetools.guest.lxc import tar
from pvetools.guest.lxc.idmap import Entry, IdMap
from pvetools.guest.lxc.tar_members import Member, Rules, Scanner, TarError
from pvetools.system.errors import NotFound, PveError
from tests.unit.backup.samples import Feed, Sink

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="makes device nodes and changes owners: needs root")


def entry(name: str, data: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def link(name: str, target: str, *, hard: bool = False) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=tarfile.LNKTYPE if hard else tarfile.SYMTYPE, linkname=target)


def device(name: str, kind: bytes = tarfile.CHRTYPE) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=kind, devmajor=1, devminor=3)


def folder(name: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=tarfile.DIRTYPE, mode=0o755)


def archive(*entries: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as file:
        for info, data in entries:
            file.addfile(info, io.BytesIO(data))
    return out.getvalue()


def scan(data: bytes, piece: int = 4096, wanted: tuple[str, ...] = ()) -> list[Member]:
    scanner = Scanner(wanted)
    found = [m for at in range(0, len(data), piece) for m in scanner.feed(memoryview(data)[at : at + piece])]
    scanner.close()
    return found


def check(data: bytes, *, devices: bool = True) -> int:
    with Feed(data) as fd:
        return tar.check(fd, devices=devices)


# --- the scanner -------------------------------------------------------------------------------------------------

LONG = "./" + "d" * 90 + "/" + "f" * 120


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("piece", [512, 1024, 1 << 20])
def test_members_are_seen_in_every_format(form: int, piece: int) -> None:
    entries = [
        folder("./"), entry("./a", b"x" * 3000), link("./b", "a"), link("./c", "./a", hard=True), device("./null"),
        device("./disk", tarfile.BLKTYPE), entry("./pipe", type=tarfile.FIFOTYPE), entry("./empty"),
    ]  # fmt: skip
    if form != tarfile.USTAR_FORMAT:
        entries += [entry(LONG, b"y" * 600), link("./" + "l" * 150, "t" * 150), entry("./ümlaut\udc80", b"z")]
    found = scan(archive(*entries, form=form), piece)
    with tarfile.open(fileobj=io.BytesIO(archive(*entries, form=form))) as file:
        expected = file.getmembers()
    assert [m.name.rstrip("/") for m in found] == [m.name.rstrip("/") for m in expected]
    assert [m.link for m in found] == [m.linkname for m in expected]
    assert [m.size for m in found] == [m.size for m in expected]
    kinds = ["directory", "file", "symlink", "hard link", "character device", "block device", "fifo", "file"]
    assert [m.kind for m in found][:8] == kinds


names = st.text(
    st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=("Cs",)), min_size=1, max_size=180
)


@settings(deadline=None, max_examples=80)
@given(st.lists(st.tuples(names, st.binary(max_size=2000)), max_size=12), st.integers(1, 9), st.booleans())
def test_any_names_and_contents_are_read_as_python_reads_them(
    files: list[tuple[str, bytes]], sectors: int, gnu: bool
) -> None:
    form = tarfile.GNU_FORMAT if gnu else tarfile.PAX_FORMAT
    data = archive(*(entry(name.strip("/") or "x", content) for name, content in files), form=form)
    with tarfile.open(fileobj=io.BytesIO(data)) as file:
        expected = [(m.name, m.size) for m in file.getmembers()]
    assert [(m.name, m.size) for m in scan(data, 512 * sectors)] == expected


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_damage_never_ends_in_anything_but_our_error(data: st.DataObject) -> None:
    raw = bytearray(archive(folder("./a"), entry(LONG, b"x" * 700), link("./c", "./a"), entry("./d", b"y")))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        scan(bytes(raw[: data.draw(st.integers(0, len(raw)))]))
    except TarError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("cut", [0, 100, 512, 600, 1536, 5000])
def test_a_truncated_stream_is_noticed(cut: int) -> None:
    data = archive(entry("./a", b"x" * 1000), entry("./b", b"y" * 3000))
    with pytest.raises(TarError, match="cut short"):
        scan(data[:cut])


def test_damaged_and_foreign_headers_are_noticed() -> None:
    data = bytearray(archive(entry("./a", b"x")))
    data[3] ^= 1
    with pytest.raises(TarError, match="wrong checksum"):
        scan(bytes(data))
    with pytest.raises(TarError, match="damaged"):
        scan(os.urandom(4096))
    with pytest.raises(TarError, match="unknown type"):
        scan(archive(entry("./a", type=b"M")))


def test_huge_extended_headers_are_refused() -> None:
    with pytest.raises(TarError, match="extended header of"):
        scan(archive(entry("./a", pax_headers={"comment": "x" * (2 << 20)})))


def test_a_global_header_must_not_name_files() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"path": "../x"}) as file:
        file.addfile(entry("./a")[0])
    with pytest.raises(TarError, match="global header"):
        scan(out.getvalue())


# --- the rules ---------------------------------------------------------------------------------------------------

BAD = {
    "absolute name": ([entry("/etc/passwd", b"x")], "'/etc/passwd' points outside"),
    "parent folder": ([entry("./a/../../x", b"x")], "points outside"),
    "parent folder, long name": ([entry("./" + "a/" * 80 + "../" * 90 + "x", b"x")], "points outside"),
    "hard link to an absolute name": ([link("./a", "/etc/shadow", hard=True)], "hard link to '/etc/shadow'"),
    "hard link to a parent folder": ([link("./a", "./../x", hard=True)], "hard link to './../x'"),
    "file behind an absolute link": ([link("./a", "/etc"), entry("./a/passwd", b"x")], "behind the link 'a'"),
    "file behind a climbing link": ([link("./d/a", "../../../etc"), entry("d/./a/x", b"")], "behind the link 'd/a'"),
    "folder behind a link": ([link("./a", "/"), folder("./a//etc")], "behind the link 'a'"),
    "hard link to such a link": (
        [link("./a", "/etc"), link("./b", "./a", hard=True), entry("./b/passwd", b"x")],
        "behind the link 'b'",
    ),
    "hard link through such a link": ([link("./a", "/etc"), link("./b", "a/shadow", hard=True)], "behind the link 'a'"),
    "link replaced by a folder": ([link("./a", "/etc"), folder("./a"), entry("./a/x", b"")], "behind the link 'a'"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_members_that_point_outside_are_refused_and_nothing_is_written_outside(
    case: str, form: int, tmp_path: Path
) -> None:
    entries, message = BAD[case]
    data = archive(folder("./"), *entries, entry("./last", b"x"), form=form)
    with pytest.raises(TarError, match=message):
        check(data)
    root = tmp_path / "deep" / "root"
    root.mkdir(parents=True)
    with Feed(data) as fd, pytest.raises(TarError, match=message):
        tar.extract(fd, tar.extract_command(root), devices=True, log=lambda line: None)
    assert [path for path in tmp_path.rglob("*") if root not in path.parents] == [tmp_path / "deep", root]
    assert not (root / "last").exists()


@pytest.mark.parametrize("case", BAD)
def test_gnu_tar_itself_would_not_write_outside_either(case: str, tmp_path: Path) -> None:
    """The second line of defence: what if a member slipped past our own look?"""
    from pvetools.system.run import run

    root = tmp_path / "deep" / "root"
    root.mkdir(parents=True)
    before = Path("/etc/passwd").read_bytes()
    run([*tar.extract_command(root)], stdin=archive(folder("./"), *BAD[case][0]), check=False)
    assert [path for path in tmp_path.rglob("*") if root not in path.parents] == [tmp_path / "deep", root]
    assert Path("/etc/passwd").read_bytes() == before


FINE = {
    "links that lead out, with nothing behind them": [link("./etc/mtab", "/proc/mounts"), link("./run", "../../run")],
    "file behind a link that stays inside": [link("./bin", "usr/bin"), entry("./bin/x", b"x")],
    "dots in names": [entry("./a..b", b"x"), entry("./...", b"x"), entry("./..x/y", b"x")],
    "names without dot": [entry("etc/passwd", b"x"), link("etc/p", "etc/passwd", hard=True)],
}


@pytest.mark.parametrize("case", FINE)
def test_ordinary_oddities_are_accepted(case: str) -> None:
    assert check(archive(*FINE[case])) == len(FINE[case])


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_device_nodes_are_for_privileged_containers_or_below_dev(kind: bytes) -> None:
    data = archive(device("./dev/null", kind), device("./srv/null", kind))
    assert check(data, devices=True) == 2
    with pytest.raises(TarError, match=r"'\./srv/null' is a (character|block) device"):
        check(data, devices=False)
    assert check(archive(device("./dev/null", kind)), devices=False) == 1


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "..", ".", ""]), min_size=1, max_size=6))
def test_no_spelling_of_a_path_leaves_the_tree(parts: list[str]) -> None:
    name = "/".join(parts) or "x"
    outside = name.startswith("/") or ".." in parts
    rules = Rules(devices=True)
    if outside:
        with pytest.raises(TarError):
            rules.check(Member(name, "file", "", 0))
    else:
        rules.check(Member(name, "file", "", 0))


# --- making and unpacking ----------------------------------------------------------------------------------------


def config_folder(base: Path, firewall: str = "") -> Path:
    inner = base / "config" / "etc" / "vzdump"
    inner.mkdir(parents=True)
    (inner / "pct.conf").write_text("arch: amd64\nhostname: ct\n")
    (inner / "pct.fw").write_text(firewall)
    return base / "config"


def pack(base: Path, root: Path, log: Callable[[str], None] = lambda line: None, **options: object) -> bytes:
    argv = tar.create_command(config_folder(base), root, **options)  # type: ignore[arg-type]
    with Sink() as sink:
        tar.create(sink.fd, argv, log=log)
    return sink.data


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for name in ("etc", "tmp/sub", "var/tmp", "var/run", "srv/lost+found", "srv/data"):
        (root / name).mkdir(parents=True)
    for name in (
        "etc/hosts",
        "tmp/a",
        "tmp/sub/b",
        "var/tmp/c",
        "var/run/x.pid",
        "var/run/.pid",
        "srv/data/x.log",
        "x.log",
    ):
        (root / name).write_text(name)
    return root


def test_the_configuration_comes_first_whatever_is_excluded(tree: Path, tmp_path: Path) -> None:
    found = scan(pack(tmp_path, tree, excludes=["/etc/*", "pct.conf", "/*"]))
    assert [m.name for m in found[:2]] == [tar.CONFIG, tar.FIREWALL]


def test_excludes_anchored_and_not(tree: Path, tmp_path: Path) -> None:
    names = {m.name for m in scan(pack(tmp_path, tree, excludes=[*tar.STANDARD_EXCLUDES, "/x.log"]))}
    assert {"./tmp/", "./var/tmp/", "./var/run/.pid", "./srv/data/x.log", "./srv/lost+found/"} <= names
    assert not {"./tmp/a", "./tmp/sub/", "./var/tmp/c", "./var/run/x.pid", "./x.log"} & names


def test_unanchored_excludes_match_at_any_depth(tree: Path, tmp_path: Path) -> None:
    names = {m.name for m in scan(pack(tmp_path, tree, excludes=["*.log"]))}
    assert "./etc/hosts" in names
    assert not {"./x.log", "./srv/data/x.log"} & names


def test_patterns_that_match_nothing_are_pointed_out() -> None:
    assert tar.useless_excludes(["/srv/", "/srv", "a/"]) == ["/srv/", "a/"]


def test_lost_and_found_stays_out_of_unprivileged_archives() -> None:
    assert tar.exclude_options(["/x"], unprivileged=True)[:2] == ["--no-anchored", "--exclude=lost+found"]
    assert tar.exclude_options(["/x", "y"], unprivileged=False) == [
        "--anchored", "--exclude=./x", "--no-anchored", "--exclude=y",
    ]  # fmt: skip


@root_only
def test_what_is_packed_comes_back_with_all_its_attributes(tree: Path, tmp_path: Path) -> None:
    host = tree / "etc/hosts"
    os.chown(host, 1234, 4321)
    host.chmod(0o4750)
    os.setxattr(host, "user.note", b"remember")
    os.utime(host, (1_000_000_000, 1_100_000_000))
    (tree / "link").symlink_to("/etc/hosts")
    os.link(host, tree / "hard")
    os.mknod(tree / "null", 0o20666, os.makedev(1, 3))
    os.mkfifo(tree / "pipe")
    with (tree / "sparse").open("wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"middle")
    said: list[str] = []
    data = pack(tmp_path, tree, said.append)
    assert len(data) < 1 << 20
    assert any(line.startswith("Total bytes written:") for line in said)
    root = tmp_path / "back"
    root.mkdir()
    with Feed(data) as fd:
        members = tar.extract(fd, tar.extract_command(root), devices=True, log=said.append)
    assert members == len(scan(data))
    back = root / "etc/hosts"
    info = back.stat()
    assert (info.st_uid, info.st_gid, info.st_mode & 0o7777, info.st_mtime) == (1234, 4321, 0o4750, 1_100_000_000)
    assert os.getxattr(back, "user.note") == b"remember"
    assert info.st_ino == (root / "hard").stat().st_ino
    assert (root / "link").readlink() == Path("/etc/hosts")
    assert (root / "null").stat().st_rdev == os.makedev(1, 3)
    assert (root / "pipe").is_fifo()
    sparse = (root / "sparse").stat()
    assert (sparse.st_size, sparse.st_blocks * 512 < 1 << 20) == (64 << 20, True)
    assert (root / "sparse").read_bytes() == (tree / "sparse").read_bytes()
    assert (root / "etc/vzdump/pct.conf").read_text() == "arch: amd64\nhostname: ct\n"


@root_only
def test_devices_below_dev_are_never_unpacked(tmp_path: Path) -> None:
    with Feed(archive(folder("./"), folder("./dev"), device("./dev/null"), device("./null"))) as fd:
        tar.extract(fd, tar.extract_command(tmp_path), devices=True, log=lambda line: None)
    assert list((tmp_path / "dev").iterdir()) == []
    assert (tmp_path / "null").exists()


def test_a_speed_limit_slows_both_directions(tmp_path: Path) -> None:
    import time

    root = tmp_path / "tree"
    root.mkdir()
    (root / "data").write_bytes(os.urandom(1 << 20))
    argv = tar.create_command(config_folder(tmp_path), root)
    started = time.monotonic()
    with Sink() as sink:
        tar.create(sink.fd, argv, limit=4 << 20, log=lambda line: None)
    assert 0.2 < time.monotonic() - started < 10
    assert "./data" in {m.name for m in scan(sink.data)}
    started = time.monotonic()
    (tmp_path / "back").mkdir()
    with Feed(sink.data) as fd:
        tar.extract(fd, tar.extract_command(tmp_path / "back"), devices=True, limit=4 << 20, log=lambda line: None)
    assert 0.2 < time.monotonic() - started < 10


def test_tars_failure_is_told_with_its_words(tmp_path: Path) -> None:
    argv = tar.create_command(config_folder(tmp_path), tmp_path / "missing")
    with Sink() as sink, pytest.raises(PveError, match=r"tar failed: .*missing.*No such file .*\(exit code 2\)"):
        tar.create(sink.fd, argv, log=lambda line: None)


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_a_failing_compressor_is_the_reason_not_the_tar_that_could_not_write(limit: int, tmp_path: Path) -> None:
    from pvetools.system import compress

    root = tmp_path / "tree"
    root.mkdir()
    (root / "data").write_bytes(os.urandom(4 << 20))
    argv = tar.create_command(config_folder(tmp_path), root)
    with (
        pytest.raises(PveError, match=r"wrong exit status 5 \(no room\)"),
        compress.writing(tmp_path / "out", ["sh", "-c", "head -c 1000; echo no room >&2; exit 5"]) as fd,
    ):
        tar.create(fd, argv, limit=limit, log=lambda line: None)
    assert not (tmp_path / "out").exists()


def test_errors_of_tar_while_unpacking_fail_or_are_ignored_on_demand(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("in the way")
    data = archive(entry("./a/b", b"x"), entry("./c", b"y"))
    said: list[str] = []
    with Feed(data) as fd, pytest.raises(PveError, match=r"tar failed: \./a/b: Cannot open: Not a dir.*exit code 2"):
        tar.extract(fd, tar.extract_command(tmp_path), devices=True, log=said.append)
    with Feed(data) as fd:
        tar.extract(fd, tar.extract_command(tmp_path), devices=True, ignore_errors=True, log=said.append)
    assert (tmp_path / "c").read_text() == "y"
    assert any("./a" in line for line in said)


BIG = archive(*(entry(f"./{number}", os.urandom(1 << 20)) for number in range(4)))


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("kill -9 $$", r"tar failed: no message \(exit code -9\)"),
        ("head -c 100000 >/dev/null; kill -9 $$", r"tar failed: no message \(exit code -9\)"),
        ("cat >/dev/null; exit 1", r"tar failed: no message \(exit code 1\)"),
        ("head -c 100000 >/dev/null; exit 2", "tar ended before the end of the archive"),
        ("head -c 100000 >/dev/null; echo Total bytes read: 1 >&2; exit 2", "tar ended before the end of the archive"),
        ("cat >/dev/null", "tar ended before the end of the archive"),  # killed in a user namespace
    ],
)
def test_a_tar_that_was_killed_is_never_ignored(script: str, sentence: str) -> None:
    with Feed(BIG) as fd, pytest.raises(PveError, match=sentence):
        tar.extract(fd, ["sh", "-c", script], devices=True, ignore_errors=True, log=lambda line: None)


def test_many_words_do_not_hide_that_tar_came_to_its_end(tmp_path: Path) -> None:
    data = archive(entry("./x", b"x"))
    script = 'yes tar: a warning | head -c 3000000 >&2; exec tar -xf - --totals -C "$1"'
    with Feed(data) as fd:
        tar.extract(fd, ["sh", "-c", script, "sh", str(tmp_path)], devices=True, log=lambda line: None)
    assert (tmp_path / "x").exists()


@pytest.mark.parametrize("cut", [700, 20000, -1100])
def test_a_truncated_archive_fails_while_it_is_unpacked(cut: int, tmp_path: Path) -> None:
    data = archive(entry("./a", os.urandom(9000)), entry("./b", os.urandom(50000)))
    data = data[: len(data) - len(data) % 10240 if cut < 0 else cut]
    data = data.rstrip(b"\0")[:cut] if cut < 0 else data
    with Feed(data) as fd, pytest.raises(PveError, match="cut short"):
        tar.extract(fd, tar.extract_command(tmp_path), devices=True, log=lambda line: None)


def test_what_follows_the_end_mark_is_not_given_to_tar(tmp_path: Path) -> None:
    data = archive(entry("./a", b"x")) + archive(entry("../evil", b"x"))
    with Feed(data) as fd:
        assert tar.extract(fd, tar.extract_command(tmp_path), devices=True, log=lambda line: None) == 1


# --- the configuration in an archive -----------------------------------------------------------------------------


def test_the_configuration_is_found_without_reading_the_rest(tree: Path, tmp_path: Path) -> None:
    (tree / "etc/vzdump").mkdir()
    (tree / "etc/vzdump/pct.conf").write_text("an older one that was restored and left there")
    data = pack(tmp_path, tree)
    with Feed(data[:4096] + os.urandom(200_000)) as fd:
        assert tar.read_configs(fd) == ("arch: amd64\nhostname: ct\n", "")


def test_firewall_rules_come_with_it() -> None:
    data = archive(entry(tar.CONFIG, b"a: 1\n"), entry(tar.FIREWALL, b"[OPTIONS]\n"), entry("./x", b"y"))
    with Feed(data) as fd:
        assert tar.read_configs(fd) == ("a: 1\n", "[OPTIONS]\n")
    with Feed(archive(entry(tar.CONFIG, b""), entry("./x", b"y"), entry(tar.FIREWALL, b"late"))) as fd:
        assert tar.read_configs(fd) == ("", "")


def test_a_configuration_further_back_is_found_too() -> None:
    with Feed(archive(folder("./"), entry("./x", b"y" * 300_000), entry(tar.CONFIG, b"a: 1\n"))) as fd:
        assert tar.read_configs(fd) == ("a: 1\n", "")


def test_an_archive_without_configuration_is_no_backup() -> None:
    with (
        Feed(archive(folder("./"), link(tar.CONFIG, "/etc/passwd"))) as fd,
        pytest.raises(NotFound, match=r"pct\.conf"),
    ):
        tar.read_configs(fd)


def test_id_maps_wrap_the_command() -> None:
    ids = IdMap((Entry("u", 0, 100000, 65536), Entry("g", 0, 200000, 65536)))
    wrapped = tar.extract_command(Path("/x"), ids)
    assert wrapped[:11] == [
        "lxc-usernsexec", "-m", "u:0:100000:65536", "-m", "g:0:200000:65536", "--",
        "setpriv", "--pdeathsig", "KILL", "--", "tar",
    ]  # fmt: skip
    assert wrapped[10:] == tar.extract_command(Path("/x"))
