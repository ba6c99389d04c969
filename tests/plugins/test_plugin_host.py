"""Plugin host on real installed metadata: one fixture distribution (`.dist-info` and a module) for every status."""

from __future__ import annotations

import logging
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tpo_core.contract import HeadSpec
from tpo_core.errors import HeadNotFound, PluginBroken, PluginClash, PluginError
from tpo_core.plugins import Plugins, find_commands, find_plugins, load_plugins

CARD = """
from tpo_core import HeadSpec, hookimpl

@hookimpl
def tpo_heads():
    return [HeadSpec(name={name!r}, summary="a head", config="{module}:Config", head="{module}:H", codec="{module}:C",
                     metric="{module}:M", primary="acc")]
"""

Install = Callable[..., Path]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder of installed packages, first on the path; its modules are forgotten afterwards."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    known = set(sys.modules)
    yield folder
    for name in set(sys.modules) - known:
        if name.startswith("plug_"):
            del sys.modules[name]


@pytest.fixture
def install(site: Path) -> Install:
    def write(
        package: str,
        source: str | None,
        *,
        version: str = "1.0",
        group: str = "tpo_core.v1",
        entry: str | None = None,
        points: str | None = None,
        folder: Path = site,
    ) -> Path:
        module = "plug_" + package.replace("-", "_")
        info = folder / f"{package.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(points or f"[{group}]\n{entry or package} = {module}\n")
        if source is not None:
            (folder / f"{module}.py").write_text(source)
        return folder / f"{module}.py"

    return write


def card(package: str, name: str) -> str:
    return CARD.format(name=name, module="plug_" + package.replace("-", "_"))


def load(site: Path, **options: object) -> Plugins:
    return load_plugins(path=[str(site)], env={}, **options)  # type: ignore[arg-type]  # options of the test's own choosing


def status(plugins: Plugins) -> dict[str, str]:
    return {entry.package: entry.status for entry in plugins.entries}


def test_ok(site: Path, install: Install) -> None:
    install("foo", card("foo", "foo"), version="2.1")
    plugins = load(site)
    (entry,) = plugins.entries
    assert (entry.name, entry.package, entry.version, entry.api, entry.status, entry.cause) == ("foo", "foo", "2.1", "v1", "ok", None)
    assert entry.heads == ("foo",)
    assert plugins.head("foo").summary == "a head"
    assert list(plugins.heads()) == ["foo"]
    assert plugins.owner("foo").label == "foo 2.1"


def test_broken_leaves_the_others_and_chains_its_cause(site: Path, install: Install) -> None:
    install("bad", "raise RuntimeError('boom\\nsecond line')")
    install("foo", card("foo", "foo"))
    plugins = load(site)
    assert status(plugins) == {"bad": "broken", "foo": "ok"}
    assert plugins.entries[0].cause == "importing plug_bad raised RuntimeError: boom"
    with pytest.raises(PluginBroken, match=r"plugin 'bad' \(bad 1.0\) is broken: .*boom") as caught:
        plugins.head("bad")
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("import sys; sys.exit(3)", "importing plug_bad raised SystemExit: 3"),
        ("import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("def broken(:", "SyntaxError"),
        (
            "from tpo_core import hookimpl\n@hookimpl\ndef tpo_heads():\n    yield 1 / 0\n",
            "its hooks raised ZeroDivisionError",
        ),
        (
            "from tpo_core import hookimpl\n@hookimpl\ndef tpo_heads():\n    return 3\n",
            "tpo_heads returned int, expected a list of HeadSpec",
        ),
        ("from tpo_core import hookimpl\n@hookimpl\ndef tpo_heads():\n    return ['foo']\n", "returned a str ('foo'), expected HeadSpec"),
        ("from tpo_core import hookimpl\n@hookimpl\ndef tpo_step_end(loss): pass\n", "PluginValidationError"),
        (card("bad", "Not A Name"), "ValueError: head name 'Not A Name' must match"),
    ],
)
def test_every_way_to_break_is_told_in_one_line(site: Path, install: Install, source: str, cause: str) -> None:
    install("bad", source)
    (entry,) = load(site).entries
    assert entry.status == "broken"
    assert entry.cause is not None
    assert cause in entry.cause
    assert "\n" not in entry.cause


def test_module_that_is_not_there_is_broken(site: Path, install: Install) -> None:
    install("ghost", None)
    (entry,) = load(site).entries
    assert entry.status == "broken"
    assert "No module named 'plug_ghost'" in str(entry.cause)


def test_unreadable_entry_points_are_one_packages_fault(site: Path, install: Install) -> None:
    install("odd", None, points="[tpo_core.v1]\nno equals sign\n")
    install("foo", card("foo", "foo"))
    plugins = load(site)
    assert status(plugins) == {"odd": "broken", "foo": "ok"}
    assert "entry_points.txt cannot be read" in str(plugins.entries[1].cause)


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("", "plug_void implements no hook"),
        ("def tpo_heads(): return []", "tpo_heads is not marked as a hook: put @tpo_core.hookimpl above it"),
        ("from tpo_core import hookimpl\n@hookimpl\ndef tpo_heads(): return []\n", "tpo_heads returned no card"),
    ],
)
def test_empty(site: Path, install: Install, source: str, cause: str) -> None:
    install("void", source)
    (entry,) = load(site).entries
    assert entry.status == "empty"
    assert cause in str(entry.cause)


def test_an_observer_alone_is_not_empty(site: Path, install: Install) -> None:
    install("watch", "from tpo_core import hookimpl\n@hookimpl\ndef tpo_step_end(step): pass\n")
    assert status(load(site)) == {"watch": "ok"}


def test_clash_neither_wins_and_only_a_run_that_names_it_fails(site: Path, install: Install) -> None:
    install("one", card("one", "foo") + "\n", version="1.2")
    install("two", card("two", "foo"), version="0.4")
    install("three", card("three", "bar"))
    plugins = load(site)
    assert status(plugins) == {"one": "clash", "two": "clash", "three": "ok"}
    assert list(plugins.heads()) == ["bar"]
    assert plugins.head("bar").name == "bar"
    for entry in (plugins.entries[0], plugins.entries[2]):
        assert "one 1.2 and two 0.4" in str(entry.cause)
    with pytest.raises(PluginClash, match=r"head 'foo' is announced by one 1.2 and two 0.4; none is used"):
        plugins.head("foo")
    assert load(site, only=["one"]).head("foo").name == "foo"


def test_a_package_that_announces_a_name_twice_clashes_with_itself(site: Path, install: Install) -> None:
    install("twin", card("twin", "foo").replace("return [", "return 2 * ["))
    plugins = load(site)
    assert status(plugins) == {"twin": "clash"}
    with pytest.raises(PluginClash, match=r"announced 2 times by twin 1.0"):
        plugins.head("foo")


@pytest.mark.parametrize(("group", "who"), [("tpo_core.v0", "upgrade old"), ("tpo_core.v9", "upgrade tpo")])
def test_another_contract_is_reported_without_import(site: Path, install: Install, group: str, who: str) -> None:
    marker = site / "imported"
    install("old", f"open({str(marker)!r}, 'w').close()", group=group)
    plugins = load(site)
    (entry,) = plugins.entries
    assert entry.status == "outdated"
    assert who in str(entry.cause)
    assert not marker.exists()
    with pytest.raises(PluginBroken, match="is outdated"):
        plugins.head("old")


def test_a_package_that_serves_two_contracts_is_not_outdated(site: Path, install: Install) -> None:
    install("both", card("both", "foo"), points="[tpo_core.v0]\nfoo = nowhere\n[tpo_core.v1]\nfoo = plug_both\n")
    assert status(load(site)) == {"both": "ok"}


def test_misspelt_hook_is_named_with_the_nearest(site: Path, install: Install) -> None:
    install("typo", card("typo", "foo") + "\n@hookimpl\ndef tpo_step_ends(step): pass\n")
    plugins = load(site)
    (entry,) = plugins.entries
    assert entry.status == "misspelt"
    assert entry.cause == "there is no hook 'tpo_step_ends'. Did you mean 'tpo_step_end'?"
    assert plugins.heads() == {}
    with pytest.raises(PluginBroken, match=r"head 'foo': plugin 'typo' \(typo 1.0\) is misspelt"):
        plugins.head("foo")


def test_unknown_head_names_the_nearest_and_what_is_not_usable(site: Path, install: Install) -> None:
    install("foo", card("foo", "region"))
    install("bad", "raise RuntimeError('boom')")
    with pytest.raises(HeadNotFound, match=r"Known: region. Did you mean 'region'\? Not usable: bad 1.0"):
        load(site).head("regoin")


def test_nothing_installed_says_so(site: Path) -> None:
    with pytest.raises(HeadNotFound, match="No plugin is installed at all"):
        load(site).head("region")


def test_named_plugins_only(site: Path, install: Install) -> None:
    marker = site / "imported"
    install("foo", card("foo", "foo"))
    install("bar", f"open({str(marker)!r}, 'w').close()")
    install("tpo", card("tpo", "built"), entry="built")
    plugins = load_plugins(path=[str(site)], env={"TPO_PLUGINS": "foo"})
    assert status(plugins) == {"tpo": "ok", "bar": "off", "foo": "ok"}
    assert not marker.exists()
    with pytest.raises(HeadNotFound, match=r"bar 1.0 may bring it, but TPO_PLUGINS does not name 'bar'"):
        plugins.head("bar")
    assert status(load_plugins(path=[str(site)], env={"TPO_PLUGINS": ""})) == {"tpo": "ok", "bar": "off", "foo": "off"}
    with pytest.raises(PluginError, match=r"names the plugin 'fo', which no installed package announces.* Did you mean 'foo'\?"):
        load_plugins(path=[str(site)], env={"TPO_PLUGINS": "fo"})


def test_strict_raises_at_once(site: Path, install: Install) -> None:
    install("foo", card("foo", "foo"))
    assert load_plugins(path=[str(site)], env={"TPO_STRICT_PLUGINS": "1"}).head("foo")
    install("bad", "raise RuntimeError('boom')")
    with pytest.raises(PluginBroken, match="boom") as caught:
        load_plugins(path=[str(site)], env={"TPO_STRICT_PLUGINS": "1"})
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert load_plugins(path=[str(site)], env={"TPO_STRICT_PLUGINS": "0"}).head("foo")


def test_strict_raises_on_a_clash(site: Path, install: Install) -> None:
    install("one", card("one", "foo"))
    install("two", card("two", "foo"))
    with pytest.raises(PluginClash, match=r"one 1.0 and two 1.0"):
        load(site, strict=True)


def test_an_editable_install_beside_a_wheel_is_one_plugin(site: Path, install: Install, tmp_path: Path) -> None:
    install("foo", card("foo", "foo"), version="2.0")
    install("Foo", None, version="1.0", entry="foo", folder=tmp_path / "later")
    plugins = load_plugins(path=[str(site), str(tmp_path / "later")], env={})
    assert [(entry.version, entry.status) for entry in plugins.entries] == [("2.0", "ok")]


def test_a_later_copy_that_announces_is_shadowed_by_a_first_that_does_not(site: Path, install: Install, tmp_path: Path) -> None:
    install("foo", card("foo", "foo"), version="2.0", points="[console_scripts]\nfoo = plug_foo:main\n")
    install("foo", None, version="1.0", folder=tmp_path / "later")
    assert find_plugins([str(site), str(tmp_path / "later")]) == []


def test_a_heavy_card_is_named_with_its_cost(site: Path, install: Install) -> None:
    (site / "jax.py").write_text("import time; time.sleep(0.06)")
    install("heavy", "import jax\n" + card("heavy", "foo"))
    install("light", card("light", "bar"))
    program = (
        "from tpo_core.plugins import load_plugins\n"
        f"for entry in load_plugins(path=[{str(site)!r}], env={{}}).entries: print(entry.package, '|', entry.status, '|', entry.note)\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(site)!r})\n{program}"], capture_output=True, text=True
    )
    assert out.stdout.splitlines() == ["heavy | ok | card imports jax, cost 0.1 s", "light | ok | None"], out.stderr


def test_observers_watch_but_may_not_steer_and_do_not_stop_each_other(
    site: Path, install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    head = "from tpo_core import hookimpl\nseen = []\n@hookimpl\n"
    install("alter", head + "def tpo_step_end(step, metrics): metrics['loss'] = 0.0\n")
    install("watch", head + "def tpo_step_end(step, metrics): seen.append((step, dict(metrics)))\n")
    metrics = {"loss": 1.5}
    with caplog.at_level(logging.WARNING):
        load(site).step_end(7, metrics)
    assert metrics == {"loss": 1.5}
    assert sys.modules["plug_watch"].seen == [(7, {"loss": 1.5})]
    assert "observer alter (alter 1.0) raised TypeError" in caplog.text


def test_backbones_and_readers(site: Path, install: Install) -> None:
    source = (
        "from tpo_core import BackboneSpec, ReaderSpec, hookimpl\n"
        "@hookimpl\ndef tpo_readers(): return [ReaderSpec('csv', 'rows', 'plug_{0}:read')]\n"
        "@hookimpl\ndef tpo_backbones(): return [BackboneSpec('{0}', ('qwen9_vl',), 'plug_{0}:Layout')]\n"
    )
    install("one", source.format("one"))
    plugins = load(site)
    assert plugins.reader("csv").summary == "rows"
    assert list(plugins.readers()) == ["csv"]
    served = plugins.backbone_of("qwen9_vl")
    assert served is not None
    assert served.name == "one"
    assert plugins.backbone_of("idefics3") is None
    with pytest.raises(PluginError, match=r"no installed package announces a reader 'cvs'. Known: csv. Did you mean 'csv'\?"):
        plugins.reader("cvs")
    install("two", source.format("two"))
    both = load(site)
    with pytest.raises(PluginClash, match=r"one 1.0 and two 1.0"):
        both.backbone_of("qwen9_vl")
    with pytest.raises(PluginClash, match="reader 'csv'"):
        both.reader("csv")


def test_commands_come_from_metadata_alone(site: Path, install: Install) -> None:
    marker = site / "imported"
    install("tool", f"open({str(marker)!r}, 'w').close()", points="[tpo_core.v1.commands]\nzoom = plug_tool:zoom\n")
    found = find_commands("tpo_core.v1.commands", [str(site)])
    assert [(name, one.target, one.package) for name, one in found.items()] == [("zoom", "plug_tool:zoom", "tool")]
    assert find_plugins([str(site)]) == []
    assert not marker.exists()


REAL = """
from tpo_core import Codec, Head, HeadConfig, Metric
class Config(HeadConfig): pass
class H(Head): pass
class C(Codec): pass
class M(Metric): pass
def draw(canvas, answers, target): pass
"""


def test_load_head_resolves_and_checks(site: Path, install: Install) -> None:
    install("foo", card("foo", "foo").replace('primary="acc"', 'primary="acc", draw="plug_foo:draw"') + REAL, version="3.0")
    loaded = load(site).load_head("foo")
    module = sys.modules["plug_foo"]
    assert (loaded.config, loaded.head, loaded.codec, loaded.metric) == (module.Config, module.H, module.C, module.M)
    assert loaded.draw is module.draw
    assert (loaded.name, loaded.package, loaded.version) == ("foo", "foo", "3.0")
    assert pickle.loads(pickle.dumps(loaded)) == loaded


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("class H(Head)", "class Hed(Head)"),
            r"head 'foo' \(foo 1.0\): plug_foo has no 'H'; correct the card",
        ),
        (("class H(Head)", "class H"), r"head = plug_foo:H is a class H, expected a subclass of tpo_core.head.Head"),
        (("class C(Codec): pass", "C = 3"), r"codec = plug_foo:C is a int, expected a subclass of tpo_core.head.Codec"),
        (("class Config(HeadConfig)", "class Config"), "expected a subclass of tpo_core.contract.HeadConfig"),
    ],
)
def test_a_card_that_names_the_wrong_thing(site: Path, install: Install, change: tuple[str, str], message: str) -> None:
    install("foo", card("foo", "foo") + REAL.replace(*change))
    with pytest.raises(PluginBroken, match=message):
        load(site).load_head("foo")


def test_a_class_that_does_not_import_chains_its_cause(site: Path, install: Install) -> None:
    install("foo", card("foo", "foo").replace("plug_foo:H", "plug_foo_missing:H") + REAL)
    plugins = load(site)
    assert plugins.config_class("foo").__name__ == "Config"
    with pytest.raises(PluginBroken, match=r"head 'foo' \(foo 1.0\): plug_foo_missing:H cannot be imported: ModuleNotFoundError") as caught:
        plugins.load_head("foo")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_resolve_any_reference(site: Path) -> None:
    assert load(site).resolve("tpo_core.contract:HeadSpec") is HeadSpec


def test_blame_adds_one_note(site: Path, install: Install) -> None:
    install("foo", card("foo", "foo") + REAL)
    plugins = load(site)
    with pytest.raises(KeyError) as caught, plugins.blame("foo"), plugins.load_head("foo").blame():
        raise KeyError("x")
    assert caught.value.__notes__ == ["in head 'foo' (foo 1.0)"]


def test_no_torch_until_a_head_is_loaded(site: Path, install: Install) -> None:
    install("foo", card("foo", "foo"))
    program = (
        f"import sys; sys.path.insert(0, {str(site)!r})\nfrom tpo_core.plugins import load_plugins\n"
        f"load_plugins(path=[{str(site)!r}], env={{}}).head('foo')\nprint('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert out.stdout.strip() == "False", out.stderr
