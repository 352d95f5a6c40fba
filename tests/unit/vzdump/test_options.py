"""Which options of a backup are in force."""

from pathlib import Path

import pytest

from pvetools.backup import options, select
from pvetools.options.backup import PruneBackups, VzdumpDefaults, VzdumpOptions
from pvetools.system import log
from pvetools.system.errors import ParamErrors, Refused

NOTHING = VzdumpDefaults.check({})


def given(**texts: str) -> VzdumpOptions:
    return VzdumpOptions.check({name.replace("_", "-"): text for name, text in texts.items()})


def messages(text: str) -> tuple[VzdumpDefaults, list[str]]:
    said: list[str] = []
    with log.console(said.append):
        return options.read_conf(text), said


def test_the_file_knows_comments_blank_lines_and_words_for_booleans():
    conf, said = messages("# nightly\n\n  mode: stop\nremove: no\nprotected:yes\nbwlimit: 1000\n")
    assert (conf.mode, conf.remove, conf.protected, conf.bwlimit) == ("stop", False, True, 1000)
    assert said == []


def test_exclude_path_may_be_repeated_and_holds_quoted_words():
    conf, _ = messages("exclude-path: /var/log '/my dir/?*'\nexclude-path: *.bak\n")
    assert conf.exclude_path == ["/var/log", "/my dir/?*", "*.bak"]


def test_lines_that_make_no_sense_warn_and_are_left_out():
    conf, said = messages("mode: sometimes\nnonsense\nfoo: bar\nexclude-path: 'open\nionice: 3\n")
    assert conf.given == {"ionice": 3}
    assert [line.split(":")[1].strip() for line in said] == [f"/etc/vzdump.conf line {n}" for n in (1, 2, 3, 4)]


def test_the_command_line_wins_over_the_file_and_the_file_over_defaults():
    settings = options.resolve(given(vmid="100", mode="suspend"), VzdumpDefaults.check({"mode": "stop", "zstd": "3"}))
    assert (settings.options.mode, settings.options.zstd, settings.options.ionice) == ("suspend", 3, 7)


def test_patterns_are_added_up_file_first_standard_last():
    conf = VzdumpDefaults.check({"exclude-path": ["a"]})
    settings = options.resolve(VzdumpOptions.check({"vmid": "100", "exclude-path": ["b", "c"]}), conf)
    assert settings.excludes == ("a", "b", "c", "/tmp/?*", "/var/tmp/?*", "/var/run/?*.pid")
    assert options.resolve(given(vmid="100", stdexcludes="0"), NOTHING).excludes == ()


def test_without_a_target_the_storage_local_is_taken():
    assert options.resolve(given(vmid="100"), NOTHING).storage == "local"


def test_a_target_on_the_command_line_hides_those_of_the_file(tmp_path: Path):
    conf = VzdumpDefaults.check({"storage": "nas"})
    assert options.resolve(given(vmid="100", dumpdir=str(tmp_path)), conf).storage == ""
    assert options.resolve(given(vmid="100", dumpdir=str(tmp_path)), conf).dumpdir == tmp_path
    assert options.resolve(given(vmid="100", stdout="1"), conf).storage == ""
    assert options.resolve(given(vmid="100"), conf).storage == "nas"


def test_of_two_targets_in_the_file_the_storage_wins_with_a_warning(tmp_path: Path):
    conf = VzdumpDefaults.check({"storage": "nas", "dumpdir": str(tmp_path)})
    said: list[str] = []
    with log.console(said.append):
        settings = options.resolve(given(vmid="100"), conf)
    assert (settings.storage, settings.dumpdir) == ("nas", None)
    assert "dumpdir" in said[0]


def test_two_targets_on_the_command_line_are_an_error(tmp_path: Path):
    with pytest.raises(ParamErrors, match="dumpdir"):
        options.resolve(given(vmid="100", storage="local", dumpdir=str(tmp_path)), NOTHING)


def test_performance_is_merged_by_its_parts_and_fleecing_is_not():
    conf = VzdumpDefaults.check({"performance": "max-workers=4,pbs-entries-max=5", "fleecing": "1,storage=fast"})
    settings = options.resolve(given(vmid="100", performance="max-workers=2"), conf)
    assert settings.workers == 2
    assert settings.options.performance.pbs_entries_max == 5
    assert settings.options.fleecing.storage == "fast"


def test_retention_comes_from_command_line_then_storage_then_file():
    conf = VzdumpDefaults.check({"prune-backups": "keep-last=3"})
    storage = PruneBackups.parse("keep-daily=2")
    assert options.resolve(given(vmid="1000"), conf, storage).keep == {"keep-daily": 2}
    assert options.resolve(given(vmid="1000"), conf).keep == {"keep-last": 3}
    own = given(vmid="1000", prune_backups="keep-yearly=1")
    assert options.resolve(own, conf, storage).keep == {"keep-yearly": 1}


def test_the_outdated_maxfiles_stands_for_keep_last():
    with log.console(lambda line: None):
        assert options.resolve(given(vmid="100", maxfiles="4"), NOTHING).keep == {"keep-last": 4}


def test_keep_all_beside_a_limit_is_an_error():
    with pytest.raises(ParamErrors, match="keep-all"):
        options.resolve(given(vmid="100", prune_backups="keep-all=1,keep-last=2"), NOTHING)


@pytest.mark.parametrize(
    "texts",
    [
        {"pool": "p"},
        {"vmid": "100", "notification_mode": "notification-system"},
        {"vmid": "100", "pbs_change_detection_mode": "data"},
        {"vmid": "100", "performance": "pbs-entries-max=3"},
    ],
)
def test_what_has_no_effect_here_is_refused_by_name(texts: dict[str, str]):
    with pytest.raises(Refused, match=list(texts)[-1].replace("_", "-").replace("performance", "pbs-entries-max")):
        options.resolve(given(**texts), NOTHING)


def test_all_wrong_values_are_reported_at_once():
    texts = {
        "vmid": "100", "tmpdir": "/does/not/exist", "notes_template": "{{what}}", "storage": "local", "fleecing": "1",
        "stdout": "1",
    }  # fmt: skip
    with pytest.raises(ParamErrors) as caught:
        options.resolve(given(**texts), NOTHING)
    assert set(caught.value.errors) == {"tmpdir", "notes-template", "fleecing", "stdout"}


@pytest.mark.parametrize(
    ("texts", "wrong"),
    [
        ({"vmid": "100", "all": "1"}, "all"),
        ({"vmid": "100", "exclude": "101"}, "all"),
        ({"vmid": "100", "pool": "p"}, "pool"),
        ({}, "vmid"),
    ],
)
def test_guests_are_chosen_in_exactly_one_way(texts: dict[str, str], wrong: str):
    with pytest.raises(ParamErrors) as caught:
        select.check(given(**texts))
    assert list(caught.value.errors) == [wrong]


def test_stop_needs_no_guests_and_exclude_means_all():
    select.check(given(stop="1"))
    select.check(given(exclude="100"))
    assert select.included(given(exclude="100"), {100: "a", 101: "a"}, lambda pool: ()) == {"a": [101]}


def test_defaults_show_every_value_in_force():
    shown = options.defaults(VzdumpDefaults.check({"mode": "stop"}), PruneBackups.parse("keep-last=2"))
    assert (shown["mode"], shown["zstd"], shown["prune-backups"], shown["remove"]) == ("stop", 1, "keep-last=2", 1)
    assert options.defaults(NOTHING, None)["remove"] == 0
