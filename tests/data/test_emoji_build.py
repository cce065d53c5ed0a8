"""The builder on tiny tarballs made on the spot: deterministic, and safe with hostile ones."""

import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from vlalign import cli
from vlalign.data import emoji_build
from vlalign.data.emoji import LANGUAGES, Emoji
from vlalign.errors import UserError

Png = Callable[..., bytes]


def _entry(code: str, name: str, short: str, **changes: object) -> dict[str, object]:
    entry = {
        "name": name,
        "unified": code,
        "image": f"{code.lower()}.png",
        "short_names": [short],
        "category": "Symbols",
        "subcategory": "heart",
        "has_img_google": True,
        "has_img_twitter": True,
    }
    return {**entry, **changes}


ENTRIES = [
    _entry("2764-FE0F", "HEAVY BLACK HEART", "heart"),
    _entry("1F1EB-1F1F7", "France Flag", "flag-fr", category="Flags"),
    _entry("1F6B6-200D-27A1-FE0F", "PERSON WALKING", "person_walking_facing_right"),
    _entry("1F600", "GRINNING FACE", "grinning", has_img_twitter=False),
]


def _tarball(path: Path, members: Mapping[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def _annotations(language: str) -> bytes:
    heart = {"tts": [f"heart in {language}"], "default": ["love", "a, b", "love"]}
    return json.dumps({"annotations": {"annotations": {"\u2764": heart}}}).encode()


@pytest.fixture
def tarballs(tmp_path: Path, png: Png) -> Path:
    folder = tmp_path / "npm"
    folder.mkdir()
    emoji = json.dumps(ENTRIES).encode()
    _tarball(
        folder / emoji_build.EMOJI_PACKAGE,
        {
            "../outside.txt": b"x",
            "/absolute.txt": b"x",
            "package/emoji.json": emoji,
            "package/LICENSE": b"MIT",
        },
    )
    annotations = {
        f"package/annotations/{language}/annotations.json": _annotations(language)
        for language in LANGUAGES
    }
    _tarball(folder / emoji_build.CLDR_PACKAGE, {"package/LICENSE": b"Unicode", **annotations})
    for value, (package, style) in enumerate(emoji_build.STYLE_PACKAGES.values()):
        image = png(np.full((64, 64, 4), 100 * value + 50, np.uint8))
        names = [f"package/img/{style}/64/{entry['image']}" for entry in ENTRIES]
        _tarball(folder / package, dict.fromkeys(names, image))
    return folder


def test_builds_the_same_bytes_again(tarballs: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    out, again = tmp_path / "out", tmp_path / "again"
    sizes = emoji_build.build(tarballs, out, progress=lambda *step: seen.append(step))
    emoji_build.build(tarballs, again)
    assert {"noto.array_record", "twemoji.array_record", "ATTRIBUTION.md"} <= set(sizes)
    for name in sizes:
        assert (out / name).read_bytes() == (again / name).read_bytes()
    assert seen[-1] == ("twemoji", 3, 3)
    assert not list(tmp_path.rglob("*.txt*outside*"))
    assert not (tmp_path / "outside.txt").exists()


def test_what_is_built_is_a_source(tarballs: Path, tmp_path: Path) -> None:
    emoji_build.build(tarballs, tmp_path / "out")
    source = Emoji(directory=str(tmp_path / "out"), languages=("en", "fr"), style="twemoji")
    assert [source[i].label for i in range(len(source))] == [
        "heart in en",
        "flag: France",
        "person walking",
    ]
    assert [caption.text for caption in source[0].captions] == [
        "heart in en",
        "love, a b",
        "heart in fr",
        "love, a b",
    ]
    assert [caption.text for caption in source[1].captions] == ["flag: France", "flag, fr"]
    assert source[2].captions[1].text == "person, walking, facing, right"


def test_the_command(tarballs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    assert cli.main(["data", "build", "emoji", "--from", str(tarballs), "--out", out]) == 0
    assert "noto.array_record" in capsys.readouterr().out
    assert len(Emoji(directory=out)) == 3


@pytest.mark.parametrize("missing", ["folder", "tarball", "file"])
def test_the_command_says_what_is_missing(
    missing: str, tarballs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package = tarballs / emoji_build.STYLE_PACKAGES["twemoji"][0]
    folder = tmp_path / "none" if missing == "folder" else tarballs
    if missing == "tarball":
        package.unlink()
    if missing == "file":
        _tarball(package, {})
    arguments = ["data", "build", "emoji", "--from", str(folder), "--out", str(tmp_path / "out")]
    assert cli.main(arguments) == 2
    assert {
        "folder": "none: no such folder",
        "tarball": "fetch it with: npm pack emoji-datasource-twitter@16.0.0",
        "file": "has no file package/img/twitter/64/2764-fe0f.png",
    }[missing] in capsys.readouterr().err


def test_damaged_tarballs(tarballs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tarballs / emoji_build.EMOJI_PACKAGE
    whole = package.read_bytes()
    package.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="is damaged"):
        emoji_build.build(tarballs, tmp_path / "out")
    _tarball(package, {"package/emoji.json": b"{", "package/LICENSE": b""})
    with pytest.raises(UserError, match=r"package/emoji\.json is not JSON"):
        emoji_build.build(tarballs, tmp_path / "out")
    package.write_bytes(whole)
    monkeypatch.setattr(emoji_build, "_MAX_JSON", 10)
    with pytest.raises(UserError, match=r"emoji\.json has \d+ bytes, more than 10"):
        emoji_build.build(tarballs, tmp_path / "out")


def test_a_damaged_image_is_named(tarballs: Path, tmp_path: Path) -> None:
    package, style = emoji_build.STYLE_PACKAGES["noto"]
    names = [f"package/img/{style}/64/{entry['image']}" for entry in ENTRIES]
    _tarball(tarballs / package, dict.fromkeys(names, b"no png"))
    with pytest.raises(UserError, match="emoji image 2764-fe0f is damaged"):
        emoji_build.build(tarballs, tmp_path / "out")
